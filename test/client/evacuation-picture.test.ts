import fc from 'fast-check';
import type { EvacuationStatus, MigrationView } from '../../client';
import { advancePace, evacuationPicture, guestsPerMinute, type Pace } from '../../client/evacuation-picture';
import { type Line, widthOf } from '../../client/terminal';

const startedAt = '2026-11-24T12:00:00.000Z';
const start = Date.parse(startedAt);
const MINUTE = 60_000;

const status = (more: Partial<EvacuationStatus> = {}): EvacuationStatus => ({ host: 'host-a', phase: 'moving', planned: [], moving: [], moved: [], stayed: [], failures: [], limits: { fleet: 10, perSource: 2, perDestination: 2 }, ...more });
const moving = (guest: string) => ({ guest, from: 'host-a', to: 'host-b', workflowId: `migrate/${guest}`, since: startedAt });
const planned = (guest: string) => ({ guest, from: 'host-a', to: 'host-c', cold: false, memoryBytes: 1, diskBytes: 1, why: '' });
const moved = (guest: string) => ({ guest, to: 'host-b', cold: false, totalMs: 31_000, downtimeMs: 48, bytes: 1, tries: 1 });
const view = (vm: string, more: Partial<MigrationView> = {}): MigrationView => ({ vm, from: 'host-a', to: 'host-b', phase: 'converge', startedAt, memoryTry: 0, decisions: [], disks: [{ id: 'd', lengthBytes: 100, remainingBytes: 40, ready: false, bytesPerSecond: 1, etaMs: 12_000 }], ...more });

const textOf = (line: Line) => line.map(({ text }) => text).join('').trimEnd();
function lines(now: EvacuationStatus, views: MigrationView[] = [], { columns = 79, rows = 23, pace }: { columns?: number; rows?: number; pace?: Pace } = {}): string[] {
  const seen = pace ?? advancePace(undefined, now, views, { startedAt, nowMs: start });
  return evacuationPicture(now, views, seen, { columns, rows, nowMs: start }).map(textOf);
}

test('each guest has a row, those that move first: state, destination, progress, phase, what is expected, verdict', () => {
  const verdict = { verdict: 'diverging' as const, message: '' };
  const now = status({ moving: [moving('db'), moving('web')], planned: [planned('queue')], moved: [moved('mail')], stayed: [{ guest: 'gpu', from: 'host-a', reasons: ['it is never to be moved'] }] });
  const memory = { totalBytes: 100, remainingBytes: 25, bytesPerSecond: 10, dirtyBytesPerSecond: 0, predictedDowntimeMs: 250 };
  expect(lines(now, [view('db'), view('web', { phase: 'memory', memoryTry: 1, memory, verdict })], { columns: 120 })).toEqual([
    'host-a: moving · 1 moved, 2 under way, 1 to go, 1 stay',
    'GUEST  STATE  TO      PROGRESS  PHASE     ETA, PAUSE    VERDICT',
    'db     moves  host-b  60 %      converge  ETA 12 s',
    'web    moves  host-b  75 %      memory    pause 250 ms  diverging',
    'queue  waits  host-c',
    'mail   moved  host-b  100 %     in 31 s   48 ms',
    'gpu    stays                                            it is never to be moved',
  ]);
});

test('a list that is longer than the terminal is folded, and says what is not shown', () => {
  const now = status({ moving: [moving('a'), moving('b')], planned: Array.from({ length: 8 }, (_, index) => planned(`p${index}`)), moved: [moved('m')] });
  const shown = lines(now, [], { rows: 8 });
  expect(shown).toHaveLength(8);
  expect(shown.slice(2, 4).map((line) => line.split(' ')[0])).toEqual(['a', 'b']);
  expect(shown.at(-1)).toBe('… 6 more: 5 waiting, 1 moved');
});

test('a narrow terminal leaves columns out, the last ones first', () => {
  const shown = lines(status({ moving: [moving('db')] }), [view('db')], { columns: 39 });
  expect(shown).toEqual(['host-a: moving · 0 moved, 1 under way,', '  0 to go, 0 stay', 'GUEST  STATE  TO      PROGRESS', 'db     moves  host-b  60 %']);
});

describe('the pace', () => {
  const after = (looks: [minutes: number, EvacuationStatus][]) => looks.reduce<Pace | undefined>((pace, [minutes, now]) => advancePace(pace, now, [], { startedAt, nowMs: start + minutes * MINUTE }), undefined)!;
  const done = (count: number) => status({ moved: Array.from({ length: count }, (_, index) => moved(`m${index}`)), planned: [planned('a'), planned('b'), planned('c')] });

  test('is that of the last ten minutes, and tells when it will be over', () => {
    const pace = after([[0, done(0)], [2, done(4)], [3, done(6)]]);
    expect(guestsPerMinute(pace)).toBe(2);
    expect(lines(done(6), [], { pace })[1]).toBe('2 guests a minute · ETA 90 s');
    expect(guestsPerMinute(after([[0, done(0)], [4, done(60)], [9, done(60)], [15, done(63)]]))).toBe(0.5);
  });

  test('does not count time in which nothing may start, and is not told before one has moved', () => {
    const waiting = { ...done(0), phase: 'waiting-for-approval' as const };
    expect(guestsPerMinute(after([[0, waiting], [600, waiting], [601, done(3)]]))).toBe(3);
    const pace = after([[0, done(0)], [5, done(0)]]);
    expect(guestsPerMinute(pace)).toBeUndefined();
    expect(lines(done(0), [], { pace })[1]).toMatch(/^GUEST/);
  });
});

test('progress does not move back while a guest has the same destination', () => {
  const now = status({ moving: [moving('db')] });
  const at = (remainingBytes: number, lengthBytes = 100) => [view('db', { disks: [{ id: 'd', lengthBytes, remainingBytes, ready: false, bytesPerSecond: 1 }] })];
  const pace = advancePace(advancePace(undefined, now, at(20), { startedAt, nowMs: start }), now, at(70, 150), { startedAt, nowMs: start });
  expect(lines(now, at(70, 150), { pace })[2]).toContain(' 80 % ');
});

test('whatever the evacuation, its picture fits the terminal', () => {
  const name = fc.string({ minLength: 1, maxLength: 48, unit: fc.constantFrom(...'abc.-_9') });
  const some = <T>(make: (guest: string) => T) => fc.array(name.map(make), { maxLength: 30 });
  fc.assert(
    fc.property(fc.record({ moving: some(moving), planned: some(planned), moved: some(moved) }), fc.integer({ min: 40, max: 160 }), fc.integer({ min: 3, max: 60 }), (lists, columns, rows) => {
      const now = status(lists);
      const views = now.moving.map(({ guest }) => view(guest));
      const picture = evacuationPicture(now, views, advancePace(undefined, now, views, { startedAt, nowMs: start }), { columns, rows, nowMs: start });
      expect(picture.length).toBeLessThanOrEqual(rows);
      for (const line of picture) expect(widthOf(line)).toBeLessThanOrEqual(columns);
      expect(picture.map(textOf).join('\n')).not.toMatch(/NaN|undefined|Infinity/);
    }),
  );
});
