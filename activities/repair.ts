import { type CopyReport, inspectCopy } from '../hypervisor/copy-report';
import { stopGuard } from '../hypervisor/guard';
import { clearMirrors } from '../hypervisor/mirrors';
import { retireCopy } from '../hypervisor/retire';
import { stopStorageDaemon } from '../hypervisor/storage-daemon';
import { discard } from './destination';
import { type HostDependencies, type MigrationRef, runStep } from './context';

/** A copy that ran on a host which was confirmed fenced may have what no other has: its images are kept for a year. */
const FENCED_HOURS = 24 * 365;

/** What `repair` asks of a host beside the steps of a migration. */
export function repairActivities(deps: HostDependencies) {
  const { host, lease, switchovers } = deps;
  const { store } = host;
  return {
    /** What this host has of the guest. Changes nothing. */
    async inspectCopy({ guest }: { guest: string }): Promise<CopyReport> {
      return await runStep(deps, 'repair', { guest }, () => inspectCopy(host, guest));
    },

    /** Removes what a migration left here of a guest that lives here and has no attempt on record. Refuses if it has one. */
    async tidyCopy({ guest }: { guest: string }): Promise<void> {
      await runStep(deps, 'repair', { guest }, async () => {
        if (store.attempt(guest) || store.ownership(guest)?.state !== 'owner') return;
        await switchovers.leave(guest);
        await stopGuard(host, guest);
        await stopStorageDaemon(host, guest);
        if (host.process(guest)) await clearMirrors(host.monitor(guest), { silent: false });
      });
    },

    /**
     * Retires the copy that an attempt brought to this host, which was confirmed fenced while it was away: another copy runs instead. One that may
     * have run is ended, and its images are put aside; one that never ran is discarded. Leaves any other copy alone.
     */
    async retireFenced(input: MigrationRef): Promise<void> {
      await runStep(deps, 'repair', input, async ({ log }) => {
        const { guest, attempt } = input;
        await switchovers.leave(guest);
        const record = store.attempt(guest);
        const ownership = store.ownership(guest);
        const arriving = record?.role === 'destination' && record.attempt === attempt;
        if (!arriving && !(ownership?.state === 'owner' && ownership.attempt === attempt)) return;
        // Before the look at the marker: a guard could write it.
        await stopGuard(host, guest);
        lease.forget(attempt);
        if (store.ownership(guest)?.state === 'owner') {
          log.warn({ attempt }, 'ends a copy that must not run: its host was confirmed fenced, and another runs instead');
          await stopStorageDaemon(host, guest);
          await retireCopy(host, guest, attempt, { sourceDisks: 'keep', keepHours: FENCED_HOURS });
        } else if (arriving) await discard(host, guest, record);
        await deps.announce();
      });
    },
  };
}
