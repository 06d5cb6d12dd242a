import type { Socket } from 'node:net';
import { arm, type Deadline } from './deadline';
import { QmpCommandFailed, QmpDisconnected, QmpError, QmpProtocolError, QmpTimeout } from './errors';
import { QmpEventQueue } from './event-queue';
import { openMonitor, type QmpGreeting } from './handshake';
import { checkDepth, LineDecoder } from './line-decoder';
import { implausible } from './plausible';
import type { QmpArguments, QmpCommand, QmpEvent, QmpEventName, QmpOobCommand, QmpReturns } from './vocabulary';

export interface ConnectOptions extends Deadline {
  /** The longest line that is accepted. Default 32 MiB: `query-qmp-schema` has 0.2 MiB. */
  maxReplyBytes?: number;
}

/** Arguments may be left out where none is required. */
type Rest<C extends QmpCommand> = Record<string, never> extends QmpArguments<C> ? [args?: QmpArguments<C>, deadline?: Deadline] : [args: QmpArguments<C>, deadline?: Deadline];

/** What can send commands: one connection, or a monitor that connects on demand. */
export interface QmpExecutor {
  /**
   * Sends a command and gives what it returns; any number may be under way at once. Rejects with `QmpCommandFailed`, `QmpDisconnected`,
   * `QmpTimeout` (default 60 s) or the signal's reason. Only the first says that QEMU is done with it.
   */
  execute<C extends QmpCommand>(command: C, ...rest: Rest<C>): Promise<QmpReturns<C>>;
  /** The same, past the queue, even while QEMU's main loop hangs. Throws `QmpError` if this QEMU did not offer `oob`. */
  executeOob<C extends QmpOobCommand>(command: C, ...rest: Rest<C>): Promise<QmpReturns<C>>;
}

interface Request {
  id: number;
  command: string;
  oob: boolean;
  line: string;
  /** Undefined once the caller has given up; the request is kept until QEMU answers, as it still takes a place in QEMU's queue. */
  caller: { resolve: (value: unknown) => void; reject: (error: Error) => void } | undefined;
}

interface Message {
  id?: unknown;
  return?: unknown;
  error?: { class: string; desc: string } | null;
  event?: unknown;
  data?: unknown;
  timestamp?: { seconds?: unknown; microseconds?: unknown } | null;
}

const CONNECT_MS = 5_000;
const COMMAND_MS = 60_000;
/** Of QEMU's words in a message: it goes into Temporal's history and to people. */
const LONGEST_DESC = 4_096;
const MAX_REPLY_BYTES = 32 * 2 ** 20;

/**
 * QEMU stops reading its socket, and with that also out-of-band commands, when 8 in-band ones are queued (QEMU's monitor/qmp.c,
 * QMP_REQ_QUEUE_LEN_MAX; measured on 7.2: with 9 in flight an `exec-oob` got no answer). The rest waits here, so that a `yank` always gets through.
 */
const IN_BAND_LIMIT = 7;

/** A negotiated connection to one QMP monitor. It ends once and is not revived: `QmpMonitor` reconnects. */
export class QmpConnection implements QmpExecutor {
  /** Whether commands can be sent out of band. */
  readonly oob: boolean;
  /** Resolves, never rejects, with the reason when the connection has ended, by whichever side. */
  readonly closed: Promise<QmpError>;

  private readonly lines: LineDecoder;
  /** Sent, and not answered by QEMU. */
  private readonly sent = new Map<number, Request>();
  private readonly unsent = new Set<Request>();
  private readonly listeners = new Set<QmpEventQueue>();
  private nextId = 1;
  private inBandSent = 0;
  private ended: QmpError | undefined;
  private resolveClosed!: (reason: QmpError) => void;

  /**
   * Connects, waits for the greeting and negotiates, all within `timeoutMs` (default 5 s). Throws `QmpDisconnected`, `QmpMonitorBusy`,
   * `QmpProtocolError`, `QmpTimeout` (of `qmp_capabilities`: QEMU greets, but its main loop hangs), or the signal's reason.
   */
  static async connect(path: string, { timeoutMs = CONNECT_MS, signal, maxReplyBytes = MAX_REPLY_BYTES }: ConnectOptions = {}): Promise<QmpConnection> {
    const deadline = performance.now() + timeoutMs;
    const { socket, greeting } = await openMonitor(path, { timeoutMs, signal });
    const connection = new QmpConnection(path, greeting, socket, maxReplyBytes);
    try {
      await connection.execute('qmp_capabilities', { enable: connection.oob ? ['oob'] : [] }, { timeoutMs: Math.max(1, Math.ceil(deadline - performance.now())), signal });
      return connection;
    } catch (error) {
      connection.close();
      throw error;
    }
  }

  private constructor(
    readonly path: string,
    readonly greeting: QmpGreeting,
    private readonly socket: Socket,
    maxReplyBytes: number,
  ) {
    this.oob = greeting.capabilities.includes('oob');
    this.lines = new LineDecoder(maxReplyBytes);
    this.closed = new Promise((resolve) => (this.resolveClosed = resolve));
    let cause: Error | undefined;
    socket.on('error', (error) => (cause = error));
    socket.on('close', () => this.end(new QmpDisconnected(path, cause ? `it broke (${cause.message})` : 'QEMU closed it, or ended', { cause })));
    socket.on('data', (chunk) => this.receive(chunk));
    socket.resume();
  }

  get isOpen(): boolean {
    return this.ended === undefined;
  }

  async execute<C extends QmpCommand>(command: C, ...[args, deadline]: Rest<C>): Promise<QmpReturns<C>> {
    return this.request(command, args, deadline, false);
  }

  async executeOob<C extends QmpOobCommand>(command: C, ...[args, deadline]: Rest<C>): Promise<QmpReturns<C>> {
    if (!this.oob) throw new QmpError(this.path, `QEMU at ${this.path} did not offer out-of-band commands, so ${command} can't pass its queue: use a monitor on a socket chardev`);
    return this.request(command, args, deadline, true) as Promise<QmpReturns<C>>;
  }

  /**
   * Opens a queue of the events with these names, or of all, also those that the vocabulary does not know. It collects from now on: open
   * it before the command that causes the event. On an ended connection its `next` rejects.
   */
  listen<N extends QmpEventName>(...names: N[]): QmpEventQueue<N> {
    const queue: QmpEventQueue<N> = new QmpEventQueue<N>(this.path, names, () => this.listeners.delete(queue));
    if (this.ended) queue.end(this.ended);
    else this.listeners.add(queue);
    return queue;
  }

  /** Ends the connection: unanswered commands reject with `QmpDisconnected`. QEMU and its jobs go on. Idempotent. */
  close(): void {
    this.end(new QmpDisconnected(this.path, 'it was closed on our side'));
  }

  private async request(command: string, args: object | undefined, { timeoutMs = COMMAND_MS, signal }: Deadline = {}, oob: boolean): Promise<unknown> {
    signal?.throwIfAborted();
    if (this.ended) throw this.ended;
    return new Promise((resolve, reject) => {
      const id = this.nextId++;
      const line = JSON.stringify({ [oob ? 'exec-oob' : 'execute']: command, arguments: args, id }) + '\n';
      const giveUp = (error: Error) => {
        request.caller?.reject(error);
        request.caller = undefined;
        this.unsent.delete(request);
      };
      const disarm = arm({ timeoutMs, signal }, (waitedMs) => giveUp(new QmpTimeout(this.path, waitedMs, { command })), giveUp);
      const request: Request = {
        id,
        command,
        oob,
        line,
        caller: {
          resolve: (value) => (disarm(), resolve(value)),
          reject: (error) => (disarm(), reject(error)),
        },
      };
      if (oob || this.inBandSent < IN_BAND_LIMIT) this.send(request);
      else this.unsent.add(request);
    });
  }

  private send(request: Request): void {
    this.sent.set(request.id, request);
    if (!request.oob) this.inBandSent++;
    this.socket.write(request.line);
  }

  private receive(chunk: Buffer): void {
    try {
      for (const line of this.lines.push(chunk)) {
        if (this.ended) return;
        if (line.length === 0) continue;
        checkDepth(line);
        this.dispatch(JSON.parse(line.toString('utf8')) as Message | null, line.length);
      }
    } catch (error) {
      this.end(error instanceof QmpError ? error : new QmpProtocolError(this.path, (error as Error).message, { cause: error }));
    }
  }

  private dispatch(message: Message | null, bytes: number): void {
    if (message === null || typeof message !== 'object') throw new QmpProtocolError(this.path, 'a line is no JSON object');
    if (typeof message.event === 'string' && typeof message.timestamp?.seconds === 'number') {
      // QEMU leaves `data` out where there is none.
      const event = { event: message.event, data: message.data ?? {}, timestamp: message.timestamp } as QmpEvent;
      for (const listener of [...this.listeners]) listener.deliver(event, bytes);
    } else if (message.return !== undefined || message.error) {
      this.answer(message);
    } else {
      throw new QmpProtocolError(this.path, `a line is neither a reply nor an event but has ${Object.keys(message).slice(0, 5).join(', ') || 'nothing'}`);
    }
  }

  private answer({ id, return: value, error }: Message): void {
    // QEMU could not read a request, and so can't say which: every answer after this one would be a guess.
    if (id === undefined) throw new QmpProtocolError(this.path, `it could not read a request (${error?.desc ?? 'a reply without id'})`);
    const request = this.sent.get(id as number);
    if (!request) return;
    this.sent.delete(request.id);
    if (!request.oob) this.inBandSent--;
    const wrong = error ? undefined : implausible(request.command, value);
    if (error) request.caller?.reject(new QmpCommandFailed(this.path, request.command, String(error.class), String(error.desc).slice(0, LONGEST_DESC)));
    else if (wrong) request.caller?.reject(new QmpProtocolError(this.path, wrong));
    else request.caller?.resolve(value);
    const [next] = this.unsent;
    if (next && this.inBandSent < IN_BAND_LIMIT) {
      this.unsent.delete(next);
      this.send(next);
    }
  }

  private end(reason: QmpError): void {
    if (this.ended) return;
    this.ended = reason;
    this.socket.destroy();
    for (const { command, caller } of this.sent.values()) caller?.reject(new QmpDisconnected(this.path, whyOf(reason), { command, cause: reason }));
    for (const { caller } of this.unsent) caller?.reject(reason);
    this.sent.clear();
    this.unsent.clear();
    for (const listener of this.listeners) listener.end(reason);
    this.listeners.clear();
    this.resolveClosed(reason);
  }
}

function whyOf(reason: QmpError): string {
  return reason instanceof QmpDisconnected ? reason.why : reason.message;
}
