import { ApplicationFailure, allHandlersFinished, CancellationScope, CancelledFailure, condition, log, patched, setCurrentDetails, setHandler, sleep, upsertSearchAttributes, workflowInfo } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import { refusal } from '../activities/errors';
import type { HandOverPlan, HandOverResult } from '../hypervisor/handover-plan';
import type { MirrorTarget } from '../hypervisor/mirrors';
import type { Findings, GuestPlan } from '../hypervisor/preflight';
import type { Exports } from '../hypervisor/storage-daemon';
import { control, controlPatiently, destinationHost, isAway, sourceHost } from './activities';
import { ConvergenceLoop } from './convergence-loop';
import { arrivedWords, currentDetails, failedWords, type MigrationFacts } from './details';
import { Fences } from './fences';
import { leaveForLater, type UndoneThere } from './finish-cleanup';
import { parseInput } from './input';
import { lastWord, outcomeOf, recordOutcome } from './last-word';
import { counted, measure } from './metrics';
import { ignoredSettings, postCopySettings, qemuMemorySettings } from './memory-settings';
import { leftoverWorkflowId, migrateVmSchema, type MigrateVmInput, type MigrationRequest, type MigrationResult, type MigrationStatus, SEARCH_ATTRIBUTES, statusQuery } from './messages';
import type { Phase } from './phases';
import { Postponed, type Steering } from './steering';
import { switchOver, type Switchover } from './switch-over';

/** Pause between two tries of the memory phase: 1 s, 2 s, 4 s … up to this. */
const LONGEST_BACKOFF_MS = 30_000;

/**
 * Moves a running guest with its disks to another host. Until `migrate-continue` every failure, and a cancel, leaves the guest running at
 * the source and nothing at the destination; after it the guest belongs to whom `decideOwner` says.
 */
export async function migrateVm(raw: MigrateVmInput): Promise<MigrationResult> {
  return await counted('live', () => moveInRounds(raw));
}

async function moveInRounds(raw: MigrateVmInput): Promise<MigrationResult> {
  const { vm, to } = parseInput(migrateVmSchema, raw, 'MigrationRefused');
  const startedAt = Date.now();
  const status: MigrationStatus = { vm, to, phase: 'preflight', memoryTry: 0, warnings: [], decisions: [] };
  setHandler(statusQuery, () => status, { description: 'phase, verdict, progress, decisions, and what is asked or waited for' });
  const steering: Steering = {};
  const facts: MigrationFacts = {};
  const show = () => setCurrentDetails(currentDetails(status, facts));
  const fences = new Fences(vm, status.decisions, (waits) => {
    if (waits.length > 0) status.waitsFor = waits;
    else delete status.waitsFor;
    show();
  });
  try {
    for (let round = 0; ; round++) {
      try {
        const result = await new Round(raw, status, facts, steering, fences, show, startedAt, round).run();
        // A cancel that came too late changes nothing any more, also not what is said of it.
        await CancellationScope.nonCancellable(() => condition(allHandlersFinished));
        end('completed', arrivedWords(result));
        return result;
      } catch (error) {
        await CancellationScope.nonCancellable(() => condition(allHandlersFinished));
        if (!(error instanceof Postponed)) throw error;
        if (round >= error.most) throw ApplicationFailure.nonRetryable(`guest ${vm} stays where it is: it was put off ${round} times already; ${error.why}`, 'DisksNotConverging');
        measure('vmferry_migration_postponements_total', {});
        await waitUntil(error.untilMs, status, steering, show);
      }
    }
  } catch (error) {
    const last = lastWord(error, facts.arrived ? `guest ${vm} is on ${to}, but not everything of its move is put away` : status.from === undefined ? `guest ${vm} did not move` : `guest ${vm} stays on ${status.from}, running`);
    end(outcomeOf(last), failedWords(outcomeOf(last), last, status));
    throw last;
  }

  function end(outcome: string, words: string): void {
    recordOutcome(outcome, [{ key: SEARCH_ATTRIBUTES.guest, value: vm }, { key: SEARCH_ATTRIBUTES.destination, value: to }]);
    facts.end = words;
    show();
  }
}

/** One round: from preflight to the end, or to where it is put off. */
class Round {
  private readonly undos: (() => Promise<void>)[] = [];
  private request: MigrationRequest;
  private ref!: MigrationRef;
  private plan!: GuestPlan;
  private source!: ReturnType<typeof sourceHost>;
  private destination!: ReturnType<typeof destinationHost>;
  private loop!: ConvergenceLoop;
  private reserved = false;

  constructor(private readonly raw: MigrateVmInput, private readonly status: MigrationStatus, private readonly facts: MigrationFacts, private readonly steering: Steering, private readonly fences: Fences, private readonly show: () => void, private readonly startedAt: number, private readonly round: number) {
    this.request = parseInput(migrateVmSchema, raw, 'MigrationRefused');
  }

  async run(): Promise<MigrationResult> {
    const { vm, to } = this.request;
    try {
      this.enter('preflight');
      const { from } = await control.locateGuest({ guest: vm, to });
      this.status.from = from;
      upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.guest, value: vm }, { key: SEARCH_ATTRIBUTES.source, value: from }, { key: SEARCH_ATTRIBUTES.destination, value: to }]);
      // The end of the run's id: its beginning is a time, which migrations that start together share.
      this.ref = { guest: vm, attempt: `${workflowInfo().runId.slice(-8)}${this.round || ''}`, from, to };
      this.source = sourceHost(from);
      this.destination = destinationHost(to);
      this.plan = await this.preflight();
      Object.assign(this.facts, { request: this.request, disks: this.plan.disks, memoryBytes: this.plan.definition.memory } satisfies MigrationFacts);
      this.loop = new ConvergenceLoop(this.source, this.destination, this.ref, this.request, this.plan, this.status, this.facts, this.steering, this.show);
      const { left, arrived } = await this.move();
      // The guest runs at the destination: from here on nothing may be undone, or be stopped by a cancel.
      this.undos.length = 0;
      this.facts.arrived = true;
      return await CancellationScope.nonCancellable(async () => {
        this.enter('cleanup');
        await Promise.all([this.atLast({ at: 'destination', do: 'settleDestination' }), this.atLast({ at: 'source', do: 'retireSource', sourceDisks: this.request.sourceDisks, keepHours: this.request.keepHours })]);
        if (this.reserved) await this.release().catch((error: unknown) => log.warn('the slots are released later', { error: String(error) }));
        return this.result(left, arrived);
      });
    } catch (error) {
      await CancellationScope.nonCancellable(() => this.undo(error));
      throw error;
    }
  }

  /** Asks both hosts everything that could stop the move, and refuses with all reasons at once. Nothing is changed. */
  private async preflight(): Promise<GuestPlan> {
    const { ref } = this;
    const here = await reachable(ref.from, this.source.look.inspectSource(ref));
    const there = here.plan ? await reachable(ref.to, this.destination.look.inspectDestination({ ...ref, plan: here.plan, ...(this.asked(here.plan).postCopy && { postCopy: true }) })) : NO_FINDINGS;
    const blockers = [...here.blockers, ...there.blockers];
    if (blockers.length === 0) blockers.push(...(await greeted(ref, here.plan, there, this.source)));
    if (blockers.length > 0 || !here.plan) throw refusal('MigrationRefused', `guest ${ref.guest} cannot move to ${ref.to}`, blockers);
    this.request = this.asked(here.plan);
    this.status.warnings = [...here.warnings, ...there.warnings, ...ignoredSettings(qemuMemorySettings(this.request), here.plan.memoryFeatures)];
    this.status.warnings.forEach((warning) => log.warn(warning));
    return here.plan;
  }

  /** What was asked for, and what the source's host has to say where nothing was. */
  private asked(plan: GuestPlan): MigrationRequest {
    return parseInput(migrateVmSchema, { ...plan.defaults, ...this.raw }, 'MigrationRefused');
  }

  /** Every step that changes something, its undo registered before it: a step that timed out may have taken effect. */
  private async move(): Promise<Switchover & { where: 'destination' }> {
    const { ref, plan, destination, undos } = this;
    if (patched('reserve')) await this.reserve();
    this.enter('prepare');
    undos.push(() => this.atLast({ at: 'destination', do: 'discardDestination' }));
    await destination.step.prepareDestination({ ...ref, plan });

    this.enter('export');
    undos.push(async () => {
      if (!this.fences.has(ref.to)) await destination.undo.stopExports(ref);
    });
    const targets = mirrorTargets(plan, await destination.step.exportDisks({ ...ref, plan }));

    undos.push(async () => {
      // In this order (R5): a copy that was handed over is the source's again only when its destination is destroyed.
      const { destroyed } = this.fences.has(ref.to) ? { destroyed: true } : await destination.undo.destroyIncoming(ref).catch(() => ({ destroyed: false }));
      await this.atLast({ at: 'source', do: 'removeMirrors', destinationDestroyed: destroyed, ...(this.fences.has(ref.to) && { instead: { host: ref.to, attempt: ref.attempt } }) });
    });
    return await this.moveUntilArrived(targets);
  }

  /** Waits for a slot at both hosts, and room at the destination. */
  private async reserve(): Promise<void> {
    const { guest, from, to } = this.ref;
    const { workflowId, runId } = workflowInfo();
    this.enter('reserve');
    this.undos.push(() => this.release());
    const disks = this.plan.disks.map(({ path, allocatedBytes, blockDevice }) => ({ root: rootOf(path), bytes: blockDevice ? 0 : allocatedBytes }));
    const askedAtMs = Date.now();
    await controlPatiently(this.request.slotSeconds).reserve({ from, to, guest, workflowId, runId, memoryBytes: this.plan.definition.memory, disks });
    measure('vmferry_migration_slot_wait_seconds', { kind: 'live' }, (Date.now() - askedAtMs) / 1000);
    this.reserved = true;
  }

  private async release(): Promise<void> {
    const { workflowId, runId } = workflowInfo();
    await control.release({ hosts: [this.ref.from, this.ref.to], workflowId, runId });
  }

  /** Copies the disks and moves the memory, as often as it takes: a try that fails before `migrate-continue` costs no byte of disk. */
  private async moveUntilArrived(first: MirrorTarget[]): Promise<Switchover & { where: 'destination' }> {
    const { ref, plan, status, request, loop } = this;
    let targets = first;
    const preCopy = qemuMemorySettings(request);
    let postCopy = false;
    for (let mirrors: 'none' | 'lost' | 'ready' = 'none'; ; ) {
      if (mirrors !== 'ready') {
        this.enter('mirror');
        // A storage daemon that has ended is started again; its exports have other names then.
        if (mirrors === 'lost' && patched('export-anew')) targets = mirrorTargets(plan, await this.destination.step.exportDisks({ ...ref, plan }));
        try {
          await this.source.step.startMirrors({ ...ref, targets, copyMode: request.copyMode, anew: mirrors === 'lost' });
        } catch (error) {
          if (!patched('mirrors-again')) throw error;
          await loop.beginAgain(error);
          mirrors = 'lost';
          continue;
        }
        // Not before: QEMU 10 zeroes an NBD target first, with the guest stopped while the cap lets the zeros through (measured: 11.8 s).
        if (loop.bandwidthBytesPerSecond !== undefined) await this.destination.step.setBandwidth({ ...ref, bytesPerSecond: loop.bandwidthBytesPerSecond });
      }
      this.enter('converge');
      if ((await loop.untilReady(targets)) === 'mirrors-lost') {
        mirrors = 'lost';
        continue;
      }
      status.memoryTry++;
      this.enter('memory');
      const memory = postCopy ? postCopySettings(preCopy) : preCopy;
      const incoming = await this.destination.step.openIncoming({ ...ref, capabilities: memory.capabilities });
      const cap = request.memory.maxBandwidthBytesPerSecond ?? request.bandwidthBytesPerSecond;
      const handOver: HandOverPlan = {
        attempt: ref.attempt,
        memoryTry: status.memoryTry,
        to: ref.to,
        targets,
        settings: { host: incoming.host, port: incoming.port, downtimeLimitMs: Math.max(1, loop.maxDowntimeMs / 2), ...memory, ...(cap !== undefined && { bandwidthBytesPerSecond: cap }) },
        lease: { host: incoming.host, port: incoming.leasePort },
        maxDowntimeMs: loop.maxDowntimeMs,
        memoryDeadlineMs: request.memoryDeadlineSeconds * 1000,
        memoryStallMs: request.stallSeconds * 1000,
      };
      const recoverMs = request.stallSeconds * 1000;
      const switched = await loop.duringMemory(() => switchOver(this.source, this.destination, ref, handOver, this.fences, { recoverMs, tell: (what, why) => void loop.note('policy', what, why) }), request.postCopy && !postCopy);
      if (switched.where === 'destination') return switched;
      const { because, message, mirrorsReady } = switched.left;
      measure('vmferry_migration_tries_given_up_total', { because });
      const asked = CancellationScope.current().consideredCancelled;
      if (because === 'cancelled' && loop.goesOnByPostCopy && !asked) {
        postCopy = true;
        mirrors = mirrorsReady ? 'ready' : 'lost';
        continue;
      }
      // A cancel ends the destination too, which may be heard of first.
      if (because === 'cancelled' || asked) throw this.steering.ending ?? new CancelledFailure('cancelled');
      if (status.memoryTry >= request.memoryTries) throw this.gaveUp(switched.left);
      loop.tryAgain(because, message);
      mirrors = mirrorsReady ? 'ready' : 'lost';
      await sleep(Math.min(1000 * 2 ** (status.memoryTry - 1), LONGEST_BACKOFF_MS), { summary: `before try ${status.memoryTry + 1} of the memory phase` });
    }
  }

  /** In reverse order; one that fails does not stop the others. What could not be undone is said. */
  private async undo(cause: unknown): Promise<void> {
    if (this.undos.length > 0) this.enter('cleanup');
    for (const step of this.undos.reverse()) await step().catch((error: unknown) => undoFailed(cause, error));
  }

  /** A step of the cleanup; if its host is away, it is done when the host returns, by a workflow of its own. */
  private async atLast(leftover: Exclude<UndoneThere, { do: 'retireFenced' | 'stayCold' }>): Promise<void> {
    const { ref, fences } = this;
    const all = { ...ref, ...leftover };
    // What has arrived there is not the guest any more; and what has not may be all that is left of one whose source is fenced.
    if (leftover.do === 'discardDestination' && fences.has(ref.to)) return await this.later({ at: 'destination', do: 'retireFenced' });
    if (leftover.do === 'discardDestination' && fences.has(ref.from)) return void this.status.warnings.push(`what had been copied to ${ref.to} is kept there: "vmferry repair ${ref.guest}" discards it when ${ref.from} is back`);
    if (fences.has(leftover.at === 'source' ? ref.from : ref.to)) return await this.later(leftover);
    try {
      switch (all.do) {
        case 'removeMirrors':
          return await this.source.undo.removeMirrors(all);
        case 'retireSource':
          return await this.source.undo.retireSource(all);
        default:
          return await this.destination.undo[all.do](ref);
      }
    } catch (error) {
      if (!isAway(error)) throw error;
      await this.later(leftover);
    }
  }

  private async later(leftover: UndoneThere): Promise<void> {
    const { ref } = this;
    const host = leftover.at === 'source' ? ref.from : ref.to;
    this.status.warnings.push(`host ${host} is away: ${leftover.do} of guest ${ref.guest} is done when it returns (workflow ${leftoverWorkflowId(ref, host)}; vmferry leftovers lists it)`);
    await leaveForLater({ ref, ...leftover });
  }

  private result(left: HandOverResult | undefined, arrived: (Switchover & { where: 'destination' })['arrived']): MigrationResult {
    const { ref, status } = this;
    const windows = left && left.source !== 'running' && left.window && arrived.window ? { source: left.window, destination: arrived.window } : undefined;
    const downtimeMs = windows && arrived.guest === 'running' ? Math.round(windows.destination.resumed - windows.source.stopped) : undefined;
    if (downtimeMs !== undefined) measure('vmferry_migration_downtime_seconds', {}, downtimeMs / 1000);
    if (downtimeMs !== undefined && downtimeMs > this.loop.maxDowntimeMs) measure('vmferry_migration_downtime_over_budget_total', {});
    return {
      vm: ref.guest,
      from: ref.from,
      to: ref.to,
      outcome: 'completed',
      totalMs: Date.now() - this.startedAt,
      ...(downtimeMs !== undefined && { downtimeMs }),
      memoryTries: status.memoryTry,
      disks: this.plan.disks.map(({ id, sizeBytes }) => ({ id, sizeBytes })),
      warnings: status.warnings,
      decisions: status.decisions,
      ...(windows && { window: windows }),
    };
  }

  private gaveUp({ because, message }: HandOverResult & { source: 'running' }): ApplicationFailure {
    const type = because === 'downtime-budget' ? 'DowntimeBudgetExceeded' : because === 'memory-deadline' ? 'MemoryNotConverging' : because === 'mirror-failed' ? 'MirrorFailed' : 'DestinationDied';
    return ApplicationFailure.nonRetryable(`guest ${this.ref.guest} stays on ${this.ref.from}, running: after ${this.status.memoryTry} tries, ${message}`, type);
  }

  private enter(phase: Phase): void {
    this.status.phase = phase;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.phase, value: phase }]);
    this.show();
  }
}

/** Nothing of the migration is anywhere meanwhile; an operator may end it. */
async function waitUntil(untilMs: number, status: MigrationStatus, steering: Steering, show: () => void): Promise<void> {
  status.postponedUntil = new Date(untilMs).toISOString();
  status.phase = 'preflight';
  status.memoryTry = 0;
  delete status.verdict;
  delete status.message;
  delete status.progress;
  show();
  await condition(() => steering.ending !== undefined, Math.max(1, untilMs - Date.now()), { summary: 'put off: begins again then' });
  delete status.postponedUntil;
  if (steering.ending) throw steering.ending;
}

export function undoFailed(cause: unknown, error: unknown): void {
  measure('vmferry_undo_failures_total', {});
  log.error('an undo failed: something was left behind', { cause: String(cause), error: String(error) });
}

/** The root of a portable path. */
export const rootOf = (path: string): string => /^\$\{([^}]+)\}/.exec(path)![1]!;

/** A host whose agent takes no task is unreachable; that is said instead of "activity timed out". */
export async function reachable<T>(host: string, look: Promise<T>): Promise<T> {
  try {
    return await look;
  } catch (error) {
    if (isAway(error)) {
      throw ApplicationFailure.nonRetryable(`the agent of host ${host} does not answer: start it, or check that its Temporal address and the host's name are right. Nothing was changed`, 'HostUnreachable');
    }
    throw error;
  }
}

/** Over TLS a certificate that the other end does not believe is found before anything is made. Gives the blockers. */
export async function greeted(ref: MigrationRef, plan: GuestPlan | undefined, { lease }: { lease?: { host: string; port: number } }, source: ReturnType<typeof sourceHost>): Promise<string[]> {
  // Older agents say neither.
  if (!lease || (plan?.security ?? 'insecure') === 'insecure') return [];
  return (await reachable(ref.from, source.look.greetDestination({ ...ref, lease }))).blockers;
}

/** Nobody was asked. */
export const NO_FINDINGS: Findings & { lease?: { host: string; port: number } } = { blockers: [], warnings: [] };

export function mirrorTargets(plan: GuestPlan, exports: Exports): MirrorTarget[] {
  return plan.disks.map(({ id, device, sizeBytes }) => ({ id, device, sizeBytes, host: exports.host, port: exports.port, exportName: exports.names[id]! }));
}
