import { z } from 'zod';

/**
 * How a copy went, in a few kilobytes: what an activity that samples for hours leaves in its result. Samples never enter history; this does, once, and
 * `vmferry report` draws it. Numbers are KiB, or KiB a second.
 */
const kib = z.array(z.int().min(0));
export const traceSchema = z.object({
  /** On the host's clock, ms since the epoch. */
  startedAtMs: z.number(),
  bucketMs: z.number().positive(),
  /** Which buckets have samples, counted from the start. */
  at: z.array(z.int().min(0)),
  /** A lane for each disk, or one for memory: the least and the most that remained in each bucket, and the mean of the rates. */
  lanes: z.array(z.object({ id: z.string(), least: kib, most: kib, copied: kib, dirtied: kib })),
});
export type Trace = z.output<typeof traceSchema>;

export interface LaneSample {
  id: string;
  remainingBytes: number;
  copyBytesPerSecond: number;
  dirtyBytesPerSecond: number;
}

/** Of one trace, as JSON, however many disks. */
export const MOST_BYTES = 20_000;
export const MOST_POINTS = 150;
/** Disks beyond this have no lane. */
export const MOST_LANES = 40;
/** A mirror is sampled twice a second. */
const FINEST_MS = 500;
/** Four numbers of up to ten digits with their commas: 8 TiB, 8 TiB/s. */
const BYTES_PER_POINT = 44;
const BYTES_PER_INDEX = 9;
/** Names, brackets and keys. */
const BYTES_PER_LANE = 130;

interface Bucket {
  index: number;
  samples: number;
  lanes: { least: number; most: number; copied: number; dirtied: number }[];
}

/** Takes samples for as long as it likes: when it has too many buckets they become twice as wide. What remained at most and at least is never lost. */
export class TraceRecorder {
  #startedAtMs = 0;
  #bucketMs = FINEST_MS;
  #buckets: Bucket[] = [];
  #ids: string[] = [];

  /** All samples at one moment. The lanes are those of the first call. */
  push(atMs: number, samples: LaneSample[]): void {
    const last = this.#buckets.at(-1);
    if (!last) {
      this.#startedAtMs = atMs;
      this.#ids = samples.slice(0, MOST_LANES).map(({ id }) => id);
    }
    const lanes = this.#ids.map((id) => samples.find((one) => one.id === id) ?? { remainingBytes: 0, copyBytesPerSecond: 0, dirtyBytesPerSecond: 0 });
    const cells = lanes.map(({ remainingBytes, copyBytesPerSecond, dirtyBytesPerSecond }) => ({ least: remainingBytes, most: remainingBytes, copied: copyBytesPerSecond, dirtied: dirtyBytesPerSecond }));
    // A clock that was set back makes no second past.
    const index = Math.max(last?.index ?? 0, Math.floor((atMs - this.#startedAtMs) / this.#bucketMs));
    addTo(this.#buckets, { index, samples: 1, lanes: cells });
    while (this.#buckets.length > mostPoints(this.#ids.length)) {
      this.#bucketMs *= 2;
      const wider: Bucket[] = [];
      for (const bucket of this.#buckets) addTo(wider, { ...bucket, index: Math.floor(bucket.index / 2) });
      this.#buckets = wider;
    }
  }

  /** Undefined before the first sample. */
  get trace(): Trace | undefined {
    if (this.#buckets.length === 0) return undefined;
    const column = (lane: number, key: 'least' | 'most' | 'copied' | 'dirtied') => this.#buckets.map(({ lanes }) => Math.ceil(lanes[lane]![key] / 1024));
    return {
      startedAtMs: Math.round(this.#startedAtMs),
      bucketMs: this.#bucketMs,
      at: this.#buckets.map(({ index }) => index),
      lanes: this.#ids.map((id, lane) => ({ id, least: column(lane, 'least'), most: column(lane, 'most'), copied: column(lane, 'copied'), dirtied: column(lane, 'dirtied') })),
    };
  }
}

/** At the end, or to what is there of the same index. */
function addTo(buckets: Bucket[], bucket: Bucket): void {
  const last = buckets.at(-1);
  if (last?.index !== bucket.index) {
    buckets.push(bucket);
    return;
  }
  const samples = last.samples + bucket.samples;
  const mean = (a: number, b: number) => (a * last.samples + b * bucket.samples) / samples;
  last.lanes = last.lanes.map((a, lane) => {
    const b = bucket.lanes[lane]!;
    return { least: Math.min(a.least, b.least), most: Math.max(a.most, b.most), copied: mean(a.copied, b.copied), dirtied: mean(a.dirtied, b.dirtied) };
  });
  last.samples = samples;
}

function mostPoints(lanes: number): number {
  return Math.min(MOST_POINTS, Math.floor((MOST_BYTES - 100 - lanes * BYTES_PER_LANE) / (BYTES_PER_INDEX + lanes * BYTES_PER_POINT)));
}
