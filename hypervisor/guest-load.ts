import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed } from '../qmp/errors';
import type { BlockStats } from '../qmp/vocabulary';
import { GuestStateError, type Host } from './host';
import type { DiskPlan } from './preflight';

/** What a guest does to its disks and its memory while nobody copies them. Rates in bytes a second. */
export interface GuestLoad {
  measuredMs: number;
  /** Without rates if QEMU's counters do not say which disk is which. `dirtied`: what a mirror would have to copy for it. */
  disks: { id: string; writtenBytesPerSecond?: number; dirtiedBytesPerSecond?: number }[];
  memory: {
    /** What QEMU holds in the host's memory: pages that the guest never touched are sent as next to nothing. */
    residentBytes: number;
    /** Distinct pages. Absent where QEMU cannot count them. */
    dirtyBytesPerSecond?: number;
  };
}

/** The most that QEMU takes (migration/dirtyrate.h): one page in 64. */
const SAMPLES_A_GIB = 4096;
const LOOK_MS = 100;

/** Watches a guest for some seconds: QEMU's own counters of writes, and its own count of dirty pages. Changes nothing, and leaves nothing behind. */
export async function measureLoad(host: Host, guest: string, disks: Pick<DiskPlan, 'id' | 'device'>[], seconds: number, signal: AbortSignal): Promise<GuestLoad> {
  const attempt = host.store.attempt(guest);
  if (attempt) throw new GuestStateError(`guest "${guest}" is being moved ${attempt.role === 'source' ? `to ${attempt.to}` : `from ${attempt.from}`}: check it when that is over, or, if no migration is under way, vmferry repair ${guest}`);
  const qmp = await host.monitor(guest).connection({ signal });
  const counting = await countDirtyPages(qmp, seconds);
  const [before, began] = [await qmp.execute('query-blockstats', {}), performance.now()];
  await delay(seconds * 1000, undefined, { signal });
  const [after, measuredMs] = [await qmp.execute('query-blockstats', {}), performance.now() - began];
  const dirty = counting ? await dirtyBytes(qmp, signal) : undefined;
  return {
    measuredMs: Math.round(measuredMs),
    disks: disks.map((disk) => {
      const [first, last] = [statsOf(before, disk), statsOf(after, disk)];
      return { id: disk.id, ...(first && last && writeRates(last.wr_bytes - first.wr_bytes, last.wr_operations - first.wr_operations, measuredMs)) };
    }),
    memory: { residentBytes: Math.min(host.definition(guest).memory, residentBytes(host.process(guest)?.pid)), ...(dirty !== undefined && { dirtyBytesPerSecond: dirty }) },
  };
}

/** A mirror copies whole pieces of this size, whatever was written of them (`bdrv_get_default_bitmap_granularity`; 4.2 MB/s of random writes cost it 16.8). */
const GRANULE_BYTES = 64 * 1024;

/** Each write counts as one that touches pieces of its own: so random writes do; several to one piece cost less. */
export function writeRates(bytes: number, operations: number, measuredMs: number): { writtenBytesPerSecond: number; dirtiedBytesPerSecond: number } {
  const perSecond = (amount: number) => Math.round((amount * 1000) / measuredMs);
  return { writtenBytesPerSecond: perSecond(bytes), dirtiedBytesPerSecond: perSecond(Math.max(bytes, operations * GRANULE_BYTES)) };
}

/** QEMU's counters of a disk; undefined if those of none, or of several, could be its. */
export function statsOf(stats: BlockStats[], { id, device }: Pick<DiskPlan, 'id' | 'device'>): BlockStats['stats'] | undefined {
  const own = stats.filter((one) => [one.device, one['node-name'], ...(one.qdev?.split('/') ?? [])].some((name) => name === device || name === `${id}-device` || name === id));
  return own.length === 1 ? own[0]!.stats : undefined;
}

/** False if this QEMU cannot, or counts for somebody else already. */
async function countDirtyPages(qmp: QmpConnection, seconds: number): Promise<boolean> {
  try {
    await qmp.execute('calc-dirty-rate', { 'calc-time': Math.ceil(seconds), 'sample-pages': SAMPLES_A_GIB, mode: 'page-sampling' });
    return true;
  } catch (error) {
    if (!(error instanceof QmpCommandFailed)) throw error;
    return false;
  }
}

async function dirtyBytes(qmp: QmpConnection, signal: AbortSignal): Promise<number | undefined> {
  for (;;) {
    const { status, 'dirty-rate': mebibytes } = await qmp.execute('query-dirty-rate');
    if (status === 'measured') return mebibytes !== undefined && mebibytes >= 0 ? mebibytes * 2 ** 20 : undefined;
    await delay(LOOK_MS, undefined, { signal });
  }
}

/** Resident memory of a process; 0 if it is gone. */
function residentBytes(pid: number | undefined): number {
  if (pid === undefined) return 0;
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
}
