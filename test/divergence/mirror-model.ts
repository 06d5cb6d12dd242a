import type { DiskSample, Surroundings } from '../../workflows/convergence';
import { Supervision, SUPERVISION_TIMES, type SupervisionTimes } from '../../workflows/convergence';

export const MB = 1e6;
/** Where a test's clock starts. */
export const START_MS = 1_800_000_000_000;
export const SAMPLE_MS = 250;

/** A small generator of our own: the same seed, the same run. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/**
 * One disk's mirror as facts/qemu.md §4 measured it: a guest writes W bytes/s at random over the disk, a link copies L bytes/s, and a block
 * that is dirty already does not become dirtier: `d remaining / dt = W × (1 − remaining / size) − L`. With a disk of 256 MB this gives
 * the remaining bytes of the table's rows.
 */
export class MirrorModel {
  remainingBytes: number;
  offsetBytes = 0;
  guestWrittenBytes = 0;
  ready: boolean;
  writeBlocking = false;
  throttle = Infinity;
  error: string | undefined;
  readonly #random: () => number;

  constructor(
    /** `hovers`: a guest that never pauses keeps some 0.5 to 1.3 MB dirty, and remaining never touches 0. */
    public now: { linkBytesPerSecond: number; guestBytesPerSecond: number; hovers?: boolean },
    private readonly options: { sizeBytes?: number; synced?: boolean; seed?: number } = {},
  ) {
    this.remainingBytes = options.synced ? 0 : this.#size;
    this.ready = options.synced ?? false;
    this.#random = random(options.seed ?? 1);
  }

  get #size(): number {
    return this.options.sizeBytes ?? 256 * MB;
  }

  get guestBytesPerSecond(): number {
    const wanted = Math.min(this.now.guestBytesPerSecond, this.throttle);
    if (!this.writeBlocking) return wanted;
    // Measured: 67 MB drained in 9 s on a link of 10, the guest got 2 meanwhile, and the link's rate afterwards.
    return Math.min(wanted, this.now.linkBytesPerSecond * (this.remainingBytes > 0 ? 0.2 : 1));
  }

  advance(ms: number): void {
    if (this.error !== undefined) return;
    const written = (this.guestBytesPerSecond * ms) / 1000;
    this.guestWrittenBytes += written;
    const dirtied = this.writeBlocking ? 0 : written * (1 - this.remainingBytes / this.#size);
    const room = (this.now.linkBytesPerSecond * ms) / 1000 - (this.writeBlocking ? written : 0);
    const floor = this.now.hovers && !this.writeBlocking && written > 0 && this.now.linkBytesPerSecond > 0 ? (0.5 + 0.8 * this.#random()) * MB : 0;
    const copied = Math.max(0, Math.min(room, this.remainingBytes + dirtied - floor));
    this.remainingBytes = Math.max(0, this.remainingBytes + dirtied - copied);
    this.offsetBytes += copied + (this.writeBlocking ? written : 0);
    this.ready ||= this.remainingBytes < 1;
  }

  /** The re-armed switch of facts/qemu.md §2: a new mirror, ready at once, that counts from 0. */
  rearm(): void {
    Object.assign(this, { remainingBytes: 0, offsetBytes: 0, ready: true, writeBlocking: true, throttle: Infinity });
  }

  sample(atMs: number): DiskSample {
    const { remainingBytes, offsetBytes, ready, writeBlocking, guestWrittenBytes, error } = this;
    return { atMs, remainingBytes, offsetBytes, ready, writeBlocking, guestWrittenBytes, ...(error !== undefined && { error }) };
  }
}

/** Mirrors under supervision, on a clock of their own. */
export class Watch {
  nowMs = START_MS;
  readonly told: { atMs: number; verdict: string; message: string }[] = [];
  readonly supervision: Supervision;

  constructor(
    readonly mirrors: Record<string, MirrorModel>,
    public around: Surroundings = { budgetMs: 300 },
    times: SupervisionTimes = SUPERVISION_TIMES,
  ) {
    this.supervision = new Supervision(times);
  }

  /** One sample later. */
  step(sampleMs = SAMPLE_MS) {
    // Much finer than the samples, as the mirror's own loop is.
    for (let ms = 0; ms < sampleMs; ms += 10) Object.values(this.mirrors).forEach((mirror) => mirror.advance(10));
    this.nowMs += sampleMs;
    const assessment = this.supervision.push(Object.fromEntries(Object.entries(this.mirrors).map(([id, mirror]) => [id, mirror.sample(this.nowMs)])), this.around);
    if (assessment.changed) this.told.push({ atMs: this.nowMs - START_MS, verdict: assessment.verdict, message: assessment.message });
    return assessment;
  }

  run(forMs: number) {
    let assessment = this.step();
    for (let ms = SAMPLE_MS; ms < forMs; ms += SAMPLE_MS) assessment = this.step();
    return assessment;
  }

  get verdicts(): string[] {
    return this.told.map(({ verdict }) => verdict);
  }
}
