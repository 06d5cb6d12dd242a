import { randomBytes, timingSafeEqual } from 'node:crypto';
import { createConnection, createServer, type Socket } from 'node:net';
import type { HostConfig } from './host-config';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';

/** Where a destination swallows bytes for a measurement. */
export interface LinkProbe {
  host: string;
  port: number;
  /** Hexadecimal. Of one probe, so that no stray connection is taken for it. */
  token: string;
}

/** A probe that nobody comes to closes by itself. */
const OPEN_MS = 15_000;
/** A measurement ends after either. */
const MEASURE_MS = 1_000;
const MEASURE_BYTES = 128 * 2 ** 20;
const CONNECT_MS = 5_000;
const TOKEN_BYTES = 16;
const CHUNK = Buffer.alloc(256 * 1024);

/** Listens on a port of this host's range for one connection, and swallows what comes. Only zeros do: nothing of a guest goes this way. */
export async function openLinkProbe(config: HostConfig): Promise<LinkProbe> {
  const token = randomBytes(TOKEN_BYTES).toString('hex');
  for (const port of portsInOrder(config.ports)) {
    const server = createServer({ allowHalfOpen: true });
    try {
      await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, config.address, resolve));
    } catch (error) {
      if (isAddressInUse(error)) continue;
      throw error;
    }
    // Neither keeps an agent alive that is to end.
    server.unref();
    const closing = setTimeout(() => server.close(), OPEN_MS).unref();
    server.on('connection', (socket) => swallow(socket, Buffer.from(token), () => {
      clearTimeout(closing);
      server.close();
    }));
    return { host: config.address, port, token };
  }
  throw noFreePort(config);
}

/** Tells, when the other end has said all, how many bytes that were. One who does not know the token is sent away. */
function swallow(socket: Socket, token: Buffer, known: () => void): void {
  let [bytes, head] = [0, Buffer.alloc(0)];
  socket.setTimeout(OPEN_MS, () => socket.destroy()).on('error', () => socket.destroy());
  socket.on('data', (chunk) => {
    bytes += chunk.length;
    if (head.length < token.length) {
      head = Buffer.concat([head, chunk]).subarray(0, token.length);
      if (head.length === token.length && !timingSafeEqual(head, token)) socket.destroy();
    }
    // More than a measurement ever sends.
    if (bytes > 2 * MEASURE_BYTES) socket.destroy();
  });
  socket.on('end', () => {
    if (head.length === token.length) known();
    socket.end(String(bytes));
  });
}

/** Bytes a second from this host to the probe, by what it says to have got: zeros for a second, or 128 MiB if that is less. Throws if nobody answers. */
export async function measureLink({ host, port, token }: LinkProbe): Promise<number> {
  const socket = createConnection({ host, port });
  let said = '';
  const ended = new Promise<void>((resolve, reject) => {
    socket.setTimeout(CONNECT_MS, () => socket.destroy(new Error(`nothing heard from ${host} port ${port} for ${CONNECT_MS / 1000} s`)));
    socket.on('error', reject).on('data', (chunk) => (said += chunk.toString())).on('close', resolve);
  });
  await Promise.race([new Promise((resolve) => socket.once('connect', resolve)), ended]);
  const began = performance.now();
  socket.write(token);
  let sent = 0;
  const send = () => {
    while (sent < MEASURE_BYTES && performance.now() - began < MEASURE_MS) {
      sent += CHUNK.length;
      if (!socket.write(CHUNK)) return void socket.once('drain', send);
    }
    socket.end();
  };
  send();
  await ended;
  const bytes = Number(said);
  if (!(bytes > 0)) throw new Error(`${host} port ${port} did not say what it got`);
  return Math.round((bytes * 1000) / (performance.now() - began));
}
