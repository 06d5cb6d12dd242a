import { machinePrograms } from '../hypervisor/programs';
import { QmpConnection } from '../qmp/connection';
import { eventTimeMs } from '../qmp/event-queue';

/** One thing that a QEMU, or a program of its family, was doing for us. Milliseconds since the epoch. */
export interface Span {
  what: string;
  monitor: string;
  from: number;
  to: number;
}

export interface Heard {
  event: string;
  monitor: string;
  at: number;
  data: Record<string, unknown>;
}

const now = () => performance.timeOrigin + performance.now();

/**
 * Records, from outside of the product's code, what the QEMUs of this process's agents are asked and say: every command from its sending to
 * its answer, every event at the time that QEMU gives it, and every program that is run.
 */
export class Recorder {
  readonly spans: Span[] = [];
  readonly events: Heard[] = [];

  constructor() {
    const { spans, events } = this;
    const original = QmpConnection.prototype.execute;
    const known = new WeakSet<QmpConnection>();
    QmpConnection.prototype.execute = async function (this: QmpConnection, ...all: Parameters<QmpConnection['execute']>) {
      if (!known.has(this)) {
        known.add(this);
        void follow(this, events);
      }
      const span = { what: all[0], monitor: this.path, from: now(), to: Infinity };
      spans.push(span);
      try {
        return await original.apply(this, all);
      } finally {
        span.to = now();
      }
    };
    for (const name of ['run', 'start'] as const) {
      const work = machinePrograms[name] as (binary: string, ...rest: unknown[]) => Promise<unknown>;
      machinePrograms[name] = (async (binary: string, ...rest: unknown[]) => {
        const span = { what: binary, monitor: '', from: now(), to: Infinity };
        spans.push(span);
        return await work(binary, ...rest).finally(() => (span.to = now()));
      }) as never;
    }
  }

  clear(): void {
    this.spans.length = 0;
    this.events.length = 0;
  }

  /** When a command was first sent to a monitor whose path contains `host`. */
  sent(host: string, command: string): number {
    const span = this.spans.find(({ what, monitor }) => what === command && monitor.includes(`/${host}/`));
    if (!span) throw new Error(`${command} was never sent to ${host}`);
    return span.from;
  }

  /** When a command was last sent to such a monitor before this moment; undefined: never. */
  lastSent(host: string, command: string, before: number): number | undefined {
    return this.spans.findLast(({ what, monitor, from }) => what === command && monitor.includes(`/${host}/`) && from < before)?.from;
  }

  /** When the last such event came from a monitor whose path contains `host`. */
  heard(host: string, event: string, matches: (data: Record<string, unknown>) => boolean = () => true): number {
    const found = this.events.findLast((one) => one.event === event && one.monitor.includes(`/${host}/`) && matches(one.data));
    if (!found) throw new Error(`${event} never came from ${host}`);
    return found.at;
  }
}

async function follow(connection: QmpConnection, events: Heard[]): Promise<void> {
  try {
    for await (const event of connection.listen()) events.push({ event: event.event, monitor: connection.path, at: eventTimeMs(event), data: event.data as unknown as Record<string, unknown> });
  } catch {
    // The connection ended.
  }
}

/** How much of `[from, to]` none of the spans covers. */
export function uncovered(from: number, to: number, spans: { from: number; to: number }[]): number {
  let left = 0;
  let at = from;
  for (const span of [...spans].sort((a, b) => a.from - b.from)) {
    if (span.from >= to) break;
    left += Math.max(0, span.from - at);
    at = Math.max(at, span.to);
  }
  return left + Math.max(0, to - at);
}
