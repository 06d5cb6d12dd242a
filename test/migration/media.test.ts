import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { deleteExpiredImages } from '../../workers/host-agent';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';

/** What moves with a guest besides its disks, what does not, what stays behind for a time, and the ports that it takes. */
let lab: Lab;
const isos = (host: string, name = '') => join(lab.folder, host, 'isos', name);
beforeAll(async () => {
  lab = await Lab.open({});
  for (const [name, address] of [['host-a', '127.0.0.1'], ['host-b', '::1']] as const) {
    mkdirSync(isos(name), { recursive: true });
    await lab.addHost(name, { address, roots: { isos: isos(name), ovmf: '/usr/share/OVMF' } });
  }
}, 60_000);
afterEach(async () => await lab.reset());
afterAll(async () => await lab?.close());

const keptOn = (host: string) => readdirSync(join(lab.folder, host, 'images')).filter((name) => name.includes('.kept-')).sort();

test('the variable store of a UEFI guest moves with it, to the byte', async () => {
  const template = '/usr/share/OVMF/OVMF_VARS_4M.fd';
  copyFileSync(template, lab.image('host-a', 'uefi-vars.fd'));
  // With half the memory OVMF stops at an invalid opcode before it starts the kernel.
  const guest = await lab.boot('host-a', 'uefi', { disks: [{}], extra: { memory: '262152K', firmware: { code: '${ovmf}/OVMF_CODE_4M.fd', variables: '${images}/uefi-vars.fd' } } });
  const result = await lab.move('uefi', 'host-b', { sourceDisks: 'keep' });
  expect(result.disks).toEqual([{ id: 'drive-scsi-disk-0', sizeBytes: 32 * MIB }, { id: 'firmware-variables', sizeBytes: 528 * 1024 }]);
  await expectWhole(guest);
  const [kept] = keptOn('host-a').filter((name) => name.startsWith('uefi-vars.fd'));
  const [before, arrived] = [readFileSync(lab.image('host-a', kept!)), readFileSync(lab.image('host-b', 'uefi-vars.fd'))];
  // The firmware has written its boot options, which a store made anew would not have.
  expect(before.equals(readFileSync(template))).toBe(false);
  expect(before.includes(Buffer.from('BootOrder', 'utf16le'))).toBe(true);
  expect(arrived.length).toBe(528 * 1024);
  expect(arrived.equals(before)).toBe(true);
  await deleteExpiredImages(lab.agents.get('host-a')!.host, lab.logger, new Date(Date.now() + 25 * 3_600_000));
  await expectClean(lab, { 'host-b': ['uefi'] });
  await lab.move('uefi', 'host-a');
  expect(readFileSync(lab.image('host-a', 'uefi-vars.fd')).equals(before)).toBe(true);
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['uefi'] });
});

test('read-only and removable media are not copied: they must be at the destination, and are left alone on both sides', async () => {
  const media = { cd: 'install.iso', tools: 'tools.img' };
  for (const name of Object.values(media)) writeFileSync(isos('host-a', name), Buffer.alloc(MIB, name));
  const guest = await lab.boot('host-a', 'media', { disks: [{}, { id: 'cd', path: '${isos}/install.iso', removable: true }, { id: 'tools', path: '${isos}/tools.img', readOnly: true }], skip: ['sdb'] });
  const refusal: unknown = await lab.move('media', 'host-b').catch((error: unknown) => error);
  expect(refusal).toMatchObject({
    type: 'MigrationRefused',
    details: { blockers: Object.entries(media).map(([id, name]) => `read-only or removable disk ${id} is not copied and must be on host-b, but ${isos('host-b', name)} is missing`) },
  });
  await expectRuns(lab, 'host-a', 'media');
  await expectClean(lab, { 'host-a': ['media'] });

  for (const name of Object.values(media)) copyFileSync(isos('host-a', name), isos('host-b', name));
  const look = () => ['host-a', 'host-b'].flatMap((host) => Object.values(media).map((name) => [isos(host, name), statSync(isos(host, name)).ino, statSync(isos(host, name)).mtimeMs]));
  const before = look();
  const result = await lab.move('media', 'host-b');
  expect(result.disks.map(({ id }) => id)).toEqual(['drive-scsi-disk-0']);
  expect(look()).toEqual(before);
  const blocks = await lab.look('host-b', 'media', async (qmp) => await qmp.execute('query-block'));
  expect(blocks.flatMap(({ inserted }) => (inserted?.ro ? [inserted.file] : [])).sort()).toEqual(Object.values(media).map((name) => isos('host-b', name)));
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['media'] });
});

test('source images that are kept are put aside, are in nobody\'s way, and are deleted when they are due', async () => {
  const guest = await lab.boot('host-a', 'keeper');
  const expire = async (host: string, hours: number) => await deleteExpiredImages(lab.agents.get(host)!.host, lab.logger, new Date(Date.now() + hours * 3_600_000));
  await lab.move('keeper', 'host-b', { sourceDisks: 'keep', keepHours: 1 });
  const attempt = /\.kept-(\w+)$/.exec(keptOn('host-a')[0]!)![1];
  expect(keptOn('host-a')).toEqual([`keeper-0.raw.kept-${attempt}`, `keeper-1.raw.kept-${attempt}`]);
  expect(keptOn('host-a').map((name) => statSync(lab.image('host-a', name)).size)).toEqual([32 * MIB, 32 * MIB]);
  expect((await lab.client.onHost('host-a', 'listGuests')).map(({ name }) => name)).toEqual([]);

  // The guest may come back beside its old images, and an agent that starts again still knows them.
  await lab.move('keeper', 'host-a', { sourceDisks: 'keep', keepHours: 3 });
  // A run's id begins with the time: what two attempts within a minute make must not bear one name.
  expect(keptOn('host-b')[0]).not.toContain(attempt);
  await lab.stopAgent('host-a');
  await lab.startAgent('host-a');
  await expire('host-a', 0.9);
  expect(keptOn('host-a')).toHaveLength(2);
  await expire('host-a', 1.1);
  await expire('host-b', 1.1);
  expect({ a: keptOn('host-a').length, b: keptOn('host-b').length }).toEqual({ a: 0, b: 2 });
  await expire('host-b', 3.1);
  await expire('host-b', 3.1);
  expect(existsSync(join(lab.config('host-b').stateDir, 'kept-images.json'))).toBe(false);
  await expectRuns(lab, 'host-a', 'keeper');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['keeper'] });
});

describe('two hosts on one address, with the same few ports', () => {
  const taken: Server[] = [];
  const occupy = async (port: number) => {
    const server = createServer();
    taken.push(server);
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
  };
  const release = async () => await Promise.all(taken.splice(0).map((server) => new Promise((resolve) => server.close(resolve))));
  afterEach(release);

  /** So many ports in a row that nobody listens on, below those that the kernel hands out. */
  async function freeRange(count: number): Promise<{ from: number; to: number }> {
    for (let from = 21_000; ; from += count) {
      try {
        for (let port = from; port < from + count; port++) await occupy(port);
        return { from, to: from + count - 1 };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
      } finally {
        await release();
      }
    }
  }

  test('move two guests at once in opposite directions; with every port taken a move is given up, and works when one is free', async () => {
    // An agent's own, and two a move: not one to spare.
    const ports = await freeRange(6);
    for (const name of ['twin-a', 'twin-b']) await lab.addHost(name, { address: '127.0.0.1', ports });
    const [east, west] = [await lab.boot('twin-a', 'east'), await lab.boot('twin-b', 'west')];
    for (const [eastTo, westTo] of [['twin-b', 'twin-a'], ['twin-a', 'twin-b']] as const) {
      const results = await Promise.all([lab.move('east', eastTo), lab.move('west', westTo)]);
      expect(results).toMatchObject([{ outcome: 'completed' }, { outcome: 'completed' }]);
      await expectWhole(east);
      await expectWhole(west);
      await expectClean(lab, { [eastTo]: ['east'], [westTo]: ['west'] });
    }

    for (let port = ports.from; port <= ports.to; port++) await occupy(port).catch(() => undefined);
    await expect(lab.move('east', 'twin-b')).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining(`host twin-b has no free port between ${ports.from} and ${ports.to} on 127.0.0.1: widen ports in its configuration`) });
    await expectRuns(lab, 'twin-a', 'east');
    await expectClean(lab, { 'twin-a': ['east'], 'twin-b': ['west'] });
    await release();
    await lab.move('east', 'twin-b');
    await expectWhole(east);
    await expectClean(lab, { 'twin-b': ['east', 'west'] });
  }, 180_000);
});
