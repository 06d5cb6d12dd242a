import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { RepairResult } from '../../workflows/messages';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { QmpTap } from '../support/qmp-tap';

/** `vmferry repair` after migrations that were terminated, on real QEMUs. */
let lab: Lab;
const tap = new QmpTap();
beforeAll(async () => {
  lab = await Lab.open({ 'host-a': '127.0.0.1', 'host-b': '::1', 'host-c': '127.0.0.1' });
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
const repair = async (name: string, dryRun = false): Promise<RepairResult> => await (await lab.client.repair(name, { dryRun })).result();
const did = ({ done }: RepairResult) => done.map(({ host, step }) => `${step} ${host}`);
const startMove = async (name: string, input = {}) => await lab.client.migrate({ vm: name, to: 'host-b', maxDowntimeMs: 2_000, ...input });
const vmferry = async (...args: string[]) => await promisify(execFile)(join(__dirname, '../../bin/vmferry'), ['--temporal-address', lab.server.address, ...args]).then(({ stdout }) => ({ code: 0, stdout, stderr: '' }), (error: { code: number; stdout: string; stderr: string }) => error);

test('terminated while disks are copied: refused while it runs; then the guest stays, nothing is left, a second repair finds nothing to do, and it moves again; a stale copy on a third host is retired', async () => {
  const guest = await lab.boot('host-a', 'early');
  const shown = await vmferry('repair', 'early', '--json');
  expect({ code: shown.code, ...(JSON.parse(shown.stdout) as RepairResult) }).toMatchObject({ code: 0, outcome: 'nothing to repair', owner: 'host-a', done: [], left: [], found: [{ host: 'host-a', copy: expect.stringContaining('is the guest; QEMU is running') }] });

  await startMove('early', { bandwidthBytesPerSecond: 3_000_000 });
  await lab.phase('early', 'converge');
  expect(await vmferry('repair', 'early')).toMatchObject({ code: 3, stderr: expect.stringContaining('is being moved') });
  await expect(lab.client.confirmFenced({ vm: 'early', host: 'host-b', author: 'test', reason: 'none' })).rejects.toMatchObject({ type: 'FenceRefused', message: expect.stringContaining('nothing waits for host host-b') });
  await terminate('early');

  await expect(lab.client.onHost('host-b', 'startGuest', { guest: 'early' })).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining('vmferry repair early') });
  await expect(lab.client.onHost('host-b', 'removeGuest', { guest: 'early' })).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining('vmferry repair early') });
  expect(await repair('early', true)).toMatchObject({ outcome: 'planned', owner: 'host-a', done: [{ host: 'host-a', step: 'sourceState' }] });
  const result = await repair('early');
  expect(result).toMatchObject({ outcome: 'repaired', owner: 'host-a', state: 'running' });
  expect(did(result)).toEqual(['sourceState host-a', 'removeMirrors host-a', 'discardDestination host-b']);
  await lab.record('early', 'repair');
  await expectRuns(lab, 'host-a', 'early');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['early'] });
  expect(await vmferry('repair', 'early')).toMatchObject({ code: 0, stdout: expect.stringContaining('Nothing to repair: the guest is on host-a, running.') });
  await lab.move('early', 'host-b');
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['early'] });

  // As a migration leaves it that was terminated before its cleanup, and whose guest has moved on since.
  const stale = join(lab.config('host-c').stateDir, 'guests/early');
  mkdirSync(stale, { recursive: true });
  cpSync(join(lab.config('host-b').stateDir, 'guests/early/definition.yaml'), join(stale, 'definition.yaml'));
  writeFileSync(join(stale, 'ownership.json'), JSON.stringify({ state: 'handed-over', attempt: 'longago', to: 'host-a' }));
  writeFileSync(join(stale, 'attempt.json'), JSON.stringify({ role: 'source', attempt: 'longago', to: 'host-a', memoryTry: 1, wasRunning: true }));
  lab.makeImages('host-c', 'early');
  await expect(lab.client.onHost('host-c', 'startGuest', { guest: 'early' })).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining('vmferry repair early') });
  expect(did(await repair('early'))).toEqual(['retireSource host-c']);
  expect(await lab.leftovers('host-c', [])).toEqual(['image early-0.raw.kept-longago', 'image early-1.raw.kept-longago']);
  await expectWhole(guest);
}, 60_000);

test.each([
  ['just before migrate-continue', 'before', 'host-a', 'migrate-continue'],
  ['just before the guest runs at the destination', 'after', 'host-b', 'cont'],
])('terminated %s: the guest arrives by itself, the repair says so and retires the source\'s copy, and no block is lost', async (_when, name, host, command) => {
  const guest = await lab.boot('host-a', name);
  const over = new Promise<void>((resolve) => tap.once(host, command, async () => {
    await terminate(name);
    resolve();
  }));
  await startMove(name);
  await over;
  const result = await repair(name);
  expect(result).toMatchObject({ outcome: 'repaired', owner: 'host-b', state: 'running', left: [] });
  await lab.record(name, 'repair');
  expect(did(result).slice(-2)).toEqual(['settleDestination host-b', 'retireSource host-a']);
  await guest.attach(lab.runFile('host-b', name, 'serial.sock'));
  await expectRuns(lab, 'host-b', name);
  await expectWhole(guest);
  expect(await lab.leftovers('host-a', [])).toEqual([`image ${name}-0.raw.kept-`, `image ${name}-1.raw.kept-`].map((image) => expect.stringContaining(image) as string));
  expect(await lab.leftovers('host-b', [name])).toEqual([]);
  expect(await repair(name)).toMatchObject({ outcome: 'nothing to repair', owner: 'host-b', done: [] });
}, 60_000);
