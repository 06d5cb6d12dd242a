import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildProgram } from '../../client/cli';
import { exitCodeOf } from '../../client/exit-codes';
import type { VmferryError } from '../../client/migration-client';
import type { TestGuest } from '../../demo/guest/test-guest';
import { processExit } from '../../hypervisor/processes';
import { LiveGuest } from '../hypervisor/live-guest';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';

/**
 * A refused request changes nothing. One guest, `web`, runs on host-a all the time; each test tries what cannot be, and whatever it tries,
 * the hosts' files, state and processes are the same afterwards, and the guest has written on.
 */
let lab: Lab;
let web: TestGuest;
beforeAll(async () => {
  lab = await Lab.open();
  web = await lab.boot('host-a', 'web');
}, 90_000);
/** Takes away what a test has put there, last first. */
const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const clean of cleanUps.splice(0).reverse()) await clean();
  await expectClean(lab, { 'host-a': ['web'] });
});
afterAll(async () => await lab?.close());

const writes = async () => Number(/written=(\d+)/.exec(await web.command('stats'))![1]);
const moveWeb = async (to = 'host-b', input = {}) => await (await lab.client.migrate({ vm: 'web', to, sourceDisks: 'wipe', ...input })).result();
const tryToDefine = async (host: string, definition: unknown) => await lab.client.onHost(host, 'defineGuest', { definition });

/** Defines a guest until the test's end. */
async function define(host: string, definition: Record<string, unknown> & { name: string }): Promise<void> {
  await tryToDefine(host, definition);
  cleanUps.push(() => lab.client.onHost(host, 'removeGuest', { guest: definition.name }));
}

/** Puts something there until the test's end. */
function put(path: string, make: (path: string) => void): string {
  cleanUps.push(() => rmSync(path, { recursive: true }));
  make(path);
  return path;
}

/** An image of somebody else's; gives its path. */
function plant(host: string, name: string): string {
  return put(lab.image(host, name), (path) => {
    writeFileSync(path, 'somebody else\'s\n');
    truncateSync(path, MIB);
  });
}

/** Tries something; it must be refused with this type, in words that have all these parts, and nothing may be other than before. */
async function expectRefused(attempt: () => Promise<unknown>, type: string, ...parts: string[]): Promise<VmferryError> {
  const before = { hosts: await lookAtHosts(), writes: await writes() };
  const refusal = await attempt().then((result) => new Error(`it was not refused: ${JSON.stringify(result)}`), (error: unknown) => error);
  expect(refusal).toMatchObject({ name: 'VmferryError', type });
  for (const part of parts) expect((refusal as Error).message).toContain(part);
  await expectRuns(lab, 'host-a', 'web');
  await lab.written(web, before.writes + 20);
  expect(await lookAtHosts()).toEqual(before.hosts);
  return refusal as VmferryError;
}

/** All that a refused request could have changed: every file of every host (except what the guest itself writes), processes, what each host says, and leftovers. */
async function lookAtHosts(): Promise<Record<string, unknown>> {
  const said = await lab.client.hosts();
  const look = async (host: string) => ({
    files: filesBelow(join(lab.folder, host)),
    processes: lab.processes(host),
    // What its images take grows as it writes.
    guests: said.find(({ name }) => name === host)?.guests.map(({ disks, ...guest }) => ({ ...guest, disks: disks.map(({ root }) => root) })),
    reservations: said.find(({ name }) => name === host)?.reservations,
    leftovers: await lab.leftovers(host, host === 'host-a' ? ['web'] : []),
  });
  return Object.fromEntries(await Promise.all([...lab.configs.keys()].map(async (host) => [host, await look(host)] as const)));
}

function filesBelow(folder: string): Record<string, string> {
  return Object.fromEntries(readdirSync(folder, { recursive: true, withFileTypes: true }).flatMap((entry) => {
    const path = join(entry.parentPath, entry.name);
    // An agent that starts writes down its port again; the folder of all guests comes with the first and stays.
    if (entry.name === 'lease-port.json' || path.endsWith('/state/guests')) return [];
    if (entry.isSymbolicLink()) return [[path, `link to ${readlinkSync(path)}`]];
    const { ino, size, mode, mtimeMs } = statSync(path);
    const content = entry.isFile() && !isWebs(path) ? ` ${size} ${mtimeMs} ${createHash('sha256').update(readFileSync(path)).digest('hex')}` : '';
    return [[path, `${ino} ${mode}${content}`]];
  }));
}

const isWebs = (path: string) => path.startsWith(lab.image('host-a', 'web-'));

describe('a migration is refused, and nothing has changed:', () => {
  test('of a guest that nobody has, to a host that nobody knows: each is named, with what is known', async () => {
    await expectRefused(async () => await (await lab.client.migrate({ vm: 'nobody', to: 'host-b' })).result(), 'MigrationRefused', 'guest nobody cannot move to host-b; nothing was changed', 'no host has a guest "nobody" (known are: web on host-a)');
    await expectRefused(() => moveWeb('host-z'), 'MigrationRefused', 'there is no host "host-z" (known are: host-a, host-b)');
    const { details } = await expectRefused(async () => await (await lab.client.migrate({ vm: 'nobody', to: 'host-z' })).result(), 'MigrationRefused');
    expect(details.blockers).toEqual([expect.stringContaining('"host-z"'), expect.stringContaining('"nobody"')]);
  });

  test('to the host where the guest is', async () => {
    await expectRefused(() => moveWeb('host-a'), 'MigrationRefused', 'guest "web" is on host-a already');
  });

  test('with a wrong field: every field, its value and what it should be', async () => {
    await expectRefused(() => moveWeb('host-b', { maxDowntimeMs: 5, bandwith: 1 }), 'MigrationRefused', 'maxDowntimeMs: ', '>=20', '(got 5)', 'unknown field "bandwith": remove it or correct its name');
  });

  test('of a guest that was never started, or has crashed', async () => {
    plant('host-b', 'idle-0.raw');
    await define('host-b', lab.definition('idle', { disks: [{}] }));
    const move = async () => await (await lab.client.migrate({ vm: 'idle', to: 'host-a' })).result();
    const reason = 'guest "idle" does not run on host-b: start it first (vmferry vm start idle)';
    await expectRefused(move, 'MigrationRefused', reason);
    await lab.client.onHost('host-b', 'startGuest', { guest: 'idle' });
    const qemu = lab.agents.get('host-b')!.host.process('idle')!;
    process.kill(qemu.pid, 'SIGKILL');
    await processExit(qemu);
    await expectRefused(move, 'MigrationRefused', reason);
  });

  test('of a guest whose name is on two hosts', async () => {
    ['web-0.raw', 'web-1.raw'].forEach((name) => plant('host-b', name));
    await define('host-b', lab.definition('web'));
    await expectRefused(() => moveWeb(), 'MigrationRefused', 'guest "web" is on host-a and host-b: find out which copy runs before it is moved');
  });

  test('to, and from, a host whose agent is dead; and what was asked meanwhile is not done when it is back', async () => {
    plant('host-b', 'idle-0.raw');
    await define('host-b', lab.definition('idle', { disks: [{}] }));
    await lab.stopAgent('host-b');
    cleanUps.push(async () => !lab.agents.has('host-b') && (await lab.startAgent('host-b')));
    const silent = { type: 'HostUnreachable', message: expect.stringContaining('the agent of host host-b does not answer: start it') };
    const [to, command] = [expect(moveWeb()).rejects.toMatchObject(silent), expect(lab.client.onHost('host-b', 'startGuest', { guest: 'idle' })).rejects.toMatchObject(silent)];
    const from = async () => await (await lab.client.migrate({ vm: 'idle', to: 'host-a' })).result();
    await expectRefused(from, 'HostUnreachable', 'the agent of host host-b does not answer: start it', 'Nothing was changed');
    await Promise.all([to, command]);
    const before = filesBelow(join(lab.folder, 'host-b'));
    await lab.startAgent('host-b');
    expect(await lab.client.onHost('host-b', 'listGuests')).toMatchObject([{ name: 'idle', state: 'stopped' }]);
    expect(filesBelow(join(lab.folder, 'host-b'))).toEqual(before);
  });

  test('of a guest that is moving already, which is not stopped, removed, defined anew or started twice either', async () => {
    const moving = await lab.client.migrate({ vm: 'web', to: 'host-b', bandwidthBytesPerSecond: 4_000_000 });
    await lab.phase('web', 'converge');
    const refused = async (attempt: Promise<unknown>, type: string, text: string) => await expect(attempt).rejects.toMatchObject({ type, message: expect.stringContaining(text) });
    await refused(moveWeb(), 'MigrationRefused', 'guest web is being moved already: watch it with "vmferry watch web"');
    await refused(moveWeb('host-z'), 'MigrationRefused', 'being moved already');
    await refused(lab.client.onHost('host-a', 'stopGuest', { guest: 'web', graceMs: 0 }), 'GuestStateError', 'guest "web" is being moved to host-b: cancel its migration first');
    for (const host of ['host-a', 'host-b']) await refused(lab.client.onHost(host, 'removeGuest', { guest: 'web' }), 'GuestStateError', 'is being moved: cancel its migration first');
    await refused(tryToDefine('host-a', lab.definition('web')), 'GuestStateError', 'is being moved: define it again afterwards');
    await refused(lab.client.onHost('host-b', 'startGuest', { guest: 'web' }), 'GuestStateError', 'not startable before it has arrived');
    expect(await moving.isRunning()).toBe(true);
    expect(await lab.mirrors('host-a', 'web')).toHaveLength(2);
    // A cancel waits for what is under way on the slow link.
    await lab.setBandwidth('host-b', 'web', undefined);
    await moving.cancel();
    await expect(moving.result()).rejects.toMatchObject({ type: 'Cancelled' });
    await expectRuns(lab, 'host-a', 'web');
  });

  test('to a host that has an image of that name, which is left alone', async () => {
    const [first, second] = [plant('host-b', 'web-0.raw'), plant('host-b', 'web-1.raw')];
    const { details } = await expectRefused(() => moveWeb(), 'MigrationRefused', `${first} exists on host-b already: move or delete it if it is not needed (disk drive-scsi-disk-0 goes there)`);
    expect(details.blockers).toEqual([expect.stringContaining(first), expect.stringContaining(second)]);
  });

  test('to a host where an image\'s path leads out of the roots, through a link to somewhere or to nowhere', async () => {
    const outside = put(join(lab.folder, 'outside.raw'), (path) => writeFileSync(path, 'not a guest\'s\n'));
    put(lab.image('host-b', 'web-0.raw'), (path) => symlinkSync(outside, path));
    const dangling = put(lab.image('host-b', 'web-1.raw'), (path) => symlinkSync(join(lab.folder, 'nowhere.raw'), path));
    await expectRefused(() => moveWeb(), 'MigrationRefused', `"\${images}/web-0.raw" leads to ${outside}, outside the root "images"`, `leads through ${dangling}, a link to nowhere`);
    expect(readFileSync(outside, 'utf8')).toBe('not a guest\'s\n');
    expect(existsSync(join(lab.folder, 'nowhere.raw'))).toBe(false);
  });

  const root = process.getuid!() === 0;
  if (!root) console.log('skipped: the test with a full file system needs root, to mount one');
  (root ? test : test.skip)('to a host with too little disk space', async () => {
    const folder = join(lab.folder, 'host-b', 'images');
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', folder]);
    cleanUps.push(() => execFileSync('umount', [folder]));
    await expectRefused(() => moveWeb(), 'MigrationRefused', `MiB of disk space short in ${folder}: the images hold `, '1 MiB are free');
  });

  test('to a host with too little memory, which says whatever else is wrong in the same breath', async () => {
    await addHost('small', { memory: '64M' });
    const planted = plant('small', 'web-1.raw');
    await expectRefused(() => moveWeb('small'), 'MigrationRefused', 'small is 64 MiB of memory short: guest "web" needs 128 MiB, 64 MiB are free', `${planted} exists on small already`);
  });

  test('to a host with another QEMU, or without what the guest\'s command line names, before a byte is copied', async () => {
    const qemu = oddQemu('old', '*-machine*help*) echo "pc-q35-6.2   Standard PC"; exit 0;;\n*-cpu*help*) echo "x86 486"; exit 0;;');
    const empty = join(lab.folder, 'old', 'empty');
    await addHost('old', { binaries: { qemu: [qemu] }, roots: { boot: empty } });
    const { details } = await expectRefused(() => moveWeb('old'), 'MigrationRefused');
    expect(details.blockers).toEqual([
      `${qemu} on old has no machine type pc-q35-7.2: it is older than the source's, upgrade QEMU there`,
      `${qemu} on old has no CPU model qemu64`,
      `file is not copied and must be on old, but ${empty}/vmlinuz is missing`,
      `file is not copied and must be on old, but ${empty}/initramfs.img is missing`,
    ]);
  });

  test('to a host whose QEMU dies at start: in that QEMU\'s words', async () => {
    const qemu = oddQemu('broken', '*-incoming*) echo "qemu-system-x86_64: could not load PC BIOS" >&2; exit 1;;');
    await addHost('broken', { binaries: { qemu: [qemu] } });
    await expectRefused(() => moveWeb('broken'), 'ProcessFailed', 'broken, guest web: ', 'ended at start with exit code 1: qemu-system-x86_64: could not load PC BIOS');
  });

  test('while somebody else holds the guest\'s monitor, who is named', async () => {
    await lab.stopAgent('host-a');
    const holder = await hold(lab.runFile('host-a', 'web', 'qmp.sock'));
    await lab.startAgent('host-a');
    await expectRefused(() => moveWeb(), 'MigrationRefused', `${lab.runFile('host-a', 'web', 'qmp.sock')} does not greet: node (pid ${holder.pid}) holds it: let it disconnect`);
  });
});

/** A third host, until the test's end. */
async function addHost(name: string, extra: Parameters<Lab['addHost']>[1]): Promise<void> {
  cleanUps.push(async () => {
    expect(await lab.leftovers(name, [])).toEqual([]);
    await lab.stopAgent(name);
    lab.configs.delete(name);
  });
  await lab.addHost(name, extra);
  // Temporal lists a workflow a moment after it was started.
  while (!(await lab.client.hosts()).some((host) => host.name === name));
}

/** A QEMU that behaves as `cases` (of a shell's `case "$*"`) say, and is a real one otherwise; gives its path. */
function oddQemu(host: string, cases: string): string {
  const path = join(lab.folder, host, 'bin', 'qemu-system-x86_64');
  mkdirSync(join(lab.folder, host, 'bin'), { recursive: true });
  writeFileSync(path, `#!/bin/sh\ncase "$*" in\n${cases}\nesac\nexec /usr/bin/qemu-system-x86_64 "$@"\n`);
  chmodSync(path, 0o755);
  return path;
}

describe('a definition is refused, and nothing has changed:', () => {
  const wrong = () => ({ ...lab.definition('wrong'), memory: 'lots', memmory: 1, disks: [{ id: 'a', path: '/etc/shadow', bus: 'floppy' }, { id: 'b', path: '${images}/../state/x' }] });
  const lines = [
    'memory: "lots" is not a size: give bytes, or a number with K, M, G, T', 'unknown field "memmory": remove it or correct its name',
    'disks.0.path: give a path as "${root}/relative/name"', '(got "/etc/shadow")', 'disks.0.bus: ', '"virtio-scsi"|"virtio-blk"', '(got "floppy")', 'disks.1.path: ', 'no ".."',
  ];

  test('with wrong fields: one error with every field, its value and the fix, at once', async () => {
    const { message } = await expectRefused(() => tryToDefine('host-a', wrong()), 'InvalidDefinition', 'host-a, guest wrong: the definition is not valid', ...lines);
    expect(message.split('\n')).toHaveLength(6);
    // A refusal is an answer: it is not asked for again.
    expect(await lastCommandTries()).toEqual([1]);
  });

  test('by the command line, before it asks anybody', async () => {
    const file = put(join(lab.folder, 'wrong.yaml'), (path) => writeFileSync(path, JSON.stringify(wrong())));
    const error = await buildProgram().parseAsync(['--temporal-address', 'no-such-host:1', 'vm', 'define', file, '--host', 'host-a'], { from: 'user' }).then(() => undefined, (reason: Error) => reason);
    [`${file} is not valid`, ...lines].forEach((part) => expect(error?.message).toContain(part));
    expect(exitCodeOf(error, 'command')).toBe(2);
  });

  test.each<[string, (outside: string) => Record<string, unknown>, string, (outside: string) => string]>([
    ['a root that the host does not have', () => ({ disks: [{ id: 'a', path: '${secrets}/x.raw' }] }), 'PathRefused', () => '"${secrets}/x.raw": host host-a has no root "secrets" (it has images, boot, devices): add it to roots'],
    ['a link in a root that leads out of it', () => ({ disks: [{ id: 'a', path: '${images}/wrong-link.raw' }] }), 'PathRefused', (outside) => `"\${images}/wrong-link.raw" leads to ${outside}/x.raw, outside the root "images"`],
    ['a folder in a root that is a link out of it', () => ({ disks: [{ id: 'a', path: '${images}/wrong-folder/x.raw' }] }), 'PathRefused', (outside) => `leads to ${outside}/x.raw, outside the root "images"`],
    ['an argument with a path outside', (outside) => ({ disks: [], arguments: ['-drive', `file=${outside}/x.raw,if=none,id=x`] }), 'InvalidDefinition', (outside) => `${outside}/x.raw is outside the roots of host host-a`],
    ['an image that is not there', () => ({ disks: [{ id: 'a', path: '${images}/missing.raw' }] }), 'GuestStateError', () => `disk a: ${lab.image('host-a', 'missing.raw')} does not exist on host-a: make it first (qemu-img create)`],
  ])('%s', async (_case, fields, type, text) => {
    const outside = put(join(lab.folder, 'outside'), (path) => mkdirSync(path));
    writeFileSync(join(outside, 'x.raw'), 'secret');
    put(lab.image('host-a', 'wrong-link.raw'), (path) => symlinkSync(join(outside, 'x.raw'), path));
    put(lab.image('host-a', 'wrong-folder'), (path) => symlinkSync(outside, path));
    await expectRefused(() => tryToDefine('host-a', { ...lab.definition('wrong'), ...fields(outside) }), type, text(outside));
    expect(readFileSync(join(outside, 'x.raw'), 'utf8')).toBe('secret');
  });
});

/** How often each step of the command that ended last was tried. */
async function lastCommandTries(): Promise<number[]> {
  for await (const { workflowId } of lab.client.temporal.workflow.list({ query: 'WorkflowType = "hostCommand" AND ExecutionStatus = "Failed"' })) {
    const { events } = await lab.client.temporal.workflow.getHandle(workflowId).fetchHistory();
    return events!.flatMap(({ activityTaskStartedEventAttributes: started }) => (started ? [started.attempt!] : []));
  }
  throw new Error('no command failed');
}

describe('a start fails with the reason, and leaves no process:', () => {
  test.each<[string, string[], string, string[]]>([
    ['a QEMU that dies at start, in its own words', ['-device', 'virtio-rng-pci,colour=red'], 'ProcessFailed', ['ended at start with exit code 1', "Property 'virtio-rng-pci.colour' not found"]],
    ['a monitor that is not QMP', ['-monitor', 'unix:${run}/hmp.sock,server=on,wait=off'], 'QmpProtocolError', ['hmp.sock', 'no QMP greeting but "QEMU 7.2', 'check that the path is a QMP (not HMP or serial) socket']],
  ])('%s', async (_case, more, type, parts) => {
    await define('host-b', { ...lab.definition('unlucky', { disks: [] }), arguments: more, ...(more[0] === '-monitor' && { monitor: '${run}/hmp.sock' }) });
    await expectRefused(() => lab.client.onHost('host-b', 'startGuest', { guest: 'unlucky' }), type, ...parts);
  });
});

describe('somebody else\'s QEMU is not adopted, and nothing has changed:', () => {
  const socket = () => join(lab.folder, 'foreign', 'qmp.sock');
  const launch = async (argv: string[], at = socket()) => {
    const guest = await LiveGuest.start(['-S', '-name', 'theirs', '-nodefaults', '-display', 'none', '-m', '32776K', '-qmp', `unix:${at},server=on,wait=off`, ...argv], at);
    guest.monitor.close();
    cleanUps.push(() => guest.end());
    return guest;
  };
  const adopt = (pid: number) => () => lab.client.onHost('host-a', 'adoptGuest', { pid });
  beforeEach(() => void put(join(lab.folder, 'foreign'), (path) => mkdirSync(path)));

  test('when it has files outside the roots, or does not exist', async () => {
    const image = join(lab.folder, 'foreign', 'x.raw');
    writeFileSync(image, '');
    truncateSync(image, MIB);
    const guest = await launch(['-drive', `file=${image},if=virtio,format=raw`]);
    await expectRefused(adopt(guest.pid), 'GuestStateError', `the QEMU with pid ${guest.pid} cannot be adopted`, `${image} is outside the roots of host host-a`, `add a root for ${lab.folder}/foreign`);
    await guest.end();
    await expectRefused(adopt(guest.pid), 'GuestStateError', `there is no process ${guest.pid} on host-a`);
  });

  test('when what answers at its monitor is not QMP', async () => {
    const guest = await launch([]);
    // Another QEMU has taken the path, with a monitor for people.
    rmSync(socket());
    await launch(['-monitor', `unix:${socket()},server=on,wait=off`], `${socket()}.2`);
    await expectRefused(adopt(guest.pid), 'QmpProtocolError', socket(), 'no QMP greeting but "QEMU 7.2', 'check that the path is a QMP (not HMP or serial) socket');
  });

  test('when somebody else holds its monitor, who is named', async () => {
    const guest = await launch([]);
    const holder = await hold(socket());
    await expectRefused(adopt(guest.pid), 'QmpMonitorBusy', socket(), `node (pid ${holder.pid}) holds it: let it disconnect`);
    // A refusal is an answer: it is not asked for again.
    expect(await lastCommandTries()).toEqual([1]);
  });
});

/** Another process that is connected to a monitor, until the test's end. */
async function hold(path: string): Promise<{ pid: number }> {
  const child = spawn(process.execPath, ['-e', 'require("node:net").connect(process.argv[1]).once("data", () => console.log("held"))', path], { stdio: ['ignore', 'pipe', 'inherit'] });
  cleanUps.push(async () => {
    child.kill();
    await once(child, 'exit');
  });
  await once(child.stdout, 'data');
  return { pid: child.pid! };
}

test('after all these refusals the guest has every block, and can move at once', async () => {
  await expectWhole(web);
  const planted = lab.image('host-b', 'web-0.raw');
  writeFileSync(planted, '');
  await expectRefused(() => moveWeb(), 'MigrationRefused', planted);
  rmSync(planted);
  await lab.move('web', 'host-b');
  await expectWhole(web);
  await expectClean(lab, { 'host-b': ['web'] });
  await lab.move('web', 'host-a');
});
