import { Charts } from '../../client/report/charts';
import { evacuationPage } from '../../client/report/evacuation-page';
import { evacuationRecord, fleetRecord } from '../../client/report/evacuation-record';
import type { RecordedRun } from '../../client/report/history';
import { account, migrationPage, MOST_CHARTS } from '../../client/report/migration-page';
import { migrationRecord } from '../../client/report/record';
import { MOST_BYTES, MOST_LANES, TraceRecorder } from '../../workflows/trace';
import { DIVERGED, RECORDED, recorded } from './history-files';

const MIGRATIONS = RECORDED.filter((name) => !name.startsWith('repair-'));
const MOST_PAGE_BYTES = 1_500_000;
let charts: Charts;
beforeAll(async () => {
  charts = await Charts.load();
});
const recordOf = async (name: string) => migrationRecord(await recorded(name));
/** The same, had it not ended. */
function underWay(run: RecordedRun): RecordedRun {
  const copy = { ...run };
  delete copy.endedAtMs;
  delete copy.ending;
  return copy;
}
const pageOf = (run: RecordedRun) => migrationPage(migrationRecord(run), charts);

test.each(MIGRATIONS)('the history of %s tells how it ended, through which phases, and makes a page', async (name) => {
  const run = await recorded(name);
  const record = migrationRecord(run);
  // A later release's has its date in its name.
  const vm = name.replace(/-\d{4}(-\d{2}){2}$/, '');
  expect(record).toMatchObject({ vm, from: expect.stringMatching(/^host-/), outcome: run.ending!.how });
  expect(record.phases.map(({ phase }) => phase)).toEqual(expect.arrayContaining(['preflight', 'converge', 'cleanup']));
  for (const { fromMs, toMs } of record.phases) expect(toMs).toBeGreaterThanOrEqual(fromMs);
  if (record.outcome === 'failed') expect(account(record)).toContain(record.error!.message);
  const html = pageOf(run);
  expect(html).toContain(vm);
  expect(html.match(/<script|undefined|NaN|\[object/)).toBeNull();
  expect(html.length).toBeLessThan(MOST_PAGE_BYTES);
});

test('a try that was given up, and the pause with its parts, are told', async () => {
  const record = await recordOf('r3');
  expect(record.tries.map(({ ending }) => ending)).toEqual(['given-up', 'completed']);
  expect(record.decisions).toEqual([expect.objectContaining({ by: 'policy', what: 'tries again' })]);
  const { source, destination } = record.window!;
  expect(Math.round(destination.resumed - source.stopped)).toBe(record.downtimeMs);
  expect(account(record)).toBe('r3 runs on host-b: it moved from host-a in 9.2 s and was paused for 67 ms of the 600 ms allowed.');
  const html = migrationPage(record, charts);
  for (const part of ['QEMU stops the guest and drains its disks', 'migrate-continue', 'the exports are removed', 'cont: the guest runs']) expect(html).toContain(part);
  // Its destination ended because the try was given up: no failure of its own.
  expect(record.failures).toEqual([]);
});

test('who was confirmed fenced by whom, and what that left to do, is on record of a migration that failed', async () => {
  const record = await recordOf('fenced');
  expect(record.decisions).toEqual([{ at: expect.any(String), by: 'test', what: 'confirmFenced host-b', why: 'pulled the plug' }]);
  expect(record.leftovers).toEqual([{ host: 'host-b', step: 'retireFenced', workflowId: expect.stringMatching(/^leftover\//) }]);
  expect(migrationPage(record, charts)).toContain('retireFenced was left to host-b');
});

test('one that is under way, terminated or cancelled is told from what is there', async () => {
  const unended = underWay(await recorded('r3'));
  const running = migrationRecord(unended);
  expect(running.outcome).toBe('running');
  expect(account(running)).toMatch(/^r3 is on its way from host-a to host-b: phase cleanup/);
  expect(account(migrationRecord({ ...unended, ending: { how: 'terminated', reason: 'a mistake' } }))).toMatch(/terminated in phase cleanup \(a mistake\): nothing was undone.*vmferry repair r3/);
  expect(account(migrationRecord({ ...unended, ending: { how: 'cancelled' } }))).toMatch(/cancelled after .*, and undone: it stays on host-a/);
});

test('an undo that failed is said, with the command that looks after it', async () => {
  const run = await recorded('r3b');
  const undo = run.activities.findLast(({ type }) => type === 'discardDestination')!;
  undo.ending = { how: 'failed', failure: { type: 'ProcessFailed', message: 'no space left' } };
  const record = migrationRecord(run);
  expect(record.leftovers).toEqual([{ host: 'host-b', step: 'discardDestination', why: 'no space left' }]);
  expect(account(record)).toContain('Not everything could be undone: discardDestination on host-b; "vmferry repair r3b" looks after it.');
  expect(migrationPage(record, charts)).toContain('no space left. Run <code>vmferry repair r3b</code>');
});

test('a real copy that fell behind shows what remained, when it was told, and which decision turned it', async () => {
  const run = await recorded('db-7', DIVERGED);
  const record = migrationRecord(run);
  expect(record).toMatchObject({ outcome: 'completed', downtimeMs: 140, maxDowntimeMs: 300, tries: [{ ending: 'completed' }] });
  expect(record.traces.map(({ of, trace }) => [of, trace.lanes.length])).toEqual([...record.traces.slice(1).map(() => ['disks', 2]), ['memory', 1]]);
  for (const { trace } of record.traces) expect(JSON.stringify(trace).length).toBeLessThan(MOST_BYTES);
  expect(record.verdicts.map(({ verdict }) => verdict)).toEqual(expect.arrayContaining(['diverging', 'converging']));
  expect(record.decisions.filter(({ by }) => by === 'ada').map(({ what }) => what)).toEqual(['throttle, bytesPerSecond 12000000', 'write-blocking', 'throttle, bytesPerSecond 2000000']);
  // The same, but for its result, is in what was on record before it ended.
  const before = migrationRecord(underWay(run));
  expect(before.decisions.map(({ what }) => what)).toEqual(expect.arrayContaining(record.decisions.filter(({ by }) => by !== 'operator').map(({ what }) => what)));
  expect(migrationPage(record, charts).length).toBeLessThan(MOST_PAGE_BYTES / 5);
});

test('a round that was put off is drawn apart from the next', async () => {
  const run = await recorded('r3');
  const later = run.attributes.map(({ atMs, values }) => ({ atMs: atMs + 3_600_000, values }));
  const record = migrationRecord({ ...run, attributes: [...run.attributes, ...later], endedAtMs: run.endedAtMs! + 3_600_000 });
  expect(record.phases.filter(({ phase }) => phase === 'put off')).toHaveLength(1);
  expect(record.phases.at(-1)).toMatchObject({ phase: 'cleanup', round: 2 });
  expect(migrationPage(record, charts)).toContain('Disks, round 2 of 2');
});

/** A run with a copy of so many disks, that has not ended: its policy's decisions are in its memo only. */
async function diverging(disks: number, samples: number): Promise<RecordedRun> {
  const run = underWay(await recorded('r3'));
  const watch = run.activities.find(({ type }) => type === 'awaitMirrors')!;
  const recorder = new TraceRecorder();
  for (let index = 0; index < samples; index++) recorder.push(run.startedAtMs + 900 + index * 500, Array.from({ length: disks }, (__, disk) => ({ id: `disk-${disk}`, remainingBytes: 5e8 + 3e8 * Math.sin(index / 3 + disk), copyBytesPerSecond: 1e7, dirtyBytesPerSecond: 3e7 })));
  watch.ending = { how: 'cancelled', failure: { type: 'Cancelled', message: 'it was cancelled', details: { trace: recorder.trace } } };
  const at = (ms: number) => new Date(run.startedAtMs + ms).toISOString();
  return {
    ...run,
    lastAtMs: run.startedAtMs + samples * 500,
    signals: [{ atMs: run.startedAtMs + 5_000, name: 'news', input: { assessment: { verdict: 'diverging', message: 'disk-0 does not catch up' } } }],
    memo: { 'decision-001': { at: at(6_000), by: 'policy', what: 'write-blocking', why: 'it diverges' } },
    updates: [{ atMs: run.startedAtMs + 7_000, name: 'steer', input: {}, ending: { how: 'completed', result: { at: at(7_000), by: 'ada', what: 'throttle', why: 'the window ends' } } }],
  };
}

test('a copy that was cancelled has left its trace, and what policy and people decided is on record without a result', async () => {
  const record = migrationRecord(await diverging(2, 60));
  expect(record.traces).toEqual([{ of: 'disks', trace: expect.objectContaining({ bucketMs: 500 }) }]);
  expect(record.decisions.map(({ by, what }) => `${by}: ${what}`)).toEqual(['policy: write-blocking', 'ada: throttle']);
  const html = migrationPage(record, charts);
  for (const seen of ['disk disk-0', 'disk disk-1', 'disk-0 does not catch up', 'the window ends', 'it diverges']) expect(html).toContain(seen);
});

test('a guest with more disks than are drawn, copied for long, has them in the table, on a page that is not too large', async () => {
  const html = pageOf(await diverging(MOST_LANES, 5_000));
  expect(html.match(/<figcaption><strong>disk /g)).toHaveLength(MOST_CHARTS);
  expect(html).toContain(`disk-${MOST_LANES - 1}<`);
  expect(html.length).toBeLessThan(MOST_PAGE_BYTES);
});

const EVIL = `"><script>alert('1')</script><img src=x onerror=alert(1)>`;
/** Every text in it that is so. */
const poisoned = <T>(value: T, ...texts: string[]): T => JSON.parse(texts.reduce((json, text) => json.replaceAll(JSON.stringify(text), JSON.stringify(EVIL)), JSON.stringify(value))) as T;

test('whatever a user wrote is text on the page, not markup', async () => {
  const run = await diverging(2, 20);
  const html = migrationPage(migrationRecord(poisoned(run, 'r3', 'host-a', 'host-b', 'disk-0', 'it diverges', 'disk-0 does not catch up', 'ada', 'the window ends', 'write-blocking')), charts);
  expect(html.match(/&#60;script&#62;/g)!.length).toBeGreaterThan(8);
  expect(html.match(/<script|<img|alert\('1'\)/)).toBeNull();
  const evacuation = evacuationPage(evacuationRecord(poisoned(evacuated(), 'db-1', 'host-b', 'host-a', 'it is pinned', 'ada', 'lunch')), charts);
  expect(evacuation.match(/<script|<img|alert\('1'\)/)).toBeNull();
  expect(evacuation).toContain('&#60;script&#62;');
});

/** An evacuation with a pause, a failed move that was tried again, and a guest that stayed. */
function evacuated(): RecordedRun {
  const moved = (vm: string, to: string, startedAtMs: number, endedAtMs: number, ending: RecordedRun['children'][number]['ending']) => ({ workflowId: `migrate/${vm}`, runId: `run-${vm}`, type: 'migrateVm', input: { vm, to }, startedAtMs, endedAtMs, ...(ending && { ending }) });
  const result = { from: 'host-a', downtimeMs: 50, memoryTries: 1, warnings: [], decisions: [], disks: [{ sizeBytes: 2 ** 30 }] };
  return {
    workflowId: 'evacuate/host-a', runId: 'run', type: 'evacuateHost', input: { host: 'host-a' }, startedAtMs: 1_000, lastAtMs: 60_000, endedAtMs: 60_000, activities: [], attributes: [], signals: [], memo: {},
    children: [moved('db-1', 'host-b', 2_000, 9_000, { how: 'failed', failure: { type: 'DestinationDied', message: 'it died' } }), moved('db-2', 'host-c', 2_000, 20_000, { how: 'completed', result }), moved('db-1', 'host-c', 30_000, 55_000, { how: 'completed', result })],
    updates: [{ atMs: 10_000, name: 'pause', input: { by: 'ada', reason: 'lunch', paused: true } }, { atMs: 25_000, name: 'setLimits', input: { by: 'ada', reason: 'lunch', limits: { fleet: 1 } } }, { atMs: 28_000, name: 'pause', input: { by: 'ada', reason: 'lunch', paused: false } }],
    ending: { how: 'completed', result: { outcome: 'partly', stayed: [{ guest: 'db-3', from: 'host-a', reasons: ['it is pinned'] }], limits: { fleet: 1, perSource: 2, perDestination: 2 }, moved: [{ guest: 'db-1', to: 'host-c', bytes: 3e9 }] } },
  };
}

test('an evacuation tells who moved when and where, who stayed and why, and what people changed', () => {
  const record = evacuationRecord(evacuated());
  expect(record).toMatchObject({ outcome: 'partly', pauses: [{ fromMs: 10_000, toMs: 28_000 }], limits: { fleet: 1 } });
  expect(record.orders.map(({ by, what }) => `${by} ${what}`)).toEqual(['ada pauses: no other guest starts', 'ada sets limits: fleet 1', 'ada resumes']);
  expect(record.moves.map(({ guest, to, ending, bytes }) => [guest, to, ending, bytes])).toEqual([['db-1', 'host-b', 'failed', undefined], ['db-2', 'host-c', 'completed', 2 ** 30], ['db-1', 'host-c', 'completed', 3e9]]);
  const html = evacuationPage(record, charts);
  expect(html).toContain('Host host-a could be emptied only in part: 2 guests moved in 59 s; 1 stayed.');
  for (const [, anchor] of html.matchAll(/href="#([^"]+)"/g)) expect(html).toContain(`id="${anchor}"`);
});

test('an evacuation of many hosts under way tells what its hosts are at', () => {
  const unended = underWay(evacuated());
  const evacuation = evacuationRecord(evacuated());
  const record = fleetRecord([{ ...unended, workflowId: 'fleet/rack', type: 'evacuateFleet', children: [{ workflowId: 'evacuate/host-a', type: 'evacuateHost', input: { host: 'host-a' }, startedAtMs: 1_000 }] }], [evacuation]);
  expect(record).toMatchObject({ outcome: 'running', hosts: [{ host: 'host-a', state: 'emptying', moved: 2, stayed: 1 }] });
});
