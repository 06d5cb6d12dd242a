import { coldRecord, copyImages, inspectStopped } from '../hypervisor/cold-copy';
import { GuestStateError, OwnershipUnknown } from '../hypervisor/host';
import type { MirrorTarget } from '../hypervisor/mirrors';
import type { Findings, GuestPlan } from '../hypervisor/preflight';
import { stopStorageDaemon } from '../hypervisor/storage-daemon';
import { destinationAttempt } from '../hypervisor/takeover';
import { type HostDependencies, type MigrationRef, runStep } from './context';

/** How a guest that does not run moves: its images are copied, and its definition with them. The rest is as for one that runs. */
export function coldActivities(deps: HostDependencies) {
  const { host } = deps;
  const { store } = host;
  return {
    async inspectStopped(input: MigrationRef): Promise<{ plan?: GuestPlan } & Findings> {
      return await runStep(deps, 'preflight', input, () => inspectStopped(host, input.guest, input.attempt));
    },

    /** Source: from here on the guest does not start here, until `stayCold` or the end. Copies its images; goes on where an earlier call ended. */
    async copyStopped(input: MigrationRef & { plan: GuestPlan; targets: MirrorTarget[] }): Promise<void> {
      await runStep(deps, 'copy', input, async (step) => {
        const { guest, attempt, to, plan, targets } = input;
        if (host.process(guest)) throw new GuestStateError(`guest ${guest} was started on ${host.name} meanwhile`);
        if (store.attempt(guest)?.attempt !== attempt) await store.setAttempt(guest, { role: 'source', attempt, to, memoryTry: 0, wasRunning: false, cold: true });
        await copyImages(host, guest, plan, targets, to, step.ended, (disks) => step.progress({ phase: 'copy', disks: disks.map((disk) => ({ ...disk, ready: disk.remainingBytes === 0, bytesPerSecond: 0 })) }));
      });
    },

    /** Source: everything is copied; the guest is its destination's (R10: before that one may start it). */
    async handOverStopped(input: MigrationRef): Promise<void> {
      await runStep(deps, 'switchover', input, async () => {
        const { guest, attempt, to } = input;
        if (store.ownership(guest)?.state === 'handed-over') return;
        coldRecord(host, guest);
        await store.setOwnership(guest, { state: 'handed-over', attempt, to });
      });
    },

    /** Destination: its images are flushed and let go; the guest is this host's, stopped. */
    async takeStopped(input: MigrationRef): Promise<void> {
      await runStep(deps, 'switchover', input, async () => {
        const { guest, attempt } = input;
        const ownership = store.ownership(guest);
        if (ownership?.state === 'owner' && ownership.attempt === attempt) return;
        destinationAttempt(host, guest, attempt);
        await stopStorageDaemon(host, guest);
        await store.setOwnership(guest, { state: 'owner', since: new Date().toISOString(), attempt });
        await store.setAttempt(guest, undefined);
        await deps.announce();
      });
    },

    /** Undo of `copyStopped`: the guest may be started here again, if it was not handed over, or its destination's copy is gone. */
    async stayCold(input: MigrationRef & { destinationDiscarded: boolean }): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const { guest, attempt, destinationDiscarded } = input;
        const record = store.attempt(guest);
        if (record?.role !== 'source' || record.attempt !== attempt) return;
        if (store.ownership(guest)?.state !== 'owner') {
          if (!destinationDiscarded) throw new OwnershipUnknown(`guest ${guest} was handed over to ${record.to}: "vmferry repair ${guest}" finds out whose it is`);
          await store.setOwnership(guest, { state: 'owner', since: new Date().toISOString() });
        }
        await store.setAttempt(guest, undefined);
        await deps.announce();
      });
    },
  };
}
