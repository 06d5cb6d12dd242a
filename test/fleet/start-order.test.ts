import fc from 'fast-check';
import { idealWallTimeMs, mayStart, type MoveLimits } from '../../workflows/start-order';

const move = (guest: string, from: string, to: string, bytes = 1_000) => ({ guest, from, to, cold: false, memoryBytes: bytes / 2, diskBytes: bytes / 2 });
const limits = (given: Partial<MoveLimits> = {}): MoveLimits => ({ fleet: 10, perSource: { default: 2 }, perDestination: { default: 2 }, ...given });
const started = (...args: Parameters<typeof mayStart<ReturnType<typeof move>>>) => mayStart(...args).map(({ guest }) => guest);

describe('of the waiting moves', () => {
  const plan = [move('1', 'a', 'x'), move('2', 'a', 'y'), move('3', 'a', 'z'), move('4', 'b', 'x'), move('5', 'b', 'x'), move('6', 'c', 'z')];

  test('those start that no limit holds up, in the order of the plan', () => {
    expect(started(plan, [], limits())).toEqual(['1', '2', '4', '6']);
  });
  test('running ones count, wherever they came from', () => {
    expect(started(plan, [move('0', 'a', 'x'), move('00', 'd', 'x')], limits())).toEqual(['2', '6']);
  });
  test('the first start when the fleet\'s limit is the narrowest', () => {
    expect(started(plan, [], limits({ fleet: 2 }))).toEqual(['1', '2']);
    expect(started(plan, [move('0', 'd', 'w')], limits({ fleet: 2 }))).toEqual(['1']);
  });
  test('a host\'s own limit overrides the default', () => {
    expect(started(plan, [], limits({ perSource: { default: 2, byHost: { a: 3, b: 0 } }, perDestination: { default: 2, byHost: { y: 0 } } }))).toEqual(['1', '3', '6']);
  });
  test('none start where a limit is 0, or is exceeded already', () => {
    expect(started(plan, [], limits({ fleet: 0 }))).toEqual([]);
    expect(started(plan, plan, limits({ fleet: 3 }))).toEqual([]);
    expect(started(plan, [], limits({ perDestination: { default: 0 } }))).toEqual([]);
  });
});

const hosts = fc.constantFrom('a', 'b', 'c', 'constructor');
const routes = fc.array(fc.record({ guest: fc.string(), from: hosts, to: hosts, cold: fc.boolean(), memoryBytes: fc.nat(10_000), diskBytes: fc.nat(10_000) }), { maxLength: 20 });
const hostLimits = fc.record({ default: fc.nat(3), byHost: fc.dictionary(hosts, fc.nat(4)) }, { requiredKeys: ['default'] });
const anyLimits: fc.Arbitrary<MoveLimits> = fc.record({ fleet: fc.nat(12), perSource: hostLimits, perDestination: hostLimits });
/** The rules written down again. */
const exceeds = (moves: { from: string; to: string }[], { fleet, perSource, perDestination }: MoveLimits) =>
  moves.length > fleet ||
  moves.some(({ from, to }) => moves.filter((one) => one.from === from).length > (new Map(Object.entries(perSource.byHost ?? {})).get(from) ?? perSource.default) || moves.filter((one) => one.to === to).length > (new Map(Object.entries(perDestination.byHost ?? {})).get(to) ?? perDestination.default));

describe('whatever waits and runs', () => {
  test('no limit is exceeded, none starts that could not, and none waits that could start', () => {
    fc.assert(
      fc.property(routes, routes, anyLimits, (waiting, all, given) => {
        const running = mayStart(all, [], given);
        const now = mayStart(waiting, running, given);
        expect(exceeds([...running, ...now], given)).toBe(false);
        expect(waiting.filter((one) => now.includes(one))).toEqual(now);
        for (const one of waiting) if (!now.includes(one)) expect(exceeds([...running, ...now, one], given)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });

  test('asking again when moves end starts every one, unless a limit is 0', () => {
    fc.assert(
      fc.property(routes, anyLimits, (plan, given) => {
        let [waiting, starts] = [plan, 0];
        for (let now = mayStart(waiting, [], given); now.length > 0; now = mayStart(waiting, [], given)) {
          waiting = waiting.filter((one) => !now.includes(one));
          starts += now.length;
        }
        expect(starts).toBe(plan.filter((one) => !exceeds([one], given)).length);
      }),
    );
  });
});

describe('the ideal time', () => {
  const MS = 1_000;
  test('is that of the narrowest: the largest move, a host\'s slots, or the fleet\'s', () => {
    const plan = [move('1', 'a', 'x', 4_000), move('2', 'a', 'y', 2_000), move('3', 'b', 'y', 1_000)];
    expect(idealWallTimeMs(plan, limits(), 1_000)).toBe(4 * MS);
    expect(idealWallTimeMs(plan, limits({ perSource: { default: 1 } }), 1_000)).toBe(6 * MS);
    expect(idealWallTimeMs([...plan, move('4', 'c', 'y', 2_000)], limits({ perDestination: { default: 2, byHost: { y: 1 } } }), 1_000)).toBe(5 * MS);
    expect(idealWallTimeMs(plan, limits({ fleet: 1 }), 1_000)).toBe(7 * MS);
  });
  test('knows a link that all migrations of a host share', () => {
    expect(idealWallTimeMs([move('1', 'a', 'x', 4_000), move('2', 'a', 'y', 2_000)], limits(), { perMove: 1_000, perHost: 500 })).toBe(12 * MS);
  });
  test('counts the disks alone of a stopped guest, and nothing for an empty plan', () => {
    expect(idealWallTimeMs([{ ...move('1', 'a', 'x'), cold: true }], limits(), 1_000)).toBe(MS / 2);
    expect(idealWallTimeMs([], limits({ fleet: 0 }), 1_000)).toBe(0);
  });
  test('is infinite where a limit lets nothing move', () => {
    expect(idealWallTimeMs([move('1', 'a', 'x')], limits({ fleet: 0 }), 1_000)).toBe(Infinity);
  });

  test('is never more than a real schedule takes: moves that start when `mayStart` lets them, at full rate', () => {
    const positive = fc.record({ default: fc.integer({ min: 1, max: 3 }), byHost: fc.dictionary(hosts, fc.integer({ min: 1, max: 4 })) }, { requiredKeys: ['default'] });
    fc.assert(
      fc.property(routes, fc.record({ fleet: fc.integer({ min: 1, max: 12 }), perSource: positive, perDestination: positive }), (plan, given) => {
        let [waiting, nowMs] = [plan, 0];
        let running: { one: (typeof plan)[number]; endsAtMs: number }[] = [];
        while (waiting.length + running.length > 0) {
          const now = mayStart(waiting, running.map(({ one }) => one), given);
          waiting = waiting.filter((one) => !now.includes(one));
          running.push(...now.map((one) => ({ one, endsAtMs: nowMs + one.diskBytes + (one.cold ? 0 : one.memoryBytes) })));
          nowMs = Math.min(...running.map(({ endsAtMs }) => endsAtMs));
          running = running.filter(({ endsAtMs }) => endsAtMs > nowMs);
        }
        expect(idealWallTimeMs(plan, given, 1_000)).toBeLessThanOrEqual(nowMs + 1e-6);
      }),
    );
  });
});
