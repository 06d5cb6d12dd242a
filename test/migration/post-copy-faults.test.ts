import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { eventually, expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { guardProcesses } from '../support/leftovers';
import { cutPages, INPUT, NEVER, paceOfPostCopy } from '../support/never-converging';
import { QmpTap } from '../support/qmp-tap';

/** What breaks while a guest is in both hosts, on real QEMUs. */
let lab: Lab;
const tap = new QmpTap();
beforeAll(async () => {
  lab = await Lab.open();
}, 60_000);
afterEach(async () => {
  tap.reset();
  await lab.reset();
});
afterAll(async () => {
  tap.restore();
  await lab?.close();
});

const ownership = (host: string, name: string) => JSON.parse(readFileSync(join(lab.config(host).stateDir, 'guests', name, 'ownership.json'), 'utf8')) as { state: string };
const pidOf = (host: string, name: string, file = 'qemu.pid') => Number.parseInt(readFileSync(lab.runFile(host, name, file), 'utf8'), 10);

/** Resolves when the guest runs at the destination, and pages of it are asked for. */
function runsThere(): Promise<void> {
  return new Promise((resolve) => tap.before('host-b', 'query-migrate', () => {
    if (tap.sent.some(({ command, path }) => command === 'cont' && path.includes('/host-b/'))) resolve();
  }));
}

const root = process.getuid!() === 0;
if (!root) console.log('skipped: tests that cut connections need root');
const asRoot = root ? test : test.skip;

asRoot('R4: a connection that breaks in post-copy is mended, and the guest arrives whole', async () => {
  const guest = await lab.boot('host-a', 'mended', NEVER);
  paceOfPostCopy(lab, tap, 'mended', 4_000_000);
  let cut = false;
  tap.before('host-b', 'query-migrate', () => {
    if (cut || !tap.sent.some(({ command, path }) => command === 'cont' && path.includes('/host-b/'))) return;
    cut = true;
    cutPages(lab, 'mended');
  });
  const result = await lab.move('mended', 'host-b', { ...INPUT, postCopy: true });
  expect(cut).toBe(true);
  expect(result.decisions.map(({ what }) => what)).toEqual(expect.arrayContaining(['post-copy', 'mends post-copy']));
  expect(tap.sent.some(({ command, args }) => command === 'migrate' && args?.['resume'])).toBe(true);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['mended'] });
}, 120_000);

test('R4, R10: a source that dies in post-copy costs the running guest: it is said so, and it starts from its disks where they are newest', async () => {
  await lab.boot('host-a', 'lost', NEVER);
  paceOfPostCopy(lab, tap, 'lost', 4_000_000);
  tap.before('host-b', 'query-migrate', () => {
    if (tap.sent.some(({ command, path }) => command === 'cont' && path.includes('/host-b/')) && lab.processes('host-a').some((one) => one.includes('qemu-system'))) process.kill(pidOf('host-a', 'lost'), 'SIGKILL');
  });
  await expect(lab.move('lost', 'host-b', { ...INPUT, postCopy: true })).rejects.toMatchObject({ type: 'PostCopyLost', message: expect.stringMatching(/lost as a running one.*whole on host-b: start it there/) });
  expect(ownership('host-b', 'lost').state).toBe('owner');
  expect(await lab.leftovers('host-a', [])).toEqual([expect.stringContaining('image lost-0.raw.kept-'), expect.stringContaining('image lost-1.raw.kept-')]);
  await lab.client.onHost('host-b', 'startGuest', { guest: 'lost' });
  await expectRuns(lab, 'host-b', 'lost');
}, 120_000);

/** Kills the destination's QEMU when the guest has come by post-copy, before its marker. */
function killBeforeMarker(name: string): void {
  tap.before('host-b', 'query-block-exports', async () => {
    if (!tap.sent.some(({ command }) => command === 'migrate-continue') || !lab.processes('host-b').some((one) => one.includes('qemu-system'))) return;
    const { closed } = await lab.agents.get('host-b')!.host.monitor(name).connection();
    process.kill(pidOf('host-b', name), 'SIGKILL');
    await closed;
    await delay(50);
  });
}

test('R5, R10: a destination that dies before the guest ran there, with pages missing, leaves one copy that may be started, the source\'s', async () => {
  await lab.boot('host-a', 'early', NEVER);
  paceOfPostCopy(lab, tap, 'early', 2_000_000);
  killBeforeMarker('early');
  await expect(lab.move('early', 'host-b', { ...INPUT, postCopy: true })).rejects.toMatchObject({ type: 'PostCopyLost', message: expect.stringMatching(/whole: start it here/) });
  await lab.client.onHost('host-a', 'startGuest', { guest: 'early' });
  await expectRuns(lab, 'host-a', 'early');
  await expectClean(lab, { 'host-a': ['early'] });
}, 120_000);

test('R5: a destination that dies with all pages before the guest ran there costs nothing: the source runs on, after it is dead', async () => {
  const guest = await lab.boot('host-a', 'whole', NEVER);
  const atCont: string[][] = [];
  tap.before('host-a', 'cont', () => void atCont.push(lab.processes('host-b').filter((one) => one.includes('qemu-system'))));
  paceOfPostCopy(lab, tap, 'whole');
  // Releasing the images may take 250 ms.
  tap.before('host-b', 'query-block-exports', () => delay(tap.sent.some(({ command }) => command === 'migrate-continue') ? 150 : 0));
  killBeforeMarker('whole');
  await expect(lab.move('whole', 'host-b', { ...INPUT, memoryTries: 1, postCopy: true })).rejects.toMatchObject({ type: 'DestinationDied' });
  expect(atCont).toEqual([[]]);
  await expectRuns(lab, 'host-a', 'whole');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['whole'] });
}, 120_000);

test('a host that is gone while pages come to it: the migration waits for it, and for a person; confirmed fenced, the guest may be started where it left', async () => {
  await lab.boot('host-a', 'taken', NEVER);
  paceOfPostCopy(lab, tap, 'taken', 4_000_000);
  const runs = runsThere();
  const migration = await lab.client.migrate({ vm: 'taken', to: 'host-b', ...INPUT, stallSeconds: 5, postCopy: true });
  const ended = migration.result().then(() => 'moved', (error: Error) => error);
  await runs;
  await lab.stopAgent('host-b');
  for (const one of [...guardProcesses(join(lab.folder, 'host-b')), ...lab.processes('host-b')]) process.kill(Number.parseInt(one, 10), 'SIGKILL');
  await eventually(async () => (await migration.status())?.waitsFor?.find(({ host }) => host === 'host-b'));
  await lab.client.confirmFenced({ vm: 'taken', host: 'host-b', author: 'test', reason: 'pulled the plug' });
  expect(await ended).toMatchObject({ type: 'PostCopyLost', message: expect.stringMatching(/host-b, where it ran, was confirmed fenced.*Its disks on host-a are whole, as they were when it left: start it here/) });
  await lab.client.onHost('host-a', 'startGuest', { guest: 'taken' });
  await expectRuns(lab, 'host-a', 'taken');
  await lab.startAgent('host-b');
  await eventually(async () => ((await lab.client.leftovers()).length === 0 ? true : undefined));
  expect(await lab.leftovers('host-a', ['taken'])).toEqual([]);
  // It ran there: what only that host has is kept.
  expect(await lab.leftovers('host-b', [])).toEqual([expect.stringContaining('image taken-0.raw.kept-'), expect.stringContaining('image taken-1.raw.kept-')]);
}, 150_000);

asRoot('a migration that is terminated while pages come, and then its connection breaks: a repair brings the rest, and the guest is whole', async () => {
  const guest = await lab.boot('host-a', 'brought', NEVER);
  paceOfPostCopy(lab, tap, 'brought', 3_000_000);
  const runs = runsThere();
  await lab.client.migrate({ vm: 'brought', to: 'host-b', ...INPUT, postCopy: true });
  const over = new AbortController();
  const followed = lab.follow('brought', 'host-b', over.signal);
  await runs;
  await lab.client.temporal.workflow.getHandle('migrate/brought').terminate('a test of repair');
  cutPages(lab, 'brought');
  const { outcome, owner, done, decisions } = await (await lab.client.repair('brought')).result();
  expect({ outcome, owner, steps: done.map(({ host, step }) => `${step} ${host}`) }).toEqual({ outcome: 'repaired', owner: 'host-b', steps: ['bringPages host-b', 'settleDestination host-b', 'retireSource host-a'] });
  expect(decisions.map(({ what }) => what)).toEqual(['mends post-copy', 'post-copy']);
  over.abort();
  await followed;
  await expectWhole(guest);
  expect(await lab.leftovers('host-b', ['brought'])).toEqual([]);
  expect(await lab.leftovers('host-a', [])).toEqual([expect.stringContaining('image brought-0.raw.kept-'), expect.stringContaining('image brought-1.raw.kept-')]);
}, 120_000);

test('R8: agents that stop and start again while pages come change nothing: the last page comes, and the source is retired only then', async () => {
  const guest = await lab.boot('host-a', 'agents', NEVER);
  paceOfPostCopy(lab, tap, 'agents', 3_000_000);
  const runs = new Promise<void>((resolve) => tap.once('host-b', 'cont', () => resolve()));
  const moved = lab.move('agents', 'host-b', { ...INPUT, postCopy: true });
  await runs;
  for (const host of ['host-a', 'host-b']) {
    await lab.stopAgent(host);
    await lab.startAgent(host);
  }
  expect(lab.processes('host-a').some((one) => one.includes('qemu-system'))).toBe(true);
  expect(await moved).toMatchObject({ outcome: 'completed' });
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['agents'] });
}, 120_000);
