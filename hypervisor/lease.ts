import type { Server, Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { HostConfig } from './host-config';
import { onMessages, type ToDestination, toDestinationSchema, type ToSource, toSourceSchema } from './lease-messages';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';
import { connectToPeer, createPeerServer, type Peer, refusalOf } from './secure-socket';

/**
 * The lease that a source holds on its destination while its guest is paused (R7): the destination's agent says every `BEAT_MS`, over
 * a TCP connection of its own, that its QEMU answers. A destination that dies or hangs is reported by nobody else: QEMU's source
 * would wait, with the guest paused, for ever (facts/qemu.md §5). Messages are JSON, one a line. It goes by TLS where disks and memory do, and then only
 * the host that an attempt comes from is answered.
 */
export const BEAT_MS = 25;
/** Whoever is refused is not believed a moment later. */
const REFUSED_PAUSE_MS = 1_000;

/** Each source has one, and some for a moment; the rest is for those that were cut off and have not been noticed yet. */
const MOST_CONNECTIONS = 2_000;

/** What a destination's `receive` gives to the lease. */
export interface LeaseHolder {
  /** The host that the guest comes from: nobody else is answered. */
  from: string;
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
  private constructor(private readonly name: string, private readonly server: Server, readonly port: number) {}

  /** Listens on the host's address, on the port it had before if that is free, else on another of its range. */
  static async listen(config: HostConfig, preferred?: number): Promise<LeaseServer> {
    for (const port of [...(preferred ? [preferred] : []), ...portsInOrder(config.ports)]) {
      const arrived: { lease?: LeaseServer } = {};
      const server = createPeerServer(config, (socket, peer) => arrived.lease?.accept(socket, peer));
      server.maxConnections = MOST_CONNECTIONS;
      try {
        await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, config.address, resolve));
      } catch (error) {
        if (isAddressInUse(error)) continue;
        throw error;
      }
      const lease = (arrived.lease = new LeaseServer(config.name, server, port));
      server.on('connection', (socket) => {
        lease.sockets.add(socket);
        socket.once('close', () => lease.sockets.delete(socket));
      });
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

  private accept(socket: Socket, peer: Peer): void {
    const closed = new AbortController();
    socket.setNoDelay(true).on('error', () => socket.destroy()).once('close', () => closed.abort());
    const send = (message: ToSource) => socket.write(`${JSON.stringify(message)}\n`);
    if (peer.refused !== undefined) {
      socket.end(`${JSON.stringify({ refused: peer.refused } satisfies ToSource)}\n`);
      return;
    }
    let attempt: string | undefined;
    onMessages(socket, toDestinationSchema, (message) => {
      if ('greet' in message) send(this.answer(message.greet, peer));
      else if ('attempt' in message && attempt === undefined) {
        attempt = message.attempt;
        void this.beat(attempt, peer, send, closed.signal);
      } else if ('run' in message && attempt !== undefined) {
        const holder = this.holders.get(attempt);
        if (holder && !mayAsk(holder, peer)) socket.destroy();
        else holder?.arm(message.run, message.handedOver).then(() => send({ armed: message.run, ...(message.handedOver && { handedOver: true }) }), () => socket.destroy());
      }
    });
  }

  private answer(from: string, peer: Peer): ToSource {
    if (peer.host !== undefined && peer.host !== from) return { refused: `it is called ${from}, and its certificate or key is for ${peer.host}` };
    return { host: this.name };
  }

  private async beat(attempt: string, peer: Peer, send: (message: ToSource) => void, closed: AbortSignal): Promise<void> {
    for (let count = 0; !closed.aborted; count++) {
      const holder = this.holders.get(attempt);
      if (holder && !mayAsk(holder, peer)) return void send({ refused: `the guest comes from ${holder.from}, not from ${peer.host}` });
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

const mayAsk = ({ from }: LeaseHolder, { host }: Peer): boolean => host === undefined || host === from;

/** Where a destination's agent is reached. */
export interface LeasePeer {
  /** The host's name, which it has to prove. */
  name: string;
  host: string;
  port: number;
}

/**
 * Whether the agent of a destination answers this host, by the way that a lease will go, and each believes the other. Gives the reason if not, with what
 * to do.
 */
export async function greet(config: HostConfig, to: LeasePeer, timeoutMs: number): Promise<string | undefined> {
  const late = AbortSignal.timeout(timeoutMs);
  const at = `${to.name} on ${to.host} port ${to.port}`;
  return await new Promise<string | undefined>((resolve) => {
    const failed = (error: NodeJS.ErrnoException) => resolve(refusalOf(error, config, to) ?? `the agent of ${at} cannot be reached from ${config.name}: ${error.message}: see its address and ports, and the firewall`);
    try {
      const socket = connectToPeer(config, to, () => socket.write(`${JSON.stringify({ greet: config.name } satisfies ToDestination)}\n`));
      const settle = (what: string | undefined) => {
        resolve(what);
        socket.destroy();
      };
      late.addEventListener('abort', () => settle(`the agent of ${at} did not answer ${config.name} within ${timeoutMs / 1000} s: see the firewall`));
      socket.on('error', failed).once('close', () => resolve(`the agent of ${at} closed the connection of ${config.name}: see its log, and that both configurations say the same of tls, psk and insecure`));
      onMessages(socket, toSourceSchema, (message) => {
        if ('host' in message) settle(message.host === to.name ? undefined : `${to.host} port ${to.port} is ${message.host}, not ${to.name}: correct the address of ${to.name}`);
        else if ('refused' in message) settle(`${to.name} refuses ${config.name}: ${message.refused}`);
      });
    } catch (error) {
      failed(error as Error);
    }
  });
}

/** Why a lease is no longer good. */
export type LeaseLoss = { kind: 'peer-gone' | 'peer-silent'; message: string };

/** The source's end. It reconnects by itself: a destination's agent may be restarted while the guest runs. */
export class Lease {
  private socket: Socket | undefined;
  private lastBeatAt = performance.now();
  private ended: string | undefined;
  private armed: boolean | undefined;
  private handedOver: true | undefined;
  private heardHandedOver = false;
  /** On this connection. */
  private heardBeat = false;
  private closed = false;
  /** Why the last connection was refused. */
  private refusal: string | undefined;
  private readonly waiters = new Set<() => void>();

  constructor(private readonly config: HostConfig, private readonly peer: LeasePeer & { attempt: string }, private run: boolean) {
    void this.keepConnected();
  }

  /** Tells the destination whether the guest shall run there; resolves when it has that durably. With `handedOver` rejects as soon as its QEMU is known to have ended. */
  async arm(run: boolean, signal: AbortSignal, handedOver?: true): Promise<void> {
    this.run = run;
    this.armed = undefined;
    this.handedOver = handedOver;
    if (this.socket) this.send(this.socket, this.word);
    while (this.armed !== run || (handedOver && !this.heardHandedOver)) {
      if (handedOver && this.ended !== undefined) throw new Error(this.ended);
      await this.change(signal);
    }
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

  /** Resolves when the destination's agent says that its QEMU has ended, for which it may need any time. Rejects when the signal is aborted. */
  async gone(signal: AbortSignal): Promise<'gone'> {
    while (this.ended === undefined) await this.change(signal);
    return 'gone';
  }

  /** Resolves when the destination was heard of within the last `limitMs`; waits for it if need be. */
  async fresh(limitMs: number, signal: AbortSignal): Promise<void> {
    while (this.ended === undefined && this.silentForMs > limitMs) await this.change(signal);
  }

  /** Why the lease is not good now, if so. */
  loss(limitMs: number): LeaseLoss | undefined {
    if (this.ended !== undefined) return { kind: 'peer-gone', message: this.ended };
    const silent = this.silentForMs;
    return silent > limitMs ? { kind: 'peer-silent', message: `nothing heard from the destination for ${Math.round(silent)} ms` } : undefined;
  }

  /** Why the destination, or this host, did not take the last connection; undefined if it just is not there. */
  get refused(): string | undefined {
    return this.refusal;
  }

  close(): void {
    this.closed = true;
    this.socket?.destroy();
  }

  private async keepConnected(): Promise<void> {
    while (!this.closed) {
      await this.connectOnce().catch((error: Error) => (this.refusal = refusalOf(error, this.config, this.peer)));
      if (!this.closed) await delay(this.refusal === undefined ? BEAT_MS : REFUSED_PAUSE_MS);
    }
  }

  /** Resolves when the connection has ended; rejects with its error. */
  private async connectOnce(): Promise<void> {
    const socket = connectToPeer(this.config, this.peer, () => {
      this.refusal = undefined;
      this.heardBeat = false;
      this.send(socket, { attempt: this.peer.attempt });
      this.send(socket, this.word);
    }).setNoDelay(true);
    this.socket = socket;
    onMessages(socket, toSourceSchema, (message) => this.receive(socket, message));
    await new Promise<void>((resolve, reject) => socket.on('error', (error) => (socket.destroy(), reject(error))).once('close', () => resolve()));
  }

  private receive(socket: Socket, message: ToSource): void {
    if ('beat' in message) {
      this.lastBeatAt = performance.now();
      // Its `receive` may have begun only after we connected: then the first word about running was heard by nobody.
      if (this.armed === undefined && (!this.heardBeat || message.beat % 4 === 0)) this.send(socket, this.word);
      this.heardBeat = true;
    } else if ('armed' in message) {
      this.armed = message.armed;
      this.heardHandedOver ||= message.handedOver ?? false;
    } else if ('gone' in message) this.ended = message.gone;
    else if ('refused' in message) this.refusal = `${this.peer.name} refuses ${this.config.name}: ${message.refused}`;
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
