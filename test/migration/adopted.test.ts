import { spawn } from 'node:child_process';
import { chownSync, closeSync, constants, existsSync, linkSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { guestArtifacts, guestKernelArguments } from '../../demo/guest/artifacts';
import { TestGuest } from '../../demo/guest/test-guest';
import { describeProcess } from '../../hypervisor/adopt';
import { identify, isAlive, type ProcessIdentity, run, terminate } from '../../hypervisor/processes';
import { QEMU } from '../hypervisor/live-guest';
import { confinement } from '../support/confinement';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MEMORY, MIB } from '../support/lab';

/** Guests that somebody else started, just as in the report, are adopted while they run, and moved. Their disks need O_DIRECT, which tmpfs has only since Linux 6.6. */
let lab: Lab;
const foreign: ProcessIdentity[] = [];
beforeAll(async () => {
  lab = await Lab.open(undefined, ['/dev/shm', '/var/tmp'].find(hasDirectIo));
}, 60_000);
afterEach(async () => {
  for (const identity of foreign.splice(0)) await terminate(identity, 0);
  await lab.reset();
});
afterAll(async () => await lab?.close());

function hasDirectIo(folder: string): boolean {
  const path = join(folder, `vmf-direct-${process.pid}`);
  try {
    closeSync(openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_DIRECT));
    return true;
  } catch {
    return false;
  } finally {
    rmSync(path, { force: true });
  }
}

const NOBODY = 65534;
const theirs = (name: string, file = '') => join(lab.folder, 'theirs', name, file);

/** The report's command line; `-nographic` or what stands for it is the caller's. */
function report(name: string): string[] {
  const { kernel, initrd } = guestArtifacts();
  const unix = (file: string) => `unix:${theirs(name, file)},server=on,wait=off`;
  const disks = [0, 1].map((index) => ({ id: `drive-scsi-disk-${index}`, file: lab.image('host-a', `${name}-${index}.raw`) }));
  return [
    '-name', name, '-machine', 'q35', '-cpu', 'qemu64', '-m', `size=${MEMORY}`, '-device', 'virtio-scsi-pci,id=scsi0',
    ...disks.flatMap(({ id, file }) => ['-drive', `file=${file},if=none,id=${id},aio=native,cache.direct=on,format=raw`, '-device', `scsi-hd,drive=${id},bus=scsi0.0`]),
    '-kernel', kernel, '-initrd', initrd, '-append', guestKernelArguments({ rate: '4M', memory: '8M', dirty: '1M' }),
    '-qmp', unix('qmp.sock'), '-qmp', unix('look.sock'), '-monitor', unix('hmp.sock'), '-serial', unix('serial.sock'),
  ];
}

/** Starts a guest as somebody would who knows nothing of vmferry, and waits until it writes. */
async function startTheirs(name: string, { jailed = false } = {}): Promise<{ guest: TestGuest; qemu: ProcessIdentity }> {
  const jail = theirs(name, 'jail');
  mkdirSync(jail, { recursive: true });
  for (const index of [0, 1]) {
    const image = lab.image('host-a', `${name}-${index}.raw`);
    writeFileSync(image, '');
    truncateSync(image, 32 * MIB);
    if (!jailed) continue;
    // QEMU opens its images again at the end of a move: without this nobody could move such a guest.
    chownSync(image, NOBODY, -1);
    mkdirSync(dirname(join(jail, image)), { recursive: true });
    linkSync(image, join(jail, image));
  }
  let pid: number | undefined;
  if (jailed) {
    await run(QEMU, ['-daemonize', '-pidfile', theirs(name, 'pid'), '-display', 'none', '-chroot', jail, '-runas', 'nobody', ...report(name)]);
    pid = Number(readFileSync(theirs(name, 'pid'), 'utf8'));
  } else {
    pid = spawn(QEMU, ['-nographic', ...report(name)], { detached: true, stdio: 'ignore' }).pid;
  }
  const qemu = identify(pid!)!;
  foreign.push(qemu);
  const guest = new TestGuest();
  lab.guests.set(name, guest);
  await guest.attach(theirs(name, 'serial.sock'));
  await guest.ready();
  await lab.written(guest, 200);
  return { guest, qemu };
}

const adopt = async (pid: number, input = {}) => await lab.client.onHost('host-a', 'adoptGuest', { pid, ...input });
const stateOn = (host: string) => join(lab.config(host).stateDir, 'guests');

test('guests that were started as in the report, one of them in a chroot as nobody, are adopted, move at once and back while they write, and keep every block', async () => {
  const [plain, jailed] = await Promise.all([startTheirs('plain'), startTheirs('jailed', { jailed: true })]);
  expect(await lab.client.onHost('host-a', 'findGuests')).toEqual(expect.arrayContaining([
    expect.objectContaining({ pid: plain.qemu.pid, name: 'plain', monitor: theirs('plain', 'qmp.sock'), root: '/', uid: 0 }),
    expect.objectContaining({ pid: jailed.qemu.pid, name: 'jailed', monitor: theirs('jailed', 'qmp.sock'), root: theirs('jailed', 'jail'), uid: NOBODY }),
  ]));

  const shown = await adopt(jailed.qemu.pid, { dryRun: true });
  expect(existsSync(stateOn('host-a')) ? readdirSync(stateOn('host-a')) : []).toEqual([]);
  const adopted = [await adopt(plain.qemu.pid), await adopt(jailed.qemu.pid)];
  expect(adopted[1]).toEqual(shown);
  for (const [index, name] of ['plain', 'jailed'].entries()) {
    const { definition, monitor } = adopted[index]!;
    expect(monitor).toBe(theirs(name, 'qmp.sock'));
    expect(definition).toMatchObject({
      name, machine: 'pc-q35-7.2', accelerator: 'tcg', memory: 131080 * 1024, monitor: '${run}/qmp.sock', boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img' },
      disks: [0, 1].map((disk) => ({ id: `drive-scsi-disk-${disk}`, path: `\${images}/${name}-${disk}.raw`, format: 'raw', bus: 'virtio-scsi', cache: 'none', aio: 'native' })),
    });
    expect(JSON.stringify(definition)).not.toContain(lab.folder);
    expect(definition.commandLine!.filter((word) => /^-(chroot|runas|daemonize|pidfile)$/.test(word))).toEqual([]);
  }
  await expect(adopt(plain.qemu.pid)).rejects.toMatchObject({ type: 'GuestStateError', message: expect.stringContaining('a guest "plain" is defined on host-a already: adopt it under another name (--name)') });

  // An agent that comes back knows them by what it wrote down.
  await lab.stopAgent('host-a');
  await lab.startAgent('host-a');
  expect(await lab.client.onHost('host-a', 'listGuests')).toMatchObject([{ name: 'jailed', state: 'running', disks: 2 }, { name: 'plain', state: 'running', disks: 2 }]);

  const results = await Promise.all([lab.move('plain', 'host-b'), lab.move('jailed', 'host-b')]);
  expect(results).toMatchObject([{ outcome: 'completed' }, { outcome: 'completed' }]);
  for (const [name, { guest, qemu }] of Object.entries({ plain, jailed })) {
    expect(isAlive(qemu)).toBe(false);
    // Its pid file and sockets, too, though from a chroot it could not remove them itself.
    expect(readdirSync(theirs(name))).toEqual(['jail']);
    await expectRuns(lab, 'host-b', name);
    await expectWhole(guest);
  }
  await expectClean(lab, { 'host-b': ['jailed', 'plain'] });

  await Promise.all([lab.move('plain', 'host-a'), lab.move('jailed', 'host-a')]);
  for (const { guest } of [plain, jailed]) {
    expect(guest.restarts).toBe(0);
    await expectWhole(guest);
  }
  await expectClean(lab, { 'host-a': ['jailed', 'plain'] });
}, 180_000);

const root = process.getuid!() === 0;
if (!root) console.log('skipped: the test with a host that runs guests in a chroot needs root');
(root ? test : test.skip)('a host whose configuration says so runs an adopted guest in its own chroot, as its own user, and lets it go again', async () => {
  const jail = join(lab.folder, 'jail');
  mkdirSync(jail);
  await lab.addHost('host-jail', { chroot: jail, runAs: 'nobody' });
  const { guest, qemu } = await startTheirs('prisoner', { jailed: true });
  await adopt(qemu.pid);
  await lab.move('prisoner', 'host-jail');
  expect(isAlive(qemu)).toBe(false);
  expect(describeProcess(lab.agents.get('host-jail')!.host.process('prisoner')!.pid)).toMatchObject({ root: jail, uid: NOBODY });
  expect(confinement(lab.agents.get('host-jail')!.host.process('prisoner')!.pid)).toEqual({ seccomp: 'filter', noNewPrivileges: true, capabilities: 0n, uids: [NOBODY] });
  await expectWhole(guest);
  await expectClean(lab, { 'host-jail': ['prisoner'] });

  await lab.move('prisoner', 'host-b');
  await expectWhole(guest);
  await expectClean(lab, { 'host-b': ['prisoner'] });
  await lab.look('host-b', 'prisoner', async (qmp) => await qmp.execute('stop'));
  await expect(lab.move('prisoner', 'host-jail')).rejects.toMatchObject({ type: 'MigrationRefused', message: expect.stringContaining('guest "prisoner" is paused, and host-jail has chroot or runAs') });
  await expectClean(lab, { 'host-b': ['prisoner'] });
}, 180_000);
