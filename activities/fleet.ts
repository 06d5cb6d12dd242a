import { ApplicationFailure } from '@temporalio/activity';
import type { Client } from '@temporalio/client';
import { type HostState, hostQuery } from '../workflows/messages';

export type FleetActivities = ReturnType<typeof fleetActivities>;

/** Run by the control worker: what hosts say of themselves. */
export function fleetActivities(client: Client) {
  return {
    /** The host that has this guest. Refuses, with what is known, if there is none, or if `to` is that host or unknown. */
    async locateGuest({ guest, to }: { guest: string; to: string }): Promise<{ from: string }> {
      const hosts = await knownHosts(client);
      const names = hosts.map(({ name }) => name);
      const having = hosts.filter((host) => host.guests.some(({ name, state }) => name === guest && !state.startsWith('arriving') && !state.startsWith('handed over')));
      const reasons: string[] = [];
      if (!names.includes(to)) reasons.push(`there is no host "${to}" (known are: ${names.join(', ') || 'none; start an agent'})`);
      if (having.length === 0) reasons.push(`no host has a guest "${guest}" (known are: ${hosts.flatMap((host) => host.guests.map(({ name }) => `${name} on ${host.name}`)).sort().join(', ') || 'none'})`);
      if (having.length > 1) reasons.push(`guest "${guest}" is on ${having.map(({ name }) => name).join(' and ')}: find out which copy runs before it is moved`);
      if (having.some(({ name }) => name === to)) reasons.push(`guest "${guest}" is on ${to} already`);
      if (reasons.length > 0) throw ApplicationFailure.create({ type: 'MigrationRefused', nonRetryable: true, message: `guest ${guest} cannot move to ${to}; nothing was changed:\n- ${reasons.join('\n- ')}`, details: [{ blockers: reasons }] });
      return { from: having[0]!.name };
    },
  };
}

/** What every host said last, in the order of their names. */
export async function knownHosts(client: Client): Promise<HostState[]> {
  const hosts: HostState[] = [];
  for await (const { workflowId } of client.workflow.list({ query: 'WorkflowType = "host" AND ExecutionStatus = "Running"' })) {
    const state = await client.workflow.getHandle(workflowId).query<HostState | undefined>(hostQuery.name);
    if (state) hosts.push(state);
  }
  return hosts.sort((a, b) => a.name.localeCompare(b.name));
}
