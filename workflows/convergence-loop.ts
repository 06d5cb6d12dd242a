import { ActivityFailure, ApplicationFailure, CancellationScope, condition, isCancellation, log, patched, setHandler, sleep, upsertMemo, upsertSearchAttributes } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { GiveUpKind } from '../hypervisor/handover-plan';
import type { MirrorTarget } from '../hypervisor/mirrors';
import type { GuestPlan } from '../hypervisor/preflight';
import type { destinationHost, sourceHost } from './activities';
import { type Assessment, blameDestinationDisk, DISK_BUSY } from './convergence';
import { decide, type Decision, type Effects, judge, nameOf, type Policy, type Remedy, type Tried } from './divergence';
import type { MigrationFacts } from './details';
import { type CopyProgress, decisionMemoKey, type DecisionRecord, type MigrationRequest, type MigrationStatus, newsSignal, SEARCH_ATTRIBUTES, steerUpdate } from './messages';
import type { MemoryAssessment } from './memory-convergence';
import { measure } from './metrics';
import { innermost, Postponed, type Steering, whatOf } from './steering';
import { type Steer, refuseSteer, steerSchema, type SteerSituation } from './steer';

/** What a decision asks of the loop itself. */
type Order = { do: 'watch-anew' } | { do: 'go' } | { do: 'remedy'; remedy: Remedy; tried: Tried } | { do: 'end'; error: Error };

/** The part of the pause that the disks may take; QEMU's `downtime-limit` gives memory the other. */
const DISKS_PART = 0.5;
/** How often mirrors whose connection was lost are begun anew, and the pause before that. */
const MOST_RESTARTS = 3;
const RESTART_PAUSE_MS = 5_000;

/** The storage daemon has ended, or a mirror ended with what QEMU's NBD client makes of a connection that was cut; a disk's own error reads the same, and fails again. */
const CONNECTION_LOST = /no NBD server answers|Input\/output error/;
/** A watch that saw a mirror fail ends at once. */
const MIRROR_ENDS_MS = 60_000;
/** How long memory must have been told to diverge, or hover, before post-copy: auto-converge and a longer pause get their chance first. */
const POST_COPY_PATIENCE_MS = 20_000;
/** Or this part of the memory's deadline, whatever is told of it. */
const POST_COPY_AT = 0.8;
/** After this many pauses that were given up for the disks, the mildest remedy that cannot fall behind is taken. */
const PATIENT_TRIES = 2;

/**
 * Brings the mirrors of one migration to where its memory may be moved: asks `decide` whenever something has changed, applies what it says, and
 * takes steers. It outlives the tries of the memory phase, so that no remedy that failed is tried twice.
 */
export class ConvergenceLoop {
  maxDowntimeMs: number;
  private assessment: Assessment | undefined;
  private previous: Assessment | undefined;
  private tried: Tried[] = [];
  private effects: Effects = {};
  private bandwidth: number | undefined;
  private askedAtMs: number | undefined;
  private askedDestinationAtMs: number | undefined;
  private waitUntilMs: number | undefined;
  private deadlineAtMs = 0;
  private order: Order | undefined;
  private changes = 0;
  private restarts = 0;
  /** A remedy of ours broke the mirrors. */
  private broken = false;
  private pausesGivenUp = 0;
  private said = '';
  private targets: MirrorTarget[] = [];
  private memoryScope: CancellationScope | undefined;
  private memory: (MemoryAssessment & { sinceMs: number }) | undefined;
  private postCopyNow = false;

  constructor(
    private readonly source: ReturnType<typeof sourceHost>,
    private readonly destination: ReturnType<typeof destinationHost>,
    private readonly ref: MigrationRef,
    private readonly request: MigrationRequest,
    private readonly plan: GuestPlan,
    private readonly status: MigrationStatus,
    private readonly facts: MigrationFacts,
    private readonly steering: Steering,
    private readonly show: () => void,
  ) {
    this.maxDowntimeMs = request.maxDowntimeMs;
    this.bandwidth = request.bandwidthBytesPerSecond;
    if (request.copyMode === 'write-blocking') this.effects.writeBlocking = true;
    setHandler(newsSignal, ({ assessment, memory }) => {
      if (assessment && assessment.verdict !== this.assessment?.verdict) this.heard(assessment);
      else if (assessment) this.tell(assessment.verdict, assessment.message, disksOf(assessment));
      if (memory) {
        const { remainingBytes, totalBytes = 0, dirtyBytesPerSecond = 0, bytesPerSecond = 0, verdict, message } = memory;
        if (verdict !== this.memory?.verdict) measure('vmferry_verdict_changes_total', { of: 'memory', verdict });
        // What an agent tells of a verdict that is known already is how far it is; one of an earlier release tells only verdicts.
        this.memory = { ...memory, sinceMs: remainingBytes !== undefined && verdict === this.memory?.verdict ? this.memory.sinceMs : Date.now() };
        this.tell(verdict, message, remainingBytes === undefined ? undefined : { memory: { remainingBytes, totalBytes, dirtyBytesPerSecond, bytesPerSecond } });
      }
      this.changes++;
    });
    setHandler(steerUpdate, async (steer) => await this.steer(steer), {
      description: 'decides about a copy that does not converge: {"do": "write-blocking", "author": …, "reason": …}',
      validator: (raw) => {
        const parsed = steerSchema.safeParse(raw);
        if (!parsed.success) throw refusal(parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'steer'}: ${message}`).join('; '));
        const why = refuseSteer(parsed.data, this.situationOfSteer());
        if (why) throw refusal(`${parsed.data.do}: ${why}`);
      },
    });
  }

  /** Waits, with whatever it takes, until the memory may be moved. Throws an `ApplicationFailure`, or `Postponed`. Says whether the mirrors must be begun anew. */
  async untilReady(targets: MirrorTarget[]): Promise<'ready' | 'mirrors-lost'> {
    this.throwIfEnding();
    this.targets = targets;
    this.deadlineAtMs = Date.now() + this.request.disksDeadlineSeconds * 1000;
    this.facts.disksDeadlineAtMs = this.deadlineAtMs;
    this.show();
    for (;;) {
      const ended: { open?: Assessment; failure?: unknown } = {};
      const scope = new CancellationScope();
      const watching = scope.run(() => this.watch()).then((open) => (ended.open = open), (failure: unknown) => (ended.failure = failure));
      const order = await this.orderOr(() => ended.open !== undefined || ended.failure !== undefined);
      scope.cancel();
      await watching;
      if (ended.open) {
        this.heard(ended.open);
        // Why trouble is over, also when the gate opens before the verdict has changed.
        const { action, why } = decide(this.situation(ended.open));
        if (action === 'nothing' && this.previous !== undefined && this.previous.verdict !== 'converging') this.noteOnce('policy', 'nothing', why);
      }
      switch (order?.do) {
        case 'go':
          return 'ready';
        case 'end':
          throw order.error;
        case 'remedy':
          await this.apply(order.remedy, order.tried);
          continue;
        case 'watch-anew':
          continue;
        case undefined:
      }
      if (ended.open) return 'ready';
      await this.beginAgain(ended.failure);
      return 'mirrors-lost';
    }
  }

  /** Runs the memory phase so that an operator's `abort` reaches it, and, with `untilPostCopy`, so that it is given up when it does not converge. */
  async duringMemory<T>(work: () => Promise<T>, untilPostCopy: boolean): Promise<T> {
    this.throwIfEnding();
    this.memoryScope = new CancellationScope();
    const watching = new CancellationScope();
    if (untilPostCopy) void watching.run(() => this.endForPostCopy()).catch(() => undefined);
    try {
      return await this.memoryScope.run(work);
    } finally {
      watching.cancel();
      this.memoryScope = undefined;
    }
  }

  /** Whether the try that has just ended was given up for post-copy, and for nothing else. */
  get goesOnByPostCopy(): boolean {
    return this.postCopyNow && this.steering.ending === undefined;
  }

  /** Memory converges, or not, by itself for a while. What ends its try is a cancel: the guest runs on, its mirrors stay ready, and the next try begins with post-copy enabled, which QEMU does not take while it migrates. */
  private async endForPostCopy(): Promise<void> {
    const latestMs = Date.now() + this.request.memoryDeadlineSeconds * 1000 * POST_COPY_AT;
    this.memory = undefined;
    for (;;) {
      const memory = this.memory as MemoryAssessment & { sinceMs: number } | undefined;
      const bad = memory?.verdict === 'diverging' || memory?.verdict === 'hovering';
      const atMs = Math.min(latestMs, bad ? memory.sinceMs + POST_COPY_PATIENCE_MS : latestMs);
      if (Date.now() >= atMs) {
        if (memory?.verdict === 'stalled') return;
        this.postCopyNow = true;
        this.note('policy', 'post-copy', `${bad ? memory.message : `the memory's deadline of ${this.request.memoryDeadlineSeconds} s comes near`}; it was asked for: the guest is in both hosts until its last page has come`);
        this.memoryScope?.cancel();
        return;
      }
      const seen = this.changes;
      await condition(() => this.changes !== seen, atMs - Date.now(), { summary: 'gives the memory this long to converge; then post-copy' });
    }
  }

  /** The cap that is in force, in bytes a second. */
  get bandwidthBytesPerSecond(): number | undefined {
    return this.bandwidth;
  }

  throwIfEnding(): void {
    if (this.steering.ending) throw this.steering.ending;
  }

  /** A try of the memory phase was given up. If that was for the disks, time and again, it is divergence, met late: the gate saw nothing of it. */
  tryAgain(because: GiveUpKind, message: string): void {
    this.note('policy', 'tries again', message);
    this.waitUntilMs = undefined;
    if (because !== 'downtime-budget' || ++this.pausesGivenUp < PATIENT_TRIES || this.request.onDivergence !== 'auto' || this.effects.writeBlocking) return;
    const { writeBlockingLive, rearm, ioThrottle } = this.plan.features;
    if (!writeBlockingLive && !(rearm && ioThrottle)) return;
    const remedy: Remedy = { do: 'write-blocking', by: writeBlockingLive ? 'block-job-change' : 're-arm' };
    this.note('policy', nameOf(remedy), `${this.pausesGivenUp} pauses were given up for the disks: ${message}`);
    this.order = { do: 'remedy', remedy, tried: { remedy, atMs: Date.now(), by: 'policy', outcome: 'pending' } };
  }

  note(by: string, what: string, why: string): DecisionRecord {
    const record = { at: new Date().toISOString(), by, what, why };
    const number = this.status.decisions.push(record);
    log.info('decision', { ...record });
    // On record at once: a migration that fails, or is terminated, has no result to say it in.
    if (patched('decisions-on-record')) upsertMemo({ [decisionMemoKey(number)]: record });
    this.show();
    return record;
  }

  private watch(): Promise<Assessment> {
    return this.source.converge.awaitMirrors({
      ...this.ref,
      targets: this.targets,
      around: { budgetMs: this.maxDowntimeMs * DISKS_PART, disksDeadlineAtMs: this.deadlineAtMs, ...(this.bandwidth !== undefined && { capBytesPerSecond: this.bandwidth }) },
      ...(this.assessment && { before: { verdict: this.assessment.verdict } }),
    });
  }

  /** Decides as often as something changes, until the watch has ended, or something is to be done that the watch would disturb. */
  private async orderOr(done: () => boolean): Promise<Order | undefined> {
    for (;;) {
      if (this.order) {
        const order = this.order;
        this.order = undefined;
        return order;
      }
      if (done()) return undefined;
      const seen = this.changes;
      await this.askDestination();
      const againAtMs = this.assessment ? await this.act(decide(this.situation(this.assessment))) : this.deadlineAtMs;
      if (this.order) continue;
      await condition(() => done() || this.changes !== seen || this.order !== undefined, Math.max(1, againAtMs - Date.now()), { summary: this.summaryOfWait() });
    }
  }

  private summaryOfWait(): string {
    const { asks } = this.status;
    return asks ? `asks until then; without an answer: ${this.request.afterAsk}` : `decides again then, or when the verdict changes${this.assessment ? ` (now ${this.assessment.verdict})` : ''}`;
  }

  /** Once in a while of trouble: whether the destination's disk is what the copy waits for, and not the link. Only words hang on it. */
  private async askDestination(): Promise<void> {
    const { assessment } = this;
    if (assessment?.trouble !== 'guest-writes-faster-than-link' || this.askedDestinationAtMs === assessment.sinceMs || !patched('disk-busy')) return;
    this.askedDestinationAtMs = assessment.sinceMs;
    const busy = await this.destination.look.diskBusy(this.ref).catch(() => undefined);
    if (busy === undefined || busy < DISK_BUSY || this.assessment !== assessment) return;
    this.assessment = blameDestinationDisk(assessment, busy);
    this.tell(this.assessment.verdict, this.assessment.message);
  }

  /** Does what was decided; returns when to decide again, in ms. */
  private async act(decision: Decision): Promise<number> {
    delete this.status.asks;
    switch (decision.action) {
      case 'nothing':
        if (this.assessment!.verdict !== 'converging' || this.previous?.verdict !== undefined) this.noteOnce('policy', 'nothing', decision.why);
        return decision.againAtMs;
      case 'ask':
        this.askedAtMs ??= Date.now();
        this.status.asks = { choices: decision.choices, until: new Date(decision.untilMs).toISOString() };
        this.noteOnce('policy', `asks: ${decision.choices.join(', ')}`, decision.why);
        return decision.untilMs;
      case 'apply': {
        this.note('policy', nameOf(decision.remedy), decision.why);
        const tried: Tried = { remedy: decision.remedy, atMs: Date.now(), by: 'policy', outcome: 'pending' };
        if (isDisturbing(decision.remedy)) this.order = { do: 'remedy', remedy: decision.remedy, tried };
        else await this.apply(decision.remedy, tried);
        return Date.now();
      }
      case 'end':
        // The watch ends with it, and says whether the mirrors can be begun anew.
        if (decision.because === 'mirror-failed') return Date.now() + MIRROR_ENDS_MS;
        this.note('policy', decision.how, decision.why);
        this.order = { do: 'end', error: decision.how === 'postpone' ? this.postponement(Date.now() + this.request.postponeMinutes * 60_000, decision.why) : failure(this.ref, decision) };
        return Date.now();
    }
  }

  private async apply(remedy: Remedy, tried: Tried): Promise<void> {
    this.tried.push(tried);
    const momentary = remedy.do === 'nudge' || (remedy.do === 'write-blocking' && remedy.by === 're-arm');
    if (momentary) this.effects.throttledForAMoment = true;
    try {
      await this.take(remedy);
      tried.atMs = Date.now();
    } catch (error) {
      if (isCancellation(error) || !(error instanceof ActivityFailure)) throw error;
      tried.outcome = 'failed';
      this.broken ||= innermost(error).type === 'MirrorFailed';
      this.note(tried.by, `${nameOf(remedy)} failed`, innermost(error).message);
    }
    measure('vmferry_remedies_total', { remedy: remedy.do, by: tried.by, outcome: tried.outcome === 'failed' ? 'failed' : 'applied' });
    if (momentary) delete this.effects.throttledForAMoment;
    this.changes++;
  }

  private async take(remedy: Remedy): Promise<void> {
    const { ref, targets, effects } = this;
    switch (remedy.do) {
      case 'lift-limits':
        await this.setBandwidth(undefined);
        effects.limitsLifted = true;
        return;
      case 'nudge':
        await this.source.step.nudge({ ...ref, targets, ms: remedy.ms });
        // It lifts every limit of ours: one that was in force stays so.
        if (effects.throttleBytesPerSecond !== undefined) await this.source.step.throttleGuest({ ...ref, targets, bytesPerSecond: effects.throttleBytesPerSecond });
        return;
      case 'write-blocking':
        await this.source.step.makeWriteBlocking({ ...ref, targets, by: remedy.by, throughputBytesPerSecond: this.assessment?.throughputBytesPerSecond ?? 1e6, maxPauseMs: this.maxDowntimeMs });
        effects.writeBlocking = true;
        return;
      case 'throttle':
        // Before it takes effect: a throttle that we only meant to set must be lifted all the same.
        effects.throttleBytesPerSecond = remedy.bytesPerSecond;
        return await this.source.step.throttleGuest({ ...ref, targets, bytesPerSecond: remedy.bytesPerSecond });
      case 'unthrottle':
        await this.source.undo.liftThrottle(ref);
        delete effects.throttleBytesPerSecond;
        delete effects.throttledForAMoment;
    }
  }

  private async setBandwidth(bytesPerSecond: number | undefined): Promise<void> {
    await this.destination.step.setBandwidth({ ...this.ref, ...(bytesPerSecond !== undefined && { bytesPerSecond }) });
    this.bandwidth = bytesPerSecond;
  }

  /** A steer that was accepted: what can be done beside the watch is done at once, the rest is left to the loop. */
  private async steer(steer: Steer): Promise<DecisionRecord> {
    const record = this.note(steer.author, whatOf(steer), steer.reason);
    measure('vmferry_steers_total', { steer: steer.do });
    this.askedAtMs = undefined;
    const tried = (remedy: Remedy): Tried => ({ remedy, atMs: Date.now(), by: 'operator', outcome: 'pending' });
    switch (steer.do) {
      case 'lift-limits':
      case 'unthrottle':
        await this.apply({ do: steer.do }, tried({ do: steer.do }));
        break;
      case 'throttle': {
        const remedy = { do: 'throttle', bytesPerSecond: steer.bytesPerSecond } as const;
        await this.apply(remedy, tried(remedy));
        break;
      }
      case 'nudge':
        await this.apply({ do: 'nudge', ms: 200 }, tried({ do: 'nudge', ms: 200 }));
        break;
      case 'set-bandwidth':
        await this.setBandwidth(steer.bytesPerSecond);
        delete this.effects.limitsLifted;
        this.order = { do: 'watch-anew' };
        break;
      case 'write-blocking': {
        const remedy: Remedy = { do: 'write-blocking', by: this.plan.features.writeBlockingLive ? 'block-job-change' : 're-arm' };
        this.order = { do: 'remedy', remedy, tried: tried(remedy) };
        break;
      }
      case 'set-max-downtime':
        this.maxDowntimeMs = steer.ms;
        this.order = { do: 'watch-anew' };
        break;
      case 'wait':
        this.waitUntilMs = Date.parse(steer.until);
        break;
      case 'switchover-now':
        this.maxDowntimeMs = steer.maxPauseMs;
        this.order = { do: 'go' };
        break;
      case 'postpone':
        this.order = { do: 'end', error: this.postponement(Date.parse(steer.until), `${steer.author}: ${steer.reason}`) };
        break;
      case 'abort':
        this.steering.ending = ApplicationFailure.nonRetryable(`the migration of guest ${this.ref.guest} was aborted by ${steer.author}: ${steer.reason}; the guest runs on ${this.ref.from}`, 'Aborted');
        this.order = { do: 'end', error: this.steering.ending };
        this.memoryScope?.cancel();
    }
    this.changes++;
    return record;
  }

  /** Waits a moment, if mirrors that failed can be begun anew; else throws what they failed with. */
  async beginAgain(error: unknown): Promise<void> {
    const reason = innermost(error);
    const again = reason.type === 'MirrorFailed' && (this.broken || this.assessment?.trouble === 'destination-unreachable' || CONNECTION_LOST.test(reason.message)) && ++this.restarts <= MOST_RESTARTS && Date.now() < this.deadlineAtMs;
    if (isCancellation(error) || !again) throw error;
    this.broken = false;
    this.note('policy', 'copies anew', `${reason.message}; begins again, ${this.restarts} of ${MOST_RESTARTS}`);
    await sleep(RESTART_PAUSE_MS, { summary: 'before the mirrors are begun anew' });
  }

  private heard(assessment: Assessment): void {
    if (assessment.verdict !== this.assessment?.verdict) measure('vmferry_verdict_changes_total', { of: 'disks', verdict: assessment.verdict });
    this.previous = this.assessment;
    // The clocks of two hosts are not compared.
    this.assessment = { ...assessment, sinceMs: assessment.verdict === this.previous?.verdict ? this.previous.sinceMs : Date.now() };
    this.tried = judge({ tried: this.tried, assessment: this.assessment, nowMs: Date.now() });
    if (assessment.verdict === 'converging') this.askedAtMs = undefined;
    this.tell(assessment.verdict, assessment.message, disksOf(assessment));
  }

  private tell(verdict: Assessment['verdict'], message: string, progress?: Omit<CopyProgress, 'at'>): void {
    if (progress) this.status.progress = { at: new Date().toISOString(), ...progress };
    if (this.status.verdict !== verdict) upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.verdict, value: verdict }]);
    this.status.verdict = verdict;
    this.status.message = message;
    this.show();
  }

  private noteOnce(by: string, what: string, why: string): void {
    // Numbers differ each time; what is decided about which verdict does not.
    const said = `${what} ${this.assessment?.verdict} ${this.assessment?.sinceMs}`;
    if (said !== this.said) this.note(by, what, why);
    this.said = said;
  }

  private postponement(untilMs: number, why: string): Error {
    return new Postponed(untilMs, why, this.request.postponements);
  }

  private situation(assessment: Assessment) {
    const { request, plan, effects } = this;
    const policy: Policy = {
      onDivergence: request.onDivergence,
      maxDowntimeMs: this.maxDowntimeMs,
      disksDeadlineAtMs: this.deadlineAtMs,
      askMs: request.askSeconds * 1000,
      afterAsk: request.afterAsk,
      atDeadline: request.atDeadline,
      stallDeadlineMs: request.stallSeconds * 1000,
    };
    this.tried = judge({ tried: this.tried, assessment, nowMs: Date.now() });
    return {
      assessment,
      policy,
      capabilities: { capSet: this.bandwidth !== undefined, ...plan.features },
      tried: this.tried,
      effects,
      nowMs: Date.now(),
      ...(this.askedAtMs !== undefined && { askedAtMs: this.askedAtMs }),
      ...(this.waitUntilMs !== undefined && { waitUntilMs: this.waitUntilMs }),
      ...(this.previous && { previous: this.previous }),
    };
  }

  private situationOfSteer(): SteerSituation {
    return {
      phase: this.status.phase,
      ...(this.assessment && { assessment: this.assessment }),
      capabilities: { capSet: this.bandwidth !== undefined, ...this.plan.features },
      bandwidthLive: true,
      ...(this.bandwidth !== undefined && { bandwidthBytesPerSecond: this.bandwidth }),
      effects: this.effects,
      maxDowntimeMs: this.maxDowntimeMs,
      nowMs: Date.now(),
    };
  }
}

function disksOf({ disks }: Assessment): Pick<CopyProgress, 'disks'> {
  return { disks: disks.map(({ id, remainingBytes, lengthBytes, ready, copyBytesPerSecond, dirtyBytesPerSecond, etaMs }) => ({ id, remainingBytes, lengthBytes, ready, copyBytesPerSecond, dirtyBytesPerSecond, etaMs })) };
}

/** The switch by re-arming ends the very mirrors that are watched. */
const isDisturbing = (remedy: Remedy) => remedy.do === 'write-blocking';

function refusal(message: string): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, 'SteerRefused');
}

const ENDS = { 'mirror-failed': 'MirrorFailed', stalled: 'CopyStalled', deadline: 'DisksNotConverging', policy: 'DisksNotConverging', 'no-answer': 'DisksNotConverging' } as const;

function failure({ guest, from }: MigrationRef, { because, why }: Extract<Decision, { action: 'end' }>): ApplicationFailure {
  return ApplicationFailure.nonRetryable(`guest ${guest} stays on ${from}, running: ${why}`, ENDS[because]);
}
