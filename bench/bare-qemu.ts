import { type ChildProcess, spawn } from 'node:child_process';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

export interface BareEvent {
  event: string;
  /** By QEMU's clock, milliseconds since the epoch. */
  at: number;
  data: Record<string, unknown>;
}

interface Reply {
  QMP?: unknown;
  return?: unknown;
  error?: { desc: string };
  event?: string;
  timestamp: { seconds: number; microseconds: number };
  data?: Record<string, unknown>;
}

const CONNECT_MS = 20_000;

/** A program of QEMU's with a monitor, and the fewest lines that can drive it: what a move costs when nothing is checked, kept or undone. */
export class BareQemu {
  readonly events: BareEvent[] = [];
  private readonly pending: ((reply: Reply) => void)[] = [];
  private readonly listeners = new Set<() => void>();

  private constructor(private readonly child: ChildProcess, private readonly socket: Socket) {
    let rest = '';
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      for (const line of lines) this.read(JSON.parse(line) as Reply);
    });
    socket.on('error', () => undefined);
  }

  /** Starts the program and waits until its monitor, which the arguments put at `socketPath`, obeys. */
  static async start(binary: string, args: string[], socketPath: string): Promise<BareQemu> {
    const child = spawn(binary, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    for (const until = Date.now() + CONNECT_MS; ; await delay(5)) {
      const socket = await new Promise<Socket | undefined>((resolve) => {
        const one = createConnection(socketPath);
        one.once('connect', () => resolve(one)).once('error', () => resolve(undefined));
      });
      if (socket) {
        const qemu = new BareQemu(child, socket);
        await qemu.execute('qmp_capabilities');
        return qemu;
      }
      if (child.exitCode !== null || Date.now() > until) throw new Error(`${binary} has no monitor at ${socketPath}`);
    }
  }

  async execute<T = unknown>(execute: string, args: Record<string, unknown> = {}): Promise<T> {
    const reply = await new Promise<Reply>((resolve) => {
      this.pending.push(resolve);
      this.socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    });
    if (reply.error) throw new Error(`${execute}: ${reply.error.desc}`);
    return reply.return as T;
  }

  /** The `count`th such event, also if it came before. Throws if the program ends first, or after five minutes. */
  async event(name: string, matches: (data: Record<string, unknown>) => boolean = () => true, count = 1): Promise<BareEvent> {
    const look = () => this.events.filter(({ event, data }) => event === name && matches(data))[count - 1];
    return await new Promise((resolve, reject) => {
      const done = (end: () => void) => {
        this.listeners.delete(listener);
        this.child.off('exit', ended);
        clearTimeout(timer);
        end();
      };
      const listener = () => {
        const found = look();
        if (found) done(() => resolve(found));
      };
      const timer = setTimeout(() => done(() => reject(new Error(`${name} did not come; came: ${this.events.map(({ event }) => event).join(', ')}`))), 300_000);
      const ended = () => done(() => reject(new Error(`QEMU ended before ${name} came`)));
      this.child.once('exit', ended);
      this.listeners.add(listener);
      listener();
    });
  }

  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const gone = new Promise((resolve) => this.child.once('exit', resolve));
    if (this.child.exitCode === null && this.child.signalCode === null && this.child.kill(signal)) await gone;
    this.socket.destroy();
  }

  private read(reply: Reply): void {
    if (reply.event !== undefined) {
      this.events.push({ event: reply.event, at: reply.timestamp.seconds * 1_000 + reply.timestamp.microseconds / 1_000, data: reply.data ?? {} });
      for (const listener of [...this.listeners]) listener();
    } else if (reply.QMP === undefined) this.pending.shift()?.(reply);
  }
}
