import fc from 'fast-check';
import { writeRates } from '../../hypervisor/guest-load';
import { DIVERGES_FROM, estimateMove, HOVERS_FROM, MEMORY_DIVERGES_FROM, type MoveEstimate, type MoveFacts } from '../../workflows/estimate';
import { migrateVmSchema } from '../../workflows/messages';

const MB = 1_000_000;
const policyOf = (fields: object = {}) => migrateVmSchema.parse({ vm: 'web', to: 'host-b', ...fields });
const can = { writeBlocking: true, throttle: true, autoConverge: true, postCopy: true };
/** A guest of 1 GB with 10 GB on disk, over 100 MB/s; it writes and dirties what is given. */
const facts = (writes: number, dirties = 0, fields: Partial<MoveFacts> = {}): MoveFacts => ({
  running: true,
  disks: [{ id: 'a', virtualBytes: 40_000 * MB, allocatedBytes: 10_000 * MB, dirtiedBytesPerSecond: writes }],
  memory: { bytes: 2_000 * MB, residentBytes: 1_000 * MB, dirtyBytesPerSecond: dirties },
  link: { bytesPerSecond: 100 * MB },
  policy: policyOf(),
  can,
  ...fields,
});

test('an idle guest takes its bytes over the link, and our own second', () => {
  const { converges, remedies, copiesBytes, totalMs, parts, downtimeMs } = estimateMove(facts(0));
  expect({ converges, remedies, copiesBytes }).toEqual({ converges: 'yes', remedies: [], copiesBytes: { disks: 10_000 * MB, memory: 1_000 * MB } });
  expect(parts).toMatchObject({ disksMs: 100_000, memoryMs: 10_000 });
  expect(totalMs).toBeGreaterThan(111_000);
  expect(downtimeMs).toBeLessThan(300);
});

test.each([
  [0.2, 'yes', []],
  [HOVERS_FROM + 0.1, 'with-remedy', ['nudge']],
  [DIVERGES_FROM + 0.1, 'with-remedy', ['write-blocking']],
])('a guest whose writes cost %d of the link: %s, by %j', (share, converges, remedies) => {
  const estimate = estimateMove(facts(share * 100 * MB));
  expect(estimate).toMatchObject({ converges, remedies });
  if (remedies.length > 0) expect(estimate.message).toContain(`MB/s of its disks, the link carries 100 MB/s`);
});

test('what the QEMU and the policy allow decides about the remedy', () => {
  const diverging = (fields: Partial<MoveFacts>) => estimateMove(facts(150 * MB, 0, fields));
  expect(diverging({ can: { ...can, writeBlocking: false } })).toMatchObject({ converges: 'with-remedy', remedies: ['throttle'] });
  expect(diverging({ can: { ...can, writeBlocking: false, throttle: false } })).toMatchObject({ converges: 'no', message: expect.stringContaining('nothing') });
  expect(diverging({ policy: policyOf({ onDivergence: 'abort' }) })).toMatchObject({ converges: 'no', message: expect.stringContaining('onDivergence: abort') });
  expect(diverging({ policy: policyOf({ onDivergence: 'ask' }) })).toMatchObject({ converges: 'with-remedy', message: expect.stringContaining('asks first') });
  expect(diverging({ policy: policyOf({ bandwidthBytesPerSecond: 50 * MB }) }).remedies).toEqual(['lift-limits', 'write-blocking']);
  expect(diverging({ policy: policyOf({ copyMode: 'write-blocking' }) })).toMatchObject({ converges: 'yes', remedies: [] });
});

test('memory that is dirtied too fast needs auto-converge or post-copy, or the move is given up', () => {
  const dirty = (policy: object, fields: Partial<MoveFacts> = {}) => estimateMove(facts(0, MEMORY_DIVERGES_FROM * 100 * MB, { policy: policyOf(policy), ...fields }));
  expect(dirty({})).toMatchObject({ converges: 'with-remedy', remedies: ['auto-converge'] });
  expect(dirty({ onDivergence: 'abort', postCopy: true })).toMatchObject({ converges: 'with-remedy', remedies: ['post-copy'] });
  expect(dirty({ memory: { autoConverge: false } })).toMatchObject({ converges: 'no', message: expect.stringContaining('would not converge') });
  expect(dirty({}, { can: { ...can, autoConverge: false } }).converges).toBe('no');
});

test('a budget that the stop and the drain alone exceed is said, with what to give', () => {
  const { converges, message, totalMs } = estimateMove(facts(10 * MB, 0, { policy: policyOf({ maxDowntimeMs: 20 }) }));
  expect({ converges, totalMs }).toEqual({ converges: 'no', totalMs: undefined });
  expect(message).toMatch(/more than the 20 ms of --max-downtime: give at least \d+ ms/);
});

test('a guest that is paused moves without a pause, and whatever it did before', () => {
  const estimate = estimateMove(facts(1_000 * MB, 1_000 * MB, { running: false, policy: policyOf({ maxDowntimeMs: 20 }) }));
  expect(estimate).toMatchObject({ converges: 'yes', remedies: [] });
  expect(estimate).not.toHaveProperty('downtimeMs');
});

test('random writes cost the copy 64 KiB each, large ones what they are', () => {
  expect(writeRates(4_096_000, 1_000, 1_000)).toEqual({ writtenBytesPerSecond: 4_096_000, dirtiedBytesPerSecond: 65_536_000 });
  expect(writeRates(100 * MB, 100, 2_000)).toEqual({ writtenBytesPerSecond: 50 * MB, dirtiedBytesPerSecond: 50 * MB });
});

describe('for all guests and links', () => {
  const size = fc.integer({ min: 0, max: 4_000 }).map((mb) => mb * MB);
  const speed = fc.integer({ min: 0, max: 400 }).map((mb) => mb * MB);
  const anyFacts: fc.Arbitrary<MoveFacts> = fc.record({
    running: fc.boolean(),
    disks: fc.array(fc.record({ id: fc.constant('a'), virtualBytes: size, allocatedBytes: size, dirtiedBytesPerSecond: speed }), { maxLength: 3 }),
    memory: fc.record({ bytes: size, residentBytes: size, dirtyBytesPerSecond: speed }),
    link: fc.integer({ min: 1, max: 2_000 }).map((mb) => ({ bytesPerSecond: mb * MB })),
    policy: fc.record({ maxDowntimeMs: fc.integer({ min: 20, max: 5_000 }), onDivergence: fc.constantFrom('auto', 'ask', 'abort'), copyMode: fc.constantFrom('background', 'write-blocking'), postCopy: fc.boolean() }).map(policyOf),
    can: fc.record({ writeBlocking: fc.boolean(), throttle: fc.boolean(), autoConverge: fc.boolean(), postCopy: fc.boolean() }),
  });
  const RANK = { yes: 0, 'with-remedy': 1, no: 2 };
  /** Rounded to whole ms. */
  const worse = (a: MoveEstimate, b: MoveEstimate) => RANK[a.converges] > RANK[b.converges] || (a.totalMs !== undefined && b.totalMs !== undefined && withoutPause(a) > withoutPause(b) + 2);
  /** Passes over the memory come in whole numbers: one less may leave more for the pause, inside its budget. */
  const withoutPause = ({ parts }: MoveEstimate) => parts!.disksMs + parts!.memoryMs + parts!.ownMs;

  test('numbers are finite, and none is negative', () => {
    fc.assert(fc.property(anyFacts, (one) => {
      const { totalMs = 0, downtimeMs = 0, parts = {}, downtimeParts = {} } = estimateMove(one);
      for (const ms of [totalMs, downtimeMs, ...Object.values<number>(parts), ...Object.values<number>(downtimeParts)]) expect(Number.isFinite(ms) && ms >= 0).toBe(true);
    }));
  });

  test('what would converge keeps the budget', () => {
    fc.assert(fc.property(anyFacts, (one) => {
      const { converges, downtimeParts } = estimateMove(one);
      if (converges === 'no' || !downtimeParts) return;
      expect(downtimeParts.stopMs + downtimeParts.disksMs).toBeLessThanOrEqual(one.policy.maxDowntimeMs + 1);
      // Half of it is for the memory, beside the state of the devices.
      expect(downtimeParts.memoryMs).toBeLessThanOrEqual(one.policy.maxDowntimeMs / 2 + 100);
    }));
  });

  test('a faster link never makes it worse, nor a longer budget', () => {
    fc.assert(fc.property(anyFacts, fc.integer({ min: 1, max: 500 }), (one, more) => {
      const faster = { ...one, link: { bytesPerSecond: one.link.bytesPerSecond + more * MB } };
      expect(worse(estimateMove(faster), estimateMove(one))).toBe(false);
      const patient = { ...one, policy: { ...one.policy, maxDowntimeMs: one.policy.maxDowntimeMs + more } };
      expect(worse(estimateMove(patient), estimateMove(one))).toBe(false);
    }), { numRuns: 500 });
  });

  test('more to copy, more writes and more dirty memory never make it better', () => {
    fc.assert(fc.property(anyFacts, fc.integer({ min: 1, max: 500 }), (one, more) => {
      const before = estimateMove(one);
      const [disk] = one.disks;
      const rest = one.disks.slice(1);
      const harder: MoveFacts[] = [
        { ...one, memory: { ...one.memory, residentBytes: one.memory.residentBytes + more * MB } },
        { ...one, memory: { ...one.memory, dirtyBytesPerSecond: one.memory.dirtyBytesPerSecond + more * MB } },
        ...(disk ? [{ ...one, disks: [{ ...disk, allocatedBytes: disk.allocatedBytes + more * MB }, ...rest] }, { ...one, disks: [{ ...disk, dirtiedBytesPerSecond: disk.dirtiedBytesPerSecond + more * MB }, ...rest] }] : []),
      ];
      for (const hard of harder) expect(worse(before, estimateMove(hard))).toBe(false);
    }), { numRuns: 500 });
  });
});
