import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { guestArtifacts, guestKernelArguments, type GuestOptions } from '../../demo/guest/artifacts';
import { hostNowMs, TestGuest } from '../../demo/guest/test-guest';

const MIB = 1 << 20;
const BLOCK = 16_384;

let folder: string;
let qemu: ChildProcess;
let guest: TestGuest;
let boots = 0;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vmferry-guest-'));
  guest = new TestGuest();
});

afterEach(async () => {
  guest.close();
  await kill();
  await rm(folder, { recursive: true });
});

/** Starts a guest on these disks, which keep what they hold. */
async function boot(diskBytes: number[], attach: (disk: number) => string[], options: GuestOptions = {}): Promise<void> {
  const { kernel, initrd } = guestArtifacts();
  const serial = join(folder, `serial${boots++}`);
  const disks: string[] = [];
  for (const [i, bytes] of diskBytes.entries()) {
    await (await open(disk(i), 'a')).close();
    await truncate(disk(i), bytes);
    disks.push('-blockdev', `driver=raw,node-name=disk${i},file.driver=file,file.filename=${disk(i)}`, ...attach(i));
  }
  const began = hostNowMs();
  qemu = spawn('qemu-system-x86_64', [
    '-nodefaults', '-display', 'none', '-machine', 'pc-q35-7.2,accel=tcg', '-cpu', 'qemu64', '-m', 'size=262152K',
    '-kernel', kernel, '-initrd', initrd, '-append', guestKernelArguments(options),
    '-chardev', `socket,id=serial,path=${serial},server=on,wait=off`, '-serial', 'chardev:serial',
    ...disks,
  ], { stdio: 'inherit' });
  await guest.attach(serial);
  await guest.nextTick({ after: began, timeoutMs: 60_000 });
  await guest.ready();
}

async function kill(): Promise<void> {
  if (qemu.exitCode !== null || qemu.signalCode !== null) return;
  qemu.kill('SIGKILL');
  await once(qemu, 'exit');
}

const disk = (index: number): string => join(folder, `disk${index}.raw`);
const scsi = (i: number): string[] => [...(i === 0 ? ['-device', 'virtio-scsi-pci,id=scsi'] : []), '-device', `scsi-hd,bus=scsi.0,drive=disk${i}`];
const blk = (i: number): string[] => ['-device', `virtio-blk-pci,drive=disk${i}`];

/** Waits, by the guest's own ticks, until it has completed that many writes. */
async function writesCompleted(atLeast: number): Promise<void> {
  for (;;) {
    const written = Number(/written=(\d+)/.exec(await guest.command('stats'))![1]);
    if (written >= atLeast) return;
    await guest.nextTick();
  }
}

async function corrupt(index: number, block: number): Promise<void> {
  const file = await open(disk(index), 'r+');
  await file.write(Buffer.from('not what the guest wrote'), 0, undefined, block * BLOCK + 64);
  await file.close();
}

test('on virtio-scsi, everything written is found again, and a block changed behind its back is named', async () => {
  await boot([32 * MIB, 32 * MIB], scsi, { region: '1M' });
  expect(await guest.command('disks')).toBe(`count=2 0:sda:${32 * MIB}:2048 1:sdb:${32 * MIB}:2048`);

  await writesCompleted(2000);
  const clean = await guest.verify();
  expect(clean).toMatchObject({ blocksChecked: 4096, blocksWritten: 128, blocksLost: 0, memoryErrors: 0, writeErrors: 0, first: [] });
  expect(clean.writesCompleted).toBeGreaterThanOrEqual(2000);

  await guest.command('pause');
  await corrupt(1, 7);
  await corrupt(0, 2000);
  const bad = await guest.verify();
  expect(bad).toMatchObject({ blocksLost: 2, memoryErrors: 0 });
  expect(bad.first).toEqual(['0:2000:0:foreign', expect.stringMatching(/^1:7:\d+:torn$/)]);

  const paused = await guest.command('stats');
  await guest.nextTick();
  expect(await guest.command('stats')).toBe(paused);
  await guest.command('resume');
  await writesCompleted(bad.writesCompleted + 1);
});

test('on virtio-blk, a disk of an odd size is checked to its last sector', async () => {
  await boot([33 * MIB + 512, 32 * MIB, 4096], blk, { rate: '100M', dirty: '1M' });
  expect(await guest.command('disks')).toBe(`count=2 0:vda:${33 * MIB + 512}:2113 1:vdb:${32 * MIB}:2048`);

  await writesCompleted(12_000);
  await guest.command('rate 0');
  const { blocksChecked, blocksLost, memoryErrors, blocksWritten } = await guest.verify();
  expect({ blocksChecked, blocksLost, memoryErrors }).toEqual({ blocksChecked: 4161, blocksLost: 0, memoryErrors: 0 });
  expect(blocksWritten).toBeGreaterThan(3500);

  await corrupt(0, 2112);
  expect((await guest.verify()).first).toEqual([expect.stringMatching(/^0:2112:\d+:(torn|foreign)$/)]);
});

test('what an earlier run left on the disk is not taken for its own, unless told to expect other data', async () => {
  await boot([MIB], blk, { rate: 0 });
  await guest.command('rate 1M');
  await writesCompleted(50);
  await kill();
  await boot([MIB], blk, { rate: 0, dirtyBase: true });
  expect(await guest.verify()).toMatchObject({ blocksChecked: 0, blocksLost: 0 });

  await kill();
  await boot([MIB], blk, { rate: 0 });
  const { blocksLost, first } = await guest.verify();
  expect(blocksLost).toBeGreaterThan(20);
  expect(new Set(first.map((bad) => bad.split(':')[3]))).toEqual(new Set(['foreign']));
  expect([guest.restarts, guest.duplicateTicks]).toEqual([2, 0]);
});

test('a guest whose QEMU is stopped shows a gap as long as the stop, and no burst after it', async () => {
  await boot([MIB], blk, { rate: 0 });
  const stopped = hostNowMs();
  qemu.kill('SIGSTOP');
  await new Promise((resolve) => setTimeout(resolve, 500)); // the stop itself is the event
  qemu.kill('SIGCONT');
  const continued = hostNowMs();
  await guest.nextTick({ after: continued + 100 });
  expect(guest.longestGapMs(stopped)).toBeGreaterThan(450);
  expect(guest.ticksSince(continued).length).toBeLessThan(30);
  expect(guest.duplicateTicks).toBe(0);
});
