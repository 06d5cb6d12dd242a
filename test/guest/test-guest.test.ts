import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { hostNowMs, TestGuest } from '../../demo/guest/test-guest';

/** The serial socket of a QEMU, with us as the guest behind it. */
class FakeSerial {
  received = '';
  private readonly connected: Promise<Socket>;

  private constructor(readonly path: string, private readonly server: Server) {
    this.connected = once(server, 'connection').then(([socket]: Socket[]) => {
      socket!.setEncoding('latin1').on('data', (text: string) => (this.received += text));
      return socket!;
    });
  }

  static async listen(path: string): Promise<FakeSerial> {
    const server = createServer();
    const serial = new FakeSerial(path, server);
    server.listen(path);
    await once(server, 'listening');
    return serial;
  }

  async say(text: string): Promise<void> {
    (await this.connected).write(text);
  }

  async hears(pattern: RegExp): Promise<RegExpExecArray> {
    const socket = await this.connected;
    for (;;) {
      const match = pattern.exec(this.received);
      if (match) return match;
      await once(socket, 'data');
    }
  }

  async stop(): Promise<void> {
    (await this.connected).destroy();
    this.server.close();
  }
}

let folder: string;
let guest: TestGuest;
const serials: FakeSerial[] = [];
const listen = async (name: string): Promise<FakeSerial> => {
  const serial = await FakeSerial.listen(join(folder, name));
  serials.push(serial);
  return serial;
};
const attached = async (name: string): Promise<FakeSerial> => {
  const serial = await listen(name);
  await guest.attach(serial.path);
  return serial;
};

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vmferry-guest-'));
  guest = new TestGuest();
});

afterEach(async () => {
  guest.close();
  await Promise.all(serials.splice(0).map((serial) => serial.stop()));
  await rm(folder, { recursive: true });
});

test('attach waits for a socket that does not exist yet', async () => {
  const attach = guest.attach(join(folder, 'late'));
  const serial = await listen('late');
  await attach;
  await serial.say('t 1 10\n');
  expect(await guest.nextTick({ after: 0 })).toMatchObject({ sequence: 1, guestMs: 10 });
  expect(guest.currentConsole).toBe(serial.path);
});

test('waiting to attach ends with the signal, and with close', async () => {
  const cancel = new AbortController();
  const attach = guest.attach(join(folder, 'never'), { signal: cancel.signal });
  cancel.abort();
  await expect(attach).rejects.toThrow('abort');
  const other = guest.attach(join(folder, 'never'));
  guest.close();
  await expect(other).rejects.toThrow();
});

test('a command goes to the console that ticked last and takes its answer from any', async () => {
  const [source, destination] = [await attached('source'), await attached('destination')];
  await source.say('t 1 10\n');
  await guest.nextTick({ after: 0 });
  const answer = guest.command('stats');
  const [, id] = await source.hears(/^stats (#\d+)\n/);
  await destination.say(`= stats written=1 ${id}\n`);
  expect(await answer).toBe('written=1');
  expect(destination.received).toBe('');
});

test('a command under way when the guest moves is sent after it, with the same id', async () => {
  const [source, destination] = [await attached('source'), await attached('destination')];
  await source.say('t 1 10\n');
  await guest.nextTick({ after: 0 });
  const answer = guest.command('pause');
  const [, id] = await source.hears(/^pause (#\d+)\n/);
  await destination.say('t 2 20\n');
  await destination.hears(new RegExp(`^pause ${id}\n`));
  await destination.say(`= pause ${id}\n`);
  expect(await answer).toBe('');
});

test('a line that began on one console and ended on the other is one line', async () => {
  const [source, destination] = [await attached('source'), await attached('destination')];
  await source.say('t 41 410\n');
  await guest.nextTick({ after: 0 });
  const answer = guest.command('stats');
  const [, id] = await source.hears(/(#\d+)\n/);
  await source.say('t 42 420\n= stats writ');
  await guest.nextTick();
  await destination.say(`ten=5 ${id}\nt 43 430\n`);
  expect(await answer).toBe('written=5');
  expect(guest.kernelLog).toEqual([]);
});

test('a refusal, a silence and a panic are told apart', async () => {
  const serial = await attached('serial');
  await serial.say('t 1 10\n');
  await guest.nextTick({ after: 0 });
  const refused = guest.command('dance');
  const [, id] = await serial.hears(/(#\d+)\n/);
  await serial.say(`= error dance is no command ${id}\nKernel panic - not syncing: really\n`);
  await expect(refused).rejects.toThrow('refused: dance');
  await expect(guest.command('hello', 20)).rejects.toThrow(/no answer to "hello".*its last tick was 1 on .*serial, \d+ ms ago; it said:\nKernel panic/s);
  await expect(guest.nextTick({ timeoutMs: 20 })).rejects.toThrow('did not tick in 20 ms');
});

test('two copies that tick are reported', async () => {
  const [source, destination] = [await attached('source'), await attached('destination')];
  await source.say('t 1 10\n');
  await guest.nextTick({ after: 0 });
  await destination.say('t 2 20\n');
  await guest.nextTick();
  expect(guest.duplicateTicks).toBe(0);
  await source.say('t 2 20\n');
  await guest.nextTick();
  expect(guest.duplicateTicks).toBe(1);
  expect(guest.duplicateEvidence[0]).toContain('had gone on from 2');
});

test('close fails what is awaited and leaves the record', async () => {
  const serial = await attached('serial');
  await serial.say('t 1 10\n');
  await guest.nextTick({ after: 0 });
  const waiting = [guest.nextTick({ after: hostNowMs() + 1e6 }), guest.command('hello')];
  guest.close();
  for (const one of waiting) await expect(one).rejects.toThrow('closed');
  expect(guest.ticksSince(0)).toHaveLength(1);
});
