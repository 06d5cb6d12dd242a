import { addUp, type DiskSample, DiskTrend, MOST_IN_FLIGHT_BYTES, type TrendTimes } from './disk-trend';
import { LastingVerdict, type LastingTimes, severity, type Verdict, worst } from './lasting-verdict';

export type { DiskSample } from './disk-trend';
export type { Verdict } from './lasting-verdict';

const MIB = 1024 * 1024;

/** Every duration of the supervision, so that tests and labs can have other ones. */
export interface SupervisionTimes extends TrendTimes, LastingTimes {
  /** What the link carries in this time is near: about the pause that guests are allowed. */
  nearMs: number;
}

export const SUPERVISION_TIMES: SupervisionTimes = {
  windowMs: 4_000,
  minSpanMs: 2_000,
  recentMs: 1_000,
  gateSpanMs: 500,
  leadMs: 3_000,
  sampleLagMs: 100,
  lastsMs: 3_000,
  calmMs: 3_000,
  flapMemoryMs: 120_000,
  stallMs: 5_000,
  quietMs: 1_000,
  nearMs: 400,
};

/** Near, whatever the link: the mirror itself keeps some MiB in flight, so it can hover at this on any link. */
const NEAR_BYTES = 4 * MIB;
/** Growing by more than this share of the throughput diverges at once, however near: 10 on a link of 10 grows by 77 % (facts/qemu.md §4). */
const RISING = 0.1;
/** Falling by less is flat: the guest takes all but this of the throughput, and a copy that slows down towards a level is told early. */
const FALLING = 0.05;
/** To leave trouble a threshold must be passed by this much more than it took to get into it. */
const LEAVING = 2;
/** Part of the budget that must stay free before a drain that did not fit counts as fitting again. */
const BUDGET_LEFT_OVER = 0.8;
/** A cap that is used to this part is what limits the copy. */
const CAP_USED = 0.85;
/** A link that carries less than this part of what it can leaves the destination's disk as the reason. */
const LINK_USED = 0.5;
export const DISK_BUSY = 0.9;
/** Finishing two mirrors on an idle link took 23 ms (facts/qemu.md §1.8). */
const DRAIN_OVERHEAD_MS = 25;
/** Stands for "for ever" where a number is needed: `Infinity` does not survive JSON. */
export const FOREVER_MS = 24 * 3600 * 1000;

export interface DiskAssessment {
  id: string;
  remainingBytes: number;
  lengthBytes: number;
  ready: boolean;
  copyBytesPerSecond: number;
  /** What the copy has to do again because of the guest: rewritten blocks count once. */
  dirtyBytesPerSecond: number;
  /** What the guest writes, where it is known. */
  guestBytesPerSecond?: number;
  /** What the copy can do; `copyBytesPerSecond` of an idle mirror is 0. */
  throughputBytesPerSecond: number;
  /** Until nothing remains, at the trend of the last samples; null: never at this rate. 0 for a disk that could be paused for now. */
  etaMs: number | null;
  /** From the guest's pause until the mirror is finished, with what `vm_stop` drains by itself. */
  predictedDrainMs: number;
  activelySynced?: boolean;
}

/** What only others than the mirror can know. */
export interface Surroundings {
  /** The pause that the drain of all disks together may take. */
  budgetMs: number;
  /** On the samples' clock. */
  disksDeadlineAtMs?: number;
  /** Our own cap, for all disks together. */
  capBytesPerSecond?: number;
  /** What the link is known to carry otherwise. */
  linkBytesPerSecond?: number;
  /** Whether the destination host answers on another way: tells a hanging export from a dead link. */
  peerAnswers?: boolean;
  /** The busy share of the destination's disk, 0 to 1. */
  destinationDiskBusy?: number;
}

export type TroubleSource =
  | 'none'
  | 'guest-writes-faster-than-link'
  | 'guest-never-pauses'
  | 'own-cap'
  | 'destination-disk-slow'
  | 'destination-hanging'
  | 'destination-unreachable'
  | 'target-error'
  | 'source-error';

export interface Assessment {
  verdict: Verdict;
  /** Since when the verdict is this one, on the samples' clock. */
  sinceMs: number;
  /** This sample has changed the verdict: the one moment to signal it. */
  changed: boolean;
  trouble: TroubleSource;
  /** Words and numbers for an operator. */
  message: string;
  disks: DiskAssessment[];
  remainingBytes: number;
  /** What the copy of all disks together can do: they share the link. */
  throughputBytesPerSecond: number;
  /** The drain of all disks together, from the guest's pause. */
  predictedDrainMs: number;
  /** The part of it that `vm_stop` takes, at most, during which QMP does not answer. */
  stopDrainMs: number;
  /** The gate: all are ready and the drain fits `budgetMs`. */
  fitsBudget: boolean;
}

/** Watches the mirrors of one migration: `push` takes a sample of each at the same moment, a few times a second, and says what it means. */
export class Supervision {
  readonly #trends = new Map<string, DiskTrend>();
  readonly #total: DiskTrend;
  readonly #lasting: LastingVerdict;
  #trouble: TroubleSource = 'none';

  /** `before` is the verdict that was told last, by an agent that was restarted since: it is not told again. */
  constructor(
    private readonly times: SupervisionTimes = SUPERVISION_TIMES,
    before?: { verdict: Verdict; sinceMs: number },
  ) {
    this.#total = new DiskTrend(times);
    this.#lasting = new LastingVerdict(times, before?.verdict, before?.sinceMs);
  }

  push(samples: Record<string, DiskSample>, around: Surroundings): Assessment {
    const ids = Object.keys(samples);
    if (ids.length === 0) throw new Error('a migration without disks has no mirrors to supervise');
    for (const id of this.#trends.keys()) if (!(id in samples)) this.#trends.delete(id);
    for (const id of ids) if (this.#trend(id).push(samples[id]!)) this.#total.restart();
    const together = addUp(Object.values(samples));
    this.#total.push(together);

    const nowMs = together.atMs;
    const disks = ids.map((id) => this.#assess(id, around));
    const pauseBytes = ids.reduce((sum, id) => sum + this.#trend(id).atPauseBytes, 0);
    const throughputBytesPerSecond = this.#total.throughputBytesPerSecond;
    const predictedDrainMs = Math.max(drainMs(pauseBytes, throughputBytesPerSecond), ...disks.map((disk) => disk.predictedDrainMs));
    const broken = ids.some((id) => isBroken(samples[id]!));
    const says = ids.map((id) => this.#says(this.#trend(id), nowMs, around));
    const instant = this.#together(says, !broken && together.ready && predictedDrainMs > this.#limitMs(around));
    const changed = this.#lasting.push(instant, nowMs);
    const verdict = this.#lasting.verdict;
    const [worstDisk] = [...disks].sort((a, b) => rank(says[ids.indexOf(b.id)]) - rank(says[ids.indexOf(a.id)]) || b.remainingBytes - a.remainingBytes) as [DiskAssessment];
    // Samples that say something milder than the lasting verdict do not know its reason.
    if (changed || instant === verdict) this.#trouble = troubleOf(verdict, worstDisk, samples[worstDisk.id]!, this.#total.copyBytesPerSecond, around);

    const assessment: Assessment = {
      verdict,
      sinceMs: this.#lasting.sinceMs!,
      changed,
      trouble: this.#trouble,
      message: '',
      disks,
      remainingBytes: together.remainingBytes,
      throughputBytesPerSecond,
      predictedDrainMs,
      stopDrainMs: Math.min(predictedDrainMs, drainMs(Math.min(pauseBytes, MOST_IN_FLIGHT_BYTES * ids.length), throughputBytesPerSecond) - DRAIN_OVERHEAD_MS),
      fitsBudget: !broken && together.ready && ids.every((id) => this.#trend(id).predictable) && predictedDrainMs <= around.budgetMs,
    };
    // A verdict that is about to change, for the better, is not what an operator should read about these numbers.
    const catchesUp = assessment.fitsBudget || (instant === 'converging' && severity(verdict) < severity('stalled'));
    return { ...assessment, message: messageOf(catchesUp ? { ...assessment, verdict: 'converging' } : assessment, worstDisk, samples[worstDisk.id]!, this.#trend(worstDisk.id), nowMs, around) };
  }

  #trend(id: string): DiskTrend {
    const known = this.#trends.get(id);
    if (known) return known;
    const trend = new DiskTrend(this.times);
    this.#trends.set(id, trend);
    return trend;
  }

  #assess(id: string, around: Surroundings): DiskAssessment {
    const trend = this.#trend(id);
    const { offsetBytes = 0, ready = false, activelySynced } = trend.last ?? {};
    const throughputBytesPerSecond = trend.throughputBytesPerSecond;
    const slope = trend.slopeBytesPerSecond ?? -trend.copyBytesPerSecond;
    const predictedDrainMs = drainMs(trend.atPauseBytes, throughputBytesPerSecond);
    const guestBytesPerSecond = trend.guestBytesPerSecond;
    return {
      id,
      remainingBytes: trend.remainingBytes,
      lengthBytes: offsetBytes + trend.remainingBytes,
      ready,
      copyBytesPerSecond: trend.copyBytesPerSecond,
      dirtyBytesPerSecond: trend.dirtyBytesPerSecond,
      ...(guestBytesPerSecond !== undefined && { guestBytesPerSecond }),
      throughputBytesPerSecond,
      etaMs: trend.remainingBytes === 0 || (ready && predictedDrainMs <= around.budgetMs) ? 0 : -slope > FALLING * throughputBytesPerSecond && !this.#levelsOff(trend) ? (trend.remainingBytes / -slope) * 1000 : null,
      predictedDrainMs,
      ...(activelySynced !== undefined && { activelySynced }),
    };
  }

  /** What this disk's last samples say, `undefined` if nothing. */
  #says(trend: DiskTrend, nowMs: number, around: Surroundings): Verdict | undefined {
    const { last, motion } = trend;
    if (!last) return undefined;
    if (isBroken(last)) return 'failed';
    if (motion !== 'moving') return motion === 'stalled' ? 'stalled' : undefined;
    const throughput = trend.throughputBytesPerSecond;
    const settled = trend.predictable && last.ready && drainMs(trend.atPauseBytes, throughput) <= this.#limitMs(around);
    if (settled) return 'converging';
    const slope = trend.slopeBytesPerSecond;
    if (slope === undefined) return undefined;
    if (slope > RISING * throughput) return 'diverging';
    const falling = -slope > FALLING * throughput * (this.#inTrouble ? LEAVING : 1) && !this.#levelsOff(trend);
    const near = trend.recentRemainingBytes <= this.#nearBytes(trend) * (this.#lasting.verdict === 'hovering' ? LEAVING : 1);
    if (!falling) return near ? 'hovering' : 'diverging';
    const etaMs = (last.remainingBytes / -slope) * 1000;
    return trend.firstPass || around.disksDeadlineAtMs === undefined || nowMs + etaMs <= around.disksDeadlineAtMs ? 'converging' : 'diverging';
  }

  /** The worst that any disk says; disks that fit one by one but not together hover. */
  #together(says: (Verdict | undefined)[], tooMuchTogether: boolean): Verdict | undefined {
    const known = says.filter((one) => one !== undefined);
    const verdict = worst(known);
    if (verdict === 'converging' && known.length < says.length) return undefined;
    return verdict === 'converging' && tooMuchTogether && (this.#total.slopeBytesPerSecond ?? 0) >= 0 ? 'hovering' : verdict;
  }

  #nearBytes(trend: DiskTrend): number {
    return Math.max(NEAR_BYTES, (trend.throughputBytesPerSecond * this.times.nearMs) / 1000);
  }

  /** It falls, but towards a level that is not near. */
  #levelsOff(trend: DiskTrend): boolean {
    return (trend.levelBytes ?? 0) > this.#nearBytes(trend);
  }

  get #inTrouble(): boolean {
    return this.#lasting.verdict !== 'converging';
  }

  #limitMs(around: Surroundings): number {
    return around.budgetMs * (this.#inTrouble ? BUDGET_LEFT_OVER : 1);
  }
}

function drainMs(bytes: number, bytesPerSecond: number): number {
  return bytes === 0 ? DRAIN_OVERHEAD_MS : Math.min(FOREVER_MS, (bytes * 1000) / Math.max(1, bytesPerSecond) + DRAIN_OVERHEAD_MS);
}

const isBroken = ({ error, ioStatus = 'ok' }: DiskSample) => error !== undefined || ioStatus !== 'ok';
const rank = (says: Verdict | undefined) => (says === undefined ? -1 : severity(says));

/** Errors of the connection, as the target's block driver reports them. */
const CUT_OFF = /connection|broken pipe|timed out|transport endpoint|no route|unreachable|channel|server disconnected/i;

function troubleOf(verdict: Verdict, disk: DiskAssessment, sample: DiskSample, copyBytesPerSecond: number, around: Surroundings): TroubleSource {
  switch (verdict) {
    case 'converging':
      return 'none';
    case 'failed':
      if (sample.errorOperation === 'read') return 'source-error';
      return CUT_OFF.test(sample.error ?? '') ? 'destination-unreachable' : 'target-error';
    case 'stalled':
      return around.peerAnswers === false ? 'destination-unreachable' : 'destination-hanging';
    case 'hovering':
    case 'diverging':
      if (around.capBytesPerSecond !== undefined && copyBytesPerSecond >= CAP_USED * around.capBytesPerSecond) return 'own-cap';
      if ((around.destinationDiskBusy ?? 0) >= DISK_BUSY || (around.linkBytesPerSecond !== undefined && copyBytesPerSecond < LINK_USED * around.linkBytesPerSecond && disk.remainingBytes > NEAR_BYTES)) return 'destination-disk-slow';
      return disk.dirtyBytesPerSecond >= (1 - RISING) * disk.throughputBytesPerSecond ? 'guest-writes-faster-than-link' : 'guest-never-pauses';
  }
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 100e6 ? 1 : 0)} MB`;
}
export function seconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 120_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60_000)} min`;
}
const perSecond = (bytesPerSecond: number) => `${megabytes(bytesPerSecond)}/s`;

const BECAUSE: Record<TroubleSource, string> = {
  none: '',
  'guest-writes-faster-than-link': ': the guest writes faster than the link copies',
  'guest-never-pauses': ': the guest writes without a pause in which the mirror could catch up',
  'own-cap': ': our own bandwidth cap is used up',
  'destination-disk-slow': ": the destination's disk is slower than the link",
  'destination-hanging': ': the destination hangs, or the link to it is dead',
  'destination-unreachable': ': the destination host cannot be reached',
  'target-error': ': the destination could not write it',
  'source-error': ': the source could not read it',
};

/** The same, when the destination says that its disk is what the copy waits for. */
export function blameDestinationDisk(assessment: Assessment, busy: number): Assessment {
  const trouble = 'destination-disk-slow';
  return { ...assessment, trouble, message: assessment.message.replace(BECAUSE[assessment.trouble], `${BECAUSE[trouble]}, busy for ${Math.round(busy * 100)} % of the time`) };
}

function messageOf(assessment: Assessment, disk: DiskAssessment, sample: DiskSample, trend: DiskTrend, nowMs: number, around: Surroundings): string {
  const { verdict, disks, trouble } = assessment;
  const remains = `${megabytes(disk.remainingBytes)} remain`;
  const guest = disk.guestBytesPerSecond === undefined ? '' : `the guest writes ${perSecond(disk.guestBytesPerSecond)}, `;
  const rates = `${guest}${perSecond(disk.dirtyBytesPerSecond)} become dirty, ${perSecond(disk.copyBytesPerSecond)} are copied (the link does ${perSecond(disk.throughputBytesPerSecond)})`;
  const drain = `a pause now would take ${seconds(assessment.predictedDrainMs)} of the ${seconds(around.budgetMs)} allowed`;
  const when = disk.etaMs === null ? 'never at this rate' : `done in ${seconds(disk.etaMs)} at this rate`;
  switch (verdict) {
    case 'failed':
      if (!isBroken(sample)) return `disk ${disk.id} is copied again after a failure`;
      return `the mirror of disk ${disk.id} ended with "${sample.error ?? (sample.ioStatus === 'nospace' ? 'No space left on device' : 'an I/O error')}"${BECAUSE[trouble]}`;
    case 'stalled':
      if (trend.motion === 'moving') return `disk ${disk.id} is copied again after a stall, ${remains}`;
      return `disk ${disk.id}: nothing was copied for ${seconds(trend.quietMs)}, ${remains}${BECAUSE[trouble]}`;
    case 'diverging':
      return `disk ${disk.id} does not catch up${BECAUSE[trouble]}; ${remains}, ${rates}; ${when}`;
    case 'hovering':
      return `disk ${disk.id} hovers, ${disk.ready ? 'ready but too far behind' : 'near but never ready'}${BECAUSE[trouble]}; ${remains}, ${rates}; ${drain}`;
    case 'converging': {
      if (disks.every(({ ready }) => ready)) return `all ${disks.length === 1 ? '' : `${disks.length} `}disks are ready; ${drain}`.replace('all disks are', 'the disk is');
      const slowest = disks.filter(({ ready }) => !ready).reduce((a, b) => ((b.etaMs ?? FOREVER_MS) > (a.etaMs ?? FOREVER_MS) ? b : a));
      const late = around.disksDeadlineAtMs !== undefined && slowest.etaMs !== null && nowMs + slowest.etaMs > around.disksDeadlineAtMs;
      const pace = slowest.copyBytesPerSecond > 0 ? `, ${perSecond(slowest.copyBytesPerSecond)} are copied` : '';
      const until = slowest.etaMs === null ? '' : `, done in ${seconds(slowest.etaMs)}`;
      return `disk ${slowest.id}: ${megabytes(slowest.remainingBytes)} remain${pace}${until}${late ? `: later than the deadline in ${seconds(Math.max(0, around.disksDeadlineAtMs! - nowMs))}` : ''}`;
    }
  }
}
