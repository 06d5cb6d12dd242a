import fc from 'fast-check';
import { idealWallTimeMs, mayStart } from '../../workflows/start-order';

type Ends = { from: string; to: string };
const ends = fc.record({ from: fc.constantFrom('a', 'b', 'c'), to: fc.constantFrom('x', 'y', 'z') });
const limits = fc.record({ fleet: fc.integer({ min: 1, max: 6 }), perSource: fc.integer({ min: 1, max: 4 }), perDestination: fc.integer({ min: 1, max: 4 }) });

const mostOf = (running: Ends[], end: 'from' | 'to') => Math.max(0, ...running.map((one) => running.filter((other) => other[end] === one[end]).length));

test('no limit is ever exceeded, whichever move ends first, and in the end all have started', () => {
  fc.assert(
    fc.property(fc.array(ends, { maxLength: 25 }), limits, fc.infiniteStream(fc.nat()), (moves, limits, choices) => {
      let planned = moves;
      let running: Ends[] = [];
      let started = 0;
      for (;;) {
        const begun = mayStart(planned, running, limits);
        started += begun.length;
        planned = planned.filter((move) => !begun.includes(move));
        running = [...running, ...begun];
        expect(running.length).toBeLessThanOrEqual(limits.fleet);
        expect(mostOf(running, 'from')).toBeLessThanOrEqual(limits.perSource);
        expect(mostOf(running, 'to')).toBeLessThanOrEqual(limits.perDestination);
        if (running.length === 0) break;
        const over = choices.next().value! % running.length;
        running = running.filter((_, index) => index !== over);
      }
      expect({ planned, started }).toEqual({ planned: [], started: moves.length });
    }),
  );
});

test('starts whatever may start: one more would exceed a limit', () => {
  fc.assert(
    fc.property(fc.array(ends, { maxLength: 12 }), fc.array(ends, { maxLength: 4 }), limits, (planned, running, limits) => {
      const begun = mayStart(planned, running, limits);
      for (const move of planned.filter((one) => !begun.includes(one))) {
        const then = [...running, ...begun, move];
        expect(then.length > limits.fleet || then.filter(({ from }) => from === move.from).length > limits.perSource || then.filter(({ to }) => to === move.to).length > limits.perDestination).toBe(true);
      }
    }),
  );
});

test('limits that were lowered below what moves start nothing, and stop nothing', () => {
  const running = [{ from: 'a', to: 'x' }, { from: 'a', to: 'y' }, { from: 'a', to: 'z' }];
  expect(mayStart([{ from: 'a', to: 'x' }], running, { fleet: 10, perSource: 2, perDestination: 2 })).toEqual([]);
});

test('a move that must wait holds up none behind it, and the order is kept', () => {
  const planned = [{ n: 1, from: 'a', to: 'x' }, { n: 2, from: 'a', to: 'x' }, { n: 3, from: 'a', to: 'y' }, { n: 4, from: 'b', to: 'z' }];
  expect(mayStart(planned, [], { fleet: 10, perSource: 2, perDestination: 1 }).map(({ n }) => n)).toEqual([1, 3, 4]);
});

test('the shortest time is that of the largest guest, of all links together, or of the busiest host, whichever is longest', () => {
  const move = (from: string, to: string, megabytes: number) => ({ from, to, memoryBytes: megabytes * 0.5e6, diskBytes: megabytes * 0.5e6 });
  const limits = { fleet: 4, perSource: 2, perDestination: 2 };
  expect(idealWallTimeMs([], limits, 1e6)).toBe(0);
  expect(idealWallTimeMs([move('a', 'x', 100), move('a', 'y', 1)], limits, 1e6)).toBe(100_000);
  expect(idealWallTimeMs([move('a', 'x', 10), move('a', 'y', 10), move('a', 'z', 10)], limits, 1e6)).toBe(15_000);
  expect(idealWallTimeMs([move('a', 'x', 10), move('b', 'x', 10), move('c', 'x', 10)], limits, 1e6)).toBe(15_000);
  expect(idealWallTimeMs(['a', 'b', 'c', 'd', 'e'].map((host, index) => move(host, `x${index}`, 10)), limits, 1e6)).toBe(12_500);
});
