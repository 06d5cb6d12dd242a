import type { Assessment, Surroundings } from '../../workflows/convergence';
import { type Capabilities, decide, type Decision, type Effects, judge, type Policy, type Remedy, type Tried, undoOf } from '../../workflows/divergence';
import { MB, type MirrorModel, SAMPLE_MS, START_MS, Watch } from './mirror-model';

export const CAPABILITIES: Capabilities = { capSet: false, writeBlockingLive: false, rearm: true, ioThrottle: true };
export const POLICY: Policy = { onDivergence: 'auto', maxDowntimeMs: 300, disksDeadlineAtMs: START_MS + 600_000, askMs: 30_000, afterAsk: 'postpone', atDeadline: 'abort', stallDeadlineMs: 60_000 };

/** The disks of a migration under a supervision and a workflow that knows only what is signalled to it, until the gate opens or it ends. */
export class MigrationModel {
  tried: Tried[] = [];
  effects: Effects = {};
  readonly applied: Remedy[] = [];
  readonly decisions: Decision[] = [];
  readonly watch: Watch;
  #heard: Assessment | undefined;
  #previous: Assessment | undefined;
  #askedAtMs: number | undefined;
  #againAtMs: number | undefined;
  #rearming = false;

  constructor(
    readonly mirrors: Record<string, MirrorModel>,
    private readonly policy: Policy = POLICY,
    private readonly capabilities: Capabilities = CAPABILITIES,
    around: Partial<Surroundings> = {},
    /** What the disks' link is without our cap. */
    private readonly uncapped?: number,
  ) {
    this.watch = new Watch(mirrors, { budgetMs: policy.maxDowntimeMs, disksDeadlineAtMs: policy.disksDeadlineAtMs, ...around });
  }

  /** Runs until the gate opens or the migration ends, calling `each` before every sample. */
  run(each: (ms: number) => void = () => {}): { end: 'gate' | 'abort' | 'postpone'; ms: number; why: string } {
    for (;;) {
      const { nowMs } = this.watch;
      each(nowMs - START_MS);
      const assessment = this.watch.step();
      this.#rearm();
      if (assessment.fitsBudget && !this.#rearming) return { end: 'gate', ms: this.watch.nowMs - START_MS, why: assessment.message };
      if (assessment.changed) {
        this.#previous = this.#heard;
        this.#heard = assessment;
        if (assessment.verdict === 'converging') this.#askedAtMs = undefined;
      }
      if (!assessment.changed && this.watch.nowMs < (this.#againAtMs ?? this.policy.disksDeadlineAtMs)) continue;
      const decision = this.#decide(this.#heard ?? assessment);
      if (decision.action === 'end') return { end: decision.how, ms: this.watch.nowMs - START_MS, why: decision.why };
    }
  }

  #decide(assessment: Assessment): Decision {
    const nowMs = this.watch.nowMs;
    const situation = {
      assessment,
      policy: this.policy,
      capabilities: this.capabilities,
      tried: this.tried,
      effects: this.effects,
      nowMs,
      ...(this.#askedAtMs !== undefined && { askedAtMs: this.#askedAtMs }),
      ...(this.#previous && { previous: this.#previous }),
    };
    const decision = decide(situation);
    this.tried = judge(situation);
    this.decisions.push(decision);
    if (decision.action === 'apply') this.#apply(decision.remedy, nowMs);
    if (decision.action === 'ask') this.#askedAtMs ??= nowMs;
    if (decision.action === 'end') decision.undo.forEach((remedy) => this.#apply(remedy, nowMs));
    this.#againAtMs = decision.action === 'nothing' ? decision.againAtMs : decision.action === 'ask' ? decision.untilMs : nowMs + SAMPLE_MS;
    return decision;
  }

  /** What a workflow does on success: nothing of ours goes on slowing the guest. */
  leave(): void {
    undoOf(this.effects).forEach((remedy) => this.#apply(remedy, this.watch.nowMs));
  }

  #apply(remedy: Remedy, atMs: number): void {
    const disks = Object.values(this.mirrors);
    this.applied.push(remedy);
    this.tried.push({ remedy, atMs, by: 'policy', outcome: 'pending' });
    switch (remedy.do) {
      case 'lift-limits':
        disks.forEach((disk) => (disk.now.linkBytesPerSecond = this.uncapped! / disks.length));
        delete this.watch.around.capBytesPerSecond;
        this.effects.limitsLifted = true;
        break;
      case 'nudge':
        disks.forEach((disk) => {
          disk.throttle = 0;
          for (let ms = 0; ms < remedy.ms; ms += 10) disk.advance(10);
          disk.throttle = Infinity;
        });
        this.watch.nowMs += remedy.ms;
        break;
      case 'write-blocking':
        if (remedy.by === 'block-job-change') disks.forEach((disk) => (disk.writeBlocking = true));
        else {
          this.#rearming = true;
          disks.forEach((disk) => (disk.throttle = 2 * MB));
        }
        this.effects.writeBlocking = true;
        break;
      case 'throttle':
        disks.forEach((disk) => (disk.throttle = remedy.bytesPerSecond / disks.length));
        this.effects.throttleBytesPerSecond = remedy.bytesPerSecond;
        break;
      case 'unthrottle':
        disks.forEach((disk) => (disk.throttle = Infinity));
        delete this.effects.throttleBytesPerSecond;
        break;
    }
  }

  #rearm(): void {
    const disks = Object.values(this.mirrors);
    if (!this.#rearming || disks.some(({ remainingBytes }) => remainingBytes > 2 * MB)) return;
    this.#rearming = false;
    disks.forEach((disk) => disk.rearm());
  }
}
