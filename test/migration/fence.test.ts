import { readFileSync, writeFileSync } from 'node:fs';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { RepairResult } from '../../workflows/messages';
import { eventually, expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { guardProcesses } from '../support/leftovers';
import { QmpTap } from '../support/qmp-tap';

/** `confirmFenced`: a host that is gone for good, in a migration and in a repair, on real QEMUs. */
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

const terminate = async (name: string) => await lab.client.temporal.workflow.getHandle(`migrate/${name}`).terminate('a test of repair');
const repair = async (name: string): Promise<RepairResult> => await (await lab.client.repair(name)).result();
const did = ({ done }: RepairResult) => done.map(({ host, step }) => `${step} ${host}`);
const startMove = async (name: string, input = {}) => await lab.client.migrate({ vm: name, to: 'host-b', maxDowntimeMs: 2_000, ...input });
const vmferry = async (...args: string[]) => await promisify(execFile)(join(__dirname, '../../bin/vmferry'), ['--temporal-address', lab.server.address, ...args]).then(({ stdout }) => ({ code: 0, stdout, stderr: '' }), (error: { code: number; stdout: string; stderr: string }) => error);

const kill = (processes: string[]) => processes.forEach((one) => process.kill(Number.parseInt(one, 10), 'SIGKILL'));

/** The destination's host loses its power when it has got the whole guest, before its mark: agent, guard and QEMU are gone, and nobody says so. Resolves when that is so. */
async function losePowerAtTheEnd(name: string): Promise<void> {
  await new Promise<void>((resolve, reject) => tap.once('host-a', 'migrate-continue', async () => {
    await lab.stopAgent('host-b');
    kill(guardProcesses(join(lab.folder, 'host-b')));
    void lab.sourceCompleted('host-a', name).then(() => kill(lab.processes('host-b'))).then(resolve, reject);
  }));
}

test('a destination that is gone after everything was handed over: the migration shows that it waits; confirmed fenced, the source runs, and the other copy is retired when that host returns', async () => {
  const guest = await lab.boot('host-a', 'fenced');
  const gone = losePowerAtTheEnd('fenced');
  const migration = await startMove('fenced', { memoryTries: 1 });
  const ended = migration.result().then(() => 'moved', (error: Error) => error);
  const fence = (host: string) => lab.client.confirmFenced({ vm: 'fenced', host, author: 'test', reason: 'pulled the plug' });
  await gone;
  await eventually(async () => (await migration.status())?.waitsFor?.find(({ host }) => host === 'host-b'));
  await expect(fence('host-a')).rejects.toMatchObject({ type: 'FenceRefused', message: expect.stringContaining('nothing waits for host host-a') });
  expect(await fence('host-b')).toMatchObject({ by: 'test', what: 'confirmFenced host-b', why: 'pulled the plug' });
  expect(await ended).toMatchObject({ type: 'DestinationDied', message: expect.stringContaining('it runs on host-a') });
  await lab.record('fenced');
  await expectRuns(lab, 'host-a', 'fenced');
  await guest.nextTick();
  await expectWhole(guest);
  expect(await lab.client.leftovers()).toEqual([expect.objectContaining({ vm: 'fenced', host: 'host-b', step: 'retireFenced' })]);
  expect((await vmferry('leftovers')).stdout).toMatch(/host-b +fenced +retireFenced/);

  await lab.startAgent('host-b');
  await eventually(async () => ((await lab.client.leftovers()).length === 0 ? true : undefined));
  await expectClean(lab, { 'host-a': ['fenced'] });
  expect(await repair('fenced')).toMatchObject({ outcome: 'nothing to repair', owner: 'host-a' });
}, 90_000);

test('the same, terminated: the repair waits for the host, and for a person; confirmed fenced, the source runs, and the repair ends', async () => {
  const guest = await lab.boot('host-a', 'word');
  const gone = losePowerAtTheEnd('word');
  await startMove('word');
  await gone;
  await terminate('word');
  // It had written its mark, and whether it came to run the guest nobody knows.
  const mark = join(lab.config('host-b').stateDir, 'guests/word/ownership.json');
  const { attempt } = JSON.parse(readFileSync(mark, 'utf8')) as { attempt: string };
  writeFileSync(mark, JSON.stringify({ state: 'owner', since: new Date().toISOString(), attempt }));
  await expect(lab.client.onHost('host-a', 'startGuest', { guest: 'word' })).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining('vmferry repair word') });
  const repairing = await lab.client.repair('word');
  const ended = repairing.result();
  ended.catch(() => undefined);
  const shown = await eventually(async () => (await repairing.status())?.waitsFor[0]);
  expect(shown).toMatchObject({ host: 'host-b', why: expect.stringContaining('only it can say whether the guest ran there') });
  expect(await vmferry('fence', 'host-b', '--vm', 'word', '--reason', 'pulled the plug', '--author', 'test')).toMatchObject({ code: 0 });
  const result = await ended;
  expect(result).toMatchObject({ outcome: 'repaired', owner: 'host-a', decisions: [{ by: 'test', what: 'confirmFenced host-b', why: 'pulled the plug' }] });
  expect(did(result)).toEqual(['sourceState host-a', 'reviveSource host-a', 'removeMirrors host-a', 'retireFenced, when it returns host-b']);
  await lab.record('word', 'repair');
  await expectRuns(lab, 'host-a', 'word');
  await guest.nextTick();
  await expectWhole(guest);
  await lab.startAgent('host-b');
  await eventually(async () => ((await lab.client.leftovers()).length === 0 ? true : undefined));
  expect(await lab.leftovers('host-a', ['word'])).toEqual([]);
  expect(await lab.leftovers('host-b', [])).toEqual(['image word-0.raw.kept-', 'image word-1.raw.kept-'].map((image) => expect.stringContaining(image) as string));
}, 90_000);

test('a source that is gone while memory moves: confirmed fenced, the migration ends and throws nothing away; back again, the source has the guest', async () => {
  await lab.boot('host-a', 'lost');
  const migration = await startMove('lost', { memory: { maxBandwidthBytesPerSecond: 100_000 } });
  const ended = migration.result().then(() => 'moved', (error: Error) => error);
  await lab.phase('lost', 'memory');
  await eventually(async () => await lab.look('host-a', 'lost', async (qmp) => ((await qmp.execute('query-migrate')).ram?.transferred ? true : undefined)));
  await lab.stopAgent('host-a');
  kill([...guardProcesses(join(lab.folder, 'host-a')), ...lab.processes('host-a')]);
  await eventually(async () => (await migration.status())?.waitsFor?.find(({ host }) => host === 'host-a'));
  await lab.client.confirmFenced({ vm: 'lost', host: 'host-a', author: 'test', reason: 'it burns' });
  expect(await ended).toMatchObject({ type: 'GuestGone', message: expect.stringContaining('its only whole copy is on host-a') });
  await lab.record('lost');
  expect(await lab.client.leftovers()).toEqual([expect.objectContaining({ vm: 'lost', host: 'host-a', step: 'removeMirrors' })]);
  expect((await lab.leftovers('host-b', [])).filter((one) => /image lost-[01].raw$/.test(one))).toHaveLength(2);
  await lab.startAgent('host-a');
  expect(await repair('lost')).toMatchObject({ outcome: 'repaired', owner: 'host-a', done: expect.arrayContaining([expect.objectContaining({ host: 'host-b', step: 'discardDestination' })]) });
  await lab.client.onHost('host-a', 'startGuest', { guest: 'lost' });
  await expectRuns(lab, 'host-a', 'lost');
  await expectClean(lab, { 'host-a': ['lost'] });
}, 90_000);
