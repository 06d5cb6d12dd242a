import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { HostConfig } from './host-config';
import { onMessages, type ToDestination, toDestinationSchema, type ToSource, toSourceSchema } from './lease-messages';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';

/**
 * The lease that a source holds on its destination while its guest is paused (R7): the destination's agent says every `BEAT_MS`, over
 * a TCP connection of its own, that its QEMU answers. A destination that dies or hangs is reported by nobody else: QEMU's source
 * would wait, with the guest paused, for ever (facts/qemu.md §5). Messages are JSON, one a line.
 */
export const BEAT_MS = 25;

/** Each source has one; the rest is for some that were cut off and have not been noticed yet. */
const MOST_CONNECTIONS = 2_000;

/** What a destination's `receive` gives to the lease. */
export interface LeaseHolder {
  /** Resolves if the incoming QEMU answers; rejects with a reason if it is gone. */
  probe(): Promise<void>;
  /** Resolves when the incoming QEMU is gone: no beat is waited for to say so. */
  ended: Promise<Error>;
  /** The source says whether the guest shall run on arrival; with `handedOver`, that it came by post-copy and may run now. Resolves when that is durable. */
  arm(run: boolean, handedOver?: true): Promise<void>;
}

/** One per agent: answers the sources of all guests that are on their way here. */
export class LeaseServer {
  private readonly holders = new Map<string, LeaseHolder>();
  private readonly sockets = new Set<Socket>();
  private constructor(private readonly server: Server, readonly port: number) {}

  /** Listens on the host's address, on the port it had before if that is free, else on another of its range. */
  static async listen(config: HostConfig, preferred?: number): Promise<LeaseServer> {
    for (const port of [...(preferred ? [preferred] : []), ...portsInOrder(config.ports)]) {
      const server = createServer();
      try {
        await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, config.address, resolve));
      } catch (error) {
        if (isAddressInUse(error)) continue;
        throw error;
      }
      const lease = new LeaseServer(server, port);
      server.on('connection', (socket) => lease.accept(socket));
      return lease;
    }
    throw noFreePort(config);
  }

  /** Answers for this attempt until the returned function is called: with a reason if the QEMU is gone for good, which is told from then on. */
  hold(attempt: string, holder: LeaseHolder): (gone?: string) => void {
    this.holders.set(attempt, holder);
    return (gone) => {
      if (this.holders.get(attempt) !== holder) return;
      if (gone === undefined) this.holders.delete(attempt);
      else this.holders.set(attempt, { ...holder, probe: () => Promise.reject(new Error(gone)) });
    };
  }

  /** Forgets an attempt. */
  forget(attempt: string): void {
    this.holders.delete(attempt);
  }

  async close(): Promise<void> {
    this.sockets.forEach((socket) => socket.destroy());
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }

  private accept(socket: Socket): void {
    if (this.sockets.size >= MOST_CONNECTIONS) return void socket.destroy();
    this.sockets.add(socket);
    const closed = new AbortController();
    socket.setNoDelay(true).on('error', () => socket.destroy()).once('close', () => {
      this.sockets.delete(socket);
      closed.abort();
    });
    const send = (message: ToSource) => socket.write(`${JSON.stringify(message)}\n`);
    let attempt: string | undefined;
    onMessages(socket, toDestinationSchema, (message) => {
      if ('attempt' in message && attempt === undefined) {
        attempt = message.attempt;
        void this.beat(attempt, send, closed.signal);
      } else if ('run' in message && attempt !== undefined) {
        const holder = this.holders.get(attempt);
        holder?.arm(message.run, message.handedOver).then(() => send({ armed: message.run, ...(message.handedOver && { handedOver: true }) }), () => socket.destroy());
      }
    });
  }

  private async beat(attempt: string, send: (message: ToSource) => void, closed: AbortSignal): Promise<void> {
    for (let count = 0; !closed.aborted; count++) {
      const holder = this.holders.get(attempt);
      try {
        await holder?.probe();
        if (holder && !closed.aborted) send({ beat: count });
      } catch (error) {
        send({ gone: (error as Error).message });
        return;
      }
      await Promise.race([...(holder ? [holder.ended] : []), delay(BEAT_MS, undefined, { signal: closed })]).catch(() => undefined);
    }
  }
}

/** Why a lease is no longer good. */
export type LeaseLoss = { kind: 'peer-gone' | 'peer-silent'; message: string };

/** The source's end. It reconnects by itself: a destination's agent may be restarted while the guest runs. */
export class Lease {
  private socket: Socket | undefined;
  private lastBeatAt = performance.now();
  private gone: string | undefined;
  private armed: boolean | undefined;
  private handedOver: true | undefined;
  private heardHandedOver = false;
  private closed = false;
  private readonly waiters = new Set<() => void>();

  constructor(private readonly peer: { host: string; port: number; attempt: string }, private run: boolean) {
    void this.keepConnected();
  }

  /** Tells the destination whether the guest shall run there; resolves when it has that durably. */
  async arm(run: boolean, signal: AbortSignal, handedOver?: true): Promise<void> {
    this.run = run;
    this.armed = undefined;
    this.handedOver = handedOver;
    if (this.socket) this.send(this.socket, this.word);
    while (this.armed !== run || (handedOver && !this.heardHandedOver)) await this.change(signal);
  }

  /** Milliseconds since the destination last said that its QEMU answers. */
  get silentForMs(): number {
    return performance.now() - this.lastBeatAt;
  }

  /** Resolves with the reason as soon as the destination's QEMU is known to be gone, or nothing was heard for `limitMs`. Rejects when the signal is aborted. */
  async lost(limitMs: number, signal: AbortSignal): Promise<LeaseLoss> {
    for (;;) {
      const loss = this.loss(limitMs);
      if (loss) return loss;
      const wake = AbortSignal.timeout(Math.max(1, limitMs - this.silentForMs));
      await this.change(AbortSignal.any([signal, wake])).catch(() => signal.throwIfAborted());
    }
  }

  /** Resolves when the destination was heard of within the last `limitMs`; waits for it if need be. */
  async fresh(limitMs: number, signal: AbortSignal): Promise<void> {
    while (this.gone === undefined && this.silentForMs > limitMs) await this.change(signal);
  }

  /** Why the lease is not good now, if so. */
  loss(limitMs: number): LeaseLoss | undefined {
    if (this.gone !== undefined) return { kind: 'peer-gone', message: this.gone };
    const silent = this.silentForMs;
    return silent > limitMs ? { kind: 'peer-silent', message: `nothing heard from the destination for ${Math.round(silent)} ms` } : undefined;
  }

  close(): void {
    this.closed = true;
    this.socket?.destroy();
  }

  private async keepConnected(): Promise<void> {
    while (!this.closed) {
      const socket = createConnection({ host: this.peer.host, port: this.peer.port }).setNoDelay(true);
      this.socket = socket;
      const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()));
      socket.on('error', () => socket.destroy());
      socket.once('connect', () => {
        this.send(socket, { attempt: this.peer.attempt });
        this.send(socket, this.word);
      });
      onMessages(socket, toSourceSchema, (message) => this.receive(socket, message));
      await ended;
      if (!this.closed) await delay(BEAT_MS);
    }
  }

  private receive(socket: Socket, message: ToSource): void {
    if ('beat' in message) {
      this.lastBeatAt = performance.now();
      // Its `receive` may have begun only after we connected: then the first word about running was heard by nobody.
      if (this.armed === undefined && message.beat % 4 === 0) this.send(socket, this.word);
    } else if ('armed' in message) {
      this.armed = message.armed;
      this.heardHandedOver ||= message.handedOver ?? false;
    } else this.gone = message.gone;
    this.waiters.forEach((wake) => wake());
  }

  private get word(): ToDestination {
    return { run: this.run, ...(this.handedOver && { handedOver: true }) };
  }

  private send(socket: Socket, message: ToDestination): void {
    if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
  }

  private async change(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const done = (settle: () => void) => () => {
        this.waiters.delete(wake);
        signal.removeEventListener('abort', abort);
        settle();
      };
      const wake = done(resolve);
      const abort = done(() => reject(signal.reason as Error));
      this.waiters.add(wake);
      signal.addEventListener('abort', abort);
    });
  }
}
