import { setTimeout as delay } from 'node:timers/promises';
import { ApplicationFailure } from '@temporalio/activity';
import { type Client, WorkflowNotFoundError, WorkflowUpdateFailedError } from '@temporalio/client';
import type { Findings } from '../hypervisor/preflight';
import { capacityOf, placementHost, refuseReservation } from '../workflows/capacity';
import type { MovePlan } from '../workflows/evacuation';
import type { HostCapacity } from '../workflows/fleet';
import { placeGuests, type PlacementOptions } from '../workflows/placement';
import { cordonUpdate, type HostState, hostQuery, hostWorkflowId, migrationWorkflowId, repairWorkflowId, type Reservation, releaseUpdate, reserveUpdate } from '../workflows/messages';
import { ERRORS, refusal } from './errors';

/** A guest, and the host that it moves to. */
export interface Destined {
  guest: string;
  to: string;
}

const LISTED_MS = 1_500;
/** How old what hosts said may be where it only says whom to ask: their agents report twice a minute, and the list of hosts lags behind by about a second. */
const RECENT_MS = 2_000;
/** Or this many times as long as it took to ask them all: in a fleet of thousands that is seconds of work for the control workers. */
const RECENT_TIMES = 20;
/** Those who come while all are asked wait for that, but not longer than their own activity lasts. */
const MOST_ASKED_MS = 20_000;
/** Of hosts, for a message. */
const MOST_NAMES = 20;

export type FleetActivities = ReturnType<typeof fleetActivities>;

/** Run by the control worker: what hosts say of themselves, and what is asked of their entities. */
export function fleetActivities(client: Client) {
  const entity = (host: string) => client.workflow.getHandle(hostWorkflowId(host));
  const allHosts = sharedAsks(() => knownHosts(client));
  let recent: { untilMs: number; hosts: Promise<HostState[]> } | undefined;
  return {
    /** The host that has this guest. Refuses, with what is known, if there is none, or if `to` is that host or unknown. */
    async locateGuest({ guest, to }: { guest: string; to: string }): Promise<{ from: string }> {
      const on = (host: HostState) => host.guests.some(({ name, state }) => name === guest && !isElsewhere(state));
      const said = await recentHosts();
      const [likely, ...others] = said.hosts.filter(on);
      if (likely && others.length === 0) {
        const [source, destination] = await Promise.all([likely.name, to].map(async (name) => (said.now ? said.hosts.find((one) => one.name === name) : await hostState(client, hostWorkflowId(name)))));
        if (source && destination && on(source) && !on(destination) && !(await isRunning(client, repairWorkflowId(guest)))) return { from: likely.name };
      }
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
      if (reasons.length > 0) throw refusal('MigrationRefused', `guest ${guest} cannot move to ${to}`, reasons);
      return { from: having[0]!.name };
    },

    /**
     * Where the guests of a host would go, by what all hosts say now, and which are still there. Here and not in a workflow, since what all hosts say is too
     * much for a payload: 10,000 guests are some MB. `settled` are guests that are not to be placed any more, `moving` and `moved` those of this evacuation.
     */
    async planMoves({ host, settled, moving, moved, stopped, options }: { host: string; settled: string[]; moving: Destined[]; moved: Destined[]; stopped: 'move' | 'leave'; options: PlacementOptions }): Promise<MovePlan> {
      const fleet = (await allHosts()).map((one) => placementHost(one, Date.now()));
      const home = fleet.find(({ name }) => name === host);
      const hosts = fleet.map(({ name }) => name).slice(0, MOST_NAMES);
      if (!home) return { hosts, moves: [], stays: [] };
      const has = (at: string, guest: string) => fleet.find(({ name }) => name === at)?.guests.some(({ name, state }) => name === guest && !isElsewhere(state)) ?? false;
      // What an agent said last before it ended is no longer true: a guest that was moved is not here, whatever its home says.
      const left = home.guests.filter(({ name, state }) => {
        const arrived = moved.findLast(({ guest }) => guest === name);
        return !moving.some(({ guest }) => guest === name) && !(arrived && (state.startsWith('handed over') || has(arrived.to, name)));
      });
      const wanted = left.filter(({ name, state }) => !settled.includes(name) && !(stopped === 'leave' && state === 'stopped'));
      // A guest that has not arrived yet counts for its group at its destination.
      const then = fleet.map((one) => ({ ...one, guests: [...one.guests, ...home.guests.filter(({ name }) => moving.some(({ guest, to }) => guest === name && to === one.name) && !one.guests.some((guest) => guest.name === name))] }));
      return { hosts, home: { reachable: home.reachable, guests: left.map(({ name, state }) => ({ name, state })) }, ...placeGuests(wanted.map((guest) => ({ guest, from: host })), then, options) };
    },

    /** Which host has each of these guests, by what hosts say now; a guest that is nowhere is left out. */
    async locations({ guests }: { guests: string[] }): Promise<Record<string, string>> {
      const wanted = new Set(guests);
      const hosts = await allHosts();
      return Object.fromEntries(hosts.flatMap(({ name: host, guests }) => guests.filter(({ name, state }) => wanted.has(name) && !isElsewhere(state)).map(({ name }) => [name, host])));
    },

    /** What each host has, without its guests. */
    async capacities(): Promise<HostCapacity[]> {
      return (await allHosts()).map((host) => capacityOf(placementHost(host, Date.now())));
    },

    /**
     * Takes one outgoing slot at the source, and one incoming with room for the guest at the destination: both or none. Throws `NoSlot`, which is tried
     * again, or the reason why it cannot be had at all.
     */
    async reserve({ from, to, ...what }: Omit<Reservation, 'direction'> & { from: string; to: string }): Promise<void> {
      await take(from, { ...what, direction: 'outgoing' });
      try {
        await take(to, { ...what, direction: 'incoming' });
      } catch (error) {
        // Whoever waits for the one holds none of the other.
        await update(from, releaseUpdate.name, what).catch(() => undefined);
        throw error;
      }
    },

    /** What `reserve` would say now, without reserving: a slot that is not free is only waited for. */
    async reservable({ from, to, ...what }: Omit<Reservation, 'direction'> & { from: string; to: string }): Promise<Findings> {
      const said: Findings = { blockers: [], warnings: [] };
      for (const [host, direction] of [[from, 'outgoing'], [to, 'incoming']] as const) {
        const state = await entity(host).query<HostState | undefined>(hostQuery.name);
        const refused = state && refuseReservation(state, { ...what, direction }, Date.now());
        if (refused?.type === 'NoSlot') said.warnings.push(`${refused.why}: a move would wait for one`);
        else if (refused) said.blockers.push(refused.why);
      }
      return said;
    },

    /** A host that is not known any more has nothing to release. */
    async release({ hosts, workflowId, runId }: { hosts: string[]; workflowId: string; runId: string }): Promise<void> {
      await Promise.all(
        hosts.map(async (host) => {
          await update(host, releaseUpdate.name, { workflowId, runId }).catch((error: unknown) => {
            if (!(error instanceof ApplicationFailure && error.type === 'HostUnreachable')) throw error;
          });
        }),
      );
    },

    /** Without `cordon` the host is uncordoned. */
    async setCordon({ host, cordon }: { host: string; cordon?: { by: string; reason: string } }): Promise<void> {
      await update(host, cordonUpdate.name, { ...(cordon && { cordon }) });
    },

    /** Which of these workflow runs are over: their run ids. */
    async endedWorkflows(runs: { workflowId: string; runId: string }[]): Promise<string[]> {
      return await ended(runs);
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

  /**
   * What all hosts say now, or said a moment ago to somebody else who asked: if every move asked every host, a fleet's moves would cost as the square of
   * its size.
   */
  async function recentHosts(): Promise<{ hosts: HostState[]; now: boolean }> {
    if (recent && Date.now() < recent.untilMs) return { hosts: await recent.hosts, now: false };
    const beganMs = Date.now();
    const asked = (recent = { untilMs: beganMs + MOST_ASKED_MS, hosts: allHosts() });
    try {
      return { hosts: await asked.hosts, now: true };
    } catch (error) {
      recent = undefined;
      throw error;
    } finally {
      asked.untilMs = Date.now() + Math.max(RECENT_MS, RECENT_TIMES * (Date.now() - beganMs));
    }
  }

  /** Reserves at one host. Where that is refused, what workflows hold that have ended since, as one that was terminated, is given back, and it is asked again. */
  async function take(host: string, wanted: Reservation): Promise<void> {
    try {
      await update(host, reserveUpdate.name, wanted);
    } catch (error) {
      if (!(error instanceof ApplicationFailure) || error.type === 'HostUnreachable') throw error;
      const { reservations = [] } = (await entity(host).query<HostState | undefined>(hostQuery.name)) ?? {};
      const over = await ended(reservations);
      if (over.length === 0) throw error;
      for (const { workflowId, runId } of reservations) if (over.includes(runId)) await update(host, releaseUpdate.name, { workflowId, runId });
      await update(host, reserveUpdate.name, wanted);
    }
  }

  async function ended(runs: { workflowId: string; runId: string }[]): Promise<string[]> {
    const over = await Promise.all(
      runs.map(async ({ workflowId, runId }) => {
        try {
          const { status } = await client.workflow.getHandle(workflowId, runId).describe();
          return status.name === 'RUNNING' ? undefined : runId;
        } catch (error) {
          if (error instanceof WorkflowNotFoundError) return runId;
          throw error;
        }
      }),
    );
    return over.filter((runId) => runId !== undefined);
  }

  /** Asks a host's entity; its refusal keeps its type. */
  async function update(host: string, name: string, argument: unknown): Promise<void> {
    try {
      await entity(host).executeUpdate(name, { args: [argument] });
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) throw ApplicationFailure.nonRetryable(`there is no host "${host}": start its agent`, 'HostUnreachable');
      const cause = error instanceof WorkflowUpdateFailedError ? error.cause : undefined;
      if (!(cause instanceof ApplicationFailure)) throw error;
      const type = cause.type ?? 'MigrationRefused';
      throw ApplicationFailure.create({ type, message: cause.message, nonRetryable: !(Object.hasOwn(ERRORS, type) && ERRORS[type as keyof typeof ERRORS].retried) });
    }
  }
}

/**
 * Asks once for all who come while the ask before is under way. What each gets was said after it came, as if it had asked by itself: hosts that are emptied together plan
 * together, and each plan needs what all hosts say.
 */
export function sharedAsks<T>(ask: () => Promise<T>): () => Promise<T> {
  let asking: Promise<T> | undefined;
  let next: Promise<T> | undefined;
  const begin = (): Promise<T> => {
    const asked = ask().finally(() => {
      if (asking === asked) asking = undefined;
    });
    return (asking = asked);
  };
  return () => {
    if (!asking) return begin();
    return (next ??= asking.then(() => undefined, () => undefined).then(() => {
      next = undefined;
      return begin();
    }));
  };
}

async function isRunning(client: Client, workflowId: string): Promise<boolean> {
  return await client.workflow.getHandle(workflowId).describe().then(({ status }) => status.name === 'RUNNING', (error: unknown) => {
    if (error instanceof WorkflowNotFoundError) return false;
    throw error;
  });
}

/** It is not this host's yet, or not any more. */
export const isElsewhere = (state: string) => state.startsWith('arriving') || state.startsWith('handed over');

/** What every host said last, in the order of their names. A host that has just come is listed only a moment later: `named` ones are asked all the same. */
export async function knownHosts(client: Client, named: string[] = []): Promise<HostState[]> {
  const ids = new Set(named.map(hostWorkflowId));
  for await (const { workflowId } of client.workflow.list({ query: 'WorkflowType = "host" AND ExecutionStatus = "Running"' })) ids.add(workflowId);
  const states = await Promise.all([...ids].map(async (id) => await hostState(client, id)));
  return states.filter((state) => state !== undefined).sort((a, b) => a.name.localeCompare(b.name));
}

/** Undefined: there is no such host, or it has not said anything yet. */
async function hostState(client: Client, workflowId: string): Promise<HostState | undefined> {
  try {
    return await client.workflow.getHandle(workflowId).query<HostState | undefined>(hostQuery.name);
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return undefined;
    throw error;
  }
}
