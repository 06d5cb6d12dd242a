import { rm } from 'node:fs/promises';
import { removeCredentials } from '../hypervisor/credentials';
import { movingDisks } from '../hypervisor/definition';
import { busyShare } from '../hypervisor/disk-busy';
import { stopGuard } from '../hypervisor/guard';
import type { DestinationAttempt } from '../hypervisor/guest-store';
import { GuestStateError, type Host } from '../hypervisor/host';
import { runFolder } from '../hypervisor/host-config';
import { killQemu } from '../hypervisor/launch';
import { createImage, deleteMade } from '../hypervisor/images';
import { awaitPages, listenForPages, type PagesState } from '../hypervisor/post-copy';
import { type GuestPlan, inspectDestination, leftBehind, type Findings } from '../hypervisor/preflight';
import { retireCopy } from '../hypervisor/retire';
import { ensureExports, type Exports, setBandwidth, stopStorageDaemon } from '../hypervisor/storage-daemon';
import type { Task } from '../hypervisor/switchovers';
import { type DestinationState, destinationAttempt, destinationState, destroyIncoming, isMarked, openIncoming, takeOver, type TakeOverResult } from '../hypervisor/takeover';
import { announceSoon, attached, guarded, type HostDependencies, type MigrationRef, runStep } from './context';

/** How long the images of a copy are kept whose migration was terminated before it could say what becomes of them. */
const LEFT_BEHIND_HOURS = 24;

/** The destination's steps: each does what is missing, and each undo may find nothing to undo. */
export function destinationActivities(deps: HostDependencies) {
  const { host, lease, meter } = deps;
  const { store } = host;
  return {
    /** Everything at the destination that could stop this guest from coming, and where its agent listens. Changes nothing. */
    async inspectDestination(input: MigrationRef & { plan: GuestPlan; postCopy?: true }): Promise<Findings & { lease?: { host: string; port: number } }> {
      return await runStep(deps, 'preflight', input, async () => ({ ...(await inspectDestination(host, input.plan, input)), lease: { host: host.config.address, port: lease.port } }));
    },

    /** Makes the guest known here, not startable (R10), with empty images of the same size. */
    async prepareDestination(input: MigrationRef & { plan: GuestPlan }): Promise<void> {
      await runStep(deps, 'prepare', input, async ({ log }) => {
        const { guest, attempt, from, plan } = input;
        const leftover = store.attempt(guest);
        if (leftover?.role === 'destination' && leftover.attempt !== attempt) {
          meter.count('vmferry_leftovers_found_total', {});
          log.info({ leftover: leftover.attempt }, 'removes what an earlier attempt left here');
          await discard(host, guest, leftover);
        }
        const behind = leftBehind(host, plan);
        if (behind) {
          meter.count('vmferry_leftovers_found_total', {});
          log.info({ leftover: behind.attempt }, 'puts aside the copy that the guest left here when it moved to where it is now');
          await deps.switchovers.leave(guest);
          await retireCopy(host, guest, behind.attempt, { sourceDisks: 'keep', keepHours: LEFT_BEHIND_HOURS });
        }
        if (!store.attempt(guest)) await store.setAttempt(guest, { role: 'destination', attempt, from, memoryBytes: plan.definition.memory, made: [] });
        await store.setOwnership(guest, { state: 'incoming', attempt, from });
        await store.setDefinition(plan.definition);
        for (const disk of plan.disks) {
          const path = host.path(guest, disk.path);
          if (disk.blockDevice || destinationAttempt(host, guest, attempt).made.includes(path)) continue;
          await createImage(host, path, disk.format, disk.sizeBytes, attempt, async (made) => {
            const record = destinationAttempt(host, guest, attempt);
            await store.setAttempt(guest, { ...record, made: [...record.made, made] });
          });
        }
      });
    },

    /** Undo of `prepareDestination`: nothing of the attempt remains here. Refuses if the guest has arrived. */
    async discardDestination(input: MigrationRef): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const record = store.attempt(input.guest);
        if (record?.role !== 'destination' || record.attempt !== input.attempt) return;
        await deps.switchovers.leave(input.guest);
        await discard(host, input.guest, record);
        lease.forget(input.attempt);
      });
    },

    /** One writable NBD export a disk, in a storage daemon that outlives any try to move the memory. */
    async exportDisks(input: MigrationRef & { plan: GuestPlan; bandwidthBytesPerSecond?: number }): Promise<Exports> {
      return await runStep(deps, 'export', input, async () => {
        const { guest, attempt, from, plan } = input;
        const disks = plan.disks.map((disk) => ({ ...disk, path: host.path(guest, disk.path) }));
        return await ensureExports(host, guest, from, disks, input.bandwidthBytesPerSecond, destinationAttempt(host, guest, attempt).nbdPort, async (nbdPort) => {
          await store.setAttempt(guest, { ...destinationAttempt(host, guest, attempt), nbdPort });
        });
      });
    },

    async stopExports(input: MigrationRef): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        if (store.attempt(input.guest)?.attempt === input.attempt) await stopStorageDaemon(host, input.guest);
      });
    },

    /** A QEMU that waits for the guest's memory; says where it listens, and where the source finds the lease. */
    async openIncoming(input: MigrationRef & { capabilities?: Record<string, boolean> }): Promise<{ host: string; port: number; leasePort: number }> {
      return await runStep(deps, 'memory', input, async () => {
        lease.forget(input.attempt);
        return { host: host.config.address, port: await openIncoming(host, input.guest, input.attempt, input.capabilities), leasePort: lease.port };
      });
    },

    /** R5: proves the incoming QEMU dead, or says that it must not be ended, since the guest may have run there. */
    async destroyIncoming(input: MigrationRef): Promise<{ destroyed: boolean }> {
      return await runStep(deps, 'memory', input, async () => {
        await deps.switchovers.leave(input.guest);
        // What became of this QEMU says nothing about the next one of the same attempt.
        lease.forget(input.attempt);
        return { destroyed: await destroyIncoming(host, input.guest, input.attempt) };
      });
    },

    /** Waits for the whole guest and runs it at once; in flight while the source hands it over. */
    async receive(input: MigrationRef): Promise<TakeOverResult> {
      return await runStep(deps, 'switchover', input, async (step) => {
        const { guest, attempt } = input;
        const task = await receiveGuest(deps, guest, attempt);
        // A user's cancel is the source's to answer; this one comes from a workflow that has heard from the source.
        return await attached(step, task, () => task.leave());
      });
    },

    /** What this host knows of the guest, for the ownership table. A guest that has arrived and does not run yet is let run. */
    async destinationState(input: MigrationRef): Promise<DestinationState> {
      return await runStep(deps, 'switchover', input, () => destinationState(host, input.guest, input.attempt));
    },

    /** Changes the cap on the copy while it runs; without a rate it is lifted. */
    async setBandwidth(input: MigrationRef & { bytesPerSecond?: number }): Promise<void> {
      await runStep(deps, 'converge', input, () => setBandwidth(host, input.guest, input.bytesPerSecond));
    },

    /** Post-copy: waits until the last page of a guest that runs here has come, or cannot come any more by itself. */
    async awaitPages(input: MigrationRef): Promise<PagesState> {
      return await runStep(deps, 'switchover', input, ({ ended }) => awaitPages(host, input.guest, ended));
    },

    /** Post-copy: listens for the rest of the pages, after their connection broke. */
    async listenForPages(input: MigrationRef): Promise<{ host: string; port: number }> {
      return await runStep(deps, 'switchover', input, () => listenForPages(host, input.guest));
    },

    /** Post-copy: ends a guest whose pages will never come, with half of its memory. Its copy stays this host's, to be started from its disks. */
    async endWithoutPages(input: MigrationRef): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        if (isMarked(host, input.guest, input.attempt)) await killQemu(host, input.guest);
      });
    },

    /** How busy the disks are that take the copy, 0 to 1; undefined where they are on none. */
    async diskBusy(input: MigrationRef): Promise<number | undefined> {
      return await runStep(deps, 'converge', input, async () => await busyShare(movingDisks(host.definition(input.guest)).map((disk) => host.path(input.guest, disk.path))));
    },

    /** The guest lives here now: ends the storage daemon and forgets the attempt. */
    async settleDestination(input: MigrationRef): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        if (store.attempt(input.guest)?.attempt === input.attempt) {
          await deps.switchovers.leave(input.guest);
          await stopGuard(host, input.guest);
          await stopStorageDaemon(host, input.guest);
          if (host.process(input.guest)) await removeCredentials(host.monitor(input.guest));
          await store.setAttempt(input.guest, undefined);
        }
        lease.forget(input.attempt);
        await deps.announce();
      });
    },
  };
}

/** Receives a guest in this agent, or finds that under way; a guard goes on with it if this agent dies (R9). */
export async function receiveGuest(deps: HostDependencies, guest: string, attempt: string): Promise<Task<TakeOverResult>> {
  const { host, lease, switchovers } = deps;
  return await switchovers.start(guest, `receive ${attempt}`, async ({ leave }) => await guarded(host, { config: host.config, guest, startedAt: new Date().toISOString(), role: 'destination', attempt }, () => takeOver(host, lease, guest, attempt, leave)).finally(() => announceSoon(deps)));
}

/** Undo of `prepareDestination` for this record. Throws if the guest has arrived. */
export async function discard(host: Host, guest: string, record: DestinationAttempt): Promise<void> {
  if (!(await destroyIncoming(host, guest, record.attempt))) throw new GuestStateError(`guest ${guest} runs on ${host.name} already, or did: its copy there is not thrown away`);
  await stopStorageDaemon(host, guest);
  const definition = host.store.definition(guest);
  const planned = definition ? movingDisks(definition).map((disk) => host.path(guest, disk.path)) : [];
  await deleteMade(record.made, planned, record.attempt);
  await rm(runFolder(host.config, guest), { recursive: true, force: true });
  await host.store.remove(guest);
}
