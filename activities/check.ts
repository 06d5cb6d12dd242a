import { type GuestLoad, measureLoad } from '../hypervisor/guest-load';
import { type LinkProbe, measureLink, openLinkProbe } from '../hypervisor/link-probe';
import type { DiskPlan } from '../hypervisor/preflight';
import { type HostDependencies, type MigrationRef, runStep } from './context';

/** What `checkMove` asks of both hosts beside a migration's own preflight. None of it changes anything. */
export function checkActivities(deps: HostDependencies) {
  const { host } = deps;
  return {
    /** What the guest writes, and dirties, in some seconds. Refuses while it is being moved. */
    async measureLoad({ disks, seconds, ...ref }: MigrationRef & { disks: Pick<DiskPlan, 'id' | 'device'>[]; seconds: number }): Promise<GuestLoad> {
      return await runStep(deps, 'preflight', ref, ({ ended }) => measureLoad(host, ref.guest, disks, seconds, ended));
    },

    /** At the destination: waits for one measurement, for 15 s. */
    async openLinkProbe(ref: MigrationRef): Promise<LinkProbe> {
      return await runStep(deps, 'preflight', ref, () => openLinkProbe(host.config));
    },

    /** At the source: what the link to the destination carries, for a second at most. A failure is an answer too, and not tried again. */
    async measureLink({ probe, ...ref }: MigrationRef & { probe: LinkProbe }): Promise<{ bytesPerSecond: number } | { failure: string }> {
      return await runStep(deps, 'preflight', ref, () => measureLink(probe).then((bytesPerSecond) => ({ bytesPerSecond }), (error: Error) => ({ failure: error.message })));
    },
  };
}
