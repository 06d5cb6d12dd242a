import { createConnection, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { LineSplitter, parseLine, parseVerify, TickLog, type RecordedTick, type VerifyResult } from './ticks';

export type { RecordedTick, VerifyResult } from './ticks';

const CONNECT_POLL_MS = 5;
const KERNEL_LOG_LINES = 200;

/** Host time in ms since 1970, monotonic within this process. */
export const hostNowMs = (): number => performance.timeOrigin + performance.now();

interface Console {
  name: string;
  socket: Socket;
  lines: LineSplitter;
  /** No whole line yet: the first one may be the second half of what the guest began to say elsewhere. */
  fresh: boolean;
}

interface PendingCommand {
  line: string;
  sentTo: Console | undefined;
  resolve: (text: string) => void;
  reject: (error: Error) => void;
}

interface TickWaiter {
  after: number;
  resolve: (tick: RecordedTick) => void;
  reject: (error: Error) => void;
}

/**
 * The host's side of the test guest. Follows one guest across moves: attach it to the serial socket of every QEMU that has the guest or is
 * about to get it. Host times are taken when a line is read, so a busy event loop shows as a gap of the guest.
 */
export class TestGuest {
  /** What the kernel said: empty unless it oopsed or panicked. */
  readonly kernelLog: string[] = [];
  private readonly ticks = new TickLog();
  private readonly consoles = new Set<Console>();
  private readonly pending = new Map<string, PendingCommand>();
  private readonly waiters = new Set<TickWaiter>();
  private readonly closing = new AbortController();
  private nextId = 1;
  private nextConsole = 1;
  private closedAt: number | undefined;

  /**
   * Connects as soon as the socket exists and accepts; resolves once connected, with a promise of that connection's end. `signal` or close()
   * ends the waiting with an error.
   */
  async attach(socketPath: string, options: { signal?: AbortSignal } = {}): Promise<{ ended: Promise<void> }> {
    const signal = AbortSignal.any([this.closing.signal, ...(options.signal ? [options.signal] : [])]);
    for (;;) {
      signal.throwIfAborted();
      const socket = await connect(socketPath);
      if (signal.aborted) socket?.destroy();
      else if (socket) return this.follow(socketPath, socket);
      await delay(CONNECT_POLL_MS, undefined, { signal });
    }
  }

  /** Attaches to whichever QEMU listens at this socket, anew when it ends, until the signal is aborted or close(): a try that is given up takes its QEMU with it. */
  async stayAttached(socketPath: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted && !this.isClosed) await this.attach(socketPath, { signal }).then(({ ended }) => ended, () => undefined);
  }

  /** Resolves once the guest is up and obeys: it has ticked and answered. */
  async ready(timeoutMs = 60_000): Promise<void> {
    const began = hostNowMs();
    await this.nextTick({ after: 0, timeoutMs });
    await this.command('hello', Math.max(1, timeoutMs - (hostNowMs() - began)));
  }

  /**
   * Sends a command to the console that ticked last; resolves with the answer's text after the command's name, whichever console it comes from.
   * When the guest turns up on another console meanwhile, the command is sent there too: it may have been lost on the way, and the guest obeys an id once.
   */
  async command(line: string, timeoutMs = 30_000): Promise<string> {
    this.closing.signal.throwIfAborted();
    const id = `#${this.nextId++}`;
    return deadline(timeoutMs, () => `no answer to ${JSON.stringify(line)} from the test guest in ${timeoutMs} ms${this.whereabouts()}`, (resolve, reject) => {
      const command: PendingCommand = { line: `${line} ${id}\n`, sentTo: undefined, resolve, reject };
      this.pending.set(id, command);
      this.send(command);
      return () => this.pending.delete(id);
    });
  }

  /** Stops the writers, re-reads every block and every page, starts the writers again. */
  async verify(timeoutMs = 120_000): Promise<VerifyResult> {
    return parseVerify(await this.command('verify', timeoutMs));
  }

  /** The next tick read after `after` (host time, default now); at once if there has been one. */
  async nextTick(options: { after?: number; timeoutMs?: number } = {}): Promise<RecordedTick> {
    const { after = hostNowMs(), timeoutMs = 10_000 } = options;
    const seen = this.ticks.since(after).find((tick) => tick.hostMs > after);
    if (seen) return seen;
    this.closing.signal.throwIfAborted();
    return deadline(timeoutMs, () => `the test guest did not tick in ${timeoutMs} ms${this.whereabouts()}`, (resolve, reject) => {
      const waiter = { after, resolve, reject };
      this.waiters.add(waiter);
      return () => this.waiters.delete(waiter);
    });
  }

  get isClosed(): boolean {
    return this.closing.signal.aborted;
  }

  get lastTick(): RecordedTick | undefined {
    return this.ticks.lastTick;
  }

  /** The path of the serial socket that the guest is on. */
  get currentConsole(): string | undefined {
    return this.ticks.currentConsole?.replace(/ \(\d+\)$/, '');
  }

  /** More than 0 proves that two copies of the guest ran; `duplicateEvidence` says where. */
  get duplicateTicks(): number {
    return this.ticks.duplicates;
  }

  get duplicateEvidence(): readonly string[] {
    return this.ticks.evidence;
  }

  /** Times that the guest booted after it had already run. */
  get restarts(): number {
    return this.ticks.restarts;
  }

  ticksSince(hostMs: number): RecordedTick[] {
    return this.ticks.since(hostMs);
  }

  /** The largest host-time gap between two ticks, of which the later was read after `since` (default: all), or which lasts until now. */
  longestGapMs(since = 0): number {
    return this.ticks.longestGapMs(since, this.closedAt ?? hostNowMs());
  }

  /** Disconnects; what is awaited fails. The record stays readable. */
  close(): void {
    if (this.closedAt !== undefined) return;
    this.closedAt = hostNowMs();
    const error = new Error('the test guest was closed');
    this.closing.abort(error);
    for (const { socket } of this.consoles) socket.destroy();
    for (const waiting of [...this.pending.values(), ...this.waiters]) waiting.reject(error);
  }

  private follow(path: string, socket: Socket): { ended: Promise<void> } {
    // Numbered, since a QEMU that is started again on the same path is another console.
    const from: Console = { name: `${path} (${this.nextConsole++})`, socket, lines: new LineSplitter(), fresh: true };
    this.consoles.add(from);
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => {
      const hostMs = hostNowMs();
      for (const line of from.lines.push(text)) this.read(from, line, hostMs);
    });
    socket.on('error', () => undefined); // 'close' follows
    const ended = new Promise<void>((resolve) => {
      socket.on('close', () => {
        this.consoles.delete(from);
        resolve();
      });
    });
    for (const command of this.pending.values()) if (!command.sentTo) this.send(command);
    return { ended };
  }

  private read(from: Console, text: string, hostMs: number): void {
    let line = parseLine(text);
    if (from.fresh && line.kind === 'other') {
      for (const { lines } of this.consoles) {
        const joined = parseLine(lines.tail + text);
        if (lines !== from.lines && lines.tail !== '' && joined.kind !== 'other') line = joined;
      }
    }
    from.fresh = false;
    switch (line.kind) {
      case 'tick':
        return this.tick(from, line, hostMs);
      case 'answer':
        if (line.command === 'ready') {
          this.ticks.booted(from.name);
          // What was sent to an earlier life of it, or to none, is for this one.
          for (const command of this.pending.values()) this.send(command);
        } else if (line.id) this.answer(line.id, line.command, line.text);
        else this.log(text);
        return;
      case 'other':
        return this.log(text);
    }
  }

  private tick(from: Console, tick: { sequence: number; guestMs: number }, hostMs: number): void {
    const before = this.ticks.currentConsole;
    this.ticks.record(from.name, tick, hostMs);
    const recorded = this.ticks.lastTick!;
    for (const waiter of this.waiters) if (hostMs > waiter.after) waiter.resolve(recorded);
    if (before !== this.ticks.currentConsole) for (const command of this.pending.values()) this.send(command);
  }

  private answer(id: string, command: string, text: string): void {
    const pending = this.pending.get(id);
    if (command === 'error') pending?.reject(new Error(`the test guest refused: ${text}`));
    else pending?.resolve(text);
  }

  private send(command: PendingCommand): void {
    const current = [...this.consoles].find(({ name }) => name === this.ticks.currentConsole);
    if (!current || current === command.sentTo) return;
    command.sentTo = current;
    current.socket.write(command.line);
  }

  private log(text: string): void {
    if (text === '') return;
    this.kernelLog.push(text);
    if (this.kernelLog.length > KERNEL_LOG_LINES) this.kernelLog.shift();
  }

  private whereabouts(): string {
    const last = this.lastTick;
    const seen = last ? `; its last tick was ${last.sequence} on ${this.currentConsole}, ${Math.round(hostNowMs() - last.hostMs)} ms ago` : '; it never ticked';
    return this.kernelLog.length > 0 ? `${seen}; it said:\n${this.kernelLog.slice(-20).join('\n')}` : seen;
  }
}

async function connect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once('connect', () => resolve(socket.off('error', refused)));
    socket.once('error', refused);
    function refused(): void {
      resolve(undefined);
    }
  });
}

/** Runs `start`, which says how to forget the wait; that is done on every way out. */
async function deadline<T>(timeoutMs: number, message: () => string, start: (resolve: (value: T) => void, reject: (error: Error) => void) => () => void): Promise<T> {
  let forget: (() => void) | undefined;
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<T>((resolve, reject) => {
      timer = setTimeout(() => reject(new Error(message())), timeoutMs);
      forget = start(resolve, reject);
    });
  } finally {
    clearTimeout(timer);
    forget?.();
  }
}
