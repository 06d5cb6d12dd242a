import { type Assessment, megabytes, seconds } from './convergence';

/** What can be done about a copy that does not converge, mildest first: docs/divergence.md. */
export const RUNGS = ['lift-limits', 'nudge', 'write-blocking', 'throttle'] as const;
export type RungName = (typeof RUNGS)[number];
/** What an operator is offered: the rungs, and the ways to do nothing or to stop. */
export type RemedyName = RungName | 'wait' | 'postpone' | 'abort';

export type Remedy =
  | { do: 'lift-limits' }
  /** Guest writes held back for a moment, in which a mirror that hovers touches 0 and becomes ready. */
  | { do: 'nudge'; ms: number }
  /** By `block-job-change` (QEMU ≥ 8.2), or the re-armed switch with a short stop that every version has (facts/qemu.md §2). */
  | { do: 'write-blocking'; by: 'block-job-change' | 're-arm' }
  /** For the writes of all the guest's disks together. */
  | { do: 'throttle'; bytesPerSecond: number }
  | { do: 'unthrottle' };

export interface Policy {
  /** `auto` climbs by itself; `ask` waits for a steer, until `askMs` have passed since it asked; `abort` gives up at once. */
  onDivergence: 'auto' | 'ask' | 'abort';
  maxDowntimeMs: number;
  /** All times `AtMs` are on the workflow's clock. */
  /** For the disks alone. A try of the memory that sends the migration back to its disks gives them a new one. */
  disksDeadlineAtMs: number;
  askMs: number;
  /** When nobody answered. */
  afterAsk: 'auto' | 'postpone' | 'abort';
  /** When the disks were not ready by the deadline, or a stall lasted. */
  atDeadline: 'postpone' | 'abort';
  /** How long a stall may last: a link that comes back costs nothing but time. */
  stallDeadlineMs: number;
}

export interface Capabilities {
  /** A bandwidth cap of ours is set, and can be lifted while the copy runs. */
  capSet: boolean;
  /** `block-job-change`. */
  writeBlockingLive: boolean;
  /** The re-armed switch. It needs `ioThrottle`. */
  rearm: boolean;
  /** `block_set_io_throttle` works on the guest's devices. */
  ioThrottle: boolean;
}

export interface Tried {
  remedy: Remedy;
  atMs: number;
  /** What an operator did is not taken back by itself while the migration goes on. */
  by: 'policy' | 'operator';
  outcome: 'pending' | 'helped' | 'failed';
}

/** What is in force now. */
export interface Effects {
  throttleBytesPerSecond?: number;
  /** A nudge or a re-armed switch, which throttle for a moment, began and nobody has said that it ended. */
  throttledForAMoment?: boolean;
  writeBlocking?: boolean;
  limitsLifted?: boolean;
}

export interface Situation {
  /** As it was told last. Its `sinceMs` is when the workflow heard of it: the clocks of two hosts are not compared. */
  assessment: Assessment;
  policy: Policy;
  capabilities: Capabilities;
  /** Oldest first, as `judge` left it. */
  tried: readonly Tried[];
  effects: Effects;
  nowMs: number;
  /** When the question was put that is still open; unset when it was answered, or the copy converges again. */
  askedAtMs?: number;
  /** An operator said: wait until then. Deadlines that come earlier wait too. */
  waitUntilMs?: number;
  /** To say why trouble ended. */
  previous?: Assessment;
  settleMs?: Record<RungName, number>;
}

export type Decision =
  /** Ask again at `againAtMs`, or when the verdict changes, whichever is first. */
  | { action: 'nothing'; why: string; againAtMs: number }
  | { action: 'apply'; remedy: Remedy; why: string }
  | { action: 'ask'; choices: RemedyName[]; untilMs: number; why: string }
  /** `undo` takes back what is in force, whatever the way out. */
  | { action: 'end'; how: 'abort' | 'postpone'; because: 'mirror-failed' | 'stalled' | 'deadline' | 'policy' | 'no-answer'; why: string; undo: Remedy[] };

/**
 * How long a remedy is left alone before it is judged. A supervision sees a change within 6 s (half its window, and `calmMs`); the rest is
 * what the remedy itself takes: a nudge 0.1 s, the re-armed switch some seconds until it can stop the guest.
 */
export const SETTLE_MS: Record<RungName, number> = { 'lift-limits': 12_000, nudge: 5_000, 'write-blocking': 20_000, throttle: 12_000 };
/** A remedy that helped may be needed again, but not for ever: what needs it more often needs a stronger one. */
export const MOST_USES = 3;
/** Of what the link carries: the rest is for catching up. */
export const THROTTLE_TO = 0.8;
/** A throttle that is in force is only lowered by more than this. */
const WORTH_LOWERING = 0.9;
/** 98 ms made both mirrors of a 50 MB/s link ready (facts/qemu.md §4). Twice what the drain needs, since what is in flight comes on top. */
const NUDGE_MS = { least: 100, most: 500, drains: 2 } as const;

/** What is to be done next. Pure: the same situation gets the same answer, so the workflow may ask at any time. */
export function decide(situation: Situation): Decision {
  const { assessment, policy, effects, nowMs } = situation;
  const { verdict, message } = assessment;
  const end = (how: 'abort' | 'postpone', because: Extract<Decision, { action: 'end' }>['because'], why: string): Decision => ({ action: 'end', how, because, why, undo: undoOf(effects) });
  const deadlineMs = Math.max(policy.disksDeadlineAtMs, situation.waitUntilMs ?? 0);
  const nothing = (why: string, againAtMs = deadlineMs): Decision => ({ action: 'nothing', why, againAtMs: Math.min(againAtMs, deadlineMs) });

  // A job that ended with an error is no divergence: no rung helps it.
  if (verdict === 'failed') return end('abort', 'mirror-failed', message);
  // Before the gate: the assessment may be old, and a deadline that an old one could hold up would be none.
  if (nowMs >= deadlineMs) return end(policy.atDeadline, 'deadline', `the disks have not caught up by their deadline; ${message}`);
  if (assessment.fitsBudget) return nothing(`the memory can be moved; ${whyConverging(situation)}`);
  if (verdict === 'stalled') {
    const untilMs = Math.max(assessment.sinceMs + policy.stallDeadlineMs, situation.waitUntilMs ?? 0);
    return nowMs >= untilMs ? end(policy.atDeadline, 'stalled', `the stall has lasted ${seconds(nowMs - assessment.sinceMs)}; ${message}`) : nothing(`waits whether it goes on by itself; ${message}`, untilMs);
  }
  if (verdict === 'converging') return nothing(whyConverging(situation));
  if (nowMs < (situation.waitUntilMs ?? 0)) return nothing(`an operator said to wait; ${message}`, situation.waitUntilMs);

  const tried = judge(situation);
  const pending = tried.find(({ outcome }) => outcome === 'pending');
  if (pending) return nothing(`${nameOf(pending.remedy)} has had no time to work yet; ${message}`, judgedAtMs(pending, situation));
  if (policy.onDivergence === 'abort') return end('abort', 'policy', `the policy is to give up when a copy does not converge; ${message}`);

  // What costs the guest and did not help is taken back before anything else is tried, or waited for.
  const throttled = effects.throttleBytesPerSecond !== undefined ? tried.findLast(({ remedy }) => remedy.do === 'throttle') : undefined;
  if (throttled?.outcome === 'failed' && throttled.by === 'policy') return { action: 'apply', remedy: { do: 'unthrottle' }, why: `the throttle did not help; ${message}` };

  const rungs = ladder({ ...situation, tried });
  if (policy.onDivergence === 'ask') {
    const untilMs = Math.min((situation.askedAtMs ?? nowMs) + policy.askMs, deadlineMs);
    if (nowMs < untilMs) return { action: 'ask', choices: [...rungs.filter(({ remedy }) => remedy).map(({ name }) => name), 'wait', 'postpone', 'abort'], untilMs, why: message };
    if (policy.afterAsk !== 'auto') return end(policy.afterAsk, 'no-answer', `nobody answered within ${seconds(policy.askMs)}; ${message}`);
  }

  const next = rungs.find((rung): rung is Open => rung.remedy !== undefined);
  if (next) return { action: 'apply', remedy: next.remedy, why: `${message}${skipped(rungs, next)}` };
  return nothing(`nothing is left but to wait for a quieter guest, until the deadline in ${seconds(deadlineMs - nowMs)} (${rungs.map(({ name, out }) => `${name}: ${out}`).join('; ')}); ${message}`);
}

type Open = { name: RungName; remedy: Remedy; out?: undefined };
/** A rung, with the remedy it would be, or why it is out of the question. */
export type Rung = Open | { name: RungName; out: string; remedy?: undefined };

/** Every rung as it is now, mildest first. */
export function ladder({ assessment, policy, capabilities, tried, effects }: Pick<Situation, 'assessment' | 'policy' | 'capabilities' | 'tried' | 'effects'>): Rung[] {
  const { disks, verdict, throughputBytesPerSecond } = assessment;
  const remedies: Record<RungName, () => Remedy | string> = {
    'lift-limits': () => (!capabilities.capSet ? 'no cap is set' : effects.limitsLifted ? 'the cap is lifted already' : { do: 'lift-limits' }),
    nudge: () => {
      if (verdict !== 'hovering') return 'only for a mirror that is near';
      if (!capabilities.ioThrottle) return 'this QEMU cannot throttle its guest';
      if (disks.every(({ ready }) => ready)) return 'all mirrors are ready';
      const drainMs = (assessment.remainingBytes * 1000) / Math.max(1, throughputBytesPerSecond);
      const most = Math.min(NUDGE_MS.most, policy.maxDowntimeMs);
      return { do: 'nudge', ms: Math.round(Math.min(most, Math.max(NUDGE_MS.least, NUDGE_MS.drains * drainMs))) };
    },
    'write-blocking': () => {
      if (effects.writeBlocking) return 'in force already';
      if (capabilities.writeBlockingLive) return { do: 'write-blocking', by: 'block-job-change' };
      return capabilities.rearm && capabilities.ioThrottle ? { do: 'write-blocking', by: 're-arm' } : 'this QEMU cannot switch a running mirror';
    },
    throttle: () => {
      if (!capabilities.ioThrottle) return 'this QEMU cannot throttle its guest';
      const bytesPerSecond = Math.floor(throughputBytesPerSecond * THROTTLE_TO * writtenPerDirty(assessment));
      if (bytesPerSecond < 1) return 'nothing gets through that it could be throttled to';
      if (bytesPerSecond > WORTH_LOWERING * (effects.throttleBytesPerSecond ?? Infinity)) return 'in force already';
      return { do: 'throttle', bytesPerSecond };
    },
  };
  return RUNGS.map((name): Rung => {
    const uses = tried.filter(({ remedy }) => remedy.do === name);
    if (uses.some(({ outcome }) => outcome === 'failed')) return { name, out: 'tried, and did not help' };
    if (uses.length >= MOST_USES) return { name, out: `helped ${uses.length} times, and not for long` };
    const remedy = remedies[name]();
    return typeof remedy === 'string' ? { name, out: remedy } : { name, remedy };
  });
}

/**
 * A write dirties whole blocks of the mirror's bitmap (64 KiB by default): a guest that writes 4 KiB here and there makes the copy do
 * many times as much, and must be throttled to as much less. 1 where the guest's own rate is not known.
 */
function writtenPerDirty({ disks }: Assessment): number {
  const dirty = disks.reduce((sum, disk) => sum + disk.dirtyBytesPerSecond, 0);
  const written = disks.reduce((sum, disk) => sum + (disk.guestBytesPerSecond ?? disk.dirtyBytesPerSecond), 0);
  return written > 0 && dirty > written ? written / dirty : 1;
}

/**
 * What was tried, with the outcome of what had time to work: it helped if the copy converges now, and failed if the trouble outlived its
 * settle time. A stall meanwhile is not its fault. Call it on every change of the verdict, and keep the result.
 */
export function judge(situation: Pick<Situation, 'tried' | 'assessment' | 'nowMs' | 'settleMs'>): Tried[] {
  const { assessment, nowMs } = situation;
  return situation.tried.map((one) => {
    if (one.outcome !== 'pending') return one;
    if (one.remedy.do === 'unthrottle' || assessment.fitsBudget) return { ...one, outcome: 'helped' };
    switch (assessment.verdict) {
      case 'converging':
        return { ...one, outcome: 'helped' };
      case 'hovering':
      case 'diverging':
        return nowMs >= judgedAtMs(one, situation) ? { ...one, outcome: 'failed' } : one;
      case 'stalled':
      case 'failed':
        return one;
    }
  });
}

/** What must be done on every way out, success too, so that nothing of ours goes on slowing the guest. Idempotent. */
export function undoOf(effects: Effects): Remedy[] {
  return effects.throttleBytesPerSecond !== undefined || effects.throttledForAMoment ? [{ do: 'unthrottle' }] : [];
}

function judgedAtMs({ remedy, atMs }: Tried, { assessment, settleMs = SETTLE_MS }: Pick<Situation, 'assessment' | 'settleMs'>): number {
  return remedy.do === 'unthrottle' ? atMs : Math.max(atMs, assessment.sinceMs) + settleMs[remedy.do];
}

function whyConverging({ assessment: { message, remainingBytes }, previous, tried }: Situation): string {
  if (!previous || previous.verdict === 'converging') return message;
  if (previous.verdict === 'stalled') return `the copy goes on after a stall; ${message}`;
  const last = tried.findLast(({ remedy }) => remedy.do !== 'unthrottle');
  if (last && last.outcome !== 'failed') return `${nameOf(last.remedy)} helped; ${message}`;
  return `the guest went quiet by itself (${megabytes(previous.remainingBytes)} remained then, ${megabytes(remainingBytes)} now): ${last ? 'nothing that was tried had helped' : 'no remedy was needed'}; ${message}`;
}

function skipped(rungs: Rung[], next: Rung): string {
  const milder = rungs.slice(0, rungs.indexOf(next));
  return milder.length === 0 ? '' : ` (milder: ${milder.map(({ name, out }) => `${name}: ${out}`).join('; ')})`;
}

export function nameOf(remedy: Remedy): string {
  switch (remedy.do) {
    case 'nudge':
      return `a nudge of ${remedy.ms} ms`;
    case 'throttle':
      return `a throttle to ${megabytes(remedy.bytesPerSecond)}/s`;
    case 'write-blocking':
      return `write-blocking by ${remedy.by}`;
    case 'lift-limits':
    case 'unthrottle':
      return remedy.do;
  }
}
