const MIB = 1024 * 1024;

/** One look at a disk's mirror (`query-block-jobs`, `query-jobs`, `query-blockstats`). */
export interface DiskSample {
  /** Since the epoch, so that a workflow's clock can be compared; from a clock that is never set back (`performance.timeOrigin + performance.now()`). */
  atMs: number;
  /** Dirty, or in flight to the target. As old as the mirror's last loop: up to `sampleLagMs` (facts/qemu.md §1.2). */
  remainingBytes: number;
  /** All that was copied. Blocks that are copied again count again, so it grows past the disk's size; it starts again with a new mirror. */
  offsetBytes: number;
  /** Latched: says that the mirror *once* caught up (R1). */
  ready: boolean;
  /** The mirror's copy-mode: a guest write then ends only when the target has it, so nothing new is left behind. */
  writeBlocking?: boolean;
  /** QEMU ≥ 8.2. */
  activelySynced?: boolean;
  /** All that the guest wrote, `wr_bytes`. */
  guestWrittenBytes?: number;
  /** Why the mirror ended. */
  error?: string;
  /** From BLOCK_JOB_ERROR, where it was seen: a read failed at the source, a write at the target. */
  errorOperation?: 'read' | 'write';
  ioStatus?: 'ok' | 'failed' | 'nospace';
  /** Part of what remains, where QEMU tells it. */
  inFlightBytes?: number;
}

export interface TrendTimes {
  /** Samples that make a trend: several loops of the mirror, yet short enough to see a remedy work within seconds. */
  windowMs: number;
  /** Fewer are no trend: a burst looks like divergence for a second. */
  minSpanMs: number;
  /** "Just now". */
  recentMs: number;
  /** Enough to see whether a mirror that is ready is falling behind again; short, since every migration waits for it. */
  gateSpanMs: number;
  /** From the opened gate to the pause: the memory is moved meanwhile, and a disk that falls behind goes on doing so. */
  leadMs: number;
  /** The job's numbers move only when its coroutine loops, every 100 ms when it has nothing to do (`BLOCK_JOB_SLICE_TIME`). */
  sampleLagMs: number;
  /** Nothing copied for this long is a stall. Longer than what a busy destination takes to flush. */
  stallMs: number;
  /** Nothing copied for this long *may* be one: what the samples seem to say meanwhile is not believed. */
  quietMs: number;
}

/** Whether anything is copied: `maybe-stalled` is what a stall looks like at first. */
export type Motion = 'moving' | 'maybe-stalled' | 'stalled';

/** A mirror has at most this much under way: `DEFAULT_MIRROR_BUF_SIZE` is 10 MiB, other versions and settings up to 16 requests of 1 MiB. */
export const MOST_IN_FLIGHT_BYTES = 16 * MIB;
/** What is assumed of a link nobody has measured: low, yet such that a tiny remainder on an idle guest never closes the gate. */
export const UNKNOWN_LINK_BYTES_PER_SECOND = 10 * MIB;
/** A mirror with less to do than this shows what the guest writes, not what the link can. */
const BUSY_BYTES = MIB;
const BUSY_MS = 200;
/** Below this share of the throughput it is not the guest that slows a copy down. */
const GUEST_SLOWS = 0.5;
/** A least-squares line through fewer points is noise. */
const FEWEST_POINTS = 3;
/** Progress comes in steps of a MiB. On a slow link they are seconds apart: then the window is this many steps, and silence is twice one. */
const STEPS_IN_WINDOW = 4;
const STEPS_OF_SILENCE = 2;
/** How fast a longer time between two steps is forgotten, a step. */
const STEP_MEMORY = 0.8;

/** What the samples of one disk, or of all disks added up, show: rates, the trend of what remains, what the link can do. */
export class DiskTrend {
  /** The samples of the last `windowMs`, of one mirror. */
  window: DiskSample[] = [];
  everReady = false;
  /** When something was copied last, or nothing was left to copy. */
  #progressMs = 0;
  /** The usual time between two steps of progress. */
  #stepMs = 0;
  #firstLengthBytes = 0;
  #throughput: number | undefined;

  constructor(private readonly times: TrendTimes) {}

  /** Returns whether it belongs to another mirror than the sample before: what the link can do stays known, all else begins anew. */
  push(sample: DiskSample): boolean {
    const before = this.last;
    if (before && sample.atMs <= before.atMs) return false;
    const restarted = before !== undefined && (sample.offsetBytes < before.offsetBytes || (before.error !== undefined && sample.error === undefined));
    if (restarted) this.restart();
    const moved = !before || restarted || sample.offsetBytes > before.offsetBytes || sample.remainingBytes < before.remainingBytes;
    if (moved || sample.remainingBytes === 0) {
      const sinceMs = before && !restarted ? sample.atMs - this.#progressMs : 0;
      // What happened while nothing moved is no trend: the guest wrote on, and the next seconds will look quite different.
      if (sinceMs >= this.#maybeStalledMs) this.window = [];
      if (sinceMs < this.times.stallMs) this.#stepMs = Math.max(sinceMs, this.#stepMs * STEP_MEMORY);
      this.#progressMs = sample.atMs;
    }
    // A mirror that still looks for what is allocated shows 0 of 0. The jump to its real length is not growth.
    if (!this.begun) this.window = [];
    this.everReady ||= sample.ready;
    this.#firstLengthBytes ||= sample.offsetBytes + sample.remainingBytes;
    this.window = [...this.window.filter(({ atMs }) => sample.atMs - atMs <= Math.max(this.times.windowMs, STEPS_IN_WINDOW * this.#stepMs)), sample];
    this.#learnThroughput();
    return restarted;
  }

  restart(): void {
    this.window = [];
    this.everReady = false;
    this.#firstLengthBytes = 0;
  }

  get last(): DiskSample | undefined {
    return this.window.at(-1);
  }

  get remainingBytes(): number {
    return this.last?.remainingBytes ?? 0;
  }

  /** The first pass over the disk: that it takes long says nothing against it. */
  get firstPass(): boolean {
    return !this.everReady && (this.last?.offsetBytes ?? 0) < this.#firstLengthBytes;
  }

  get begun(): boolean {
    return this.everReady || this.#firstLengthBytes > 0;
  }

  /** How long nothing was copied. */
  get quietMs(): number {
    return this.last ? this.last.atMs - this.#progressMs : 0;
  }

  get motion(): Motion {
    if (this.quietMs >= Math.max(this.times.stallMs, this.#maybeStalledMs)) return 'stalled';
    return this.quietMs >= this.#maybeStalledMs ? 'maybe-stalled' : 'moving';
  }

  get #maybeStalledMs(): number {
    return Math.max(this.times.quietMs, STEPS_OF_SILENCE * this.#stepMs);
  }

  get copyBytesPerSecond(): number {
    return this.#rate(({ offsetBytes }) => offsetBytes);
  }

  /** Rewritten blocks count once, so this is not what the guest writes, but what it costs. */
  get dirtyBytesPerSecond(): number {
    return Math.max(0, this.#rate(({ offsetBytes, remainingBytes }) => offsetBytes + remainingBytes));
  }

  get guestBytesPerSecond(): number | undefined {
    if (this.window.length < 2 || this.window.some(({ guestWrittenBytes }) => guestWrittenBytes === undefined)) return undefined;
    return Math.max(0, this.#rate(({ guestWrittenBytes }) => guestWrittenBytes!));
  }

  /** How fast what remains grows; negative when it falls; undefined as long as nobody can say. */
  get slopeBytesPerSecond(): number | undefined {
    return this.#spanMs >= Math.max(this.times.minSpanMs, STEPS_OF_SILENCE * this.#stepMs) ? slope(this.window) : undefined;
  }

  /**
   * Where what remains will level off, if its fall slows down: the more is copied, the more of what the guest writes is dirty anew, so a
   * copy against a fast guest approaches a level and never gets below. An exponential through the two halves of the window;
   * `undefined` where no slowing down is seen, or where the guest does too little to be the reason.
   */
  get levelBytes(): number | undefined {
    if (this.#spanMs < this.times.minSpanMs || this.dirtyBytesPerSecond < GUEST_SLOWS * this.throughputBytesPerSecond) return undefined;
    const middle = this.last!.atMs - this.#spanMs / 2;
    const before = line(this.window.filter(({ atMs }) => atMs <= middle));
    const after = line(this.window.filter(({ atMs }) => atMs >= middle));
    if (!before || !after || before.slope >= 0) return undefined;
    if (after.slope - before.slope <= STANDARD_ERRORS * Math.hypot(before.error, after.error)) return undefined;
    if (after.slope >= 0) return this.remainingBytes;
    const decayPerSecond = Math.log(before.slope / after.slope) / (this.#spanMs / 2 / 1000);
    return this.remainingBytes + after.slope / decayPerSecond;
  }

  /** What the link carried the last time the mirror had enough to do: an idle mirror copies nothing, which says nothing about its link. */
  get throughputBytesPerSecond(): number {
    return this.#throughput ?? Math.max(this.copyBytesPerSecond, UNKNOWN_LINK_BYTES_PER_SECOND);
  }

  get recentRemainingBytes(): number {
    const recent = this.#recent;
    return recent.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0) / Math.max(1, recent.length);
  }

  /** Whether there is enough to predict a pause from. A write-blocking mirror needs no past: it cannot fall behind. */
  get predictable(): boolean {
    if (this.motion !== 'moving') return false;
    return this.last?.writeBlocking === true || (this.#spanMs >= this.times.gateSpanMs && this.window.length >= FEWEST_POINTS);
  }

  /**
   * What will have to be drained when the guest is paused, `leadMs` from now: the most that remained of late, or where the trend leads,
   * and what the guest dirtied since the mirror last counted. What is in flight is part of what remains.
   */
  get atPauseBytes(): number {
    const { last } = this;
    if (!last) return 0;
    const now = Math.max(last.remainingBytes, last.inFlightBytes ?? 0);
    if (last.writeBlocking) return now;
    const peak = this.#recent.reduce((most, sample) => (sample.ready ? Math.max(most, sample.remainingBytes) : most), now);
    // The shorter trend sees a guest that has just begun to write, the longer one a slow drift.
    const growth = Math.max(0, slope(this.window) ?? 0, slope(this.#recent) ?? 0);
    const uncounted = Math.min(MOST_IN_FLIGHT_BYTES, (this.dirtyBytesPerSecond * this.times.sampleLagMs) / 1000);
    return Math.max(peak, now + (growth * this.times.leadMs) / 1000) + uncounted;
  }

  get #spanMs(): number {
    return this.window.length < 2 ? 0 : this.last!.atMs - this.window[0]!.atMs;
  }

  get #recent(): DiskSample[] {
    return this.window.filter(({ atMs }) => this.last!.atMs - atMs <= this.times.recentMs);
  }

  #rate(total: (sample: DiskSample) => number): number {
    return this.#spanMs === 0 ? 0 : ((total(this.last!) - total(this.window[0]!)) * 1000) / this.#spanMs;
  }

  #learnThroughput(): void {
    if (this.motion !== 'moving' || this.#spanMs < this.times.gateSpanMs || this.window.length < FEWEST_POINTS) return;
    const copied = this.copyBytesPerSecond;
    const busy = this.window.every(({ remainingBytes }) => remainingBytes >= Math.max(BUSY_BYTES, (copied * BUSY_MS) / 1000));
    if (busy || (this.#throughput !== undefined && copied > this.#throughput)) this.#throughput = copied;
  }
}

/** Several disks as one: they share the link. */
export function addUp(samples: DiskSample[]): DiskSample {
  const sum = (of: (sample: DiskSample) => number) => samples.reduce((total, sample) => total + of(sample), 0);
  return {
    atMs: Math.max(...samples.map(({ atMs }) => atMs)),
    remainingBytes: sum(({ remainingBytes }) => remainingBytes),
    offsetBytes: sum(({ offsetBytes }) => offsetBytes),
    ready: samples.every(({ ready }) => ready),
    writeBlocking: samples.every(({ writeBlocking }) => writeBlocking === true),
    inFlightBytes: sum(({ inFlightBytes }) => inFlightBytes ?? 0),
  };
}

/** A slope that its own scatter could have made is none: it counts by what it exceeds this many standard errors. */
const STANDARD_ERRORS = 2;

/** The slope of what remained, in bytes a second, as far as it is more than noise. */
function slope(samples: DiskSample[]): number | undefined {
  const fit = line(samples);
  return fit && Math.sign(fit.slope) * Math.max(0, Math.abs(fit.slope) - STANDARD_ERRORS * fit.error);
}

/** The least-squares line through what remained: its slope in bytes a second, and the slope's standard error. */
function line(samples: DiskSample[]): { slope: number; error: number } | undefined {
  const points = samples.length;
  if (points < FEWEST_POINTS) return undefined;
  const meanMs = samples.reduce((sum, { atMs }) => sum + atMs, 0) / points;
  const meanBytes = samples.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0) / points;
  let [covariance, timeVariance, bytesVariance] = [0, 0, 0];
  for (const { atMs, remainingBytes } of samples) {
    covariance += (atMs - meanMs) * (remainingBytes - meanBytes);
    timeVariance += (atMs - meanMs) ** 2;
    bytesVariance += (remainingBytes - meanBytes) ** 2;
  }
  if (timeVariance === 0) return undefined;
  const steepness = covariance / timeVariance;
  const scatter = Math.max(0, bytesVariance - covariance * steepness);
  return { slope: steepness * 1000, error: Math.sqrt(scatter / (points - 2) / timeVariance) * 1000 };
}
