import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export interface SlowLinkOptions {
  target: { host: string; port: number };
  /** Each way, shared by all connections. Default: no limit. */
  bytesPerSecond?: number;
  /** Where it listens. Default 127.0.0.1. */
  host?: string;
}

/** What passes in one go while a rate is set. */
const SLICE_BYTES = 16 * 1024;
/** How much unused rate is kept for later. */
const BURST_MS = 20;
const LONGEST_WAIT_MS = 60_000;

/**
 * A TCP proxy that behaves like a bad network: slow, cut or frozen, changed while connections are open. It reads no further than it can
 * write, so a slow link is felt by the sender; in between it holds at most what one read of a socket gives (about 64 KiB) a direction.
 */
export class SlowLink {
  private readonly there = new Lane();
  private readonly back = new Lane();
  private readonly sockets = new Set<Socket>();

  /** Listens on a free port, and connects to the target anew for each connection. Throws what `listen` throws. */
  static async listen({ target, bytesPerSecond, host = '127.0.0.1' }: SlowLinkOptions): Promise<SlowLink> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, host, resolve));
    const link = new SlowLink(server, target);
    link.setRate(bytesPerSecond);
    return link;
  }

  private constructor(
    private readonly server: Server,
    private readonly target: { host: string; port: number },
  ) {
    server.on('connection', (socket) => this.join(socket));
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  /** Counts at once, also for what waits already; `undefined` lifts the limit. Throws `RangeError` for a rate that is not above 0: that is `freeze`. */
  setRate(bytesPerSecond: number | undefined): void {
    if (bytesPerSecond !== undefined && !(bytesPerSecond > 0)) throw new RangeError(`a rate is above 0 bytes a second (got ${bytesPerSecond}): use freeze() to stop the link`);
    for (const lane of [this.there, this.back]) lane.change({ bytesPerSecond });
  }

  /** Nothing is read or written any more, and connections stay open: a peer that hangs, or a route that drops packets. */
  freeze(): void {
    for (const lane of [this.there, this.back]) lane.change({ frozen: true });
  }

  thaw(): void {
    for (const lane of [this.there, this.back]) lane.change({ frozen: false });
  }

  /** Resets every connection; both ends see an error, and what was under way is lost. New connections are taken. */
  cut(): void {
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** Cuts, and listens no more. Idempotent. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.cut();
    this.setRate(undefined);
    this.thaw();
    await closed;
  }

  private join(client: Socket): void {
    const upstream = connect({ ...this.target, allowHalfOpen: true, noDelay: true });
    for (const [socket, other] of [[client, upstream], [upstream, client]] as const) {
      this.sockets.add(socket);
      socket.on('error', () => other.resetAndDestroy());
      socket.on('close', () => {
        this.sockets.delete(socket);
        other.destroy();
      });
    }
    // A connection that ends under a pump is no error here: its 'close' ends the other half.
    pump(client, upstream, this.there).catch(() => undefined);
    pump(upstream, client, this.back).catch(() => undefined);
  }
}

/** Passes everything on, and then the end. Each slice is in the kernel's hands before the next is read. */
async function pump(from: Socket, to: Socket, lane: Lane): Promise<void> {
  for await (const chunk of from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.length; ) {
      const slice = lane.limited ? chunk.subarray(at, at + SLICE_BYTES) : chunk.subarray(at);
      await lane.enter(slice.length);
      await new Promise<void>((resolve, reject) => to.write(slice, (error) => (error ? reject(error) : resolve())));
      at += slice.length;
    }
  }
  await lane.enter(0);
  to.end();
}

/** One direction: who may send now, first come, first served. */
class Lane {
  private bytesPerSecond: number | undefined;
  private frozen = false;
  /** Bytes that may pass; below 0 after a slice that was let through on credit. */
  private credit = 0;
  private countedAt = performance.now();
  private queue = Promise.resolve();
  private wake: () => void = () => undefined;

  get limited(): boolean {
    return this.bytesPerSecond !== undefined;
  }

  change(to: { bytesPerSecond?: number | undefined; frozen?: boolean }): void {
    if ('bytesPerSecond' in to) this.bytesPerSecond = to.bytesPerSecond;
    if (to.frozen !== undefined) this.frozen = to.frozen;
    this.wake();
  }

  async enter(bytes: number): Promise<void> {
    return (this.queue = this.queue.then(() => this.admit(bytes)));
  }

  private async admit(bytes: number): Promise<void> {
    for (;;) {
      if (this.frozen) {
        await this.changed();
        continue;
      }
      const rate = this.bytesPerSecond;
      if (rate === undefined) return;
      const now = performance.now();
      this.credit = Math.min(this.credit + ((now - this.countedAt) / 1000) * rate, (BURST_MS / 1000) * rate);
      this.countedAt = now;
      if (this.credit >= 0) {
        this.credit -= bytes;
        return;
      }
      await this.changed((-this.credit / rate) * 1000);
    }
  }

  /** Resolves with the next change, or after that time. */
  private async changed(timeoutMs?: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.wake = resolve;
      if (timeoutMs !== undefined) timer = setTimeout(resolve, Math.min(timeoutMs, LONGEST_WAIT_MS));
    });
    clearTimeout(timer);
  }
}
