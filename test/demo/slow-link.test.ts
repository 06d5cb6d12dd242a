import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { SlowLink } from '../../demo/slow-link';

const MIB = 2 ** 20;

const servers: Server[] = [];
const links: SlowLink[] = [];
const clients: Socket[] = [];

afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  for (const link of links.splice(0)) await link.close();
  for (const server of servers.splice(0)) server.close();
});

/** A server, and a way to await its next connection. */
async function listen(): Promise<{ target: { host: string; port: number }; accepted: () => Promise<Socket> }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  servers.push(server);
  const waiting: Socket[] = [];
  server.on('connection', (socket) => {
    clients.push(socket.on('error', () => undefined));
    waiting.push(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    target: { host: '127.0.0.1', port: (server.address() as AddressInfo).port },
    accepted: async () => {
      while (waiting.length === 0) await once(server, 'connection');
      return waiting.shift()!;
    },
  };
}

/** A connection through a new link, both ends of it, and the link. */
async function joined(bytesPerSecond?: number): Promise<{ link: SlowLink; near: Socket; far: Socket }> {
  const { target, accepted } = await listen();
  const link = await SlowLink.listen({ target, ...(bytesPerSecond !== undefined && { bytesPerSecond }) });
  links.push(link);
  const near = connect({ host: '127.0.0.1', port: link.port, allowHalfOpen: true }).on('error', () => undefined);
  clients.push(near);
  return { link, near, far: await accepted() };
}

/** What comes next, of at least that many bytes. */
async function read(socket: Socket, bytes: number): Promise<string> {
  let text = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    text += chunk.toString('latin1');
    if (text.length >= bytes) break;
  }
  return text;
}

/** Resolves when the socket has closed, with an error or without. */
async function closed(socket: Socket): Promise<void> {
  await new Promise<void>((resolve) => socket.resume().once('close', () => resolve()));
}

/** Round trips over another link: whatever could have moved on this event loop in the meantime has moved. */
async function otherTraffic(roundTrips: number): Promise<void> {
  const { near, far } = await joined();
  for (let i = 0; i < roundTrips; i++) {
    near.write('ping');
    await read(far, 4);
    far.write('pong');
    await read(near, 4);
  }
}

test('what is sent arrives in order, both ways, and each way ends by itself', async () => {
  const { near, far } = await joined();
  const sent = randomBytes(5 * MIB);
  const received = createHash('sha256');
  near.end(sent);
  for await (const chunk of far.iterator({ destroyOnReturn: false })) received.update(chunk as Buffer);
  expect(received.digest('hex')).toBe(createHash('sha256').update(sent).digest('hex'));
  // The other half is still open.
  far.end('all there');
  expect(await read(near, 9)).toBe('all there');
});

test('a limited link lets no more than a slice through on credit, and a new rate counts for what waits', async () => {
  const { link, near, far } = await joined(1);
  const sent = randomBytes(MIB);
  near.end(sent);
  const received = createHash('sha256');
  let bytes = 0;
  far.on('data', (chunk: Buffer) => {
    received.update(chunk);
    bytes += chunk.length;
  });
  far.resume();
  await otherTraffic(200);
  // The next byte would take hours.
  expect(bytes).toBe(16 * 1024);
  link.setRate(undefined);
  await once(far, 'end');
  expect(received.digest('hex')).toBe(createHash('sha256').update(sent).digest('hex'));
});

test('a rate that is not above 0 is refused', async () => {
  const { link } = await joined();
  expect(() => link.setRate(0)).toThrow(RangeError);
  expect(() => link.setRate(Number.NaN)).toThrow(/use freeze/);
});

test('a receiver that does not read holds up the sender, and loses nothing', async () => {
  const { near, far } = await joined();
  // More than the kernel's buffers of both connections take.
  const total = 128;
  const sent = createHash('sha256');
  let handedOver = 0;
  for (let i = 0; i < total; i++) {
    const chunk = randomBytes(MIB);
    sent.update(chunk);
    near.write(chunk, () => handedOver++);
  }
  near.end();
  // A proxy that took all it can get would take 64 KiB a turn of the event loop: 2048 turns.
  await otherTraffic(1000);
  expect(handedOver).toBeLessThan(total);

  const received = createHash('sha256');
  for await (const chunk of far) received.update(chunk as Buffer);
  expect(handedOver).toBe(total);
  expect(received.digest('hex')).toBe(sent.digest('hex'));
});

test('a frozen link delivers nothing, keeps its connections, and goes on after the thaw', async () => {
  const { link, near, far } = await joined();
  near.write('before');
  expect(await read(far, 6)).toBe('before');

  link.freeze();
  const arrived: string[] = [];
  far.on('data', (chunk: Buffer) => arrived.push(`far: ${chunk.toString()}`));
  near.on('data', (chunk: Buffer) => arrived.push(`near: ${chunk.toString()}`));
  near.write('there');
  far.write('back');
  await otherTraffic(200);
  expect(arrived).toEqual([]);
  expect([near.destroyed, far.destroyed]).toEqual([false, false]);

  const both = Promise.all([once(near, 'data'), once(far, 'data')]);
  link.thaw();
  await both;
  expect(arrived.sort()).toEqual(['far: there', 'near: back']);
});

test('a cut ends every connection at both ends, also while frozen, and new ones are taken', async () => {
  const { target, accepted } = await listen();
  const link = await SlowLink.listen({ target });
  links.push(link);
  const pair = async () => {
    const near = connect(link.port, '127.0.0.1').on('error', () => undefined);
    clients.push(near);
    const far = await accepted();
    return [near, far];
  };
  const ends = [...(await pair()), ...(await pair())];
  link.freeze();
  ends[0]!.write('lost');
  const allClosed = Promise.all(ends.map(closed));
  link.cut();
  await allClosed;

  link.thaw();
  const [near, far] = await pair();
  near!.write('again');
  expect(await read(far!, 5)).toBe('again');
});

test('a target that refuses resets the client', async () => {
  const { target } = await listen();
  servers[0]!.close();
  const link = await SlowLink.listen({ target });
  links.push(link);
  const near = connect(link.port, '127.0.0.1');
  clients.push(near);
  const [error] = (await once(near, 'error')) as [NodeJS.ErrnoException];
  expect(error.code).toBe('ECONNRESET');
});

test('a closed link ends its connections and refuses new ones, even if it was frozen', async () => {
  const { link, near, far } = await joined(1);
  const { port } = link;
  link.freeze();
  near.write('lost');
  const bothClosed = Promise.all([near, far].map(closed));
  await link.close();
  await bothClosed;
  await link.close();
  const [error] = (await once(connect(port, '127.0.0.1'), 'error')) as [NodeJS.ErrnoException];
  expect(error.code).toBe('ECONNREFUSED');
});
