import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { QmpConnection } from '../../qmp/connection';
import { QmpCommandFailed, QmpDisconnected, QmpMonitorBusy, QmpTimeout } from '../../qmp/errors';
import { QmpMonitor } from '../../qmp/monitor';
import { findMonitorHolder, holderInSocketList } from '../../qmp/monitor-holder';
import { QmpSchema } from '../../qmp/schema';
import { type Availability, HEARD, SPOKEN } from '../../qmp/spoken';
import type { VersionInfo } from '../../qmp/vocabulary';
import { describeWithNewerQemu } from '../support/newer-qemu';
import { socketFolder } from './fake-monitor';
import { LiveProcess } from './live-qemu';

const folder = socketFolder();
const path = folder.path('s');
const second = folder.path('t');
let qemu: LiveProcess;
const monitor = new QmpMonitor(path);

beforeAll(async () => {
  qemu = await LiveProcess.qemu([path, second]);
});

afterAll(async () => {
  monitor.close();
  await qemu.end();
  folder.remove();
});

/**
 * What the vocabulary names and the schema lacks. `missing` breaks us: it should be in this version. `absent` is not in it yet, or no
 * more, and we ask the schema first.
 */
function compare({ schema, version: { qemu } }: Answer, daemon: boolean): { missing: string[]; absent: string[] } {
  const missing: string[] = [];
  const absent: string[] = [];
  const promised = (availability: Availability) => {
    if (availability === true) return true;
    const [word, major, minor] = availability.split(/[ .]/);
    const reached = qemu.major === Number(major) ? qemu.minor >= Number(minor) : qemu.major > Number(major);
    return word === 'since' ? reached : !reached;
  };
  const note = (name: string, there: boolean, availability: Availability) => {
    if (!there) (promised(availability) ? missing : absent).push(availability === true ? name : `${name} (${availability})`);
  };
  for (const [command, { availability = true, daemon: spoken, arguments: args, more }] of Object.entries(SPOKEN)) {
    if (daemon && !spoken) continue;
    note(command, schema.hasCommand(command), availability);
    if (!schema.hasCommand(command)) continue;
    for (const [name, since] of Object.entries({ ...args, ...more } as Record<string, Availability>)) note(`${command} ${name}`, schema.hasArgument(command, name), since);
  }
  if (daemon) return { missing, absent };
  for (const [event, members] of Object.entries(HEARD)) {
    note(event, schema.hasEvent(event), true);
    for (const [member, since] of Object.entries(members as Record<string, Availability>)) note(`${event} ${member}`, schema.hasEventMember(event, member), since);
  }
  return { missing, absent };
}

interface Answer {
  schema: QmpSchema;
  version: VersionInfo;
}

/** What a process says it can do. Ends it. */
async function ask(starting: Promise<LiveProcess>, path: string): Promise<Answer> {
  const asked = await starting;
  const qmp = new QmpMonitor(path);
  try {
    expect(await qmp.execute('query-block-exports')).toEqual([]);
    return { schema: new QmpSchema(await qmp.execute('query-qmp-schema')), version: (await qmp.connection()).greeting.version };
  } finally {
    qmp.close();
    await asked.end();
  }
}

function holdVocabularyAgainst(qemu: string, storageDaemon: string): void {
  test('everything we say to QEMU, and hear, is in its schema, or marked as of other versions', async () => {
    const answer = await ask(LiveProcess.qemu([folder.path('v')], qemu), folder.path('v'));
    const { missing, absent } = compare(answer, false);
    const { major, minor } = answer.version.qemu;
    console.info(`QEMU ${major}.${minor} lacks: ${absent.join(', ') || 'nothing'}`);
    expect(missing).toEqual([]);
    expect(answer.schema.hasCommand('job-cancel') && 'job-cancel' in SPOKEN).toBe(false);
  });

  test('everything we say to qemu-storage-daemon is in its schema, or marked as of other versions', async () => {
    const answer = await ask(LiveProcess.storageDaemon(folder.path('d'), storageDaemon), folder.path('d'));
    const { missing, absent } = compare(answer, true);
    console.info(`qemu-storage-daemon lacks: ${absent.join(', ') || 'nothing'}`);
    expect(missing).toEqual([]);
  });
}

describe("the vocabulary and this machine's QEMU", () => holdVocabularyAgainst('qemu-system-x86_64', 'qemu-storage-daemon'));
describeWithNewerQemu('the vocabulary and a newer QEMU', ({ qemu: [qemu], storageDaemon }) => holdVocabularyAgainst(qemu, storageDaemon));

describe('a monitor', () => {
  test('what QEMU refuses is told in its own class and words', async () => {
    const failure = monitor.execute('block-job-cancel', { device: 'none' });
    await expect(failure).rejects.toBeInstanceOf(QmpCommandFailed);
    await expect(failure).rejects.toMatchObject({ errorClass: 'DeviceNotActive', desc: "Block job 'none' not found" });
  });

  test('an event comes to a listener opened before the command', async () => {
    const events = (await monitor.connection()).listen('RESUME', 'STOP');
    await monitor.execute('cont');
    expect((await events.next({ timeoutMs: 30_000 })).event).toBe('RESUME');
    await monitor.execute('stop');
    expect((await events.next({ timeoutMs: 30_000 })).event).toBe('STOP');
    events.close();
  });
});

describe('a second client', () => {
  test('is told that the monitor is busy, and the pid of who holds it', async () => {
    const holder = spawn(process.execPath, ['-e', `require('net').connect(${JSON.stringify(second)}).once('data', () => process.stdout.write('greeted'))`], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(holder.stdout, 'data');
    const error = (await QmpConnection.connect(second, { timeoutMs: 200 }).catch((error: unknown) => error)) as QmpMonitorBusy;
    expect(error).toBeInstanceOf(QmpMonitorBusy);
    expect(error.holder).toEqual({ pid: holder.pid, name: expect.any(String) });
    expect(error.message).toContain(`pid ${holder.pid}`);

    // QEMU's backlog is short: once it is full, even connecting fails.
    const waiting = Array.from({ length: 6 }, () => connect(second).on('error', () => undefined));
    await Promise.all(waiting.map((socket) => new Promise<void>((resolve) => socket.once('connect', resolve).once('close', () => resolve()))));
    await expect(QmpConnection.connect(second, { timeoutMs: 100 })).rejects.toMatchObject({ name: 'QmpMonitorBusy', holder: { pid: holder.pid }, cause: { message: 'the queue of waiting clients is full' } });
    for (const socket of waiting) socket.destroy();

    const connecting = QmpConnection.connect(second, { timeoutMs: 30_000 });
    holder.kill();
    (await connecting).close();
  });

  test('of this very process is told to share', async () => {
    const first = await QmpConnection.connect(second);
    await expect(QmpConnection.connect(second, { timeoutMs: 100 })).rejects.toThrow(`another connection of this very process (pid ${process.pid})`);
    first.close();
  });

  test('the search for a holder knows waiting from accepted connections, and never throws', async () => {
    const list = [
      'u_str LISTEN 0 1 /run/a b.sock 10 * 0 users:(("qemu",pid=7,fd=3))',
      'u_str ESTAB 0 0 /run/a b.sock 0 * 21',
      'u_str ESTAB 0 0 * 21 * 0 users:(("me",pid=9,fd=4))',
      'u_str ESTAB 0 768 /run/a b.sock 11 * 20 users:(("qemu",pid=7,fd=8))',
      'u_str ESTAB 142 0 * 20 * 11 users:(("virsh",pid=8,fd=3),("virsh",pid=12,fd=3))',
      'what is this',
    ].join('\n');
    expect(holderInSocketList(list, '/run/a b.sock')).toEqual({ name: 'virsh', pid: 8 });
    expect(holderInSocketList(list, '/run/other.sock')).toBeUndefined();
    expect(holderInSocketList(list.replace(/ users:\(\("virsh.*/, ''), '/run/a b.sock')).toBeUndefined();
    await expect(findMonitorHolder(path, '/nonexistent/ss')).resolves.toBeUndefined();
    await expect(findMonitorHolder(path, '\0')).resolves.toBeUndefined();
  });
});

describe('a main loop that hangs', () => {
  let silent: Server;
  let peers: { destroy: () => void }[];

  beforeEach(async () => {
    peers = [];
    silent = createServer((socket) => peers.push(socket.on('error', () => undefined)));
    await once(silent.listen(0, '127.0.0.1'), 'listening');
  });

  afterEach(() => {
    for (const peer of peers) peer.destroy();
    silent.close();
  });

  test('answers out-of-band commands all the same, however many others wait; a new connection is not negotiated', async () => {
    const qmp = await monitor.connection();
    const connected = once(silent, 'connection');
    let hanging = true;
    const { port } = silent.address() as AddressInfo;
    const add = qmp.execute('blockdev-add', { driver: 'nbd', 'node-name': 'dead', server: { type: 'inet', host: '127.0.0.1', port: String(port) }, export: 'x' }).catch((error: unknown) => {
      hanging = false;
      return error;
    });
    await connected;
    const others = Array.from({ length: 20 }, () => qmp.execute('query-status'));
    expect(await qmp.executeOob('query-yank')).toContainEqual({ type: 'block-node', 'node-name': 'dead' });
    await expect(QmpConnection.connect(second, { timeoutMs: 300 })).rejects.toBeInstanceOf(QmpTimeout);
    expect(hanging).toBe(true);
    for (const peer of peers) peer.destroy();
    expect(await add).toBeInstanceOf(QmpCommandFailed);
    await Promise.all(others);
  });
});

test('a monitor reconnects after QEMU was started anew', async () => {
  const first = await monitor.connection();
  await qemu.end();
  expect(await first.closed).toBeInstanceOf(QmpDisconnected);
  await expect(monitor.execute('query-status')).rejects.toThrow(/nothing listens on the socket/);
  qemu = await LiveProcess.qemu([path, folder.path('u')]);
  await expect(monitor.execute('query-status')).resolves.toMatchObject({ running: false, status: 'prelaunch' });
});
