import type { QmpMonitor } from '../qmp/monitor';
import type { BlockInfo, IoThrottle } from '../qmp/vocabulary';
import type { SourceAttempt } from './guest-store';
import { GuestStateError, type Host } from './host';

/** All disks of a guest share one limit, so that an idle disk leaves its part to a busy one. */
const GROUP = 'vmferry';

/** What `block_set_io_throttle` resets if it is not given; `query-block` shows those that are set. */
const BURSTS = ['bps_max', 'bps_rd_max', 'bps_wr_max', 'iops_max', 'iops_rd_max', 'iops_wr_max', 'iops_size'] as const;

/**
 * Limits what a guest writes to these disks, together, in bytes a second (design §6: the last rung before giving up). What limits the disks had
 * is on record, durably, before the first changes: `liftThrottle` brings exactly that back, also after a crash. Reads are not limited.
 * Idempotent; a second call changes the rate.
 */
export async function throttleGuest(host: Host, guest: string, devices: string[], bytesPerSecond: number): Promise<void> {
  const monitor = host.monitor(guest);
  const record = sourceRecord(host, guest);
  let before = record.throttledFrom;
  if (!before) {
    const blocks = await monitor.execute('query-block');
    before = blocks.filter((block) => isOneOf(block, devices)).map(limitsOf);
    await host.store.patchAttempt<SourceAttempt>(guest, { throttledFrom: before });
  }
  const rate = Math.max(1, Math.round(bytesPerSecond));
  await apply(monitor, before.map((limits) => limited(limits, rate)));
}

/** Brings back the limits that the guest's disks had before `throttleGuest`; nothing happens if there was none. */
export async function liftThrottle(host: Host, guest: string): Promise<void> {
  const record = host.store.attempt(guest);
  if (record?.role !== 'source' || !record.throttledFrom) return;
  if (host.process(guest)) await apply(host.monitor(guest), record.throttledFrom);
  await host.store.patchAttempt<SourceAttempt>(guest, { throttledFrom: undefined });
}

/** A disk that has limits of its own keeps them, and its group: it is only held lower. QEMU takes a limit for all, or for writes, not both. */
function limited(own: IoThrottle, rate: number): IoThrottle {
  if (own.bps > 0) return { ...own, bps: Math.min(own.bps, rate) };
  if (own.bps_wr > 0) return { ...own, bps_wr: Math.min(own.bps_wr, rate) };
  return { ...own, bps_wr: rate, group: own.bps_rd + own.iops + own.iops_rd + own.iops_wr > 0 ? own.group! : GROUP };
}

async function apply(monitor: QmpMonitor, limits: IoThrottle[]): Promise<void> {
  // One after the other: QEMU moves a drive between groups, and they share one.
  for (const one of limits) await monitor.execute('block_set_io_throttle', one);
}

function isOneOf({ device, inserted, qdev }: BlockInfo, devices: string[]): boolean {
  if (!inserted || !qdev) return false;
  // While a mirror runs the topmost node is its filter; what is mirrored is behind it.
  return devices.some((name) => name === device || name === inserted['node-name'] || qdev.split('/').includes(`${name}-device`) || qdev.split('/').includes(name));
}

function limitsOf({ qdev, inserted }: BlockInfo): IoThrottle {
  const { bps, bps_rd, bps_wr, iops, iops_rd, iops_wr, group } = inserted!;
  const bursts = Object.fromEntries(BURSTS.flatMap((key) => { const value = (inserted as unknown as Record<string, unknown>)[key]; return typeof value === 'number' ? [[key, value]] : []; }));
  return { id: qdev!, bps, bps_rd, bps_wr, iops, iops_rd, iops_wr, ...bursts, ...(group !== undefined && { group }) };
}

/** The record of the attempt to move this guest away. Throws if there is none: it was undone meanwhile. */
export function sourceRecord(host: Host, guest: string): SourceAttempt {
  const record = host.store.attempt(guest);
  if (record?.role !== 'source') throw new GuestStateError(`the attempt to move guest ${guest} away from ${host.name} was undone`);
  return record;
}
