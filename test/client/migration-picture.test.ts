import fc from 'fast-check';
import type { MigrationView } from '../../client';
import { advance, migrationPicture, predictedPauseMs, remedyInForce, type Shown } from '../../client/migration-picture';
import { type Line, widthOf } from '../../client/terminal';
import { PHASES } from '../../workflows/phases';

/** What a terminal shows of a migration: no terminal, no Temporal, no time. */
const GIB = 2 ** 30;
const MIB = 2 ** 20;
const started = Date.parse('2026-11-24T12:00:00Z');
const room = { columns: 79, rows: 23, nowMs: started + 83_000 };

type Disk = NonNullable<MigrationView['disks']>[number];
const disk = (id: string, more: Partial<Disk> = {}): Disk => ({ id, lengthBytes: 4 * GIB, remainingBytes: GIB, ready: false, bytesPerSecond: 100 * MIB, dirtyBytesPerSecond: 0, etaMs: 10_240, predictedDrainMs: 12, ...more });
const view = (more: Partial<MigrationView> = {}): MigrationView => ({ vm: 'db-7', from: 'host-a', to: 'host-b', phase: 'converge', startedAt: new Date(started).toISOString(), memoryTry: 0, decisions: [], ...more });

const textOf = (line: Line) => line.map(({ text }) => text).join('');
/** What is shown after these looks, one after the other. */
function lines(views: MigrationView[], at: Partial<typeof room> = {}): string[] {
  let shown: Shown | undefined;
  for (const one of views) shown = advance(shown, one);
  return migrationPicture(views.at(-1)!, shown!, { ...room, ...at }).map(textOf);
}
const lineOf = (id: string, ...args: Parameters<typeof lines>) => lines(...args).find((line) => line.startsWith(id))!;

test('a disk has a bar with its share, when it is done, its rate and its size; on top stand the guest, the way, the phase and the time', () => {
  expect(lines([view({ disks: [disk('disk-0'), disk('disk-1', { remainingBytes: 3 * GIB, etaMs: null })] })])).toEqual([
    'db-7  host-a → host-b   converge  1:23',
    `disk-0  ${'█'.repeat(19)}${'░'.repeat(6)}  75 %  ETA 10 s    100 MiB/s   3 GiB of 4 GiB`,
    `disk-1  ${'█'.repeat(6)}${'░'.repeat(19)}  25 %              100 MiB/s   1 GiB of 4 GiB`,
    'memory  waits for the disks',
  ]);
});

test('a disk that is ready says how far it is behind, and all of them how long the guest would pause', () => {
  const ready = disk('disk-0', { ready: true, remainingBytes: 64 * 1024, bytesPerSecond: 0, predictedDrainMs: 31 });
  expect(lines([view({ disks: [ready] })])).toEqual(expect.arrayContaining([expect.stringMatching(/^disk-0 {2}█{30} 100 % {2}64 KiB behind$/), 'predicted downtime: 31 ms for the disks']));
  expect(predictedPauseMs(view({ disks: [ready, disk('disk-1')] }))).toBeUndefined();
});

test('a bar does not move back when the guest writes, and a disk that falls behind stays where it was', () => {
  const far = view({ disks: [disk('disk-0', { remainingBytes: GIB })] });
  const behind = view({ disks: [disk('disk-0', { remainingBytes: 2 * GIB, lengthBytes: 6 * GIB })] });
  expect(lineOf('disk-0', [far, behind])).toContain(' 75 %');
});

test('a disk that is copied anew begins at 0 as a second try', () => {
  const far = view({ disks: [disk('disk-0')] });
  const anew = view({ phase: 'mirror', disks: [disk('disk-0', { remainingBytes: 4 * GIB })] });
  expect(lineOf('disk-0', [far, anew])).toMatch(/^disk-0 \(try 2\) {2}░+ {3}0 %/);
  expect(lineOf('disk-0', [far, anew, view({ disks: [disk('disk-0', { remainingBytes: 2 * GIB })] })])).toMatch(/^disk-0 \(try 2\) .* 50 %/);
});

test('names of disks that are too long keep their ends', () => {
  const shown = lines([view({ disks: [disk('drive-scsi-disk-0'), disk('drive-scsi-disk-1')] })], { columns: 39 });
  expect(shown.slice(1).map((line) => line.replace(/[█░]+/, '█'))).toEqual(['drive-…-disk-0  █  75 %', 'drive-…-disk-1  █  75 %', 'memory          waits for the disks']);
});

test('a mirror that is only re-armed copies nothing again, and is no second try', () => {
  const ready = view({ disks: [disk('disk-0', { ready: true, remainingBytes: 0 })] });
  const armed = view({ disks: [disk('disk-0', { lengthBytes: 64 * 1024, remainingBytes: 64 * 1024 })] });
  expect(lineOf('disk-0', [ready, armed])).toMatch(/^disk-0 {2}█+ 100 %/);
});

test('a diverging disk has in place of its bar: how far it is behind, how fast that grows, and the remedy in force', () => {
  const verdict = { verdict: 'diverging' as const, message: 'disk disk-1 does not catch up: the guest writes faster than the link copies' };
  const decisions = [{ at: '', by: 'policy', what: 'a throttle to 8.0 MB/s', why: 'it must' }];
  const shown = view({ disks: [disk('disk-0', { ready: true }), disk('disk-1', { etaMs: null, remainingBytes: 58 * MIB, bytesPerSecond: 10 * MIB, dirtyBytesPerSecond: 22 * MIB })], verdict, decisions });
  expect(lines([shown], { columns: 89 })).toEqual(
    expect.arrayContaining([
      expect.stringMatching(/^disk-0 {2}█+ 100 %/),
      'disk-1  diverging · 58 MiB behind · growing by 12 MiB/s · remedy: a throttle to 8.0 MB/s',
      `diverging: ${verdict.message}`,
      'last decision: a throttle to 8.0 MB/s, by policy: it must',
    ]),
  );
  const better = view({ disks: [disk('disk-1', { remainingBytes: 40 * MIB })], verdict: { verdict: 'converging', message: '' } });
  expect(lineOf('disk-1', [shown, better])).toMatch(/█/);
});

test('memory has a bar from its phase on; the next try begins anew and says so; while it does not converge there are rates in place of the bar', () => {
  const memory = { totalBytes: 4 * GIB, remainingBytes: GIB, bytesPerSecond: 300 * MIB, dirtyBytesPerSecond: 44 * MIB, predictedDowntimeMs: 3_400 };
  const first = view({ phase: 'memory', memoryTry: 1, memory });
  expect(lines([first])).toEqual(expect.arrayContaining([expect.stringMatching(/^memory {2}█+░+ {2}75 % {2}ETA 4 s {5}300 MiB\/s {3}1 GiB left$/), 'predicted downtime: 3.4 s for the memory']));
  expect(lineOf('memory', [first, view({ phase: 'memory', memoryTry: 1, memory: { ...memory, remainingBytes: 3 * GIB } })])).toContain(' 75 %');
  const second = view({ phase: 'memory', memoryTry: 2, memory: { ...memory, remainingBytes: 4 * GIB } });
  expect(lines([first, second])).toEqual(expect.arrayContaining([expect.stringContaining('memory, try 2  1:23'), expect.stringMatching(/^memory \(try 2\) {2}░+ {3}0 %/)]));
  expect(lineOf('memory', [{ ...first, verdict: { verdict: 'diverging', message: '' } }])).toBe('memory  diverging · 1 GiB left · 44 MiB/s dirtied, 300 MiB/s sent');
});

test('questions, a wait for a host and a move that was put off are said', () => {
  const asked = view({ asks: { choices: ['throttle', 'wait'], until: '2026-11-24T13:00:00Z' }, waitsFor: [{ host: 'host-b', why: 'it must say', since: new Date(started).toISOString() }] });
  expect(lines([asked])).toEqual(expect.arrayContaining(['asks until 2026-11-24T13:00:00Z: vmferry steer db-7 throttle | wait', expect.stringContaining('waits for host host-b (it must say)')]));
  const off = lines([view({ postponedUntil: '2026-11-25T02:00:00Z', disks: [disk('disk-0')] })]);
  expect(off).toEqual(['db-7  host-a → host-b   put off  1:23', 'put off until 2026-11-25T02:00:00Z; the guest runs where it was']);
});

test('the remedy in force is what was set and neither failed, was lifted nor undone', () => {
  const force = (...whats: string[]) => remedyInForce(whats.map((what) => ({ at: '', by: '', why: '', what })));
  expect(force('a nudge of 100 ms', 'asks: throttle')).toBeUndefined();
  expect(force('a throttle to 8.0 MB/s', 'write-blocking by re-arm')).toBe('a throttle to 8.0 MB/s, write-blocking by re-arm');
  expect(force('throttle, bytesPerSecond 8000000', 'unthrottle')).toBeUndefined();
  expect(force('write-blocking by re-arm', 'write-blocking by re-arm failed')).toBeUndefined();
  expect(force('a throttle to 8.0 MB/s', 'postpone, until 2026')).toBeUndefined();
});

describe('whatever an agent says, look after look,', () => {
  const number = fc.oneof(fc.nat(5e12), fc.constantFrom(NaN, Infinity, -1, 0, 1e-9));
  const anyDisk = fc.record({ id: fc.constantFrom('disk-0', 'disk-1', 'a-disk-with-a-long-name-26'), lengthBytes: number, remainingBytes: number, ready: fc.boolean(), bytesPerSecond: number, dirtyBytesPerSecond: fc.option(number, { nil: undefined }), etaMs: fc.option(number), predictedDrainMs: number }) as fc.Arbitrary<Disk>;
  const anyView: fc.Arbitrary<MigrationView> = fc.record({
    vm: fc.string({ minLength: 1, maxLength: 60, unit: 'grapheme' }),
    from: fc.constantFrom('host-a', undefined),
    to: fc.constantFrom('host-b', '主机'),
    phase: fc.constantFrom(...PHASES, 'copy'),
    startedAt: fc.constantFrom(new Date(started).toISOString(), 'no time'),
    memoryTry: fc.nat(5),
    disks: fc.option(fc.uniqueArray(anyDisk, { maxLength: 3, selector: ({ id }) => id }), { nil: undefined }),
    memory: fc.option(fc.record({ totalBytes: number, remainingBytes: number, bytesPerSecond: number, dirtyBytesPerSecond: number, predictedDowntimeMs: number }), { nil: undefined }),
    verdict: fc.option(fc.record({ verdict: fc.constantFrom('converging', 'diverging', 'stalled'), message: fc.constantFrom('disk disk-0 hovers', 'x') }), { nil: undefined }),
    decisions: fc.array(fc.record({ at: fc.constant(''), by: fc.string(), what: fc.string({ unit: 'binary' }), why: fc.string({ unit: 'grapheme' }) }), { maxLength: 3 }),
  }) as fc.Arbitrary<MigrationView>;
  const states = (views: MigrationView[]) => views.reduce<Shown[]>((all, one) => [...all, advance(all.at(-1), one)], []);
  const shares = (shown: Shown): Shown['disks'] => ({ ...shown.disks, ...(shown.memory && { memory: shown.memory }) });

  test('no bar ever moves back within a try, tries of a disk only grow, and none is beyond 100 % or no number', () => {
    fc.assert(
      fc.property(fc.array(anyView, { minLength: 2, maxLength: 12 }), (views) => {
        const all = states(views).map(shares);
        for (const [index, now] of all.entries()) {
          for (const [id, copied] of Object.entries(now)) {
            expect(copied.share).toBeGreaterThanOrEqual(0);
            expect(copied.share).toBeLessThanOrEqual(1);
            const before = all[index - 1]?.[id];
            if (before?.try === copied.try) expect(copied.share).toBeGreaterThanOrEqual(before.share);
            else if (before && id !== 'memory') expect(copied.try).toBeGreaterThan(before.try);
          }
        }
      }),
    );
  });

  test('the picture fits the terminal, and shows no NaN, Infinity or undefined of its own', () => {
    fc.assert(
      fc.property(fc.array(anyView, { minLength: 1, maxLength: 4 }), fc.integer({ min: 20, max: 200 }), fc.integer({ min: 3, max: 50 }), (views, columns, rows) => {
        const clean = views.map((one) => ({ ...one, decisions: [] }));
        const picture = migrationPicture(clean.at(-1)!, states(clean).at(-1)!, { columns, rows, nowMs: room.nowMs });
        expect(picture.length).toBeLessThanOrEqual(rows);
        for (const line of picture) expect(textOf(line).replace(clean.at(-1)!.vm, '')).not.toMatch(/NaN|Infinity|undefined/);
        // Bars are made for the width; only words may be cut.
        for (const line of picture) if (/[█░]/.test(textOf(line))) expect(widthOf(line)).toBeLessThanOrEqual(Math.max(columns, 30));
      }),
    );
  });
});
