import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed, QmpTimeout } from '../qmp/errors';
import { eventTimeMs, type QmpEventQueue } from '../qmp/event-queue';
import type { Channel } from './credentials';
import { raiseDowntimeLimit } from './downtime-steps';
import { DrainForecast } from './drain-forecast';
import type { SourceAttempt } from './guest-store';
import { sourceRecord } from './guest-throttle';
import type { Host } from './host';
import { GiveUp, type GiveUpKind, type HandOverPlan, type HandOverResult, type HandOverSignals, type SourceWindow } from './handover-plan';
import { Lease } from './lease';
import { beginMigration, cancelMigration, leavePostmigrate, migrationState, type OutgoingState, outgoingState, yankMigration } from './migration';
import { assertMirroring, assertNoMirrors, clearMirrors, ensureMirrors, finishMirrors, mirrorStates, MirrorFailed, yankDisks } from './mirrors';
import { nbdAnswers } from './nbd-probe';
import { nextWhilePagesGo, switchesToPostCopy } from './post-copy';

/** `migrate-continue` is sent only to a destination that was heard of within this time. */
const FRESH_MS = 250;
/** A QEMU whose guest runs is freed out of band this long after it should have answered (R7). */
const HANG_MS = 2_000;
/**
 * While the guest is paused and its budget is used up, no answer is waited for any longer: then the connections are cut, which costs the copy of
 * the disks and lets the guest run at once.
 */
const LAST_MS = 120;
const STALL_LOOK_MS = 1_000;
const LOOK_MS = 100;
const FOREVER_MS = 2 ** 30;
/** How long the destination's agent may take to answer before the memory is sent. */
const MEET_MS = 15_000;

/**
 * Moves the guest's memory and hands the guest over. Can be killed at any point and called again: it looks at what QEMU says and goes
 * on from there (R6). Throws if QEMU itself is gone.
 */
export async function handOver(host: Host, guest: string, plan: HandOverPlan, signals: HandOverSignals): Promise<HandOverResult> {
  const qmp = await host.monitor(guest).connection();
  return await new HandOver(host, guest, plan, qmp, signals).run();
}

/**
 * What a source does when the one who ran its window has died (R9): before `migrate-continue` the guest runs on here at once, after it QEMU
 * goes on by itself. Resolves when the migration has come to an end; `leave` hands the watch over to somebody else.
 */
export async function guardSource(host: Host, guest: string, plan: HandOverPlan, leave: AbortSignal): Promise<void> {
  const qmp = await host.monitor(guest).connection({ signal: leave });
  const never = new AbortController().signal;
  await new HandOver(host, guest, plan, qmp, { cancel: never, leave, paused: () => undefined, note: () => undefined }).guard();
}

/**
 * The source's half of the switchover (docs/architecture.md). It acts on QMP events at once, by itself: nothing in the downtime window
 * waits for Temporal. The contract: it returns `completed` when the whole stream was handed over, and this copy must not run any more;
 * or `running`, when the source guest runs on (paused if it was paused) and nothing was lost. In a post-copy try also `post-copy`: the destination has, or can have,
 * the guest, and needs pages of this copy still.
 */
class HandOver {
  private readonly giveUp = new AbortController();
  private readonly ended = new AbortController();
  private readonly moments: Partial<SourceWindow> = {};
  private readonly timers = new Set<NodeJS.Timeout>();
  private lease: Lease | undefined;
  private budget: NodeJS.Timeout | undefined;
  private marked: Promise<void> | undefined;
  private cancelsSent = false;
  private told: Promise<void> | undefined;
  private connectionsCut = false;
  /** Mirrors that this very object saw end well: a job that is not there is no proof of anything. */
  private readonly proven = new Set<string>();

  constructor(
    private readonly host: Host,
    private readonly guest: string,
    private readonly plan: HandOverPlan,
    private readonly qmp: QmpConnection,
    private readonly signals: HandOverSignals,
  ) {}

  async run(): Promise<HandOverResult> {
    const events = this.qmp.listen('MIGRATION', 'STOP', 'RESUME');
    const onCancel = () => this.abandon('cancelled', 'it was cancelled');
    this.signals.cancel.addEventListener('abort', onCancel);
    try {
      const before = await this.begin();
      if (before === 'completed') return { source: 'completed' };
      if (before === 'continued') return await this.awaitEnd(events);
      if (this.signals.cancel.aborted) onCancel();
      await this.awaitPreSwitchover(events);
      if (this.plan.settings.postCopy) await this.assertPostCopy();
      await this.finishInsideBudget();
      return await this.pointOfNoReturn(events);
    } catch (error) {
      if (this.moments.continued !== undefined) throw error;
      const reason = this.giveUp.signal.aborted ? (this.giveUp.signal.reason as Error) : (error as Error);
      if (reason instanceof GiveUp) return await this.runOn(reason);
      if (reason instanceof MirrorFailed) return await this.runOn(new GiveUp('mirror-failed', reason.message));
      // Whatever went wrong, a guest that is paused is not left so.
      if (this.budget) await this.runOn(new GiveUp('interrupted', reason.message)).catch(() => undefined);
      throw error;
    } finally {
      this.ended.abort();
      this.signals.cancel.removeEventListener('abort', onCancel);
      this.timers.forEach(clearTimeout);
      this.lease?.close();
      events.close();
    }
  }

  /** See `guardSource`. */
  async guard(): Promise<void> {
    const events = this.qmp.listen('MIGRATION', 'STOP', 'RESUME');
    try {
      for (;;) {
        const [state, { status }] = await Promise.all([migrationState(this.qmp), this.qmp.execute('query-status')]);
        if (state === 'pre-switchover' || (state === 'active' && status === 'finish-migrate')) {
          await this.runOn(new GiveUp('interrupted', 'its agent ended while the guest was paused'));
          return;
        }
        // The last page may have come before anybody looked.
        if (state === 'post-copy' || state === 'post-copy-paused' || (state === 'completed' && this.plan.settings.postCopy)) return await this.tellHandedOver();
        if (state !== 'active' && state !== 'continued') return;
        await nextOrLook(events, state, this.signals.leave);
      }
    } finally {
      this.timers.forEach(clearTimeout);
      this.lease?.close();
      events.close();
    }
  }

  /** Starts the migration of memory, or finds where an earlier call left it. */
  private async begin(): Promise<'under-way' | 'continued' | 'completed'> {
    const { store } = this.host;
    const record = sourceRecord(this.host, this.guest);
    if (record.memoryTry === this.plan.memoryTry) {
      const state = await migrationState(this.qmp);
      if (state === 'completed' && this.plan.settings.postCopy) return 'continued';
      if (state === 'completed' || state === 'continued') return state;
      if (state === 'post-copy' || state === 'post-copy-paused') return 'continued';
      if (state === 'failed' && this.plan.settings.postCopy && store.ownership(this.guest)?.state === 'handed-over') return 'continued';
      if (state === 'failed' || state === 'cancelled') throw new GiveUp('migration-failed', `the migration of its memory ended as ${state}`);
      // Nobody knows for how long the guest has been paused.
      if (state === 'pre-switchover') throw new GiveUp('interrupted', 'its agent was restarted while the guest was paused');
      if (state === 'active') {
        await this.meet(record.wasRunning);
        return 'under-way';
      }
    }
    assertMirroring(await mirrorStates(this.qmp, this.plan.targets, this.plan.attempt));
    const wasRunning = (await this.qmp.execute('query-status')).running;
    await this.meet(wasRunning);
    // QEMU drains its disks before it says that it stops the guest: with a dead NBD server that is a frozen guest for the whole reconnect time.
    const [target] = this.plan.targets;
    if (target) await nbdAnswers(target.host, target.port, MEET_MS, AbortSignal.any([this.signals.cancel, this.signals.leave]));
    await store.patchAttempt<SourceAttempt>(this.guest, { memoryTry: this.plan.memoryTry, wasRunning, postCopy: this.plan.settings.postCopy });
    await beginMigration(this.qmp, this.plan.settings, this.channel);
    return 'under-way';
  }

  /** Opens the lease: resolves when the destination's agent has it durably whether the guest shall run there. */
  private async meet(run: boolean): Promise<void> {
    const { cancel, leave } = this.signals;
    this.lease = new Lease(this.host.config, { ...this.plan.lease, name: this.plan.to, attempt: this.plan.attempt }, run);
    await this.lease.arm(run, AbortSignal.any([cancel, leave, AbortSignal.timeout(MEET_MS)])).catch(() => {
      leave.throwIfAborted();
      if (cancel.aborted) throw new GiveUp('cancelled', 'it was cancelled');
      throw new GiveUp('peer-silent', this.lease?.refused ?? `the agent of ${this.plan.to} did not answer on ${this.plan.lease.host} port ${this.plan.lease.port} within ${MEET_MS / 1000} s`);
    });
    // Said of a QEMU, or a storage daemon, that has ended: now it costs nothing, later a pause.
    void this.lease.lost(FOREVER_MS, this.giveUp.signal).then((loss) => this.abandon(loss.kind, loss.message), () => undefined);
  }

  /** Memory is copied until little enough remains; then QEMU pauses the guest and waits. */
  private async awaitPreSwitchover(events: Events): Promise<void> {
    const deadline = this.later(this.plan.memoryDeadlineMs, () => this.abandon('memory-deadline', `its memory did not converge within ${this.plan.memoryDeadlineMs / 1000} s`));
    void this.watchStall();
    if (this.plan.settings.postCopy) void this.startPostCopy();
    else void raiseDowntimeLimit(this.qmp, this.plan.settings.downtimeLimitMs, AbortSignal.any([this.giveUp.signal, this.signals.leave, this.ended.signal]), () => this.budget !== undefined);
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

  /** Once everything was sent once, what is sent again is sent in vain: the guest dirties it. QEMU then pauses the guest as for any switchover, and waits. */
  private async startPostCopy(): Promise<void> {
    while (!this.ended.signal.aborted && !this.budget && !this.giveUp.signal.aborted && !this.signals.leave.aborted && this.qmp.isOpen) {
      const { ram } = await this.qmp.execute('query-migrate').catch(() => ({ ram: undefined }));
      if (ram && ram['dirty-sync-count'] > 1) {
        this.signals.note('all of the memory was sent once: switches to post-copy');
        await this.qmp.execute('migrate-start-postcopy').catch((error: Error) => this.abandon('migration-failed', `QEMU does not switch to post-copy: ${error.message}`));
        return;
      }
      await delay(LOOK_MS, undefined, { signal: this.giveUp.signal }).catch(() => undefined);
    }
  }

  /** R2 in a post-copy try: a return path is open, so it must not end as a pre-copy. The guest is paused, and what remains does not change. */
  private async assertPostCopy(): Promise<void> {
    const { ram } = await this.qmp.execute('query-migrate', undefined, { signal: this.giveUp.signal });
    if (!ram || !switchesToPostCopy(ram.remaining, ram.mbps)) this.abandon('migration-failed', 'its memory has converged meanwhile: it needs no post-copy');
    this.giveUp.signal.throwIfAborted();
  }

  /** A link that carries nothing is no event: what was sent is looked at, until the guest is paused. */
  private async watchStall(): Promise<void> {
    let [sent, since] = [-1, performance.now()];
    while (!this.ended.signal.aborted && !this.budget && !this.giveUp.signal.aborted && !this.signals.leave.aborted && this.qmp.isOpen) {
      const { ram } = await this.qmp.execute('query-migrate').catch(() => ({ ram: undefined }));
      if (ram && ram.transferred !== sent) [sent, since] = [ram.transferred, performance.now()];
      if (performance.now() - since > this.plan.memoryStallMs) this.abandon('memory-deadline', `nothing of its memory was sent for ${Math.round(this.plan.memoryStallMs / 1000)} s: the destination hangs, or the link is dead`);
      await delay(STALL_LOOK_MS, undefined, { signal: this.giveUp.signal }).catch(() => undefined);
    }
  }

  /** A guest that its operator paused or resumed while its memory moves arrives as it is. QEMU's own pause for the switchover looks the same at first. */
  private async followRunState(): Promise<void> {
    const { status } = await this.qmp.execute('query-status', undefined, { signal: this.giveUp.signal });
    if (status !== 'paused' && status !== 'running') return;
    clearTimeout(this.budget);
    this.budget = undefined;
    const wasRunning = status === 'running';
    if (sourceRecord(this.host, this.guest).wasRunning === wasRunning) return;
    await this.host.store.patchAttempt<SourceAttempt>(this.guest, { wasRunning });
    await this.lease!.arm(wasRunning, AbortSignal.any([this.giveUp.signal, AbortSignal.timeout(MEET_MS)])).catch(() => {
      throw new GiveUp('peer-silent', `the agent of ${this.plan.to} does not answer`);
    });
  }

  /** The guest is paused from `since` on: the clock of R3 runs, and the lease of R7 counts. */
  private startBudget(since: number): void {
    if (this.budget) return;
    this.moments.stopped = since;
    this.signals.paused();
    this.signals.note('QEMU pauses the guest');
    const left = Math.max(0, since + this.plan.maxDowntimeMs - Date.now());
    this.budget = this.later(left, () => this.abandon('downtime-budget', `its disks could not be finished inside the downtime budget of ${this.plan.maxDowntimeMs} ms`));
    void this.lease?.lost(Math.max(250, this.plan.maxDowntimeMs), this.giveUp.signal).then((loss) => this.budget && this.abandon(loss.kind, loss.message), () => undefined);
  }

  /** Drains and ends every mirror while the guest is paused. On return no mirror exists (R1), and this copy is marked as handed over (R10). */
  private async finishInsideBudget(): Promise<void> {
    const { signal } = this.giveUp;
    const { attempt, targets, to } = this.plan;
    this.marked = this.host.store.setOwnership(this.guest, { state: 'handed-over', attempt, to });
    this.marked.catch(() => undefined);
    const over = new Promise<never>((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));
    over.catch(() => undefined);
    const forecast = new DrainForecast();
    // Until remaining is 0 nothing is asked of the mirrors, so giving up costs nothing: they are READY still. There is no event for it.
    for (;;) {
      // QMP may be silent while QEMU drains: the budget ends the wait all the same.
      const states = await Promise.race([mirrorStates(this.qmp, targets, attempt), over]);
      assertMirroring(states);
      signal.throwIfAborted();
      if (states.every(({ remainingBytes }) => remainingBytes === 0)) break;
      const needsMs = forecast.needsMs(states.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0));
      if (needsMs !== undefined && needsMs > Math.max(0, this.leftOfBudgetMs)) this.abandon('downtime-budget', `its disks would need ${Math.round(needsMs)} ms more, beyond the downtime budget of ${this.plan.maxDowntimeMs} ms`);
      await delay(2, undefined, { signal });
    }
    this.moments.drained = Date.now();
    this.cancelsSent = true;
    await finishMirrors(this.qmp, targets, attempt, signal, this.proven);
    this.moments.mirrorsEnded = Date.now();
    await this.marked;
    await assertNoMirrors(this.qmp);
    await this.lease!.fresh(FRESH_MS, signal);
    const loss = this.lease!.loss(FRESH_MS);
    if (loss) this.abandon(loss.kind, loss.message);
    signal.throwIfAborted();
  }

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
    const cut = this.later(this.plan.maxDowntimeMs + HANG_MS, () => void yankMigration(this.qmp).catch(() => undefined));
    let state = await migrationState(this.qmp);
    for (;;) {
      if (state === 'post-copy' || state === 'post-copy-paused') {
        clearTimeout(cut);
        await this.tellHandedOver();
        if (state === 'post-copy-paused') return { source: 'post-copy', message: 'the connection broke before the last page of its memory was sent', ...this.window };
      }
      if (state === 'completed') {
        if (this.plan.settings.postCopy) await this.tellHandedOver();
        this.moments.completed ??= Date.now();
        return { source: 'completed', ...this.window };
      }
      if (state === 'failed' || state === 'cancelled') {
        // Before its first page QEMU 7.2 ends a post-copy so, with the guest paused: the destination may have got all that it needs to run.
        if (this.plan.settings.postCopy && !(await this.qmp.execute('query-status')).running) return { source: 'completed', unproven: true };
        // R2: without return-path this means that the stream was not wholly handed over, so no destination can be complete. In a post-copy try it was not told so.
        await this.ownAgain();
        return { source: 'running', because: 'migration-failed', message: `the hand-over of its memory ended as ${state}`, mirrorsReady: false };
      }
      // Pages may come for hours: an agent that stops leaves them to QEMU.
      const event = await (state === 'post-copy' ? nextWhilePagesGo(this.qmp, events, { stallMs: this.plan.memoryStallMs, leave: this.signals.leave, lease: this.lease }) : nextOrLook(events, state));
      if (event === 'over') return { source: 'post-copy', message: 'its destination has ended, or takes no page any more', ...this.window };
      if (event?.event === 'MIGRATION') {
        state = outgoingState(event.data.status);
        if (state === 'completed') this.moments.completed = eventTimeMs(event);
      } else if (!event) state = await migrationState(this.qmp);
    }
  }

  /** Unknown to an agent that was started after the guest was paused. */
  private get window(): { window?: SourceWindow } {
    if (this.moments.preSwitchover === undefined) return {};
    return { window: { stopped: this.moments.preSwitchover, drained: 0, mirrorsEnded: 0, continued: 0, completed: 0, ...this.moments, preSwitchover: this.moments.preSwitchover } };
  }

  /**
   * The word without which a destination does not run a guest that came by post-copy: the first page was sent after the switch, so QEMU cannot fail, and run on
   * here, any more (R2, whatever QEMU's version: newer ones run a source whose stream broke while it switched).
   */
  private async tellHandedOver(): Promise<void> {
    this.told ??= this.sayHandedOver();
    await this.told;
  }

  private async sayHandedOver(): Promise<void> {
    while ((await migrationState(this.qmp)) === 'post-copy' && !((await this.qmp.execute('query-migrate')).ram?.['postcopy-bytes'] ?? 0)) await delay(2);
    if ((await migrationState(this.qmp)) === 'failed') return;
    this.signals.note('post-copy has begun');
    const run = sourceRecord(this.host, this.guest).wasRunning;
    this.lease ??= new Lease(this.host.config, { ...this.plan.lease, name: this.plan.to, attempt: this.plan.attempt }, run);
    // A destination that has died, or runs the guest already, does not answer: its host says what became of it.
    await this.lease.arm(run, AbortSignal.timeout(MEET_MS), true).catch((error: Error) => this.signals.note(`the destination does not answer: ${error.message}`));
  }

  /** Gives the try up before the point of no return: the guest runs on here, with its mirrors READY where that can be had. */
  private async runOn(reason: GiveUp): Promise<HandOverResult> {
    // What is left of the budget may be used to keep the copy of the disks. The cancel itself waits for what the mirrors have in flight.
    const leftMs = Math.round(Math.max(0, this.leftOfBudgetMs)) + LAST_MS;
    const limitMs = this.budget || reason.kind === 'interrupted' ? leftMs : HANG_MS;
    const rearmed = this.cancelsSent && reason.kind !== 'mirror-failed' && reason.kind !== 'peer-silent' ? await this.rearm(leftMs) : !this.cancelsSent;
    const end = await cancelMigration(this.qmp, limitMs, () => this.cutConnections());
    // A cancel that came too late: everything was handed over, and the table of R4 decides.
    if (end === 'completed') return { source: 'completed' };
    if (end === 'post-copy' || end === 'post-copy-paused') {
      await this.tellHandedOver();
      return { source: 'post-copy', message: 'a cancel came after migrate-continue' };
    }
    this.timers.forEach(clearTimeout);
    this.signals.note('the migration is cancelled, the guest is the source\'s');
    await this.ownAgain();
    if (end === 'cancelled') await leavePostmigrate(this.qmp, sourceRecord(this.host, this.guest).wasRunning);
    const pausedMs = this.budget && sourceRecord(this.host, this.guest).wasRunning ? Math.max(0, Math.round(Date.now() - this.moments.stopped!)) : undefined;
    const states = rearmed ? await mirrorStates(this.qmp, this.plan.targets, this.plan.attempt).catch(() => []) : [];
    // Once cut, QEMU's NBD client does not connect again (measured on 7.2): such a mirror is lost.
    const mirrorsReady = !this.connectionsCut && states.length === this.plan.targets.length && states.every((state) => state.ready && !state.concluded);
    if (!mirrorsReady) await clearMirrors(this.host.monitor(this.guest), { silent: reason.kind === 'peer-silent' });
    return { source: 'running', because: reason.kind, message: reason.message, mirrorsReady, ...(pausedMs !== undefined && { pausedMs }) };
  }

  /** Mirrors that were finished come back without a copy: nothing was written since, the guest is paused still (facts/qemu.md §2). */
  private async rearm(limitMs: number): Promise<boolean> {
    const { targets, attempt } = this.plan;
    const copyMode = sourceRecord(this.host, this.guest).writeBlocking ? 'write-blocking' : 'background';
    const signal = AbortSignal.timeout(limitMs);
    const work = finishMirrors(this.qmp, targets, attempt, signal, this.proven).then(() => ensureMirrors(this.qmp, targets, attempt, { sync: 'none', copyMode, channel: this.channel, signal }));
    const late = new Promise<never>((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));
    return await Promise.race([work, late]).then(
      () => true,
      (error: Error) => {
        this.signals.note(`the mirrors that had ended cannot be made anew, the disks are copied again: ${error.message}`);
        return false;
      },
    );
  }

  private get channel(): Channel | undefined {
    return this.host.outgoingChannel(this.guest, this.plan.to);
  }

  private get leftOfBudgetMs(): number {
    return (this.moments.stopped ?? 0) + this.plan.maxDowntimeMs - Date.now();
  }

  private async ownAgain(): Promise<void> {
    await this.marked?.catch(() => undefined);
    await this.host.store.setOwnership(this.guest, { state: 'owner', since: new Date().toISOString() });
  }

  private abandon(kind: GiveUpKind, message: string): void {
    if (this.giveUp.signal.aborted || this.moments.continued !== undefined) return;
    this.signals.note(`gives up: ${message}`);
    this.giveUp.abort(new GiveUp(kind, message));
  }

  private async cutConnections(): Promise<void> {
    this.signals.note('QEMU does not answer in time: cuts its connections to the destination');
    this.connectionsCut = true;
    await Promise.all([yankDisks(this.qmp), yankMigration(this.qmp)]).catch(() => undefined);
  }

  private later(ms: number, action: () => void): NodeJS.Timeout {
    const timer = setTimeout(action, ms);
    this.timers.add(timer);
    return timer;
  }
}

type Events = QmpEventQueue<'MIGRATION' | 'STOP' | 'RESUME'>;

/** The next event; after `migrate-continue` undefined when it is time to look: `completed` may have been said a moment before the run state followed it. */
async function nextOrLook(events: Events, state: OutgoingState, signal?: AbortSignal): Promise<Awaited<ReturnType<Events['next']>> | undefined> {
  return await events.next({ ...(signal && { signal }), ...(state === 'continued' && { timeoutMs: LOOK_MS }) }).catch((error: unknown) => {
    if (error instanceof QmpTimeout) return undefined;
    throw error;
  });
}
