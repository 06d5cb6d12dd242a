import { ActivityFailure, ApplicationFailure, CancellationScope, isCancellation, log, setCurrentDetails, setHandler, sleep, TimeoutFailure, upsertSearchAttributes, workflowInfo } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { HandOverResult } from '../hypervisor/handover';
import type { MirrorTarget } from '../hypervisor/mirrors';
import type { GuestPlan } from '../hypervisor/preflight';
import type { Exports } from '../hypervisor/storage-daemon';
import type { TakeOverResult } from '../hypervisor/takeover';
import { control, destinationHost, sourceHost } from './activities';
import { migrateVmSchema, type MigrateVmInput, type MigrationResult, type MigrationStatus, SEARCH_ATTRIBUTES, statusQuery } from './messages';
import { decideOwner, type DestinationFate, type SourceFate } from './ownership';
import type { Phase } from './phases';

/** Pause between two tries of the memory phase: 1 s, 2 s, 4 s … up to this. */
const LONGEST_BACKOFF_MS = 30_000;

/**
 * Moves a running guest with its disks to another host. Until `migrate-continue` every failure, and a cancel, leaves the guest running at
 * the source and nothing at the destination; after it the guest belongs to whom `decideOwner` says.
 */
export async function migrateVm(raw: MigrateVmInput): Promise<MigrationResult> {
  const input = parseInput(raw);
  const started = Date.now();
  const { vm, to } = input;
  const status: MigrationStatus = { vm, to, phase: 'preflight', memoryTry: 0, warnings: [] };
  setHandler(statusQuery, () => status);
  const enter = (phase: Phase) => {
    status.phase = phase;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.phase, value: phase }]);
    setCurrentDetails(`**${vm}**: ${status.from ?? '?'} → ${to}\n\nPhase **${phase}**${status.memoryTry > 1 ? `, try ${status.memoryTry}` : ''}`);
  };

  enter('preflight');
  const { from } = await control.locateGuest({ guest: vm, to });
  status.from = from;
  upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.guest, value: vm }, { key: SEARCH_ATTRIBUTES.source, value: from }, { key: SEARCH_ATTRIBUTES.destination, value: to }]);
  const ref: MigrationRef = { guest: vm, attempt: workflowInfo().runId.replaceAll('-', '').slice(0, 8), from, to };
  const source = sourceHost(from, input.disksDeadlineSeconds);
  const destination = destinationHost(to);
  const plan = await preflight();

  const undos: (() => Promise<void>)[] = [];
  try {
    enter('prepare');
    undos.push(() => destination.undo.discardDestination(ref));
    await destination.step.prepareDestination({ ...ref, plan });

    enter('export');
    undos.push(() => destination.undo.stopExports(ref));
    const exports = await destination.step.exportDisks({ ...ref, plan, ...cap() });
    const targets = mirrorTargets(plan, exports);

    undos.push(() => source.undo.removeMirrors(ref));
    undos.push(() => destination.undo.destroyIncoming(ref));
    const { left, arrived } = await moveUntilArrived(targets);

    // The guest runs at the destination: nothing below may be undone, or be stopped by a cancel.
    return await CancellationScope.nonCancellable(async () => {
      enter('cleanup');
      await Promise.all([destination.undo.settleDestination(ref), source.undo.retireSource({ ...ref, sourceDisks: input.sourceDisks, keepHours: input.keepHours })]);
      setCurrentDetails(`**${vm}** runs on **${to}**`);
      return result(left, arrived);
    });
  } catch (error) {
    await CancellationScope.nonCancellable(() => undo(error));
    throw error;
  }

  /** Asks both hosts everything that could stop the move, and refuses with all reasons at once. Nothing is changed. */
  async function preflight(): Promise<GuestPlan> {
    const here = await reachable(from, source.look.inspectSource(ref));
    const there = here.plan ? await reachable(to, destination.look.inspectDestination({ ...ref, plan: here.plan })) : { blockers: [], warnings: [] };
    const blockers = [...here.blockers, ...there.blockers];
    status.warnings = [...here.warnings, ...there.warnings];
    status.warnings.forEach((warning) => log.warn(warning));
    if (blockers.length > 0 || !here.plan) throw refused(vm, to, blockers);
    return here.plan;
  }

  /** Copies the disks and moves the memory, as often as it takes: a try that fails before `migrate-continue` costs no byte of disk. */
  async function moveUntilArrived(targets: MirrorTarget[]): Promise<{ left: HandOverResult | undefined; arrived: TakeOverResult }> {
    for (let mirrorsReady = false; ; ) {
      if (!mirrorsReady) {
        enter('mirror');
        await source.step.startMirrors({ ...ref, targets });
      }
      enter('converge');
      await source.converge.awaitMirrors({ ...ref, targets, maxDowntimeMs: input.maxDowntimeMs });
      status.memoryTry++;
      enter('memory');
      const incoming = await destination.step.openIncoming(ref);
      const { left, arrived, failure } = await switchOver(targets, incoming);
      const sourceFate: SourceFate = left?.source ?? 'gone';
      switch (decideOwner(sourceFate, await destinationFate(arrived))) {
        case 'done':
          return { left, arrived: arrived! };
        case 'crashed-after-move':
          undos.length = 0;
          throw ApplicationFailure.nonRetryable(`guest ${vm} arrived on ${to} and its QEMU ended there before it was reported: start it on ${to}; the copy on ${from} is out of date and must not run`, 'GuestCrashedAfterMove');
        case 'revive-source':
          await CancellationScope.nonCancellable(async () => {
            await destination.switchover.destroyIncoming(ref);
            await source.switchover.reviveSource(ref);
          });
          throw failure ?? ApplicationFailure.nonRetryable(`the destination of guest ${vm} died before the guest had arrived; it runs on ${from}`, 'DestinationDied');
        case 'undo':
          await CancellationScope.nonCancellable(() => destination.undo.destroyIncoming(ref));
          if (left?.source !== 'running') throw failure ?? goneAtSource();
          if (left.because === 'cancelled') CancellationScope.current().cancel();
          else log.warn('the guest runs on at the source', { try: status.memoryTry, because: left.because, message: left.message });
          if (status.memoryTry >= input.memoryTries) throw gaveUp(left);
          mirrorsReady = left.mirrorsReady;
      }
      await sleep(Math.min(1000 * 2 ** (status.memoryTry - 1), LONGEST_BACKOFF_MS), { summary: `before try ${status.memoryTry + 1} of the memory phase` });
    }
  }

  /** Both halves of the switchover in flight at once; they talk to QEMU and to each other, not to us. */
  async function switchOver(targets: MirrorTarget[], incoming: { host: string; port: number; leasePort: number }) {
    let failure: Error | undefined;
    const receiving = new CancellationScope();
    // A cancel of the migration is the source's to answer: the destination goes on until the source has said what happened.
    const received = CancellationScope.nonCancellable(() => receiving.run(() => destination.switchover.receive(ref))).then(
      (arrived) => arrived,
      (error: unknown) => {
        if (!isCancellation(error)) failure = error as Error;
        return undefined;
      },
    );
    const left = await source.switchover
      .moveMemory({
        ...ref,
        handOver: {
          attempt: ref.attempt,
          memoryTry: status.memoryTry,
          to,
          targets,
          settings: { host: incoming.host, port: incoming.port, downtimeLimitMs: Math.max(1, input.maxDowntimeMs / 2), ...cap() },
          lease: { host: incoming.host, port: incoming.leasePort },
          maxDowntimeMs: input.maxDowntimeMs,
          memoryDeadlineMs: input.memoryDeadlineSeconds * 1000,
        },
      })
      .catch((error: unknown) => {
        failure = error as Error;
        return undefined;
      });
    if (left?.source !== 'completed') {
      // A source that died may have handed everything over just before; if so the destination says so at once.
      if (!left) await CancellationScope.nonCancellable(() => Promise.race([received, sleep('10 seconds', { summary: 'whether the guest arrived before its source ended' })]));
      receiving.cancel();
    }
    return { left, arrived: await received, failure };
  }

  async function destinationFate(arrived: TakeOverResult | undefined): Promise<DestinationFate> {
    if (arrived) return 'running';
    const { alive, marker } = await CancellationScope.nonCancellable(() => destination.switchover.destinationState(ref));
    if (marker) return alive ? 'running' : 'dead-with-marker';
    return 'dead';
  }

  /** In reverse order; one that fails does not stop the others. What could not be undone is said. */
  async function undo(cause: unknown): Promise<void> {
    if (undos.length > 0) enter('cleanup');
    for (const step of undos.reverse()) await step().catch((error: unknown) => log.error('an undo failed: something was left behind', { cause: String(cause), error: String(error) }));
  }

  function result(left: HandOverResult | undefined, arrived: TakeOverResult): MigrationResult {
    const windows = left?.source === 'completed' && left.window && arrived.window ? { source: left.window, destination: arrived.window } : undefined;
    return {
      vm,
      from,
      to,
      outcome: 'completed',
      totalMs: Date.now() - started,
      ...(windows && arrived.guest === 'running' && { downtimeMs: Math.round(windows.destination.resumed - windows.source.stopped) }),
      memoryTries: status.memoryTry,
      disks: plan.disks.map(({ id, sizeBytes }) => ({ id, sizeBytes })),
      warnings: status.warnings,
      ...(windows && { window: windows }),
    };
  }

  function gaveUp(left: HandOverResult & { source: 'running' }): ApplicationFailure {
    const type = left.because === 'downtime-budget' ? 'DowntimeBudgetExceeded' : left.because === 'memory-deadline' ? 'MemoryNotConverging' : left.because === 'mirror-failed' ? 'MirrorFailed' : 'DestinationDied';
    return ApplicationFailure.nonRetryable(`guest ${vm} stays on ${from}, running: after ${status.memoryTry} tries, ${left.message}`, type);
  }

  function goneAtSource(): ApplicationFailure {
    return ApplicationFailure.nonRetryable(`guest ${vm} ended on ${from} while it was moved: start it there (vmferry vm start ${vm})`, 'GuestGone');
  }

  function cap() {
    return input.bandwidthBytesPerSecond === undefined ? {} : { bandwidthBytesPerSecond: input.bandwidthBytesPerSecond };
  }
}

function parseInput(raw: MigrateVmInput) {
  const parsed = migrateVmSchema.safeParse(raw);
  if (parsed.success) return parsed.data;
  throw ApplicationFailure.nonRetryable(parsed.error.issues.map((issue) => `${issue.path.join('.') || 'input'}: ${issue.message}`).join('; '), 'MigrationRefused');
}

function refused(vm: string, to: string, blockers: string[]): ApplicationFailure {
  return ApplicationFailure.create({ type: 'MigrationRefused', nonRetryable: true, message: `guest ${vm} cannot move to ${to}; nothing was changed:\n- ${blockers.join('\n- ')}`, details: [{ blockers }] });
}

/** A host whose agent takes no task is unreachable; that is said instead of "activity timed out". */
async function reachable<T>(host: string, look: Promise<T>): Promise<T> {
  try {
    return await look;
  } catch (error) {
    if (error instanceof ActivityFailure && error.cause instanceof TimeoutFailure) {
      throw ApplicationFailure.nonRetryable(`the agent of host ${host} does not answer: start it, or check that its Temporal address and the host's name are right. Nothing was changed`, 'HostUnreachable');
    }
    throw error;
  }
}

function mirrorTargets(plan: GuestPlan, exports: Exports): MirrorTarget[] {
  return plan.disks.map(({ id, device, sizeBytes }) => ({ id, device, sizeBytes, host: exports.host, port: exports.port, exportName: exports.names[id]! }));
}
