import fc from 'fast-check';
import { type LaneSample, MOST_BYTES, MOST_LANES, MOST_POINTS, TraceRecorder, traceSchema } from '../../workflows/trace';

const TIB = 2 ** 40;
const bytes = fc.oneof(fc.integer({ min: 0, max: 64 * 2 ** 20 }), fc.double({ min: 0, max: 8 * TIB, noNaN: true }));
const rate = fc.double({ min: 0, max: 12e9, noNaN: true });
const kib = (value: number) => Math.ceil(value / 1024);

/** Samples of some disks with the longest names, at any pace, also by a clock that is set back. */
const samples = fc.integer({ min: 1, max: MOST_LANES + 5 }).chain((disks) =>
  fc.array(
    fc.record({ afterMs: fc.oneof(fc.integer({ min: 50, max: 600 }), fc.integer({ min: -5_000, max: 3_600_000 })), lanes: fc.array(fc.record({ remainingBytes: bytes, copyBytesPerSecond: rate, dirtyBytesPerSecond: rate }), { minLength: disks, maxLength: disks }) }),
    { minLength: 1, maxLength: Math.max(40, Math.floor(1_500 / disks)) },
  ),
);
const named = (lanes: Omit<LaneSample, 'id'>[]): LaneSample[] => lanes.map((lane, index) => ({ id: `d${String(index).padStart(63, '0')}`, ...lane }));

function record(all: { afterMs: number; lanes: Omit<LaneSample, 'id'>[] }[]) {
  const recorder = new TraceRecorder();
  let atMs = 1_800_000_000_000;
  for (const { afterMs, lanes } of all) recorder.push((atMs += afterMs), named(lanes));
  return recorder.trace!;
}

test('a trace is bounded in points and bytes, however many disks and samples it was made of', () => {
  fc.assert(
    fc.property(samples, (all) => {
      const trace = record(all);
      expect(traceSchema.parse(trace)).toEqual(trace);
      expect(trace.at.length).toBeLessThanOrEqual(MOST_POINTS);
      expect(trace.lanes.length).toBe(Math.min(MOST_LANES, all[0]!.lanes.length));
      expect(JSON.stringify(trace).length).toBeLessThan(MOST_BYTES);
    }),
    { numRuns: 60 },
  );
});

test('it keeps the most and the least that ever remained, and goes forward in time', () => {
  fc.assert(
    fc.property(samples, (all) => {
      const { at, lanes } = record(all);
      lanes.forEach(({ least, most }, index) => {
        const remained = all.map((sample) => kib(sample.lanes[index]!.remainingBytes));
        expect(Math.min(...least)).toBe(Math.min(...remained));
        expect(Math.max(...most)).toBe(Math.max(...remained));
        least.forEach((value, bucket) => expect(value).toBeLessThanOrEqual(most[bucket]!));
      });
      at.slice(1).forEach((bucket, before) => expect(bucket).toBeGreaterThan(at[before]!));
    }),
    { numRuns: 60 },
  );
});

test('few samples are kept one by one, and a day of them within the same bound', () => {
  const sample = (remainingBytes: number) => ({ afterMs: 500, lanes: [{ remainingBytes, copyBytesPerSecond: 1024, dirtyBytesPerSecond: 0 }] });
  const short = record(Array.from({ length: 20 }, (_, index) => sample(20_480 - index * 1024)));
  expect(short).toMatchObject({ bucketMs: 500, lanes: [{ least: Array.from({ length: 20 }, (_, index) => 20 - index), copied: Array<number>(20).fill(1) }] });
  const day = record(Array.from({ length: 2 * 24 * 3600 }, (_, index) => sample(index === 100_000 ? 1 : 5e9)));
  expect(day.at.length).toBeGreaterThan(MOST_POINTS / 2 - 1);
  expect(Math.min(...day.lanes[0]!.least)).toBe(1);
});

test('without a sample there is no trace', () => {
  expect(new TraceRecorder().trace).toBeUndefined();
});
