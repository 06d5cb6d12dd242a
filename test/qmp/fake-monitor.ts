import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

export const GREETING = { QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: 'fake' }, capabilities: ['oob'] } };

export interface Request {
  execute?: string;
  'exec-oob'?: string;
  arguments?: unknown;
  id: number;
}

/** A folder with a path short enough for a socket, and how to remove it. */
export function socketFolder(): { path: (name: string) => string; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'qmp-'));
  return { path: (name) => join(folder, name), remove: () => rmSync(folder, { recursive: true, force: true }) };
}

/** Values pushed by one side, awaited one by one by the other. */
class Inbox<T> {
  private readonly items: T[] = [];
  private readonly waiting: ((item: T) => void)[] = [];

  push(item: T): void {
    const waiter = this.waiting.shift();
    if (waiter) waiter(item);
    else this.items.push(item);
  }

  async next(): Promise<T> {
    const item = this.items.shift();
    return item ?? new Promise((resolve) => this.waiting.push(resolve));
  }

  get size(): number {
    return this.items.length;
  }
}

/** The server's end of one connection. */
export class FakeClient {
  readonly requests = new Inbox<Request>();
  readonly closed: Promise<unknown>;

  constructor(readonly socket: Socket) {
    socket.on('error', () => undefined);
    this.closed = once(socket, 'close');
    createInterface(socket).on('line', (line) => {
      const request = JSON.parse(line) as Request;
      if (request.execute === 'qmp_capabilities') this.reply(request, {});
      else this.requests.push(request);
    });
  }

  raw(data: string | Buffer): void {
    this.socket.write(data);
  }

  send(...messages: unknown[]): void {
    this.raw(messages.map((message) => `${JSON.stringify(message)}\r\n`).join(''));
  }

  reply(request: Request, value: unknown): void {
    this.send({ return: value, id: request.id });
  }

  event(event: string, data?: unknown, seconds = 1): void {
    this.send({ event, data, timestamp: { seconds, microseconds: 500 } });
  }
}

/** A QMP server under the test's control. `greeting` undefined: it says nothing by itself. */
export class FakeMonitor {
  readonly clients = new Inbox<FakeClient>();
  readonly accepted: FakeClient[] = [];

  private constructor(
    readonly path: string,
    private readonly server: Server,
  ) {}

  static async listen(path: string, greeting: string | undefined = `${JSON.stringify(GREETING)}\r\n`): Promise<FakeMonitor> {
    const server = createServer((socket) => {
      const client = new FakeClient(socket);
      monitor.accepted.push(client);
      if (greeting) client.raw(greeting);
      monitor.clients.push(client);
    });
    const monitor = new FakeMonitor(path, server);
    await once(server.listen(path), 'listening');
    return monitor;
  }

  async close(): Promise<void> {
    const closed = once(this.server, 'close');
    this.server.close();
    for (const { socket } of this.accepted) socket.destroy();
    await closed;
  }
}
