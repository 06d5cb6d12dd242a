import { resolve } from 'node:path';
import { QmpConnection, type ConnectOptions, type QmpExecutor } from './connection';
import { arm, type Deadline } from './deadline';
import { QmpDisconnected, QmpTimeout } from './errors';

/**
 * The monitor at one path, shared by all who talk to that QEMU: QEMU serves one client at a time, so a second connection of ours would
 * wait for our first. Connects on demand, and again on the next use after a disconnect; a command is never sent twice.
 */
export class QmpMonitor implements QmpExecutor {
  private current: QmpConnection | undefined;
  private attempt: Promise<QmpConnection> | undefined;
  private readonly closing = new AbortController();

  /** The options bound each attempt to connect. */
  constructor(
    readonly path: string,
    private readonly options: Omit<ConnectOptions, 'signal'> = {},
  ) {}

  /**
   * The connection, made if need be; concurrent callers share one attempt, which a caller who gives up leaves to the others. Rejects as
   * `QmpConnection.connect` does, with `QmpTimeout` after the caller's own deadline, with `QmpDisconnected` after `close()`.
   */
  async connection(deadline: Deadline = {}): Promise<QmpConnection> {
    deadline.signal?.throwIfAborted();
    if (this.closing.signal.aborted) throw this.closing.signal.reason;
    if (this.current?.isOpen) return this.current;
    this.attempt ??= this.connect().finally(() => (this.attempt = undefined));
    const attempt = this.attempt;
    return new Promise((resolve, reject) => {
      const disarm = arm(deadline, (timeoutMs) => reject(new QmpTimeout(this.path, timeoutMs, { what: 'connection' })), reject);
      attempt.then(resolve, reject).finally(disarm);
    });
  }

  /** The deadline counts for connecting, and again for the command. */
  execute: QmpExecutor['execute'] = async (command, ...rest) => (await this.connection(rest[1])).execute(command, ...rest);

  /** A connection made while QEMU's main loop hangs is never negotiated: be connected before an `executeOob` may be needed. */
  executeOob: QmpExecutor['executeOob'] = async (command, ...rest) => (await this.connection(rest[1])).executeOob(command, ...rest);

  /** For good: a user left over from before can't take the monitor from its successor. Idempotent. */
  close(): void {
    this.closing.abort(new QmpDisconnected(this.path, 'this monitor was closed on our side; take a new one'));
    this.current?.close();
  }

  private async connect(): Promise<QmpConnection> {
    const connection = await QmpConnection.connect(this.path, { ...this.options, signal: this.closing.signal });
    // `close()` may have come in the moment between success and this line.
    if (this.closing.signal.aborted) connection.close();
    return (this.current = connection);
  }
}

/** The monitors of this process, one per path. */
export class QmpMonitors {
  private readonly monitors = new Map<string, QmpMonitor>();

  constructor(private readonly options: Omit<ConnectOptions, 'signal'> = {}) {}

  /** Does not connect yet. */
  get(path: string): QmpMonitor {
    const key = resolve(path);
    const monitor = this.monitors.get(key) ?? new QmpMonitor(key, this.options);
    this.monitors.set(key, monitor);
    return monitor;
  }

  /** Closes the monitor; a later `get` gives a new one. */
  forget(path: string): void {
    const key = resolve(path);
    this.monitors.get(key)?.close();
    this.monitors.delete(key);
  }

  /** Closes and forgets all. */
  close(): void {
    for (const path of [...this.monitors.keys()]) this.forget(path);
  }
}
