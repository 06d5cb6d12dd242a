import { FOREVER_MS, megabytes, seconds } from './convergence';
import { LastingVerdict, type LastingTimes, type Verdict } from './lasting-verdict';

export interface MemoryProgress {
  remainingBytes: number;
  totalBytes: number;
  /** `dirty-pages-rate` in bytes; 0 until the first pass is over, since only then QEMU knows it. */
  dirtyBytesPerSecond: number;
  /** `mbps` in bytes. */
  bytesPerSecond: number;
}

/** One look at `query-migrate`. */
export interface MemorySample extends MemoryProgress {
  atMs: number;
  /** All that was sent, `ram.transferred`: tells a stall from passes that happen to end alike. */
  transferredBytes?: number;
  downtimeLimitMs: number;
}

export interface MemoryAssessment {
  verdict: Verdict;
  /** QEMU's own rule: it switches over when what remains can be sent within its `downtime-limit`. */
  predictedDowntimeMs: number;
  message: string;
}

export interface MemoryTimes extends LastingTimes {
  /** Both of QEMU's rates jump with every pass: they are averaged over this. */
  windowMs: number;
  /** What remains did not change by a byte for this long. Longer than QEMU takes to look through the bitmap of a large guest. */
  stallMs: number;
}

export const MEMORY_TIMES: MemoryTimes = { windowMs: 5_000, stallMs: 5_000, lastsMs: 3_000, calmMs: 3_000, flapMemoryMs: 120_000 };

/**
 * A pass leaves what the guest dirtied while it ran: dirty rate ÷ throughput times the pass before. Below this share each pass is visibly
 * shorter than the one before; above its inverse each is longer.
 */
const SHRINKS_BELOW = 0.9;
/** Passes of equal length that end this near the limit, in multiples of it, may fit any moment. */
const NEAR_LIMIT = 4;

/**
 * What the samples so far, oldest first, and this one say. Unlike a disk's, remaining memory is a saw: it falls during a pass and jumps
 * when QEMU reads its bitmap again. So not its trend but the ratio of the rates decides. Pure; says nothing of what lasts.
 */
export function assessMemory(now: MemorySample, history: readonly MemorySample[], times: Pick<MemoryTimes, 'windowMs' | 'stallMs'> = MEMORY_TIMES): MemoryAssessment {
  const window = [...history.filter(({ atMs }) => atMs < now.atMs && now.atMs - atMs <= times.windowMs), now];
  const dirty = mean(window.map(({ dirtyBytesPerSecond }) => dirtyBytesPerSecond).filter((rate) => rate > 0));
  const sent = mean(window.map(({ bytesPerSecond }) => bytesPerSecond));
  const predictedDowntimeMs = now.remainingBytes === 0 ? 0 : sent <= 0 ? FOREVER_MS : Math.min(FOREVER_MS, (now.remainingBytes * 1000) / sent);
  const numbers = `${megabytes(now.remainingBytes)} of ${megabytes(now.totalBytes)} remain, ${megabytes(dirty)}/s become dirty, ${megabytes(sent)}/s are sent`;
  const answer = (verdict: Verdict, words: string): MemoryAssessment => ({ verdict, predictedDowntimeMs, message: `memory ${words}: ${numbers}; the pause would be ${seconds(predictedDowntimeMs)} of the ${seconds(now.downtimeLimitMs)} allowed` });

  const progress = (sample: MemorySample) => sample.transferredBytes ?? sample.remainingBytes;
  const still = history.findLast(({ atMs }) => now.atMs - atMs >= times.stallMs);
  if (still && now.remainingBytes > 0 && history.every((sample) => sample.atMs < still.atMs || progress(sample) === progress(now))) return answer('stalled', 'is not sent any more: the destination hangs, or the link is dead');
  if (predictedDowntimeMs <= now.downtimeLimitMs) return answer('converging', 'fits');
  if (dirty === 0) return answer('converging', 'is sent for the first time');
  if (dirty < SHRINKS_BELOW * sent) return answer('converging', 'converges');
  const least = Math.min(...window.map(({ remainingBytes }) => remainingBytes));
  const leastMs = sent > 0 ? (least * 1000) / sent : FOREVER_MS;
  if (dirty <= sent / SHRINKS_BELOW && leastMs <= NEAR_LIMIT * now.downtimeLimitMs) return answer('hovering', 'hovers: it is dirtied as fast as it is sent');
  return answer('diverging', 'does not converge: the guest dirties it faster than it can be sent');
}

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
}

/** `assessMemory` over time, with the verdict that lasts. */
export class MemorySupervision {
  #history: MemorySample[] = [];
  readonly #lasting: LastingVerdict;

  constructor(
    private readonly times: MemoryTimes = MEMORY_TIMES,
    before?: { verdict: Verdict; sinceMs: number },
  ) {
    this.#lasting = new LastingVerdict(times, before?.verdict, before?.sinceMs);
  }

  push(sample: MemorySample): MemoryAssessment & { changed: boolean; sinceMs: number } {
    const instant = assessMemory(sample, this.#history, this.times);
    const keepMs = 2 * Math.max(this.times.windowMs, this.times.stallMs);
    this.#history = [...this.#history.filter(({ atMs }) => atMs < sample.atMs && sample.atMs - atMs <= keepMs), sample];
    const changed = this.#lasting.push(instant.verdict, sample.atMs);
    return { ...instant, verdict: this.#lasting.verdict, changed, sinceMs: this.#lasting.sinceMs! };
  }
}
