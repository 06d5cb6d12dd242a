import { execFileSync } from 'node:child_process';
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expectClean, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open();
}, 60_000);
afterEach(async () => await lab.reset());
afterAll(async () => await lab?.close());

test('a guest that writes to two raw virtio-scsi disks arrives with every block and page, and nothing is left behind', async () => {
  const guest = await lab.boot('host-a', 'plain');
  const result = await lab.move('plain', 'host-b');
  expect(result).toMatchObject({ vm: 'plain', from: 'host-a', to: 'host-b', outcome: 'completed' });
  expect(result.downtimeMs).toBeGreaterThan(0);
  await lab.written(guest, 400);
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['plain'] });
  const history = await lab.history('plain');
  // Beside the steps: at most four quarters of a copy that are told, of four events each.
  expect(history.events!.length).toBeLessThanOrEqual(120 + 4 * 4);
});

test('a guest goes there and back three times', async () => {
  const guest = await lab.boot('host-a', 'commuter');
  for (let round = 0; round < 3; round++) {
    await lab.move('commuter', 'host-b');
    await lab.move('commuter', 'host-a');
  }
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['commuter'] });
}, 240_000);

test('two guests that move at once in opposite directions both arrive whole', async () => {
  const [east, west] = [await lab.boot('host-a', 'east'), await lab.boot('host-b', 'west')];
  await Promise.all([lab.move('east', 'host-b'), lab.move('west', 'host-a')]);
  await expectWhole(east);
  await expectWhole(west);
  await expectClean(lab, { 'host-a': ['west'], 'host-b': ['east'] });
}, 240_000);

test('qcow2 images on virtio-blk arrive whole, of the same size, sparse and consistent', async () => {
  const disks = [{ id: 'system', format: 'qcow2', bus: 'virtio-blk', sizeBytes: 48 * MIB }, { id: 'data', format: 'qcow2', bus: 'virtio-blk', sizeBytes: 256 * MIB }] as const;
  const guest = await lab.boot('host-a', 'cow', { disks: [...disks], region: '16M' });
  await lab.move('cow', 'host-b');
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['cow'] });
});

test('a qcow2 image has the same virtual size, stays sparse and passes qemu-img check after a move', async () => {
  const disks = [{ format: 'qcow2', bus: 'virtio-blk', sizeBytes: 512 * MIB }] as const;
  await lab.boot('host-a', 'sparse', { disks: [...disks], region: '8M' });
  await lab.move('sparse', 'host-b');
  await lab.client.onHost('host-b', 'stopGuest', { guest: 'sparse', graceMs: 0 });
  const image = lab.image('host-b', 'sparse-0.qcow2');
  expect(JSON.parse(execFileSync('qemu-img', ['info', '--output=json', image], { encoding: 'utf8' }))).toMatchObject({ 'virtual-size': 512 * MIB, format: 'qcow2' });
  execFileSync('qemu-img', ['check', '-q', image]);
  expect(lab.allocated(image)).toBeLessThan(64 * MIB);
});

test('disks of odd sizes arrive with the same size to the byte', async () => {
  const sizes = [32 * MIB + 512, 8 * MIB + 61_440 + 1024];
  const guest = await lab.boot('host-a', 'odd', { disks: sizes.map((sizeBytes) => ({ sizeBytes })) });
  await lab.move('odd', 'host-b');
  await expectWhole(guest);
  sizes.forEach((size, index) => expect(readFileSync(lab.image('host-b', `odd-${index}.raw`)).length).toBe(size));
  await expectClean(lab, { 'host-b': ['odd'] });
});

test('a paused guest arrives paused, can move again, and runs on when it is told to', async () => {
  const guest = await lab.boot('host-a', 'paused');
  await lab.look('host-a', 'paused', async (qmp) => await qmp.execute('stop'));
  await lab.move('paused', 'host-b');
  expect(await lab.look('host-b', 'paused', async (qmp) => await qmp.execute('query-status'))).toMatchObject({ running: false, status: 'paused' });
  await lab.move('paused', 'host-a');
  expect(await lab.look('host-a', 'paused', async (qmp) => await qmp.execute('query-status'))).toMatchObject({ running: false, status: 'paused' });
  await lab.look('host-a', 'paused', async (qmp) => await qmp.execute('cont'));
  await guest.nextTick();
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['paused'] });
}, 240_000);

const root = process.getuid!() === 0;
if (!root) console.log('skipped: the test with loop devices needs root');
(root ? test : test.skip)('a raw block device moves onto a larger block device', async () => {
  const attach = (host: string, bytes: number) => {
    const backing = lab.image(host, 'backing');
    writeFileSync(backing, '');
    execFileSync('truncate', ['-s', String(bytes), backing]);
    const device = execFileSync('losetup', ['--find', '--show', backing], { encoding: 'utf8' }).trim();
    symlinkSync(device, join(lab.folder, host, 'devices', 'block-0'));
    return device;
  };
  const devices = [attach('host-a', 32 * MIB), attach('host-b', 48 * MIB)];
  try {
    const guest = await lab.boot('host-a', 'block', { disks: [{ path: '${devices}/block-0' }] });
    await lab.move('block', 'host-b');
    await expectWhole(guest);
    execFileSync('sh', ['-c', `rm ${lab.image('host-a', 'backing')} ${lab.image('host-b', 'backing')}`]);
    await expectClean(lab, { 'host-b': ['block'] });
  } finally {
    devices.forEach((device) => execFileSync('losetup', ['--detach', device]));
  }
});
