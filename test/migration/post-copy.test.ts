import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Host } from '../../hypervisor/host';
import { postCopyRefusal, switchesToPostCopy } from '../../hypervisor/post-copy';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { INPUT, NEVER, paceOfPostCopy } from '../support/never-converging';
import { QmpTap } from '../support/qmp-tap';

/** Guests that dirty their memory faster than it is sent, on real QEMUs. What breaks in post-copy is in post-copy-faults.test.ts. */
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
const status = async (host: string, name: string) => await lab.look(host, name, async (qmp) => (await qmp.execute('query-migrate')).status);

test('memory that never converges is handed over by post-copy: the guest arrives whole, once, and nothing is left', async () => {
  const guest = await lab.boot('host-a', 'pages', NEVER);
  const states: string[][] = [];
  tap.once('host-a', 'migrate-continue', async () => {
    states.push([ownership('host-a', 'pages').state, ownership('host-b', 'pages').state]);
    expect(await lab.look('host-a', 'pages', async (qmp) => await qmp.execute('query-jobs'))).toEqual([]);
  });
  paceOfPostCopy(lab, tap, 'pages', 4_000_000);
  let migrating: string[] = [];
  tap.once('host-b', 'cont', async () => {
    states.push([ownership('host-a', 'pages').state, ownership('host-b', 'pages').state]);
    migrating = [(await status('host-a', 'pages'))!, (await status('host-b', 'pages'))!];
  });
  const result = await lab.move('pages', 'host-b', { ...INPUT, postCopy: true });
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
  await expect(lab.move('stays', 'host-b', { ...INPUT, memoryTries: 1 })).rejects.toMatchObject({ type: 'MemoryNotConverging' });
  expect(enabled.sort()).toEqual(['events', 'pause-before-switchover']);
  expect(tap.sent.some(({ command }) => command === 'migrate-start-postcopy')).toBe(false);
  await expectRuns(lab, 'host-a', 'stays');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['stays'] });
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
