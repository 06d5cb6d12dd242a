import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';

/** Of the whole limit, in each pass over the memory after the first. */
const STEPS = [0.1, 0.2, 0.4, 0.8, 1];
const LOOK_MS = 50;

/** The `downtime-limit` in milliseconds for a migration that has passed over the memory `passes` times, `full` being all that it may have; at least 1 (facts/qemu.md §3). */
export function downtimeLimit(full: number, passes: number): number {
  return Math.max(1, Math.round(full * STEPS[Math.min(Math.max(passes - 1, 0), STEPS.length - 1)]!));
}

/**
 * Raises `downtime-limit` with each pass over the memory. QEMU pauses the guest as soon as what remains *can* be sent within it, though a further pass might leave
 * far less: with the whole limit from the start the pause is as long as it may be, not as short as it can be (docs/performance.md). Resolves when all is
 * allowed, the connection has ended, or the signal is aborted. Asks nothing while `quiet` says so.
 */
export async function raiseDowntimeLimit(qmp: QmpConnection, full: number, over: AbortSignal, quiet: () => boolean): Promise<void> {
  for (let set = downtimeLimit(full, 0); set < full && !over.aborted && qmp.isOpen; await delay(LOOK_MS, undefined, { signal: over }).catch(() => undefined)) {
    if (quiet()) continue;
    try {
      const { ram } = await qmp.execute('query-migrate', undefined, { signal: over });
      const limit = downtimeLimit(full, (ram?.['dirty-sync-count'] ?? 1) - 1);
      if (limit !== set) await qmp.execute('migrate-set-parameters', { 'downtime-limit': limit }, { signal: over });
      set = limit;
    } catch {
      // Somebody else sees to a QEMU that does not answer; this asks again.
    }
  }
}
