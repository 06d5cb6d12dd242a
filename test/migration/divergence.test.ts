import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { DestinationAttempt } from '../../hypervisor/guest-store';
import type { MigrateVmInput } from '../../workflows/messages';
import type { TestGuest } from '../../demo/guest/test-guest';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';
import { QmpTap } from '../support/qmp-tap';

/**
 * Guests that write faster than their disks can be copied, on real QEMUs. What the destination takes is limited by the storage daemon's throttle,
 * set behind vmferry's back, as a slow link or disk would: it knows of no cap that it could lift.
 */
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

const MOST_EVENTS = 200;
const signed = { author: 'the test', reason: 'to see what it does' };

/** From the first look at the mirrors on, the copy to host-b carries this much. */
function slowLink(name: string, bytesPerSecond: number): void {
  tap.once('host-a', 'query-blockstats', () => lab.setBandwidth('host-b', name, bytesPerSecond));
}

/** Resets the connections to this port, again and again; as root. */
async function cutConnections(port: number, forMs: number): Promise<void> {
  for (const until = performance.now() + forMs; performance.now() < until; await delay(20)) execFileSync('ss', ['-K', '-tnH', 'state', 'connected', `( dport = :${port} or sport = :${port} )`]);
}
const nbdPort = (host: string, name: string) => (lab.agents.get(host)!.host.store.attempt(name) as DestinationAttempt).nbdPort!;

const pidOf = (host: string, name: string, file: string) => Number.parseInt(readFileSync(lab.runFile(host, name, file), 'utf8'), 10);

/** Starts the move; awaited later, so that a failure meanwhile is not an unhandled one. */
function start(name: string, input: Partial<MigrateVmInput> = {}): ReturnType<Lab['move']> {
  const moved = lab.move(name, 'host-b', { maxDowntimeMs: 300, ...input });
  moved.catch(() => undefined);
  return moved;
}

/** Resolves with the status as soon as it is so. */
async function statusWhen(name: string, so: (status: Awaited<ReturnType<typeof statusOf>>) => boolean) {
  const looks = (await running(name)).watch();
  while (!(await looks.next()).done) {
    const status = await statusOf(name);
    if (so(status)) return status;
  }
  throw new Error(`the migration of ${name} ended before it came to that`);
}
const statusOf = async (name: string) => (await (await lab.client.migration(name)).status())!;
async function running(name: string) {
  for (;;) {
    const migration = await lab.client.migration(name).catch(() => undefined);
    if (migration) return migration;
  }
}

/** What QEMU limits the guest's writes to, in bytes a second; 0 is no limit. */
const throttles = async (host: string, name: string) => await lab.look(host, name, async (qmp) => (await qmp.execute('query-block')).map(({ inserted }) => inserted?.bps_wr ?? 0));
const writtenBytes = async (guest: TestGuest) => Number(/bytes=(\d+)/.exec(await guest.command('stats'))![1]);
const events = async (name: string) => (await lab.history(name)).events!.length;

test('auto: a guest at 30 MB/s on a link of 10 is made write-blocking, arrives whole inside its budget, and is not throttled any more', async () => {
  const guest = await lab.boot('host-a', 'fast', { rate: '30M', disks: [{ sizeBytes: 64 * MIB }] });
  slowLink('fast', 10_000_000);
  const result = await start('fast');
  expect(result.decisions.map(({ by, what }) => `${by}: ${what}`)).toEqual(expect.arrayContaining([expect.stringMatching(/^policy: write-blocking by re-arm/)]));
  expect(result.decisions.some(({ what }) => what.startsWith('a throttle'))).toBe(false);
  expect(await throttles('host-b', 'fast')).toEqual([0]);
  await guest.nextTick();
  const before = await writtenBytes(guest);
  for (let tick = 0; tick < 100; tick++) await guest.nextTick();
  // 100 ticks are a second of the guest's: it writes at its own rate again, not at the link's or a throttle's.
  expect(await writtenBytes(guest)).toBeGreaterThan(before + 15_000_000);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['fast'] });
  expect(await events('fast')).toBeLessThan(MOST_EVENTS);
}, 180_000);

test.each([
  ['at 60 % of the link, whose mirrors would hover for ever,', 'hover', '15M'],
  ['at 160 % of the link', 'heavy', '40M'],
])('auto: two writers %s arrive whole', async (_how, name, rate) => {
  const guest = await lab.boot('host-a', name, { rate });
  slowLink(name, 50_000_000);
  expect(await start(name, { maxDowntimeMs: 500 })).toMatchObject({ outcome: 'completed' });
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': [name] });
  expect(await events(name)).toBeLessThan(MOST_EVENTS);
}, 180_000);

test('ask: nothing is done to the guest until somebody steers; who and why is on record', async () => {
  const guest = await lab.boot('host-a', 'asked', { rate: '30M', disks: [{ sizeBytes: 64 * MIB }] });
  slowLink('asked', 10_000_000);
  const moved = start('asked', { onDivergence: 'ask' });
  const status = await statusWhen('asked', ({ asks }) => asks !== undefined);
  expect(status.verdict).toMatch(/diverging|hovering/);
  expect(status.message).toMatch(/MB\/s/);
  expect(status.asks!.choices).toEqual(expect.arrayContaining(['write-blocking', 'throttle', 'wait', 'postpone', 'abort']));
  expect(await throttles('host-a', 'asked')).toEqual([0]);
  const migration = await running('asked');
  await expect(migration.steer({ do: 'unthrottle', ...signed })).rejects.toMatchObject({ type: 'SteerRefused', message: expect.stringContaining('not throttled') });
  await expect(migration.steer({ do: 'lift-limits', ...signed })).rejects.toMatchObject({ message: expect.stringContaining('no bandwidth cap') });
  await expect(migration.steer({ do: 'throttle', bytesPerSecond: 1, ...signed })).rejects.toMatchObject({ message: expect.stringContaining('bytesPerSecond') });
  // Each write of 16 KiB costs the copy a whole 64 KiB of the mirror's bitmap.
  await migration.steer({ do: 'throttle', bytesPerSecond: 1_000_000, ...signed });
  expect(await throttles('host-a', 'asked')).toEqual([1_000_000]);
  const result = await moved;
  expect(result.decisions).toEqual(expect.arrayContaining([expect.objectContaining({ by: 'the test', what: expect.stringContaining('throttle'), why: 'to see what it does' })]));
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['asked'] });
  expect(await events('asked')).toBeLessThan(MOST_EVENTS);
}, 180_000);

test('ask: without an answer it ends as the policy says, and the guest is as it was', async () => {
  const guest = await lab.boot('host-a', 'silent', { rate: '30M', disks: [{ sizeBytes: 64 * MIB }] });
  slowLink('silent', 10_000_000);
  expect(await start('silent', { onDivergence: 'ask', askSeconds: 2 }).catch((error: unknown) => error)).toMatchObject({ type: 'DisksNotConverging', message: expect.stringContaining('nobody answered') });
  await expectRuns(lab, 'host-a', 'silent');
  expect(await throttles('host-a', 'silent')).toEqual([0]);
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['silent'] });
}, 180_000);

test('abort: a copy that diverges ends the migration, the source runs on untouched', async () => {
  const guest = await lab.boot('host-a', 'given-up', { rate: '30M', disks: [{ sizeBytes: 64 * MIB }] });
  slowLink('given-up', 10_000_000);
  expect(await start('given-up', { onDivergence: 'abort' }).catch((error: unknown) => error)).toMatchObject({ type: 'DisksNotConverging', message: expect.stringContaining('MB/s') });
  expect(tap.sent.some(({ command }) => command === 'block_set_io_throttle')).toBe(false);
  await expectRuns(lab, 'host-a', 'given-up');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['given-up'] });
}, 180_000);

test('a guest that goes quiet by itself gets no remedy, and why is on record', async () => {
  const guest = await lab.boot('host-a', 'calms', { rate: '30M', disks: [{ sizeBytes: 48 * MIB }] });
  slowLink('calms', 10_000_000);
  const moved = start('calms', { onDivergence: 'ask' });
  await statusWhen('calms', ({ asks }) => asks !== undefined);
  await guest.command('rate 0');
  const result = await moved;
  expect(result.decisions).toEqual(expect.arrayContaining([expect.objectContaining({ by: 'policy', what: 'nothing', why: expect.stringContaining('went quiet by itself') })]));
  expect(tap.sent.some(({ command }) => command === 'block_set_io_throttle')).toBe(false);
  await expectWhole(guest);
}, 180_000);

test('our own cap is lifted before anything is done to the guest', async () => {
  const guest = await lab.boot('host-a', 'capped', { rate: '20M', disks: [{ sizeBytes: 48 * MIB }] });
  const result = await start('capped', { bandwidthBytesPerSecond: 8_000_000, maxDowntimeMs: 500 });
  expect(result.decisions.filter(({ by, what }) => by === 'policy' && what !== 'nothing').map(({ what }) => what)[0]).toBe('lift-limits');
  expect(result.decisions.some(({ why }) => why.includes('our own bandwidth cap'))).toBe(true);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['capped'] });
}, 180_000);

test('a destination that hangs is told as a stall; when it goes on, so does the copy', async () => {
  const guest = await lab.boot('host-a', 'stalls', { rate: '500K', disks: [{ sizeBytes: 48 * MIB }] });
  slowLink('stalls', 6_000_000);
  const moved = start('stalls', { maxDowntimeMs: 500 });
  await statusWhen('stalls', ({ phase }) => phase === 'converge');
  const daemon = pidOf('host-b', 'stalls', 'storage.pid');
  process.kill(daemon, 'SIGSTOP');
  const status = await statusWhen('stalls', ({ verdict }) => verdict === 'stalled');
  expect(status.message).toMatch(/nothing was copied for .* hangs/);
  process.kill(daemon, 'SIGCONT');
  expect(await moved).toMatchObject({ outcome: 'completed' });
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['stalls'] });
}, 180_000);

test('a destination that never goes on ends the migration; its connections are cut, and the guest can move again at once', async () => {
  const guest = await lab.boot('host-a', 'dead', { rate: '500K', disks: [{ sizeBytes: 48 * MIB }] });
  slowLink('dead', 6_000_000);
  const moved = start('dead', { stallSeconds: 1 });
  await statusWhen('dead', ({ phase }) => phase === 'converge');
  process.kill(pidOf('host-b', 'dead', 'storage.pid'), 'SIGSTOP');
  expect(await moved.then((one) => one, (error: unknown) => error)).toMatchObject({ type: 'CopyStalled' });
  await expectRuns(lab, 'host-a', 'dead');
  await expectClean(lab, { 'host-a': ['dead'] });
  await lab.move('dead', 'host-b');
  await expectWhole(guest);
}, 180_000);

test('a destination that hangs before the first byte is copied ends the migration; nothing is left, and the guest did not notice', async () => {
  const guest = await lab.boot('host-a', 'deaf', { rate: '500K' });
  tap.once('host-a', 'blockdev-add', () => void process.kill(pidOf('host-b', 'deaf', 'storage.pid'), 'SIGSTOP'));
  expect(await start('deaf').catch((error: unknown) => error)).toMatchObject({ type: 'MirrorFailed', message: expect.stringContaining("the destination's storage daemon has ended, or hangs, or the link is dead") });
  await expectRuns(lab, 'host-a', 'deaf');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['deaf'] });
}, 180_000);

test('a link that is cut for 2 s while the disks are copied costs a stall: the mirrors go on, and nothing is copied twice', async () => {
  const guest = await lab.boot('host-a', 'cut', { rate: '500K', disks: [{ sizeBytes: 48 * MIB }] });
  slowLink('cut', 6_000_000);
  const moved = start('cut', { maxDowntimeMs: 500 });
  await statusWhen('cut', ({ phase }) => phase === 'converge');
  await cutConnections(nbdPort('host-b', 'cut'), 2_000);
  const result = await moved;
  expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror')).toHaveLength(1);
  expect(tap.sent.some(({ command }) => command === 'job-resume')).toBe(true);
  expect(result.decisions.some(({ what }) => what === 'copies anew')).toBe(false);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['cut'] });
}, 180_000);

test('a storage daemon that dies is started again, and the copy begun anew: what it had taken is not counted on', async () => {
  const guest = await lab.boot('host-a', 'daemon', { rate: '500K', disks: [{ sizeBytes: 32 * MIB }] });
  slowLink('daemon', 6_000_000);
  const moved = start('daemon', { maxDowntimeMs: 500 });
  await statusWhen('daemon', ({ phase }) => phase === 'converge');
  process.kill(pidOf('host-b', 'daemon', 'storage.pid'), 'SIGKILL');
  const result = await moved;
  expect(result.decisions).toEqual(expect.arrayContaining([expect.objectContaining({ by: 'policy', what: 'copies anew', why: expect.stringContaining('no NBD server answers') })]));
  expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror')).toHaveLength(2);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['daemon'] });
}, 180_000);

test('a destination that hangs while memory is sent is given up, and a new one takes over from the same mirrors', async () => {
  const guest = await lab.boot('host-a', 'frozen', { rate: '500K' });
  tap.once('host-a', 'migrate', () => void process.kill(pidOf('host-b', 'frozen', 'qemu.pid'), 'SIGSTOP'));
  const result = await start('frozen', { stallSeconds: 2, maxDowntimeMs: 1_000 });
  expect(result.memoryTries).toBe(2);
  expect(result.decisions).toEqual(expect.arrayContaining([expect.objectContaining({ what: 'tries again', why: expect.stringContaining('the destination hangs, or the link is dead') })]));
  expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror')).toHaveLength(2);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['frozen'] });
}, 180_000);

const root = process.getuid!() === 0;
if (!root) console.log('skipped: the test with a full disk needs root, to mount a small tmpfs');
(root ? test : test.skip)("a destination whose disk fills up is named in QEMU's words, and nothing is left there", async () => {
  const images = `${lab.folder}/host-b/images`;
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', images]);
  try {
    const guest = await lab.boot('host-a', 'full', { rate: '0', disks: [{ sizeBytes: 64 * MIB }] }, 0);
    tap.once('host-a', 'query-blockstats', async () => void (await guest.command('rate 30M')));
    expect(await start('full').catch((error: unknown) => error)).toMatchObject({ type: 'MirrorFailed', message: expect.stringMatching(/No space left on device.*destination/) });
    await expectRuns(lab, 'host-a', 'full');
    await expectWhole(guest);
    await expectClean(lab, { 'host-a': ['full'] });
  } finally {
    execFileSync('umount', [images]);
  }
}, 180_000);

test('an operator can abort, put off with everything undone, and change the budget; each is on record', async () => {
  const guest = await lab.boot('host-a', 'steered', { rate: '2M', disks: [{ sizeBytes: 64 * MIB }] });
  slowLink('steered', 2_000_000);
  const moved = start('steered', { maxDowntimeMs: 500 });
  await statusWhen('steered', ({ phase }) => phase === 'converge');
  const migration = await running('steered');
  await migration.steer({ do: 'set-max-downtime', ms: 700, ...signed });
  await expect(migration.steer({ do: 'set-max-downtime', ms: 700, ...signed })).rejects.toMatchObject({ message: expect.stringContaining('already') });
  await expect(migration.steer({ do: 'wait', until: '2020-01-01T00:00:00Z', ...signed })).rejects.toMatchObject({ message: expect.stringContaining('not in the future') });
  await migration.steer({ do: 'postpone', until: new Date(Date.now() + 3_000).toISOString(), ...signed });
  await statusWhen('steered', ({ postponedUntil }) => postponedUntil !== undefined);
  await expectClean(lab, { 'host-a': ['steered'] });
  await statusWhen('steered', ({ phase, postponedUntil }) => postponedUntil === undefined && phase === 'converge');
  await migration.steer({ do: 'abort', author: 'the test', reason: 'enough' });
  expect(await moved.then((one) => one, (error: unknown) => error)).toMatchObject({ type: 'Aborted', message: expect.stringContaining('the test: enough') });
  await expectRuns(lab, 'host-a', 'steered');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['steered'] });
  await expect(migration.steer({ do: 'abort', ...signed })).rejects.toMatchObject({ type: 'NotFound' });
}, 180_000);

test('the settings of the report are taken, with write-blocking from the start', async () => {
  const guest = await lab.boot('host-a', 'report', { rate: '20M' });
  slowLink('report', 20_000_000);
  let capabilities: string[] = [];
  tap.once('host-a', 'migrate', async () => {
    capabilities = await lab.look('host-a', 'report', async (qmp) => (await qmp.execute('query-migrate-capabilities')).filter(({ state }) => state).map(({ capability }) => capability));
  });
  const result = await start('report', { maxDowntimeMs: 1_000, copyMode: 'write-blocking', memory: { xbzrle: true, zeroBlocks: true, autoConverge: true, cpuThrottleInitial: 20, cpuThrottleIncrement: 10 } });
  expect(capabilities).toEqual(expect.arrayContaining(['xbzrle', 'zero-blocks', 'auto-converge']));
  expect(result.warnings).toEqual([]);
  expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror').map(({ args }) => args?.['copy-mode'])).toEqual(['write-blocking', 'write-blocking']);
  await expectWhole(guest);
}, 180_000);
