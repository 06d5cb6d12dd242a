import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { MigrateVmInput } from '../../workflows/messages';
import { postCopyRefusal, switchesToPostCopy } from '../../hypervisor/post-copy';
import { Host } from '../../hypervisor/host';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { QmpTap } from '../support/qmp-tap';

/** Guests that dirty their memory faster than it is sent, on real QEMUs: 20 MB/s over a cap of 6. */
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

const CAP = 20_000_000;
const NEVER = { memory: '24M', dirty: '60M', rate: '500K' };
/** No auto-converge: it would slow this guest until its memory converges. */
const input: Partial<MigrateVmInput> = { maxDowntimeMs: 500, memoryDeadlineSeconds: 10, memoryTries: 2, memory: { autoConverge: false, maxBandwidthBytesPerSecond: CAP } };

const pidOf = (host: string, name: string, file = 'qemu.pid') => Number.parseInt(readFileSync(lab.runFile(host, name, file), 'utf8'), 10);
const ownership = (host: string, name: string) => JSON.parse(readFileSync(join(lab.config(host).stateDir, 'guests', name, 'ownership.json'), 'utf8')) as { state: string };
const status = async (host: string, name: string) => await lab.look(host, name, async (qmp) => (await qmp.execute('query-migrate')).status);

/** From the switch on pages come slowly, so that a test has time for what it does to them: vmferry sets no such cap. QEMU reads it as it begins. */
function slowPages(name: string, bytesPerSecond: number): void {
  tap.once('host-a', 'migrate-start-postcopy', () => lab.look('host-a', name, async (qmp) => void (await qmp.execute('migrate-set-parameters', { 'max-postcopy-bandwidth': bytesPerSecond }))));
}

/** Resets the connection over which pages go, once; as root. */
async function cutPages(name: string): Promise<void> {
  const { migrationPort } = lab.agents.get('host-b')!.host.store.attempt(name) as { migrationPort: number };
  execFileSync('ss', ['-K', '-tnH', 'state', 'connected', `( dport = :${migrationPort} or sport = :${migrationPort} )`]);
}

test('memory that never converges is handed over by post-copy: the guest arrives whole, once, and nothing is left', async () => {
  const guest = await lab.boot('host-a', 'pages', NEVER);
  const states: string[][] = [];
  tap.once('host-a', 'migrate-continue', async () => {
    states.push([ownership('host-a', 'pages').state, ownership('host-b', 'pages').state]);
    expect(await lab.look('host-a', 'pages', async (qmp) => await qmp.execute('query-jobs'))).toEqual([]);
  });
  slowPages('pages', 4_000_000);
  let migrating: string[] = [];
  tap.once('host-b', 'cont', async () => {
    states.push([ownership('host-a', 'pages').state, ownership('host-b', 'pages').state]);
    migrating = [(await status('host-a', 'pages'))!, (await status('host-b', 'pages'))!];
  });
  const result = await lab.move('pages', 'host-b', { ...input, postCopy: true });
  expect(result.decisions.map(({ by, what }) => `${by}: ${what}`)).toContain('policy: post-copy');
  expect(result.downtimeMs).toBeLessThan(3_000);
  expect(states).toEqual([['handed-over', 'incoming'], ['handed-over', 'owner']]);
  expect(migrating).toEqual(['postcopy-active', 'postcopy-active']);
  expect(tap.sent.filter(({ command }) => command === 'migrate-start-postcopy')).toHaveLength(1);
  expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror')).toHaveLength(2);
  await expectWhole(guest);
  expect(guest.restarts).toBe(0);
  await expectClean(lab, { 'host-b': ['pages'] });
}, 120_000);

test('the same guest without post-copy stays where it is, unharmed, and QEMU is asked for nothing of the kind', async () => {
  const guest = await lab.boot('host-a', 'stays', NEVER);
  let enabled: string[] = [];
  tap.once('host-a', 'migrate', async () => {
    enabled = await lab.look('host-a', 'stays', async (qmp) => (await qmp.execute('query-migrate-capabilities')).filter(({ state }) => state).map(({ capability }) => capability));
  });
  await expect(lab.move('stays', 'host-b', { ...input, memoryDeadlineSeconds: 5, memoryTries: 1 })).rejects.toMatchObject({ type: 'MemoryNotConverging' });
  expect(enabled.sort()).toEqual(['events', 'pause-before-switchover']);
  expect(tap.sent.some(({ command }) => command === 'migrate-start-postcopy')).toBe(false);
  await expectRuns(lab, 'host-a', 'stays');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['stays'] });
}, 120_000);

const root = process.getuid!() === 0;
if (!root) console.log('skipped: tests that cut connections need root');
const asRoot = root ? test : test.skip;

asRoot('R4: a connection that breaks in post-copy is mended, and the guest arrives whole', async () => {
  const guest = await lab.boot('host-a', 'mended', NEVER);
  slowPages('mended', 4_000_000);
  let cut = false;
  tap.before('host-b', 'query-migrate', async () => {
    if (cut || !tap.sent.some(({ command, path }) => command === 'cont' && path.includes('/host-b/'))) return;
    cut = true;
    await cutPages('mended');
  });
  const result = await lab.move('mended', 'host-b', { ...input, memoryDeadlineSeconds: 6, postCopy: true });
  expect(cut).toBe(true);
  expect(result.decisions.map(({ what }) => what)).toEqual(expect.arrayContaining(['post-copy', 'mends post-copy']));
  expect(tap.sent.some(({ command, args }) => command === 'migrate' && args?.['resume'])).toBe(true);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['mended'] });
}, 120_000);

test('R4, R10: a source that dies in post-copy costs the running guest: it is said so, and it starts from its disks where they are newest', async () => {
  await lab.boot('host-a', 'lost', NEVER);
  slowPages('lost', 4_000_000);
  tap.before('host-b', 'query-migrate', () => {
    if (tap.sent.some(({ command, path }) => command === 'cont' && path.includes('/host-b/')) && lab.processes('host-a').some((one) => one.includes('qemu-system'))) process.kill(pidOf('host-a', 'lost'), 'SIGKILL');
  });
  await expect(lab.move('lost', 'host-b', { ...input, memoryDeadlineSeconds: 6, postCopy: true })).rejects.toMatchObject({ type: 'PostCopyLost', message: expect.stringMatching(/lost as a running one.*whole on host-b: start it there/) });
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
  slowPages('early', 2_000_000);
  killBeforeMarker('early');
  await expect(lab.move('early', 'host-b', { ...input, memoryDeadlineSeconds: 6, postCopy: true })).rejects.toMatchObject({ type: 'PostCopyLost', message: expect.stringMatching(/whole: start it here/) });
  await lab.client.onHost('host-a', 'startGuest', { guest: 'early' });
  await expectRuns(lab, 'host-a', 'early');
  await expectClean(lab, { 'host-a': ['early'] });
}, 120_000);

test('R5: a destination that dies with all pages before the guest ran there costs nothing: the source runs on, after it is dead', async () => {
  const guest = await lab.boot('host-a', 'whole', NEVER);
  const atCont: string[][] = [];
  tap.before('host-a', 'cont', () => void atCont.push(lab.processes('host-b').filter((one) => one.includes('qemu-system'))));
  // All pages are there in less than that.
  tap.before('host-b', 'query-block-exports', () => delay(tap.sent.some(({ command }) => command === 'migrate-continue') ? 400 : 0));
  killBeforeMarker('whole');
  await expect(lab.move('whole', 'host-b', { ...input, memoryDeadlineSeconds: 6, memoryTries: 1, postCopy: true })).rejects.toMatchObject({ type: 'DestinationDied' });
  expect(atCont).toEqual([[]]);
  await expectRuns(lab, 'host-a', 'whole');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['whole'] });
}, 120_000);

test('it is refused before anything is changed where QEMU cannot do it', async () => {
  const guest = await lab.boot('host-a', 'refused', { rate: '500K' });
  // A QEMU that may not use userfaultfd: this host's user is not root.
  await lab.addHost('host-c', { address: '127.0.0.1', runAs: 'nobody' });
  const refusal = await postCopyRefusal(new Host(lab.config('host-c')), 'qemu-system-x86_64');
  if (refusal === undefined) return console.log('this kernel lets everybody use userfaultfd');
  await expect(lab.move('refused', 'host-c', { postCopy: true })).rejects.toMatchObject({ type: 'MigrationRefused', message: expect.stringContaining('post-copy is asked for, and cannot be had') });
  await expectRuns(lab, 'host-a', 'refused');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['refused'] });
}, 120_000);

test('R2: a pause in which next to nothing remains is not taken for a post-copy', () => {
  // 100 MB/s: QEMU would end without post-copy with less than 100 KB.
  expect(switchesToPostCopy(90_000, 800)).toBe(false);
  expect(switchesToPostCopy(8_000_000, 800)).toBe(true);
});
