import type { MetricMeter } from '@temporalio/common';
import { type Labels, type NamesOf, record } from '../workflows/metric-table';
import type { Progress } from './context';
import { Gauges, type Reading, reading } from './gauges';

type Counter = NamesOf<{ origin: 'agent'; kind: 'counter' }>;

/** Guests that have gauges of their own, in the life of a process: series are never removed, and a scrape must stay small. Others are left out. */
const MOST_GUESTS = 500;
/** Twice the pause between two reports: nobody watches this move any more, as when its workflow was terminated. */
const FORGOTTEN_MS = 60_000;

interface Moving {
  gauges: Gauges;
  /** What was counted of each disk, and of the memory, in bytes. */
  counted: Map<string, number>;
  atMs: number;
}

/** What a host has. */
export interface HostFigures {
  states: string[];
  attempts: { guest: string; role: 'source' | 'destination' }[];
  keptImages: number;
}

/** The figures of one host, at the Prometheus endpoint of its agent (docs/metrics.md). */
export class HostMeter {
  private readonly moving = new Map<string, Moving>();
  private readonly known = new Set<string>();
  private readonly own: Gauges;

  constructor(private readonly meter: MetricMeter, private readonly host: string) {
    this.own = new Gauges(meter);
    this.count('vmferry_leftovers_found_total', {}, 0);
  }

  count<Name extends Counter>(name: Name, labels: Omit<Labels<Name>, 'host'>, value = 1): void {
    record(this.meter, name, value, { host: this.host, ...labels } as Labels<Name>);
  }

  /** How far the move of a guest is. `resumed`: what is seen first was copied before, and counted if somebody looked. */
  progress(guest: string, progress: Progress, resumed: boolean, nowMs = Date.now()): void {
    if (!this.known.has(guest) && this.known.size >= MOST_GUESTS) return;
    this.known.add(guest);
    const moving = this.moving.get(guest) ?? { gauges: new Gauges(this.meter), counted: new Map<string, number>(), atMs: nowMs };
    this.moving.set(guest, moving);
    moving.atMs = nowMs;
    moving.gauges.show(readingsOf(this.host, guest, progress));
    const copied = [...(progress.disks ?? []).map(({ id, copiedBytes }) => ({ of: 'disk', key: id, bytes: copiedBytes })), { of: 'memory', key: '', bytes: progress.memory?.sentBytes }];
    for (const { of, key, bytes } of copied) {
      if (bytes === undefined) continue;
      const before = moving.counted.get(`${of} ${key}`) ?? (resumed ? bytes : 0);
      // A copy that was begun anew counts from 0 again.
      this.count('vmferry_copied_bytes_total', { of }, bytes < before ? bytes : bytes - before);
      moving.counted.set(`${of} ${key}`, bytes);
    }
  }

  shows(guest: string): boolean {
    return this.moving.has(guest);
  }

  /** The guest moves no more: its figures are 0. */
  rests(guest: string): void {
    this.moving.get(guest)?.gauges.show([]);
    this.moving.delete(guest);
  }

  /** Shows what the host has; guests that move no more have no figures. */
  show({ states, attempts, keptImages }: HostFigures, nowMs = Date.now()): void {
    const { host } = this;
    for (const [guest, { atMs }] of this.moving) {
      if (!attempts.some((one) => one.guest === guest && one.role === 'source') || nowMs - atMs >= FORGOTTEN_MS) this.rests(guest);
    }
    this.own.show([
      ...tally(states.map((state) => state.replace(/ (from|to) .*/, ''))).map(([state, number]) => reading('vmferry_guests', number, { host, state })),
      ...tally(attempts.map(({ role }) => role)).map(([role, number]) => reading('vmferry_attempts', number, { host, role })),
      reading('vmferry_kept_images', keptImages, { host }),
    ]);
  }

  /** Temporal has taken a report. */
  taken(nowMs = Date.now()): void {
    record(this.meter, 'vmferry_agent_report_timestamp_seconds', nowMs / 1000, { host: this.host });
  }
}

/** How often each comes. */
export function tally(values: string[]): [string, number][] {
  const numbers = new Map<string, number>();
  for (const value of values) numbers.set(value, (numbers.get(value) ?? 0) + 1);
  return [...numbers];
}

function readingsOf(host: string, guest: string, { disks = [], memory, verdict }: Progress): Reading[] {
  return [
    ...(verdict ? [reading('vmferry_guest_verdict', 1, { host, guest, verdict: verdict.verdict })] : []),
    ...disks.flatMap(({ id: disk, remainingBytes, bytesPerSecond, dirtyBytesPerSecond, predictedDrainMs }) => [
      reading('vmferry_disk_remaining_bytes', remainingBytes, { host, guest, disk }),
      reading('vmferry_disk_copy_bytes_per_second', bytesPerSecond, { host, guest, disk }),
      ...(dirtyBytesPerSecond === undefined ? [] : [reading('vmferry_disk_dirty_bytes_per_second', dirtyBytesPerSecond, { host, guest, disk })]),
      ...(predictedDrainMs === undefined ? [] : [reading('vmferry_disk_predicted_drain_seconds', predictedDrainMs / 1000, { host, guest, disk })]),
    ]),
    ...(memory
      ? [
          reading('vmferry_memory_remaining_bytes', memory.remainingBytes, { host, guest }),
          reading('vmferry_memory_copy_bytes_per_second', memory.bytesPerSecond, { host, guest }),
          reading('vmferry_memory_dirty_bytes_per_second', memory.dirtyBytesPerSecond, { host, guest }),
          ...(memory.predictedDowntimeMs === undefined ? [] : [reading('vmferry_memory_predicted_downtime_seconds', memory.predictedDowntimeMs / 1000, { host, guest })]),
        ]
      : []),
  ];
}
