import { createServer, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import type { Step } from './steps';

/** An agent or guard that waits at a moment. */
export interface Reached {
  pid: number;
  role: 'agent' | 'guard';
  atMs: number;
  /** Lets it go on. */
  go(): void;
}

interface Wanted {
  what: string;
  when: string;
  host: string;
}

/** The harness's end of preload.js: one moment is waited for at a time, and whoever comes there first is held. */
export class Moments {
  private readonly sockets = new Set<Socket>();
  private wanted: Wanted | undefined;
  private reached: ((reached: Reached) => void) | undefined;
  private constructor(private readonly server: Server) {}

  static async listen(path: string): Promise<Moments> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
    const moments = new Moments(server);
    server.on('connection', (socket) => moments.accept(socket));
    return moments;
  }

  /** Resolves when a process on `host` comes to this step and waits there. `over` ends the waiting; then it resolves with undefined. */
  async at(step: Step, hosts: { source: string; destination: string }, over: AbortSignal): Promise<Reached | undefined> {
    // Told apart from the same command sent earlier by what must have come first.
    if (step.after && !(await this.first({ what: step.after, when: 'sent', host: hosts.source }, over).then((reached) => reached && (reached.go(), true)))) return undefined;
    return await this.first({ what: step.what, when: step.when, host: hosts[step.at] }, over);
  }

  async close(): Promise<void> {
    this.sockets.forEach((socket) => socket.destroy());
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }

  private async first(wanted: Wanted, over: AbortSignal): Promise<Reached | undefined> {
    return await new Promise((resolve) => {
      const settle = (reached?: Reached) => {
        over.removeEventListener('abort', onOver);
        this.reached = undefined;
        this.want(undefined);
        resolve(reached);
      };
      const onOver = () => settle();
      over.addEventListener('abort', onOver);
      if (over.aborted) return settle();
      this.reached = settle;
      this.want(wanted);
    });
  }

  private want(wanted: Wanted | undefined): void {
    this.wanted = wanted;
    this.sockets.forEach((socket) => this.send(socket, { await: wanted ?? null }));
  }

  private accept(socket: Socket): void {
    this.sockets.add(socket);
    socket.on('error', () => socket.destroy()).once('close', () => this.sockets.delete(socket));
    this.send(socket, { await: this.wanted ?? null });
    createInterface({ input: socket }).on('line', (line) => {
      const { id, pid, role, ...moment } = JSON.parse(line) as { id: number; pid: number; role: Reached['role'] } & Wanted;
      const go = () => this.send(socket, { go: id });
      const { wanted, reached } = this;
      if (reached && wanted && wanted.what === moment.what && wanted.when === moment.when && wanted.host === moment.host) reached({ pid, role, atMs: Date.now(), go });
      else go();
    }).on('error', () => undefined);
  }

  private send(socket: Socket, message: object): void {
    if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
  }
}
