import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { VmferryError } from '../../client/migration-client';
import { QmpConnection } from '../../qmp/connection';
import type { MigrationResult } from '../../workflows/messages';
import { guardProcesses, leftovers } from '../support/leftovers';
import { GUEST, HOSTS, type HostName, type Stage } from './stage';

/** How a migration ended, by its own word. */
export type Outcome = { completed: MigrationResult } | { failed: VmferryError };

/** Ends that say why the guest stayed, or that it is lost; every other one means that vmferry did not know what happened. */
const NAMED = ['Cancelled', 'DestinationDied', 'MirrorFailed', 'CopyStalled', 'DisksNotConverging', 'DowntimeBudgetExceeded', 'MemoryNotConverging', 'MigrationRefused', 'HostUnreachable', 'GuestGone', 'GuestCrashedAfterMove', 'ProcessFailed', 'GuestStateError', 'QmpMonitorBusy', 'QmpDisconnected', 'PostCopyLost'];
const LOST = ['GuestGone', 'GuestCrashedAfterMove', 'QmpDisconnected', 'GuestStateError', 'MigrationRefused', 'PostCopyLost'];
/** Work that goes on after its workflow has ended, such as a report to the fleet. */
const SETTLE_MS = 3_000;

/** What QEMU itself says of the guest on a host; undefined if there is none. */
export async function stateOn(stage: Stage, host: HostName): Promise<string | undefined> {
  if (stage.pidOf(host, 'qemu') === undefined) return undefined;
  try {
    const qmp = await QmpConnection.connect(stage.runFile(host, 'look.sock'));
    try {
      return (await qmp.execute('query-status')).status;
    } finally {
      qmp.close();
    }
  } catch {
    return stage.pidOf(host, 'qemu') === undefined ? undefined : 'does not answer';
  }
}

export async function running(stage: Stage): Promise<HostName[]> {
  const states = await Promise.all(HOSTS.map(async (host) => ({ host, state: await stateOn(stage, host) })));
  return states.filter(({ state }) => state === 'running').map(({ host }) => host);
}

/** Where the guest may be started, by what is durable on the hosts (R10). */
export function startable(stage: Stage): HostName[] {
  return HOSTS.filter((host) => stage.ownership(host)?.state === 'owner');
}

/** Waits, at most so long, until this is true; says whether it is. There is no event for what other processes do. */
export async function soon(what: () => boolean | Promise<boolean>, timeoutMs: number): Promise<boolean> {
  for (const end = performance.now() + timeoutMs; performance.now() < end; await delay(50)) if (await what()) return true;
  return await what();
}

export interface Found {
  /** Everything that is not as it must be. */
  problems: string[];
  /** Where the guest runs; undefined if it is lost with its QEMU, as it may be. */
  home: HostName | undefined;
}

/** QEMU stops a guest whose disk is full; an operator who has made room lets it go on. */
async function goOn(stage: Stage): Promise<HostName | undefined> {
  for (const host of HOSTS) {
    if ((await stateOn(stage, host)) !== 'io-error') continue;
    const qmp = await QmpConnection.connect(stage.runFile(host, 'look.sock'));
    try {
      await qmp.execute('cont');
      return host;
    } finally {
      qmp.close();
    }
  }
  return undefined;
}

/** Looks at both hosts: exactly one copy, where the outcome says it is, and one that is startable. */
export async function judgeOwner(stage: Stage, ends: { source: HostName; destination: HostName }, outcome: Outcome | 'terminated', { mayLoseGuest = false, mayStopGuest = false, autostarts = false }: { mayLoseGuest?: boolean; mayStopGuest?: boolean; autostarts?: boolean } = {}): Promise<Found> {
  const problems: string[] = [];
  // A terminated migration says nothing: what its agents had begun comes to its end by itself.
  if (outcome === 'terminated') await soon(async () => guardProcesses(stage.hostFolder(ends.source)).length === 0 && (await running(stage)).length === 1 && startable(stage).length === 1, 40_000);
  // Its agent comes back with the host, and starts it if, and only if, that host owns it (R10).
  if (autostarts) await soon(async () => (await running(stage)).length > 0, 20_000);
  const where = await running(stage);
  const owners = startable(stage);
  if (where.length > 1) problems.push(`TWO COPIES run: ${where.join(' and ')}`);
  if (owners.length !== 1) problems.push(`${owners.length} copies are startable (${owners.join(', ') || 'none'}) instead of one`);
  const said = outcome === 'terminated' ? 'terminated' : 'failed' in outcome ? `${outcome.failed.type}: ${outcome.failed.message}` : 'completed';
  const stopped = mayStopGuest ? await goOn(stage) : undefined;
  if (where.length === 0 && stopped !== undefined) where.push(stopped);
  if (where.length === 0) {
    const named = outcome === 'terminated' || 'completed' in outcome || LOST.includes(outcome.failed.type);
    const states = await Promise.all(HOSTS.map(async (host) => `${host}: ${(await stateOn(stage, host)) ?? 'no QEMU'}`));
    if (!mayLoseGuest) problems.push(`no copy runs (${states.join(', ')}) and the migration said ${said}`);
    else if (!named) problems.push(`no copy runs (${states.join(', ')}), and the migration does not say why: ${said}`);
    return { problems, home: undefined };
  }
  const home = where[0]!;
  if (owners.length === 1 && owners[0] !== home) problems.push(`the guest runs on ${home}, but the copy on ${owners[0]} is the startable one`);
  if (outcome !== 'terminated') {
    if ('completed' in outcome && home !== ends.destination) problems.push(`the migration says completed, but the guest runs on ${home}`);
    if ('failed' in outcome && home !== ends.source) problems.push(`the migration says ${said}, but the guest runs on ${home}`);
    if ('failed' in outcome && !NAMED.includes(outcome.failed.type)) problems.push(`the migration names no reason: ${said}`);
  }
  return { problems, home };
}

/** Nothing is left on either host but the guest; what is being removed when its migration has ended has a moment for it. */
export async function judgeLeftovers(stage: Stage, home: HostName): Promise<string[]> {
  let found: string[] = [];
  await soon(async () => {
    const each = await Promise.all(HOSTS.map(async (host) => (await leftovers(stage.hostFolder(host), stage.config(host), host === home ? [GUEST] : [])).map((one) => `left on ${host}: ${one}`)));
    found = each.flat();
    return found.length === 0;
  }, SETTLE_MS);
  return found;
}

/** The guest's own proof: every block that it ever completed, and every page, is there, and no second copy ever ticked. */
export async function judgeGuest(stage: Stage): Promise<string[]> {
  const { guest } = stage;
  const problems: string[] = [];
  try {
    const { blocksLost, memoryErrors, writeErrors, blocksChecked, first } = await guest.verify(60_000);
    if (blocksLost + memoryErrors + writeErrors > 0) problems.push(`${blocksLost} blocks lost, ${memoryErrors} pages wrong, ${writeErrors} writes refused: ${first.join(', ')}`);
    if (blocksChecked === 0) problems.push('the guest checked no block');
  } catch (error) {
    problems.push(`the guest does not verify: ${(error as Error).message}`);
  }
  if (guest.duplicateTicks > 0) problems.push(`two copies ticked: ${guest.duplicateEvidence.join('; ')}`);
  return problems;
}

/** A guest that was lost with its QEMU: the one copy that is startable starts. */
export async function startAgain(stage: Stage): Promise<{ problems: string[]; home: HostName | undefined }> {
  const [home, ...more] = startable(stage);
  if (!home || more.length > 0) return { problems: [], home: undefined };
  try {
    await stage.client.onHost(home, 'startGuest', { guest: GUEST });
    await stage.followAnew();
    return { problems: [], home };
  } catch (error) {
    const state = existsSync(join(stage.config(home).runDir, GUEST)) ? (await stateOn(stage, home)) ?? 'no QEMU' : 'no run folder';
    return { problems: [`the lost guest does not start on ${home} (${state}): ${(error as Error).message}`], home: undefined };
  }
}
