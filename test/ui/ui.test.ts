import { join } from 'node:path';
import { readPage, tableOf } from '../docs/markdown';
import { UiStage } from './ui-stage';

/** One look at every kind of page, in a real browser: what a person reads there without having read our documents. */
let stage: UiStage;
beforeAll(async () => {
  stage = await UiStage.open();
  await stage.play();
}, 150_000);
afterAll(async () => await stage?.close());

const metadata = async (workflowId: string, ...expected: RegExp[]) => await stage.read(await stage.workflow(workflowId, 'user-metadata'), ...expected);

test('a running migration says where to, in which phase, how far, what comes next, and who decides', async () => {
  await metadata(
    'migrate/db-7',
    /db-7: host-a → host-b, 2 disks, 14.9 GiB, 2 GiB of memory/,
    /Phase converge: copies the disks; the guest runs on/,
    /Next: the memory, as soon as .* Pause: at most 500 ms\. Deadline of the disks: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, then abort/,
    /vmferry decides \(policy auto\)/,
    /disk0\s+[\d.]+\sMB\s+[\d.]+\sMB\s+[\d.]+\sMB\/s\s+[\d.]+\sMB\/s/,
    /vmferry watch db-7 follows it/,
  );
  await stage.picture('running');
});

test('a diverging migration says why, asks, until when, and what may be typed', async () => {
  await metadata(
    'migrate/mail-3',
    /diverging: disk disk[01] does not catch up: the guest writes faster than the link copies; .* never at this rate/,
    /You decide, until .* UTC; without an answer: abort/,
    /vmferry steer mail-3 write-blocking\s+each write of the guest waits for its copy/,
    /policy\s+asks: write-blocking/,
  );
  await stage.picture('diverging', 1050);
});

test('a failed migration says in its first line what to do, and that the guest stays', async () => {
  const text = await stage.read(await stage.workflow('migrate/web-2', 'history'), /"message": "guest/, /removeMirrors • undo: stops the copy; the guest runs on, on host-d/);
  const [, first] = /"failure": \{\s+"message": "(.*)/.exec(text)!;
  expect(first).toBe("guest web-2 stays on host-d, running: a disk could not be copied: look at the destination's free space and at the link, then migrate again");
  await stage.picture('failed', 1000);
  await metadata('migrate/web-2', /MirrorFailed: guest web-2 stays on host-d, running: .*look at the destination’s free space/, /No space left on device/);
});

test('a finished migration says how long it took and how long the guest paused, and its timeline what each step was', async () => {
  await metadata('migrate/app-1', /Done: the guest is on host-f, moved from host-d in [\d.]+ m?s, paused for [\d.]+ m?s/);
  await stage.read(
    await stage.workflow('migrate/app-1', 'history'),
    /awaitMirrors • copies 2 disks from host-d to host-f until the rest takes at most 250 ms/,
    /moveMemory • try 1: sends the memory from host-d to host-f, pause of at most 500 ms/,
    /retireSource • ends the old copy on host-d; its images are kept for 24 h/,
  );
  await stage.picture('finished', 1300);
});

test('an evacuation says what becomes of every guest, and each move in its timeline is named', async () => {
  await metadata(
    'evacuate/host-e',
    /host-e is emptied: \d moved, 1 under way, \d to go, 1 stay/,
    /Phase moving: moves the guests.* vmferry evacuation pause host-e --reason … starts no other/,
    /print-1\s+stays\s+it is never to be moved \(migratable: never\)/,
    /Child Workflow\s+(dns|git|wiki)-1: host-e → host-[bd], 2 disks\s+Completed/,
  );
  await stage.picture('evacuation');
});

test('a host says what it has, and who may come and go', async () => {
  await metadata('host/host-e', /Cordoned by evacuation: evacuate\/host-e/, /print-1\s+running\s+2 GiB/);
});

/** What each query of the page finds on this stage. */
const FINDS: Record<string, string[]> = {
  'every diverging migration to host-b': ['migrate/mail-3'],
  'what comes to host-f, or goes': ['migrate/ci-4'],
  'every migration of web-2': ['migrate/web-2'],
  'every move of the evacuation of host-e that is done': ['migrate/dns-1', 'migrate/git-1', 'migrate/wiki-1'],
  'what failed as a disk could not be copied': ['migrate/web-2'],
  'guests that pause soon, or now': [],
  'evacuations that wait for approval': [],
  'what is left to do on host-b when it returns': [],
};

test('every query of docs/operating.md finds what it says, on the server and in the UI', async () => {
  const queries = tableOf(readPage(join(__dirname, '../../docs/operating.md')), 'In the Temporal UI', 'finds').map(([finds, query]) => [finds!, query!.replace(/^`(.*)`$/, '$1')] as const);
  expect(queries.map(([finds]) => finds)).toEqual(Object.keys(FINDS));
  const { workflow } = stage.fleet.client.temporal;
  const found: Record<string, string[]> = {};
  for (const [finds, query] of queries) {
    found[finds] = [];
    for await (const { workflowId } of workflow.list({ query })) found[finds].push(workflowId);
  }
  const moved = 'every move of the evacuation of host-e that is done';
  expect(FINDS[moved]).toEqual(expect.arrayContaining(found[moved]!));
  expect(found[moved]).not.toEqual([]);
  // The guests of the evacuation come to their pause whenever they do.
  const soon = 'guests that pause soon, or now';
  expect(FINDS[moved]).toEqual(expect.arrayContaining(found[soon]!));
  expect({ ...found, [moved]: FINDS[moved], [soon]: [] }).toEqual(FINDS);

  await stage.showColumns('VmferryGuest', 'VmferrySource', 'VmferryDestination', 'VmferryPhase', 'VmferryVerdict', 'VmferryOutcome');
  const text = await stage.read(`/namespaces/default/workflows?query=${encodeURIComponent(queries[0]![1])}`, /migrate\/mail-3\s+mail-3\s+host-c\s+host-b\s+converge\s+diverging/);
  expect(text).not.toMatch(/migrate\/(ci-4|db-7)/);
  await stage.picture('query', 600, 1600);
  await stage.read('/namespaces/default/workflows', /migrate\/web-2\s+web-2\s+host-d\s+host-g\s+cleanup\s+failed\s+MirrorFailed/);
  await stage.picture('list', 900, 1600);
});
