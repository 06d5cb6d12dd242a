import { setTimeout as delay } from 'node:timers/promises';
import { ApplicationFailure } from '@temporalio/activity';
import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import { type HostState, hostQuery, hostWorkflowId, migrationWorkflowId, repairWorkflowId } from '../workflows/messages';

const LISTED_MS = 1_500;

export type FleetActivities = ReturnType<typeof fleetActivities>;

/** Run by the control worker: what hosts say of themselves. */
export function fleetActivities(client: Client) {
  return {
    /** The host that has this guest. Refuses, with what is known, if there is none, or if `to` is that host or unknown. */
    async locateGuest({ guest, to }: { guest: string; to: string }): Promise<{ from: string }> {
      const on = (host: HostState) => host.guests.some(({ name, state }) => name === guest && !state.startsWith('arriving') && !state.startsWith('handed over'));
      let hosts = await knownHosts(client, [to]);
      if (!hosts.some(on)) {
        // The list of hosts lags behind by about a second.
        await delay(LISTED_MS);
        hosts = await knownHosts(client, [to]);
      }
      const names = hosts.map(({ name }) => name);
      const having = hosts.filter(on);
      const reasons: string[] = [];
      if (!names.includes(to)) reasons.push(`there is no host "${to}" (known are: ${names.join(', ') || 'none; start an agent'})`);
      if (having.length === 0) reasons.push(`no host has a guest "${guest}" (known are: ${hosts.flatMap((host) => host.guests.map(({ name }) => `${name} on ${host.name}`)).sort().join(', ') || 'none'})`);
      if (having.length > 1) reasons.push(`guest "${guest}" is on ${having.map(({ name }) => name).join(' and ')}: find out which copy runs before it is moved (vmferry repair ${guest} shows what is where)`);
      if (await isRunning(client, repairWorkflowId(guest))) reasons.push(`guest "${guest}" is being repaired (workflow ${repairWorkflowId(guest)}): wait until that has ended`);
      if (having.some(({ name }) => name === to)) reasons.push(`guest "${guest}" is on ${to} already`);
      if (reasons.length > 0) throw ApplicationFailure.create({ type: 'MigrationRefused', nonRetryable: true, message: `guest ${guest} cannot move to ${to}; nothing was changed:\n- ${reasons.join('\n- ')}`, details: [{ blockers: reasons }] });
      return { from: having[0]!.name };
    },

    /** What every host said last, for a repair. Refuses while the guest is being moved: a migration brings its own order. */
    async hostsForRepair({ guest }: { guest: string }): Promise<{ name: string; lastSaid?: string }[]> {
      if (await isRunning(client, migrationWorkflowId(guest))) throw ApplicationFailure.nonRetryable(`guest ${guest} is being moved: a repair is for what a terminated migration left. Watch it with "vmferry watch ${guest}", end it with "vmferry cancel ${guest}"; if it waits for a host that is gone for good, "vmferry fence"`, 'RepairRefused');
      return (await knownHosts(client)).map(({ name, guests }) => {
        const said = guests.find((one) => one.name === guest)?.state;
        return { name, ...(said !== undefined && { lastSaid: said }) };
      });
    },
  };
}

async function isRunning(client: Client, workflowId: string): Promise<boolean> {
  return await client.workflow.getHandle(workflowId).describe().then(({ status }) => status.name === 'RUNNING', (error: unknown) => {
    if (error instanceof WorkflowNotFoundError) return false;
    throw error;
  });
}

/** What every host said last, in the order of their names. A host that has just come is listed only a moment later: `named` ones are asked all the same. */
export async function knownHosts(client: Client, named: string[] = []): Promise<HostState[]> {
  const ids = new Set(named.map(hostWorkflowId));
  for await (const { workflowId } of client.workflow.list({ query: 'WorkflowType = "host" AND ExecutionStatus = "Running"' })) ids.add(workflowId);
  const states = await Promise.all(
    [...ids].map(async (id) => {
      try {
        return await client.workflow.getHandle(id).query<HostState | undefined>(hostQuery.name);
      } catch (error) {
        if (error instanceof WorkflowNotFoundError) return undefined;
        throw error;
      }
    }),
  );
  return states.filter((state) => state !== undefined).sort((a, b) => a.name.localeCompare(b.name));
}
