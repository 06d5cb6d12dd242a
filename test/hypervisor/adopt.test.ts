import { chownSync, linkSync, mkdirSync, readFileSync, renameSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AdoptionRefused, adoptProcess, describeProcess, findQemuProcesses } from '../../hypervisor/adopt';
import { findBlock } from '../../hypervisor/blocks';
import { qemuArguments } from '../../hypervisor/command-line';
import { movingDisks } from '../../hypervisor/definition';
import { identify, run, terminate } from '../../hypervisor/processes';
import { QmpMonitor } from '../../qmp/monitor';
import { deleteFolders, hostIn, temporaryFolder } from './fixtures';
import { LiveGuest, migrate, QEMU } from './live-guest';

let folder: string;
const started: LiveGuest[] = [];
beforeEach(() => void (folder = temporaryFolder()));
afterEach(async () => {
  await Promise.all(started.splice(0).map((guest) => guest.end()));
  deleteFolders();
});

/** A host with the images of the guests here. */
async function hostAt(name: string) {
  const config = hostIn(join(folder, name), { name: `host-${name}` }, { firmware: '/usr/share/OVMF' });
  for (const [file, size] of [['a.raw', 4], ['b.raw', 8], ['c.iso', 2], ['vars.fd', 0.5]] as const) {
    writeFileSync(join(folder, name, 'images', file), '');
    truncateSync(join(folder, name, 'images', file), size * 2 ** 20);
  }
  await run('/usr/bin/qemu-img', ['create', '-q', '-f', 'qcow2', join(folder, name, 'images', 'q.qcow2'), '3M']);
  return config;
}

/** A stopped QEMU as somebody else would start it, below this host's folder. */
async function foreign(argv: string[], name = 'a', cwd = '/'): Promise<LiveGuest> {
  const socket = join(folder, name, 'qmp.sock');
  const guest = await LiveGuest.start(['-S', '-qmp', `unix:${socket},server=on,wait=off`, ...argv], socket, cwd);
  started.push(guest);
  return guest;
}

const images = (name = 'a') => join(folder, name, 'images');
const REPORT = () => [
  '-name', 'web1', '-machine', 'q35', '-cpu', 'qemu64', '-m', 'size=32776K', '-nographic', '-serial', `unix:${folder}/a/serial.sock,server,nowait`, '-monitor', `unix:${folder}/a/hmp.sock,server=on,wait=off`,
  '-drive', `file=${images()}/a.raw,if=none,id=drive-scsi-disk-0,aio=native,cache.direct=on,format=raw`, '-drive', `file=${images()}/b.raw,if=none,id=drive-scsi-disk-1,aio=native,cache.direct=on,format=raw`,
  '-device', 'virtio-scsi-pci,id=scsi0', '-device', 'scsi-hd,drive=drive-scsi-disk-0,bus=scsi0.0', '-device', 'scsi-hd,drive=drive-scsi-disk-1,bus=scsi0.0,id=second',
];

test.each<[string, () => string[]]>([
  ['the report\'s guest', REPORT],
  ['a guest of shorthands and default devices', () => ['-name', 'web1', '-m', '32776K', '-drive', `file=${images()}/a.raw,format=raw`, '-hdb', `${images()}/b.raw`, '-cdrom', `${images()}/c.iso`, '-drive', `file=${images()}/q.qcow2,if=virtio`, '-display', 'none', '-serial', 'null']],
  [
    'a guest of block nodes, firmware and a CD',
    () => [
      '-name', 'web1', '-nodefaults', '-display', 'none', '-machine', 'q35', '-m', '32776K', '-smp', '2', '-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n',
      '-drive', 'if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd', '-drive', `if=pflash,format=raw,file=${images()}/vars.fd`,
      '-blockdev', `driver=file,filename=${images()}/q.qcow2,node-name=qf`, '-blockdev', 'qcow2,file=qf,node-name=q', '-device', 'virtio-blk-pci,drive=q,id=vd',
      '-blockdev', `{"driver":"raw","node-name":"cd","read-only":true,"file":{"driver":"file","filename":"${images()}/c.iso"}}`, '-device', 'ide-cd,drive=cd,bus=ide.2',
    ],
  ],
])('%s is adopted; on a host with other folders it is the same machine, and takes its state', async (_case, argv) => {
  const [here, there] = [await hostAt('a'), await hostAt('b')];
  const source = await foreign(argv());
  const { definition, monitor, blocks } = await adoptProcess(here, source.pid, () => source.monitor);
  expect(definition).toMatchObject({ name: 'web1', memory: 32776 * 1024, accelerator: 'tcg', machine: expect.stringMatching(/-7\.2$/) });
  expect(monitor).toBe(join(folder, 'a/qmp.sock'));
  expect(JSON.stringify(definition)).not.toContain(folder);
  for (const disk of movingDisks(definition)) expect(findBlock(blocks, disk)).toMatchObject({ file: disk.path.replace('${images}', images()), format: disk.format });

  const destination = await LiveGuest.launch(there, definition);
  started.push(destination);
  expect(await destination.machine()).toEqual(await source.machine());
  await migrate(source, destination, join(folder, 'm.sock'));
  expect(destination.printed.replace(/^WARNING: Image format was not specified for [^]*?restrictions\.\n/, '')).toBe('');
});

test('formats, and what is read-only, are as QEMU has them, whatever the command line left out', async () => {
  const config = await hostAt('a');
  const guest = await foreign(['-name', 'x', '-display', 'none', '-m', '32776K', '-drive', `file=${images()}/q.qcow2,if=virtio`, '-cdrom', `${images()}/c.iso`]);
  const { definition } = await adoptProcess(config, guest.pid, () => guest.monitor);
  expect(definition.disks).toEqual([expect.objectContaining({ id: 'virtio0', format: 'qcow2', readOnly: false }), expect.objectContaining({ readOnly: true, removable: true })]);
});

test('a guest that left its root folder, its user and its parent is adopted without them, if it can reach its images there', async () => {
  const config = await hostAt('a');
  const [socket, pidFile, jail] = ['qmp.sock', 'web1.pid', 'jail'].map((file) => join(folder, 'a', file)) as [string, string, string];
  mkdirSync(jail);
  const argv = REPORT().filter((word) => word !== '-nographic');
  await run(QEMU, ['-daemonize', '-display', 'none', '-S', '-qmp', `unix:${socket},server,nowait`, '-pidfile', pidFile, '-chroot', jail, '-runas', 'nobody', ...argv]);
  const identity = identify(Number(readFileSync(pidFile, 'utf8')))!;
  const monitor = new QmpMonitor(socket);
  try {
    expect(describeProcess(identity.pid)).toMatchObject({ ...identity, root: jail, cwd: jail, uid: 65534 });
    const refused = () => adoptProcess(config, identity.pid, () => monitor);
    await expect(refused()).rejects.toThrow(/disk drive-scsi-disk-0: QEMU cannot open its image again \(.*No such file.*drive-scsi-disk-1: QEMU cannot open/s);
    mkdirSync(join(jail, images()), { recursive: true });
    for (const file of ['a.raw', 'b.raw']) linkSync(`${images()}/${file}`, join(jail, images(), file));
    await expect(refused()).rejects.toThrow(/disk drive-scsi-disk-0: QEMU cannot open its image again \(.*Permission denied.*: make .*a\.raw the same file in its root folder .*jail, for user 65534 to read and write/s);
    for (const file of ['a.raw', 'b.raw']) chownSync(`${images()}/${file}`, 65534, -1);
    const { definition } = await adoptProcess(config, identity.pid, () => monitor);
    for (const word of ['-daemonize', '-pidfile', '-chroot', '-runas', '-S', 'nobody']) expect(definition.commandLine).not.toContain(word);
    const destination = await LiveGuest.launch(await hostAt('b'), definition);
    started.push(destination);
    expect((await destination.monitor.execute('query-block')).map(({ device }) => device)).toEqual((await monitor.execute('query-block')).map(({ device }) => device));
  } finally {
    monitor.close();
    await terminate(identity, 0);
  }
});

test('a relative path is that of the folder where it runs', async () => {
  const config = await hostAt('a');
  const guest = await foreign(['-name', 'x', '-display', 'none', '-m', '32776K', '-drive', 'file=a.raw,if=virtio,format=raw'], 'a', images());
  expect((await adoptProcess(config, guest.pid, () => guest.monitor)).definition.disks[0]?.path).toBe('${images}/a.raw');
});

test('QEMUs of this host are found with their name and monitor, and only those', async () => {
  const config = await hostAt('a');
  const guest = await foreign(['-name', 'x', '-display', 'none', '-machine', 'none']);
  const found = (await findQemuProcesses(config)).find(({ pid }) => pid === guest.pid);
  expect(found).toMatchObject({ name: 'x', monitor: join(folder, 'a/qmp.sock'), executable: QEMU, root: '/', cwd: '/', uid: process.getuid?.(), startTime: expect.any(Number) });
  expect((await findQemuProcesses(config)).map(({ pid }) => pid)).not.toContain(process.pid);
  expect(await findQemuProcesses(hostIn(folder, { binaries: { qemu: ['/usr/bin/qemu-system-none'] } }))).toEqual([]);
});

test('a process that is gone, or is no QEMU, is refused', async () => {
  const config = await hostAt('a');
  const connect = () => Promise.reject(new Error('not asked')) as never;
  await expect(adoptProcess(config, process.pid, connect)).rejects.toThrow(/add it to binaries\.qemu/);
  const guest = await foreign(['-display', 'none', '-machine', 'none']);
  await guest.end();
  expect(describeProcess(guest.pid)).toBeUndefined();
  await expect(adoptProcess(config, guest.pid, connect)).rejects.toThrow(/no such process/);
});

describe('what was changed since the start is refused:', () => {
  const argv = () => ['-name', 'x', '-display', 'none', '-m', '32776K', '-machine', 'q35', '-smp', '1,maxcpus=2', '-device', 'virtio-scsi-pci,id=scsi0', '-drive', `file=${images()}/a.raw,if=none,id=d,format=raw`, '-device', 'virtio-blk-pci,drive=d,id=vd'];
  type Raw = (command: string, args?: object) => Promise<unknown>;
  test.each<[string, string, (execute: Raw) => Promise<unknown>]>([
    ['a CPU that was plugged in', '2 CPUs, and started with 1', (execute) => execute('device_add', { driver: 'qemu64-x86_64-cpu', id: 'cpu1', 'socket-id': 0, 'core-id': 1, 'thread-id': 0 })],
    ['a device that was plugged in', 'device late was plugged in', (execute) => execute('device_add', { driver: 'scsi-cd', id: 'late', bus: 'scsi0.0' })],
    ['a disk that was plugged in', 'is not of its command line', async (execute) => {
      await execute('blockdev-add', { driver: 'raw', 'node-name': 'late', file: { driver: 'file', filename: `${images()}/b.raw` } });
      await execute('device_add', { driver: 'scsi-hd', bus: 'scsi0.0', drive: 'late' });
    }],
    ['a CD that was inserted', 'is not of its command line', (execute) => execute('blockdev-change-medium', { device: 'ide2-cd0', filename: `${images()}/c.iso`, format: 'raw' })],
    ['a disk that went to an overlay', 'merge its snapshot', async (execute) => {
      await execute('blockdev-snapshot-sync', { device: 'd', 'snapshot-file': `${images()}/overlay.qcow2`, format: 'qcow2' });
    }],
    ['an image that was replaced', 'replaced, renamed or deleted', async () => {
      renameSync(`${images()}/a.raw`, `${images()}/old.raw`);
      writeFileSync(`${images()}/a.raw`, '');
    }],
    ['an image that was deleted', 'replaced, renamed or deleted', async () => renameSync(`${images()}/a.raw`, `${images()}/gone.raw`)],
  ])('%s', async (_case, reason, change) => {
    const config = await hostAt('a');
    const guest = await foreign(argv());
    const execute = guest.monitor.execute as unknown as Raw;
    await expect(adoptProcess(config, guest.pid, () => guest.monitor)).resolves.toMatchObject({ definition: { name: 'x' } });
    await change(execute);
    await expect(adoptProcess(config, guest.pid, () => guest.monitor)).rejects.toThrow(reason);
  });
});

test('everything that is refused is said at once', async () => {
  const config = await hostAt('a');
  mkdirSync(join(folder, 'elsewhere'));
  writeFileSync(join(folder, 'elsewhere/x.raw'), Buffer.alloc(2 ** 20));
  const guest = await foreign(['-display', 'none', '-m', '32776K', '-machine', 'q35', '-drive', `file=${folder}/elsewhere/x.raw,if=virtio,format=raw`, '-vnc', '127.0.0.1:73']);
  const refused: unknown = await adoptProcess(config, guest.pid, () => guest.monitor).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(AdoptionRefused);
  const { reasons, message } = refused as AdoptionRefused;
  ['add a root for', 'TCP port', 'no name'].forEach((part) => expect(reasons.join('\n')).toContain(part));
  expect(message).toContain(String(guest.pid));
});

test('a disk is found while it is mirrored, behind its filter, and QEMU takes the name it is given', async () => {
  await hostAt('a');
  const guest = await foreign(['-name', 'x', '-display', 'none', '-nodefaults', '-m', '32776K', '-drive', `file=${images()}/a.raw,if=none,id=d,format=raw`, '-device', 'virtio-blk-pci,drive=d', '-blockdev', `driver=file,node-name=n,filename=${images()}/b.raw`, '-device', 'virtio-blk-pci,drive=n,id=vd', '-blockdev', `driver=file,node-name=t1,filename=${images()}/t1.raw`, '-blockdev', `driver=file,node-name=t2,filename=${images()}/t2.raw`].map((word) => {
    if (/t[12]\.raw$/.test(word)) truncateTo(word.replace(/.*filename=/, ''), word.includes('t1') ? 4 : 8);
    return word;
  }));
  const disks = [{ id: 'd', path: '${images}/a.raw' }, { id: 'n', path: '${images}/b.raw' }];
  const before = await guest.monitor.execute('query-block');
  expect(disks.map((disk) => findBlock(before, disk)?.device)).toEqual(['d', 'n']);
  const auto = before.find(({ device }) => device === 'd')?.inserted?.['node-name'];
  expect(auto).toMatch(/^#block\d+$/);
  for (const [index, device] of [auto!, 'n'].entries()) {
    await guest.monitor.execute('blockdev-mirror', { 'job-id': `j${index}`, device, target: `t${index + 1}`, sync: 'full', 'filter-node-name': `filter${index}`, 'auto-dismiss': false } as never);
  }
  const during = await guest.monitor.execute('query-block');
  expect(during.map(({ inserted }) => inserted?.['node-name'])).toEqual(['filter0', 'filter1']);
  expect(disks.map((disk) => findBlock(during, disk))).toEqual([
    expect.objectContaining({ device: 'd', format: 'raw', sizeBytes: 4 * 2 ** 20 }),
    expect.objectContaining({ format: 'file', sizeBytes: 8 * 2 ** 20, qdev: '/machine/peripheral/vd/virtio-backend' }),
  ]);
});

function truncateTo(path: string, mebibytes: number): void {
  writeFileSync(path, '');
  truncateSync(path, mebibytes * 2 ** 20);
}

test('an adopted guest can be started again on its own host', async () => {
  const config = await hostAt('a');
  const guest = await foreign(REPORT());
  const { definition } = await adoptProcess(config, guest.pid, () => guest.monitor);
  expect(qemuArguments(config, definition, { incoming: false })).toEqual(expect.arrayContaining(['-machine', 'pc-q35-7.2', '-S', '-pidfile']));
});
