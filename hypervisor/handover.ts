import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed } from '../qmp/errors';
import { eventTimeMs, type QmpEventQueue } from '../qmp/event-queue';
import type { SourceAttempt } from './guest-store';
import type { Host } from './host';
import { Lease, type LeaseLoss } from './lease';
import { beginMigration, cancelMigration, type MigrationSettings, migrationState, outgoingState, yankMigration } from './migration';
import { assertMirroring, assertNoMirrors, clearMirrors, ensureMirrors, finishMirrors, mirrorStates, MirrorFailed, type MirrorTarget } from './mirrors';

/**
 * The source's half of the switchover (docs/architecture.md). It acts on QMP events at once, by itself: nothing in the downtime window
 * waits for Temporal. The contract: it returns `completed` when the whole stream was handed over, and this copy must not run any more;
 * or `running`, when the source guest runs on (paused if it was paused) and nothing was lost.
 */
export interface HandOverPlan {
  attempt: string;
  /** Counts the tries of the memory phase, from 1. */
  memoryTry: number;
  to: string;
  targets: MirrorTarget[];
  settings: MigrationSettings;
  lease: { host: string; port: number };
  /** The longest pause of the guest, in milliseconds, that a try may cost before it is given up (R3). */
  maxDowntimeMs: number;
  /** How long memory may be copied before the try is given up, in milliseconds. */
  memoryDeadlineMs: number;
}

export type GiveUpKind = 'downtime-budget' | 'memory-deadline' | 'mirror-failed' | 'migration-failed' | 'cancelled' | LeaseLoss['kind'];

/** Moments of the downtime window, in milliseconds since the epoch by this host's clock. */
export interface SourceWindow {
  stopped: number;
  preSwitchover: number;
  drained: number;
  mirrorsEnded: number;
  continued: number;
  completed: number;
}

export type HandOverResult =
  | { source: 'completed'; window?: SourceWindow }
  | { source: 'running'; because: GiveUpKind; message: string; /** READY mirrors remain, and only the memory phase is to be repeated. */ mirrorsReady: boolean };

export interface HandOverSignals {
  /** Gives up before the point of no return; ignored after it. */
  cancel: AbortSignal;
  /** The agent stops (R8): leaves QEMU as it is and rejects, unless the guest is paused; then the window is finished first. */
  leave: AbortSignal;
  /** Called when the guest has been paused: from here on every millisecond counts. */
  paused(): void;
  /** For the log: what happens inside the window. */
  note(what: string): void;
}

class GiveUp extends Error {
  constructor(readonly kind: GiveUpKind, message: string) {
    super(message);
  }
}

/** `migrate-continue` is sent only to a destination that was heard of within this time. */
const FRESH_MS = 250;
/** A QEMU that hangs is freed out of band this long after it should have answered (R7). */
const HANG_MS = 2_000;

/**
 * Moves the guest's memory and hands the guest over. Can be killed at any point and called again: it looks at what QEMU says and goes
 * on from there (R6). Throws if QEMU itself is gone.
 */
export async function handOver(host: Host, guest: string, plan: HandOverPlan, signals: HandOverSignals): Promise<HandOverResult> {
  const qmp = await host.monitor(guest).connection();
  const lease = new Lease({ ...plan.lease, attempt: plan.attempt }, true);
  try {
    return await new HandOver(host, guest, plan, qmp, lease, signals).run();
  } finally {
    lease.close();
  }
}

class HandOver {
  private readonly giveUp = new AbortController();
  private readonly moments: Partial<SourceWindow> = {};
  private readonly timers = new Set<NodeJS.Timeout>();

  constructor(
    private readonly host: Host,
    private readonly guest: string,
    private readonly plan: HandOverPlan,
    private readonly qmp: QmpConnection,
    private readonly lease: Lease,
    private readonly signals: HandOverSignals,
  ) {}

  async run(): Promise<HandOverResult> {
    const events = this.qmp.listen('MIGRATION', 'STOP', 'RESUME');
    const onCancel = () => this.abandon('cancelled', 'it was cancelled');
    this.signals.cancel.addEventListener('abort', onCancel);
    try {
      const before = await this.begin();
      if (before === 'completed') return { source: 'completed' };
      if (this.signals.cancel.aborted) onCancel();
      if (before === 'continued') return await this.awaitEnd(events);
      await this.awaitPreSwitchover(events);
      await this.finishInsideBudget();
      return await this.pointOfNoReturn(events);
    } catch (error) {
      if (this.moments.continued !== undefined) throw error;
      const reason = this.giveUp.signal.aborted ? (this.giveUp.signal.reason as Error) : (error as Error);
      if (reason instanceof GiveUp) return await this.runOn(reason);
      if (reason instanceof MirrorFailed) return await this.runOn(new GiveUp('mirror-failed', reason.message));
      throw error;
    } finally {
      this.signals.cancel.removeEventListener('abort', onCancel);
      this.timers.forEach(clearTimeout);
      events.close();
    }
  }

  /** Starts the migration of memory, or finds where an earlier call left it. */
  private async begin(): Promise<'under-way' | 'continued' | 'completed'> {
    const { store } = this.host;
    const record = store.attempt(this.guest) as SourceAttempt;
    if (record.memoryTry === this.plan.memoryTry) {
      const state = await migrationState(this.qmp);
      if (state === 'completed') return 'completed';
      if (state === 'continued') return 'continued';
      if (state === 'active' || state === 'pre-switchover') {
        await this.lease.arm(record.wasRunning, this.boundedByHang());
        return 'under-way';
      }
      if (state === 'failed' || state === 'cancelled') throw new GiveUp('migration-failed', `the migration of its memory ended as ${state}`);
    }
    assertMirroring(await mirrorStates(this.qmp, this.plan.targets, this.plan.attempt));
    const wasRunning = (await this.qmp.execute('query-status')).running;
    const { cancel, leave } = this.signals;
    await this.lease.arm(wasRunning, AbortSignal.any([cancel, leave, AbortSignal.timeout(15_000)])).catch(() => {
      leave.throwIfAborted();
      if (cancel.aborted) throw new GiveUp('cancelled', 'it was cancelled');
      throw new GiveUp('peer-silent', `the agent of ${this.plan.to} did not answer on ${this.plan.lease.host} port ${this.plan.lease.port} within 15 s`);
    });
    await store.setAttempt(this.guest, { ...record, memoryTry: this.plan.memoryTry, wasRunning });
    await beginMigration(this.qmp, this.plan.settings);
    return 'under-way';
  }

  /** Memory is copied until little enough remains; then QEMU pauses the guest and waits. */
  private async awaitPreSwitchover(events: Events): Promise<void> {
    const deadline = this.later(this.plan.memoryDeadlineMs, () => this.abandon('memory-deadline', `its memory did not converge within ${this.plan.memoryDeadlineMs / 1000} s`));
    // Asked only now: whatever happens from here on is in `events`.
    let state = await migrationState(this.qmp);
    while (state !== 'pre-switchover') {
      if (state === 'failed' || state === 'cancelled') {
        const reason = (await this.qmp.execute('query-migrate'))['error-desc'];
        throw new GiveUp('migration-failed', `the migration of its memory ended as ${state}: ${reason ?? 'QEMU gives no reason'}`);
      }
      const signal = this.budget ? this.giveUp.signal : AbortSignal.any([this.giveUp.signal, this.signals.leave]);
      const event = await events.next({ signal });
      if (event.event === 'MIGRATION') {
        state = outgoingState(event.data.status);
        if (state === 'pre-switchover') this.moments.preSwitchover = eventTimeMs(event);
      } else {
        if (event.event === 'STOP') this.startBudget(eventTimeMs(event));
        await this.followRunState();
      }
    }
    clearTimeout(deadline);
    this.startBudget(Date.now());
    this.moments.preSwitchover ??= Date.now();
  }

  /** A guest that its operator paused or resumed while its memory moves arrives as it is. QEMU's own pause for the switchover looks the same at first. */
  private async followRunState(): Promise<void> {
    const { status } = await this.qmp.execute('query-status', undefined, { signal: this.giveUp.signal });
    if (status !== 'paused' && status !== 'running') return;
    this.budget?.forEach(clearTimeout);
    this.budget = undefined;
    const record = this.host.store.attempt(this.guest) as SourceAttempt;
    const wasRunning = status === 'running';
    if (record.wasRunning === wasRunning) return;
    await this.host.store.setAttempt(this.guest, { ...record, wasRunning });
    await this.lease.arm(wasRunning, this.boundedByHang());
  }

  /** The guest is paused from `since` on: the clock of R3 runs, and the lease of R7 counts. */
  private startBudget(since: number): void {
    if (this.budget) return;
    this.moments.stopped = since;
    this.signals.paused();
    this.signals.note('QEMU pauses the guest');
    const left = Math.max(0, since + this.plan.maxDowntimeMs - Date.now());
    this.budget = [
      this.later(left, () => this.abandon('downtime-budget', `its disks could not be finished inside the downtime budget of ${this.plan.maxDowntimeMs} ms`)),
      // QMP may be silent while QEMU drains requests in flight; a link that hangs for good is cut out of band.
      this.later(left + HANG_MS, () => void this.freeHangingSource()),
    ];
    void this.lease.lost(this.silenceLimitMs, this.giveUp.signal).then((loss) => this.budget && this.abandon(loss.kind, loss.message), () => undefined);
  }
  private budget: NodeJS.Timeout[] | undefined;

  private get silenceLimitMs(): number {
    return Math.max(250, this.plan.maxDowntimeMs);
  }

  /** Drains and ends every mirror while the guest is paused. On return no mirror exists (R1), and this copy is marked as handed over (R10). */
  private async finishInsideBudget(): Promise<void> {
    const { signal } = this.giveUp;
    const { attempt, targets, to } = this.plan;
    this.marked = this.host.store.setOwnership(this.guest, { state: 'handed-over', attempt, to });
    this.marked.catch(() => undefined);
    // Until remaining is 0 nothing is asked of the mirrors, so giving up costs nothing: they are READY still. There is no event for it.
    for (;;) {
      const jobs = (await this.qmp.execute('query-jobs', undefined, { signal })).filter((job) => job.type === 'mirror');
      const failed = jobs.find((job) => job.error !== undefined);
      if (failed) throw new MirrorFailed(`the mirror ${failed.id} ended: ${failed.error}`);
      if (jobs.every((job) => job['total-progress'] === job['current-progress'])) break;
      await delay(2, undefined, { signal });
    }
    this.moments.drained = Date.now();
    this.cancelsSent = true;
    await finishMirrors(this.qmp, targets, attempt, signal);
    this.moments.mirrorsEnded = Date.now();
    await this.marked;
    await assertNoMirrors(this.qmp);
    await this.lease.fresh(FRESH_MS, signal);
    const loss = this.lease.loss(FRESH_MS);
    if (loss) this.abandon(loss.kind, loss.message);
    signal.throwIfAborted();
  }
  private marked: Promise<void> | undefined;
  private cancelsSent = false;

  /** `migrate-continue`: from here on the ownership table decides (R4). The one place that sends it. */
  private async pointOfNoReturn(events: Events): Promise<HandOverResult> {
    this.timers.forEach(clearTimeout);
    this.moments.continued = Date.now();
    await this.qmp.execute('migrate-continue', { state: 'pre-switchover' }, { timeoutMs: HANG_MS + this.plan.maxDowntimeMs }).catch((error: unknown) => {
      // Without an answer QEMU may have taken it or not: its state tells.
      if (error instanceof QmpCommandFailed && !/not in expected state/.test(error.desc)) throw error;
    });
    return await this.awaitEnd(events);
  }

  private async awaitEnd(events: Events): Promise<HandOverResult> {
    this.moments.continued ??= Date.now();
    this.later(this.plan.maxDowntimeMs + HANG_MS, () => void yankMigration(this.qmp).catch(() => undefined));
    let state = await migrationState(this.qmp);
    for (;;) {
      if (state === 'completed') {
        this.moments.completed ??= Date.now();
        return { source: 'completed', window: { stopped: this.moments.preSwitchover ?? this.moments.continued, drained: 0, mirrorsEnded: 0, preSwitchover: 0, continued: 0, ...this.moments } as SourceWindow };
      }
      if (state === 'failed' || state === 'cancelled') {
        // R2: without return-path this means that the stream was not wholly handed over, so no destination can be complete.
        await this.ownAgain();
        return { source: 'running', because: 'migration-failed', message: `the hand-over of its memory ended as ${state}`, mirrorsReady: false };
      }
      const event = await events.next();
      if (event.event === 'MIGRATION') {
        state = outgoingState(event.data.status);
        if (state === 'completed') this.moments.completed = eventTimeMs(event);
      }
    }
  }

  /** Gives the try up before the point of no return: the guest runs on here, with its mirrors READY where that can be had. */
  private async runOn(reason: GiveUp): Promise<HandOverResult> {
    const rearmed = this.cancelsSent && reason.kind !== 'mirror-failed' && reason.kind !== 'peer-silent' ? await this.rearm() : !this.cancelsSent;
    await cancelMigration(this.qmp, HANG_MS);
    this.signals.note('the migration is cancelled, the guest is the source\'s');
    await this.ownAgain();
    const states = rearmed ? await mirrorStates(this.qmp, this.plan.targets, this.plan.attempt).catch(() => []) : [];
    const mirrorsReady = states.length === this.plan.targets.length && states.every((state) => state.ready && !state.concluded);
    if (!mirrorsReady) await clearMirrors(this.host.monitor(this.guest), { silent: reason.kind === 'peer-silent' });
    return { source: 'running', because: reason.kind, message: reason.message, mirrorsReady };
  }

  /** Mirrors that were finished come back without a copy: nothing was written since, the guest is paused still (facts/qemu.md §2). */
  private async rearm(): Promise<boolean> {
    try {
      await finishMirrors(this.qmp, this.plan.targets, this.plan.attempt, this.boundedByHang());
      await ensureMirrors(this.qmp, this.plan.targets, this.plan.attempt, { sync: 'none', copyMode: (this.host.store.attempt(this.guest) as SourceAttempt).writeBlocking ? 'write-blocking' : 'background' });
      return true;
    } catch {
      return false;
    }
  }

  private async ownAgain(): Promise<void> {
    await this.marked?.catch(() => undefined);
    await this.host.store.setOwnership(this.guest, { state: 'owner', since: new Date().toISOString() });
  }

  private abandon(kind: GiveUpKind, message: string): void {
    if (this.giveUp.signal.aborted) return;
    this.signals.note(`gives up: ${message}`);
    this.giveUp.abort(new GiveUp(kind, message));
  }

  private async freeHangingSource(): Promise<void> {
    this.signals.note('QEMU hangs: cuts its connections to the destination');
    await clearMirrors(this.host.monitor(this.guest), { silent: true }).catch(() => undefined);
  }

  private boundedByHang(): AbortSignal {
    return AbortSignal.timeout(HANG_MS);
  }

  private later(ms: number, action: () => void): NodeJS.Timeout {
    const timer = setTimeout(action, ms);
    this.timers.add(timer);
    return timer;
  }
}

type Events = QmpEventQueue<'MIGRATION' | 'STOP' | 'RESUME'>;
