import { megabytes, SUPERVISION_TIMES } from './convergence';
import { type RungName, SETTLE_MS } from './divergence';
import type { MigrationRequest } from './messages';

/** What is known of a guest and of the link before it moves. Rates in bytes a second. */
export interface MoveFacts {
  running: boolean;
  disks: { id: string; virtualBytes: number; allocatedBytes: number; dirtiedBytesPerSecond: number }[];
  /** `residentBytes`: what QEMU holds of it. */
  memory: { bytes: number; residentBytes: number; dirtyBytesPerSecond: number };
  link: { bytesPerSecond: number };
  policy: Pick<MigrationRequest, 'maxDowntimeMs' | 'onDivergence' | 'copyMode' | 'postCopy' | 'memory' | 'bandwidthBytesPerSecond'>;
  /** What both QEMUs can do. */
  can: { writeBlocking: boolean; throttle: boolean; autoConverge: boolean; postCopy: boolean };
}

export type EstimatedRemedy = RungName | 'auto-converge' | 'post-copy';

export interface MoveEstimate {
  /** `with-remedy`: vmferry, or with `onDivergence: ask` a person, has to act. `no`: the move would be given up. */
  converges: 'yes' | 'with-remedy' | 'no';
  /** In the order in which they would be tried. */
  remedies: EstimatedRemedy[];
  /** All of it in words. */
  message: string;
  /** What goes over the link at least: each allocated byte of the disks, and each resident one of the memory, once. */
  copiesBytes: { disks: number; memory: number };
  /** Absent where the move would be given up. */
  totalMs?: number;
  parts?: { ownMs: number; disksMs: number; memoryMs: number };
  /** The guest's pause; absent too for a guest that is paused anyway. */
  downtimeMs?: number;
  downtimeParts?: { stopMs: number; disksMs: number; memoryMs: number; restartMs: number };
}

const MIB = 2 ** 20;
/** What one mirror of QEMU 7.2, and its migration thread, carried at most on tmpfs and loopback (docs/performance.md): a faster link is not used. */
const MOST_OF_MIRRORS = 400 * MIB;
const MOST_OF_MEMORY = 1000 * MIB;
/** Our own time, and Temporal's, in a whole move (docs/performance.md). */
const OWN_MS = 1_100;
/** From STOP to `pre-switchover` without anything in flight; the same. */
const STOP_MS = 70;
/** Device state, the source's last word, loading; the same. */
const DEVICES_MS = 90;
/** From the last byte to RESUME at the destination; the same. */
const RESTART_MS = 35;
/** A mirror's buffer (hypervisor/mirrors.ts): in flight when the guest is stopped, and drained first. */
const IN_FLIGHT_BYTES = 2 * MIB;
/** To see that nothing remains, end the jobs and remove their nodes. */
const FINISH_MS = 10;
/** From this share of the link on mirrors hover: READY needs what remains to touch 0 (seen at 60 %, docs/divergence.md). */
export const HOVERS_FROM = 0.5;
/** And from this one on they fall behind. */
export const DIVERGES_FROM = 0.9;
/** Memory that is dirtied faster than this share of the link leaves QEMU too little progress. */
export const MEMORY_DIVERGES_FROM = 0.8;
/** Auto-converge takes a few passes to slow a guest down; post-copy is used after 20 s. */
const MEMORY_REMEDY_MS = 20_000;

/**
 * Whether a move would converge, by which remedies, how long it would take, and how long the guest would pause. A model, pure and monotonic: more link never makes
 * it worse, more to copy never makes it better. Each write counts as new data, though a piece that is written twice may be copied once: it errs on the long side.
 */
export function estimateMove(facts: MoveFacts): MoveEstimate {
  const { disks, memory, policy, running } = facts;
  const link = Math.min(facts.link.bytesPerSecond, policy.bandwidthBytesPerSecond ?? Infinity);
  const dirtied = running ? disks.reduce((sum, disk) => sum + disk.dirtiedBytesPerSecond, 0) : 0;
  const allocated = disks.reduce((sum, disk) => sum + disk.allocatedBytes, 0);
  const forDisks = disksOf(facts, Math.min(link, MOST_OF_MIRRORS), dirtied, allocated);
  // Mirrors that have much to do leave it its share: a connection a disk, and one for the memory.
  const forMemory = memoryOf(facts, Math.max(link / (1 + disks.length), link - dirtied));
  const copiesBytes = { disks: allocated, memory: memory.residentBytes };
  const remedies = [...(forDisks.remedies ?? []), ...(forMemory.remedies ?? [])];
  const stuck = [...(forDisks.remedies ? [] : [forDisks.why]), ...(forMemory.remedies ? [] : [forMemory.why])];
  const downtimeParts = { stopMs: forDisks.stopMs, disksMs: forDisks.drainMs, memoryMs: DEVICES_MS + forMemory.restMs, restartMs: RESTART_MS };
  const boundedMs = Math.round(downtimeParts.stopMs + downtimeParts.disksMs);
  if (running && boundedMs > policy.maxDowntimeMs) stuck.push(`stopping the guest and draining its disks takes some ${boundedMs} ms, more than the ${policy.maxDowntimeMs} ms of --max-downtime: give at least ${2 * boundedMs} ms`);
  if (stuck.length > 0) return { converges: 'no', remedies, message: stuck.join('; '), copiesBytes };

  const parts = { ownMs: OWN_MS, disksMs: forDisks.copyMs, memoryMs: forMemory.copyMs };
  const gives = [forDisks.why, forMemory.why].filter((why) => why !== '');
  return {
    converges: remedies.length > 0 ? 'with-remedy' : 'yes',
    remedies,
    message: gives.length > 0 ? `${gives.join('; ')}${policy.onDivergence === 'ask' ? '; it asks first (onDivergence: ask)' : ''}` : 'the link carries what the guest writes and dirties',
    copiesBytes,
    totalMs: Math.round(sum(parts)),
    parts: rounded(parts),
    ...(running && { downtimeMs: Math.round(sum(downtimeParts)), downtimeParts: rounded(downtimeParts) }),
  };
}

/** `remedies` is absent if nothing would help, or nothing may be done. */
interface PartEstimate {
  remedies?: EstimatedRemedy[];
  why: string;
  copyMs: number;
}

function disksOf({ disks, policy, can }: MoveFacts, carries: number, dirtied: number, allocated: number): PartEstimate & { stopMs: number; drainMs: number } {
  const rates = `the guest's writes dirty ${megabytes(dirtied)}/s of its disks, the link carries ${megabytes(carries)}/s`;
  const share = dirtied / carries;
  const writeBlocking = policy.copyMode === 'write-blocking';
  const trouble = disks.length === 0 || writeBlocking || share < HOVERS_FROM ? 'none' : share < DIVERGES_FROM ? 'hovers' : 'diverges';
  const remedies = trouble === 'none' ? [] : remediesOf(trouble, policy, can);
  // Once the writes wait for the copy, nothing is left when the guest stops but what is in flight.
  const waits = writeBlocking || remedies?.includes('write-blocking');
  const settles = Math.max(0, ...(remedies ?? []).map((remedy) => SUPERVISION_TIMES.lastsMs + SETTLE_MS[remedy]));
  return {
    ...(remedies && { remedies }),
    why: trouble === 'none' ? '' : `${rates}: its mirrors ${trouble === 'hovers' ? 'would hover short of ready' : 'would fall behind'}; ${remedies ? `${remedies.join(', then ')} would help` : policy.onDivergence === 'abort' ? 'the policy is to give up (onDivergence: abort)' : "nothing that the guest's QEMU has would help"}`,
    copyMs: ms(allocated, carries - Math.min(dirtied, HOVERS_FROM * carries)) + settles,
    stopMs: disks.length === 0 ? STOP_MS : STOP_MS + ms(dirtied > 0 ? IN_FLIGHT_BYTES : 0, carries),
    drainMs: disks.length === 0 ? 0 : FINISH_MS + (waits ? 0 : ms((Math.min(dirtied, carries) * SUPERVISION_TIMES.sampleLagMs) / 1000, carries)),
  };
}

function remediesOf(trouble: 'hovers' | 'diverges', { onDivergence, bandwidthBytesPerSecond }: MoveFacts['policy'], can: MoveFacts['can']): RungName[] | undefined {
  if (onDivergence === 'abort') return undefined;
  const lift: RungName[] = bandwidthBytesPerSecond === undefined ? [] : ['lift-limits'];
  const climb: RungName[] = trouble === 'hovers' && can.throttle ? ['nudge'] : can.writeBlocking ? ['write-blocking'] : can.throttle ? ['throttle'] : [];
  return climb.length > 0 ? [...lift, ...climb] : undefined;
}

function memoryOf({ memory, policy, can, running }: MoveFacts, link: number): PartEstimate & { restMs: number } {
  const carries = Math.min(link, MOST_OF_MEMORY, policy.memory.maxBandwidthBytesPerSecond ?? Infinity);
  const dirtied = running ? memory.dirtyBytesPerSecond : 0;
  const share = dirtied / carries;
  // QEMU stops the guest when the rest fits half of the budget.
  const restAllowed = (carries * policy.maxDowntimeMs) / 2 / 1000;
  if (share < MEMORY_DIVERGES_FROM) {
    const { sentBytes, restBytes } = passes(memory.residentBytes, share, restAllowed);
    return { remedies: [], why: '', copyMs: ms(sentBytes, carries), restMs: ms(restBytes, carries) };
  }
  const converge = (policy.memory.autoConverge ?? policy.onDivergence === 'auto') && can.autoConverge;
  const remedies: EstimatedRemedy[] = [...(converge ? (['auto-converge'] as const) : []), ...(policy.postCopy && can.postCopy ? (['post-copy'] as const) : [])];
  return {
    ...(remedies.length > 0 && { remedies }),
    why: `the guest dirties ${megabytes(dirtied)} of memory a second, the link carries ${megabytes(carries)}/s beside the disks: ${remedies.length > 0 ? `${remedies.join(', then ')} would help` : 'it would not converge: allow auto-converge or --post-copy'}`,
    copyMs: ms(memory.residentBytes, carries * (1 - MEMORY_DIVERGES_FROM)) + MEMORY_REMEDY_MS,
    restMs: ms(restAllowed, carries),
  };
}

/** Pass after pass over what was dirtied meanwhile, until the rest may be sent with the guest stopped. */
function passes(bytes: number, share: number, restAllowed: number): { sentBytes: number; restBytes: number } {
  let [sentBytes, restBytes] = [0, bytes];
  // The first pass is always whole; the last one leaves less than a page.
  do {
    sentBytes += restBytes;
    restBytes *= share;
  } while (restBytes > Math.max(restAllowed, 4096));
  return { sentBytes, restBytes };
}

const ms = (bytes: number, bytesPerSecond: number) => (bytes * 1000) / bytesPerSecond;
const sum = (parts: Record<string, number>) => Object.values(parts).reduce((total, one) => total + one, 0);
const rounded = <T extends Record<string, number>>(parts: T) => Object.fromEntries(Object.entries(parts).map(([name, one]) => [name, Math.round(one)])) as T;
