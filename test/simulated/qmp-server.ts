import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';

/** An error that QEMU would give, with its class and its words. */
export class Refused extends Error {
  constructor(readonly desc: string, readonly errorClass = 'GenericError') {
    super(desc);
  }
}

export const VERSION = { qemu: { micro: 22, minor: 2, major: 7 }, package: 'simulated' };

/** What a monitor is the monitor of: a program with one main loop, which all its monitors share. */
export interface Served {
  /** Carries out one command, when the main loop comes to it. */
  execute(command: string, args: Record<string, unknown>): unknown;
  /** The same out of band, at once. */
  executeOob(command: string, args: Record<string, unknown>): unknown;
  /** Resolves when the main loop is free for one more command. */
  turn(): Promise<void>;
  /** Resolves when the program is scheduled at all: one that is frozen reads nothing. */
  readonly thawed: Promise<void> | undefined;
}

interface Request {
  execute?: string;
  'exec-oob'?: string;
  arguments?: Record<string, unknown>;
  id?: unknown;
}

/** A QMP monitor on a UNIX socket: one client at a time, the others wait without a greeting; events go to a negotiated client, or nowhere. */
export class SimulatedMonitor {
  private readonly sockets = new Set<Socket>();
  private current: Socket | undefined;
  private negotiated = false;

  private constructor(readonly path: string, private readonly server: Server, private readonly served: Served) {}

  static async listen(path: string, served: Served): Promise<SimulatedMonitor> {
    rmSync(path, { force: true });
    const server = createServer();
    const monitor = new SimulatedMonitor(path, server, served);
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
    server.unref();
    server.on('connection', (socket) => monitor.accept(socket));
    return monitor;
  }

  event(event: string, data?: object): void {
    if (!this.negotiated) return;
    const micros = Math.round((performance.timeOrigin + performance.now()) * 1000);
    this.send(this.current, { timestamp: { seconds: Math.floor(micros / 1e6), microseconds: micros % 1e6 }, event, ...(data && { data }) });
  }

  close(): void {
    this.server.close();
    this.sockets.forEach((socket) => socket.destroy());
  }

  private accept(socket: Socket): void {
    this.sockets.add(socket);
    socket.unref();
    socket.on('error', () => socket.destroy());
    socket.once('close', () => {
      this.sockets.delete(socket);
      if (this.current !== socket) return;
      this.current = undefined;
      this.greet();
    });
    createInterface({ input: socket }).on('line', (line) => void this.receive(socket, line)).on('error', () => socket.destroy());
    this.greet();
  }

  private greet(): void {
    if (this.current) return;
    [this.current] = this.sockets;
    this.negotiated = false;
    this.send(this.current, { QMP: { version: VERSION, capabilities: ['oob'] } });
  }

  private async receive(socket: Socket, line: string): Promise<void> {
    await this.served.thawed;
    const { id, ...request } = JSON.parse(line) as Request;
    const oob = request['exec-oob'];
    if (oob === undefined) await this.served.turn();
    let reply: object;
    try {
      const value = oob !== undefined ? this.served.executeOob(oob, request.arguments ?? {}) : this.execute(request.execute!, request.arguments ?? {});
      reply = { return: (value instanceof Promise ? ((await value) as unknown) : value) ?? {} };
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      reply = { error: { class: error.errorClass, desc: error.desc } };
    }
    this.send(socket, { ...reply, ...(id !== undefined && { id }) });
  }

  private execute(command: string, args: Record<string, unknown>): unknown {
    if (this.negotiated) return this.served.execute(command, args);
    if (command !== 'qmp_capabilities') throw new Refused("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound');
    this.negotiated = true;
    return {};
  }

  private send(socket: Socket | undefined, message: object): void {
    if (socket?.writable) socket.write(`${JSON.stringify(message)}\r\n`);
  }
}
