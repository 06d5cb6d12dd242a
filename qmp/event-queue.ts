import { arm, type Deadline } from './deadline';
import { QmpDisconnected, type QmpError, QmpProtocolError, QmpTimeout } from './errors';
import type { QmpEvent, QmpEventName } from './vocabulary';

/** When QEMU sent the event: milliseconds since the epoch, by the clock of QEMU's host, to the microsecond. */
export function eventTimeMs({ timestamp }: Pick<QmpEvent, 'timestamp'>): number {
  return timestamp.seconds * 1_000 + timestamp.microseconds / 1_000;
}

/** A move has some hundred events; a guest that floods BLOCK_IO_ERROR is limited by QEMU to one a second and device. */
const MOST_EVENTS = 10_000;
const MOST_BYTES = 16 * 2 ** 20;

interface Waiter {
  resolve: (event: QmpEvent) => void;
  reject: (error: Error) => void;
}

/**
 * One listener's own events, in the order in which QEMU sent them; nothing that others read is missed. It collects from the moment when
 * it is opened until `close()`, so that reading may be late; whoever sends more than `MOST_BYTES` or `MOST_EVENTS` unread is no QEMU. Open it *before* the command that causes the event, and close
 * it in a `finally`. For events before it was opened, or while there was no connection, ask QEMU for the state.
 */
export class QmpEventQueue<N extends QmpEventName = QmpEventName> implements AsyncIterable<QmpEvent<N>> {
  private events: { event: QmpEvent; bytes: number }[] = [];
  private unreadBytes = 0;
  private readonly waiters = new Set<Waiter>();
  private ended: QmpError | undefined;
  private closed = false;

  /** For `QmpConnection`, whose `listen` opens a queue. */
  constructor(
    private readonly path: string,
    private readonly names: readonly string[],
    private readonly onClose: () => void,
  ) {}

  /**
   * The next event, waiting for it if need be. Rejects with `QmpTimeout`, with the signal's reason, or, when all that came before has
   * been read, with the error that ended the connection. No event is lost by a wait that was given up.
   */
  async next(deadline: Deadline = {}): Promise<QmpEvent<N>> {
    deadline.signal?.throwIfAborted();
    const event = this.tryNext();
    if (event) return event;
    if (this.ended) throw this.ended;
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        resolve: (event) => settle(() => resolve(event as QmpEvent<N>)),
        reject: (error) => settle(() => reject(error)),
      };
      const settle = (act: () => void) => {
        disarm();
        this.waiters.delete(waiter);
        act();
      };
      const disarm = arm(deadline, (timeoutMs) => waiter.reject(new QmpTimeout(this.path, timeoutMs, { what: `${this.names.join(' or ') || 'event'} event` })), waiter.reject);
      this.waiters.add(waiter);
    });
  }

  /** An event that has already come, or undefined. */
  tryNext(): QmpEvent<N> | undefined {
    const first = this.events.shift();
    this.unreadBytes -= first?.bytes ?? 0;
    return first?.event as QmpEvent<N> | undefined;
  }

  /** Ends quietly after `close()`, and with an error when the connection ends. Leaving the loop does not close the queue: another may follow. */
  async *[Symbol.asyncIterator](): AsyncGenerator<QmpEvent<N>, void, undefined> {
    try {
      while (!this.closed) yield await this.next();
    } catch (error) {
      if (!this.closed) throw error;
    }
  }

  /** Stops listening and forgets what was not read; whoever waits gets `QmpDisconnected`. Idempotent. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.events = [];
    this.end(new QmpDisconnected(this.path, 'the listener was closed'));
    this.onClose();
  }

  /** For `QmpConnection` only: an event has come, in a line of so many bytes. Throws `QmpProtocolError` if too much is unread. */
  deliver(event: QmpEvent, bytes: number): void {
    if (this.ended || (this.names.length > 0 && !this.names.includes(event.event))) return;
    const [waiter] = this.waiters;
    if (waiter) return waiter.resolve(event);
    this.events.push({ event, bytes });
    this.unreadBytes += bytes;
    if (this.events.length > MOST_EVENTS || this.unreadBytes > MOST_BYTES) throw new QmpProtocolError(this.path, `it floods us with events (${this.events.length} unread)`);
  }

  /** For `QmpConnection` only: nothing will come any more. */
  end(error: QmpError): void {
    this.ended ??= error;
    for (const waiter of [...this.waiters]) waiter.reject(error);
  }
}
