import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ensureCertificates } from '../../hypervisor/lab-certificates';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';
import { describeWithNewerQemu } from '../support/newer-qemu';
import { QmpTap } from '../support/qmp-tap';

/** The guest writes to each of its two disks all the while. */
const WRITING = { rate: '4M', disks: [{}, {}] };

/** A host with this machine's QEMU, 7.2, and two with 10.0. What is told apart here is what 10.0 changed: who may write to an image when, and the states of a migration. */
describeWithNewerQemu('QEMU 10.0 beside 7.2', (binaries) => {
  let lab: Lab;
  const tap = new QmpTap();

  beforeAll(async () => {
    lab = await Lab.open({ 'old-a': '127.0.0.1' });
    await lab.addHost('new-b', { address: '::1', binaries });
    await lab.addHost('new-c', { address: '127.0.0.1', binaries });
  }, 60_000);
  afterEach(async () => {
    tap.reset();
    await lab.reset();
  });
  afterAll(async () => {
    tap.restore();
    await lab?.close();
  });

  /** By QEMU's own word: which program was started is not proof enough. */
  const version = async (host: string, name: string) =>
    await lab.look(host, name, async (qmp) => {
      const { major, minor } = (await qmp.execute('query-version')).qemu;
      return `${major}.${minor}`;
    });

  /** Kills a QEMU and gives its agent time to see that and to say so. */
  const killAndTell = async (host: string, name: string) => {
    const { closed } = await lab.agents.get(host)!.host.monitor(name).connection();
    process.kill(Number.parseInt(readFileSync(lab.runFile(host, name, 'qemu.pid'), 'utf8'), 10), 'SIGKILL');
    await closed;
    await delay(50);
  };

  test('a guest on 10.0 that writes three times what its copy carries is switched to write-blocking by block-job-change, without a pause, and arrives whole', async () => {
    const guest = await lab.boot('new-b', 'live', { rate: '30M', disks: [{ sizeBytes: 64 * MIB }] });
    let commands: string[] = [];
    tap.once('new-b', 'query-blockstats', async () => await lab.setBandwidth('new-c', 'live', 10_000_000));
    tap.once('new-b', 'migrate', () => void (commands = tap.sent.filter(({ path }) => path.includes('/new-b/')).map(({ command }) => command)));
    const result = await lab.move('live', 'new-c', { maxDowntimeMs: 500 });
    expect(result.decisions.map(({ what }) => what)).toEqual(expect.arrayContaining(['write-blocking by block-job-change']));
    expect(commands).toContain('block-job-change');
    expect(commands).not.toContain('stop');
    await expectWhole(guest);
    await expectClean(lab, { 'new-c': ['live'] });
  }, 180_000);

  test('a guest of an old machine type moves from 7.2 to 10.0, and on to another 10.0, while it writes to two disks', async () => {
    const guest = await lab.boot('old-a', 'upgraded', WRITING);
    expect(await version('old-a', 'upgraded')).toBe('7.2');

    expect(await lab.move('upgraded', 'new-b')).toMatchObject({ from: 'old-a', to: 'new-b', outcome: 'completed' });
    expect(await version('new-b', 'upgraded')).toBe('10.0');
    await lab.written(guest, 400);
    await expectWhole(guest);
    await expectClean(lab, { 'new-b': ['upgraded'] });

    expect(await lab.move('upgraded', 'new-c')).toMatchObject({ from: 'new-b', to: 'new-c', outcome: 'completed' });
    expect(await version('new-c', 'upgraded')).toBe('10.0');
    await lab.written(guest, 600);
    await expectWhole(guest);
    await expectClean(lab, { 'new-c': ['upgraded'] });
  }, 240_000);

  test('a guest of the machine type of 10.0 moves from 10.0 to 10.0 and back, raw and qcow2', async () => {
    const guest = await lab.boot('new-b', 'modern', { ...WRITING, disks: [{}, { format: 'qcow2', bus: 'virtio-blk' }], extra: { machine: 'pc-q35-10.0' } });
    expect(await lab.move('modern', 'new-c')).toMatchObject({ outcome: 'completed' });
    expect(await lab.move('modern', 'new-b')).toMatchObject({ outcome: 'completed' });
    await lab.written(guest, 400);
    await expectWhole(guest);
    await expectClean(lab, { 'new-b': ['modern'] });
  }, 240_000);

  test('a guest that is paused on 7.2 arrives paused on 10.0, moves on, and runs when it is told to', async () => {
    const guest = await lab.boot('old-a', 'paused', WRITING);
    await lab.look('old-a', 'paused', async (qmp) => await qmp.execute('stop'));
    for (const host of ['new-b', 'new-c', 'new-b']) {
      await lab.move('paused', host);
      expect(await lab.look(host, 'paused', async (qmp) => await qmp.execute('query-status'))).toMatchObject({ running: false, status: 'paused' });
    }
    await lab.look('new-b', 'paused', async (qmp) => await qmp.execute('cont'));
    await guest.nextTick();
    await lab.move('paused', 'new-c');
    await expectWhole(guest);
    await expectClean(lab, { 'new-c': ['paused'] });
  }, 240_000);

  test('a move that is cancelled while 10.0 copies disks leaves the guest where it was, and nothing else', async () => {
    const guest = await lab.boot('new-b', 'stays', { ...WRITING, disks: [{ sizeBytes: 64 * MIB }, {}] });
    const migration = await lab.client.migrate({ vm: 'stays', to: 'new-c', bandwidthBytesPerSecond: 12_000_000 });
    await lab.phase('stays', 'converge');
    await migration.cancel();
    await expect(migration.result()).rejects.toMatchObject({ type: 'Cancelled' });
    await expectRuns(lab, 'new-b', 'stays');
    await expectWhole(guest);
    await expectClean(lab, { 'new-b': ['stays'] });
  }, 180_000);

  test('a destination that dies just before migrate-continue costs no byte of disk on 10.0 either: the mirrors are re-armed, and a new one takes over', async () => {
    const guest = await lab.boot('new-b', 'rearm', WRITING);
    let dismissals = 0;
    tap.before('new-b', 'job-dismiss', async () => {
      if (++dismissals === 2) await killAndTell('new-c', 'rearm');
    });
    expect(await lab.move('rearm', 'new-c')).toMatchObject({ outcome: 'completed', memoryTries: 2 });
    expect(tap.sent.filter(({ command, args }) => command === 'blockdev-mirror' && args?.['sync'] === 'none')).toHaveLength(2);
    await expectWhole(guest);
    await expectClean(lab, { 'new-c': ['rearm'] });
  }, 180_000);

  test('a 10.0 that has handed everything over to a destination which dies before its marker runs the guest on, and can move it again', async () => {
    const guest = await lab.boot('new-b', 'revived', WRITING);
    let killed = false;
    tap.before('new-c', 'query-block-exports', async () => {
      if (killed || !tap.sent.some(({ command }) => command === 'migrate-continue')) return;
      killed = true;
      await lab.sourceCompleted('new-b', 'revived');
      await killAndTell('new-c', 'revived');
    });
    await expect(lab.move('revived', 'new-c', { memoryTries: 1 })).rejects.toMatchObject({ type: 'DestinationDied' });
    expect(killed).toBe(true);
    await expectRuns(lab, 'new-b', 'revived');
    await expectWhole(guest);
    await expectClean(lab, { 'new-b': ['revived'] });
    expect(await lab.move('revived', 'new-c')).toMatchObject({ outcome: 'completed' });
    await expectWhole(guest);
    await expectClean(lab, { 'new-c': ['revived'] });
  }, 240_000);

  test('a guest of the machine type of 10.0, even by an alias, is refused to 7.2 before anything is changed, and writes on', async () => {
    const guest = await lab.boot('new-b', 'modern', { ...WRITING, extra: { machine: 'q35' } });
    await expect(lab.move('modern', 'old-a')).rejects.toMatchObject({
      type: 'MigrationRefused',
      details: { blockers: ['/usr/bin/qemu-system-x86_64 on old-a has no machine type pc-q35-10.0: it is older than the source\'s, upgrade QEMU there'] },
    });
    await expectRuns(lab, 'new-b', 'modern');
    await lab.written(guest, 400);
    await expectWhole(guest);
    await expectClean(lab, { 'new-b': ['modern'] });
  });

  test('a guest that 7.2 cannot start for its machine type is told so in QEMU\'s words', async () => {
    lab.makeImages('old-a', 'modern');
    await lab.client.onHost('old-a', 'defineGuest', { definition: lab.definition('modern', { extra: { machine: 'pc-q35-10.0' } }) });
    await expect(lab.client.onHost('old-a', 'startGuest', { guest: 'modern' })).rejects.toThrow(/unsupported machine type/);
    expect(lab.processes('old-a')).toEqual([]);
  });

  test('a guest goes by TLS from 7.2 to 10.0, and on to another 10.0', async () => {
    const certs = join(lab.folder, 'certs');
    const hosts = { 'tls-old': undefined, 'tls-new': binaries, 'tls-next': binaries };
    await ensureCertificates(certs, Object.keys(hosts).map((name) => ({ name })), 10);
    for (const [name, programs] of Object.entries(hosts)) await lab.addHost(name, { tls: { dir: join(certs, name) }, ...(programs && { binaries: programs }) });
    const guest = await lab.boot('tls-old', 'safe', { rate: '1M', disks: [{}] }, 60);
    await lab.move('safe', 'tls-new');
    expect(await version('tls-new', 'safe')).toBe('10.0');
    await lab.move('safe', 'tls-next');
    await expectWhole(guest);
    await expectClean(lab, { 'tls-next': ['safe'] });
  }, 120_000);
});
