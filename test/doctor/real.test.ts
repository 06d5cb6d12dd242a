import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { stringify } from 'yaml';
import { ALL_CHECKS, examine } from '../../client/doctor/examine';
import { bootTinyGuest } from '../../hypervisor/doctor/kvm';
import { machinePrograms } from '../../hypervisor/programs';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';

/** The command itself, as a shell runs it. */
const vmferry = async (...args: string[]) => await promisify(execFile)(join(__dirname, '../../bin/vmferry'), ['--temporal-address', lab.server.address, ...args]).then(({ stdout }) => ({ code: 0, stdout }), ({ code, stdout }: { code: number; stdout: string }) => ({ code, stdout }));

let lab: Lab;
let file: string;
beforeAll(async () => {
  lab = await Lab.open();
  file = join(lab.folder, 'host-a.yaml');
  writeFileSync(file, stringify(lab.config('host-a')));
}, 60_000);
afterAll(async () => await lab?.close());

test('doctor looks at all there is of a host that works, finds no problem, and leaves nothing behind', async () => {
  const found = await examine({ file, given: lab.temporal });
  expect(found.filter(({ severity }) => severity === 'problem')).toEqual([]);
  expect([...new Set(found.map(({ check }) => check))]).toEqual(ALL_CHECKS.map(({ name }) => name));
  const saw = (check: string) => found.filter((one) => one.check === check).map((one) => one.saw).join('\n');
  expect(saw('qemu')).toMatch(/^QEMU \d.* has what a move needs/);
  expect(saw('clock')).toMatch(/clock is the server's, within/);
  expect(saw('hosts')).toBe('the agents of host-a, host-b answer');
  // Where KVM hangs, as on a machine without nested virtualization, it is a warning, and nothing waits for it.
  expect(saw('kvm')).toMatch(/KVM works|KVM does not work|no \/dev\/kvm/);
  expect(lab.processes('host-a')).toEqual([]);
}, 60_000);

test('doctor says what is wrong with a host that does not work, all of it at once', async () => {
  const taken = createServer();
  await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done));
  const { port } = taken.address() as { port: number };
  const from = Math.min(port, 65_533);
  const broken = { ...lab.config('host-a'), address: '192.0.2.1', binaries: { qemu: ['/bin/true'], storageDaemon: '/nowhere/qsd', qemuImg: '/nowhere/qemu-img' }, ports: { from, to: from + 2 }, roots: { images: '/nowhere/images' }, runDir: `/tmp/${'r'.repeat(90)}`, insecure: undefined, tls: { dir: '/nowhere/tls' } };
  writeFileSync(join(lab.folder, 'broken.yaml'), stringify(broken));
  try {
    const found = await examine({ file: join(lab.folder, 'broken.yaml'), given: { ...lab.temporal, namespace: 'nowhere' } });
    const problems = found.filter(({ severity }) => severity === 'problem');
    expect([...new Set(problems.map(({ check }) => check))]).toEqual(expect.arrayContaining(['namespace', 'qemu', 'storage-daemon', 'tools', 'address', 'ports', 'folders', 'tls']));
    expect(problems.map((one) => ('fix' in one ? one.fix : '')).filter((fix) => fix === '')).toEqual([]);
    expect(problems.find(({ check }) => check === 'qemu')!.saw).toBe('/bin/true: it does not answer over QMP (it prints no greeting)');
    // One that cannot be read is the only thing that is said of a host; warnings alone are well.
    const { code, stdout } = await vmferry('doctor', '--config', join(lab.folder, 'gone.yaml'), '--json');
    const lines = stdout.trim().split('\n').map((line) => JSON.parse(line) as Record<string, unknown>);
    expect({ code, last: lines.at(-1) }).toMatchObject({ code: 5, last: { outcome: 'problems', problems: 1 } });
    expect(lines.find(({ severity }) => severity === 'problem')).toMatchObject({ check: 'configuration', saw: expect.stringContaining('ENOENT') });
    expect((await vmferry('doctor')).code).toBe(0);
  } finally {
    taken.close();
  }
}, 60_000);

test('a guest of one sector starts under TCG, and one that cannot start is told from one that hangs', async () => {
  const tiny = async (binary: string, deadlineMs?: number) => await bootTinyGuest({ programs: machinePrograms }, binary, 'tcg', deadlineMs);
  expect(await tiny('/usr/bin/qemu-system-x86_64', 30_000)).toMatchObject({ outcome: 'started' });
  expect(await tiny('/bin/false')).toMatchObject({ outcome: 'failed' });
  expect(await tiny('/usr/bin/qemu-system-x86_64', 1)).toEqual({ outcome: 'silent', waitedMs: 1 });
}, 60_000);

test('a check says what a move would be, measured, and changes nothing anywhere', async () => {
  const guest = await lab.boot('host-a', 'asked');
  const { from, movable, blockers, disks, memory, link, estimate } = await lab.client.check({ vm: 'asked', to: 'host-b', measureSeconds: 1, maxDowntimeMs: 3_000 });
  expect({ from, movable, blockers }).toEqual({ from: 'host-a', movable: true, blockers: [] });
  expect(disks.map((disk) => [disk.id, disk.virtualBytes, disk.writtenBytesPerSecond! > 0, disk.allocatedBytes > 0])).toEqual([['drive-scsi-disk-0', 2 ** 25, true, true], ['drive-scsi-disk-1', 2 ** 25, true, true]]);
  expect(memory!.dirtyBytesPerSecond).toBeGreaterThanOrEqual(0);
  expect(link).toEqual({ from: 'measured', bytesPerSecond: expect.any(Number) });
  expect(estimate!.totalMs).toBeGreaterThan(0);
  await expectRuns(lab, 'host-a', 'asked');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['asked'] });

  // All that would stop it, at once, and still nothing is changed.
  writeFileSync(lab.image('host-b', 'asked-0.raw'), 'somebody else\'s');
  await lab.client.fleet.cordon('host-b', { by: 'test', reason: 'maintenance' });
  const refused = await lab.client.check({ vm: 'asked', to: 'host-b' });
  expect(refused).toMatchObject({ movable: false, blockers: [expect.stringContaining('asked-0.raw exists on host-b already'), expect.stringContaining('host-b is cordoned by test: maintenance')] });
  expect(refused).not.toHaveProperty('estimate');
  const { code, stdout } = await vmferry('check', 'asked', '--to', 'host-b');
  expect({ code, stdout }).toEqual({ code: 3, stdout: expect.stringMatching(/^asked: host-a → host-b\n[^]*It would be refused:\n- [^]*asked-0\.raw exists/) });
  expect(await lab.client.check({ vm: 'nobody', to: 'host-c' })).toMatchObject({ movable: false, blockers: [expect.stringContaining('no host "host-c"'), expect.stringContaining('no host has a guest "nobody"')] });
}, 120_000);
