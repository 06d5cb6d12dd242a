import { ActivityFailure, ApplicationFailure, isCancellation, setCurrentDetails, upsertSearchAttributes, workflowInfo } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { GuestPlan } from '../hypervisor/preflight';
import { formatBytes } from '../hypervisor/size';
import { anyHost, control, sourceHost } from './activities';
import { table } from './details';
import { estimateMove, type MoveEstimate } from './estimate';
import { parseInput } from './input';
import { checkMoveSchema, type CheckMoveInput, type MigrationRequest, migrateVmSchema, SEARCH_ATTRIBUTES } from './messages';
import { ignoredSettings, qemuMemorySettings } from './memory-settings';
import { greeted, reachable, rootOf } from './migrate-vm';

/** What a move would be; plain JSON. */
export interface CheckMoveResult {
  vm: string;
  from?: string;
  to: string;
  /** Nothing stands in its way, and it would converge. */
  movable: boolean;
  /** Each reason why it would be refused. */
  blockers: string[];
  warnings: string[];
  /** Of the disks that would move. `dirtied`: what the copy costs for what is written, in pieces of 64 KiB. */
  disks: { id: string; virtualBytes: number; allocatedBytes: number; writtenBytesPerSecond?: number; dirtiedBytesPerSecond?: number }[];
  memory?: { bytes: number; residentBytes?: number; dirtyBytesPerSecond?: number };
  link?: { bytesPerSecond: number; from: 'measured' | 'bandwidth' | 'assumed' };
  maxDowntimeMs?: number;
  /** Absent if the move would be refused. */
  estimate?: MoveEstimate;
}

/** A link that cannot be measured: 1 Gbit/s. */
export const ASSUMED_LINK_BYTES_PER_SECOND = 125_000_000;

/** Says what a move would be: whether anything stops it, how much it would copy, how long it would take, and how long the guest would pause. Changes nothing. */
export async function checkMove(raw: CheckMoveInput): Promise<CheckMoveResult> {
  const { vm, to, measureSeconds } = parseInput(checkMoveSchema, raw, 'MigrationRefused');
  const result: CheckMoveResult = { vm, to, movable: false, blockers: [], warnings: [], disks: [] };
  try {
    const { from } = await control.locateGuest({ guest: vm, to });
    result.from = from;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.guest, value: vm }, { key: SEARCH_ATTRIBUTES.source, value: from }, { key: SEARCH_ATTRIBUTES.destination, value: to }]);
    const ref = { guest: vm, attempt: workflowInfo().runId.slice(-8), from, to };
    const asked = await preflight(ref, raw, result);
    if (asked && result.blockers.length === 0) await measure(ref, asked, measureSeconds, result);
  } catch (error) {
    const failure = innermost(error);
    if (!failure || !REFUSALS.includes(failure.type ?? '')) throw error;
    const { blockers } = (failure.details?.[0] ?? {}) as { blockers?: string[] };
    result.blockers.push(...(blockers ?? [failure.message]));
  }
  result.movable = result.blockers.length === 0 && result.estimate?.converges !== 'no';
  setCurrentDetails(checkDetails(result));
  return result;
}

const REFUSALS = ['MigrationRefused', 'GuestStateError', 'GuestGone'];

function innermost(error: unknown): ApplicationFailure | undefined {
  const cause = error instanceof ActivityFailure ? error.cause : error;
  return cause instanceof ApplicationFailure ? cause : undefined;
}

/** The same questions as a migration's, with all answers in `result`. Gives what would be asked for, unless the source has no such guest to move. */
async function preflight(ref: MigrationRef, { measureSeconds: _ours, ...raw }: CheckMoveInput, result: CheckMoveResult): Promise<{ plan: GuestPlan; request: MigrationRequest } | undefined> {
  const [source, destination] = [anyHost(ref.from).look, anyHost(ref.to).look];
  const here = await reachable(ref.from, source.inspectSource(ref));
  result.blockers.push(...here.blockers);
  result.warnings.push(...here.warnings);
  if (!here.plan) return undefined;
  const { plan } = here;
  const request = parseInput(migrateVmSchema, { ...plan.defaults, ...raw }, 'MigrationRefused');
  result.disks = plan.disks.map(({ id, sizeBytes, allocatedBytes }) => ({ id, virtualBytes: sizeBytes, allocatedBytes }));
  result.memory = { bytes: plan.definition.memory };
  result.maxDowntimeMs = request.maxDowntimeMs;
  const there = await reachable(ref.to, destination.inspectDestination({ ...ref, plan, ...(request.postCopy && { postCopy: true }) }));
  const { workflowId, runId } = workflowInfo();
  const room = await control.reservable({ from: ref.from, to: ref.to, guest: ref.guest, workflowId, runId, memoryBytes: plan.definition.memory, disks: plan.disks.map(({ path, allocatedBytes, blockDevice }) => ({ root: rootOf(path), bytes: blockDevice ? 0 : allocatedBytes })) });
  result.blockers.push(...there.blockers, ...room.blockers);
  if (result.blockers.length === 0) result.blockers.push(...(await greeted(ref, plan, there, sourceHost(ref.from))));
  result.warnings.push(...there.warnings, ...room.warnings, ...ignoredSettings(qemuMemorySettings(request), plan.memoryFeatures));
  return { plan, request };
}

async function measure(ref: MigrationRef, { plan, request }: { plan: GuestPlan; request: MigrationRequest }, seconds: number, result: CheckMoveResult): Promise<void> {
  // One after the other: the measurement of the link is load for the guest too.
  const load = await anyHost(ref.from).look.measureLoad({ ...ref, disks: plan.disks.map(({ id, device }) => ({ id, device })), seconds });
  result.disks = result.disks.map((disk) => ({ ...disk, ...load.disks.find(({ id }) => id === disk.id) }));
  result.memory = { bytes: plan.definition.memory, ...load.memory };
  result.link = await linkOf(ref, request, result.warnings);
  for (const { id, writtenBytesPerSecond } of load.disks) if (writtenBytesPerSecond === undefined) result.warnings.push(`what the guest writes to disk ${id} could not be measured: the estimate takes it for nothing`);
  if (load.memory.dirtyBytesPerSecond === undefined) result.warnings.push("the source's QEMU could not say how fast the guest dirties its memory: the estimate takes it for not at all");
  result.estimate = estimateMove({
    running: plan.running,
    disks: result.disks.map((disk) => ({ ...disk, dirtiedBytesPerSecond: disk.dirtiedBytesPerSecond ?? 0 })),
    memory: { bytes: plan.definition.memory, residentBytes: load.memory.residentBytes, dirtyBytesPerSecond: load.memory.dirtyBytesPerSecond ?? 0 },
    link: result.link,
    policy: request,
    can: { writeBlocking: plan.features.writeBlockingLive || (plan.features.rearm && plan.features.ioThrottle), throttle: plan.features.ioThrottle, autoConverge: plan.memoryFeatures.includes('auto-converge'), postCopy: plan.memoryFeatures.includes('postcopy-ram') },
  });
}

/** Measured, unless a cap was asked for, which is then what counts; assumed where it cannot be measured. */
async function linkOf(ref: MigrationRef, { bandwidthBytesPerSecond }: MigrationRequest, warnings: string[]): Promise<CheckMoveResult['link'] & object> {
  if (bandwidthBytesPerSecond !== undefined) return { bytesPerSecond: bandwidthBytesPerSecond, from: 'bandwidth' };
  const measured = await measureLink(ref).catch((error: unknown) => {
    if (isCancellation(error)) throw error;
    return { failure: innermost(error)?.message ?? String(error) };
  });
  if ('bytesPerSecond' in measured) return { ...measured, from: 'measured' };
  warnings.push(`the link could not be measured (${measured.failure}): ${formatBytes(ASSUMED_LINK_BYTES_PER_SECOND)}/s are assumed; --bandwidth says what it carries`);
  return { bytesPerSecond: ASSUMED_LINK_BYTES_PER_SECOND, from: 'assumed' };
}

async function measureLink(ref: MigrationRef) {
  const probe = await anyHost(ref.to).look.openLinkProbe(ref);
  return await anyHost(ref.from).look.measureLink({ ...ref, probe });
}

/** What the Temporal UI shows of it, Markdown. */
function checkDetails({ vm, from, to, blockers, warnings, disks, estimate }: CheckMoveResult): string {
  const verdict = blockers.length > 0 ? 'would be **refused**' : `converges: **${estimate?.converges}**${estimate?.totalMs === undefined ? '' : `, in some ${Math.round(estimate.totalMs / 1000)} s`}${estimate?.downtimeMs === undefined ? '' : `, with a pause of some ${estimate.downtimeMs} ms`}`;
  return [
    `**${vm}**: ${from ?? '?'} → ${to} ${verdict}`,
    ...blockers.map((blocker) => `- ${blocker}`),
    ...(estimate ? [estimate.message] : []),
    ...(disks.length > 0 ? [table(['disk', 'size', 'allocated', 'written'], disks.map((disk) => [disk.id, formatBytes(disk.virtualBytes), formatBytes(disk.allocatedBytes), disk.writtenBytesPerSecond === undefined ? '?' : `${formatBytes(disk.writtenBytesPerSecond)}/s`]))] : []),
    ...warnings.map((warning) => `Warning: ${warning}`),
  ].join('\n\n');
}
