import { endPause } from '../hypervisor/copy-mode';
import { handOver } from '../hypervisor/handover';
import type { HandOverPlan, HandOverResult } from '../hypervisor/handover-plan';
import { stopGuard } from '../hypervisor/guard';
import type { Attempt, Instead, Ownership } from '../hypervisor/guest-store';
import { liftThrottle, sourceRecord } from '../hypervisor/guest-throttle';
import { GuestStateError, OwnershipUnknown } from '../hypervisor/host';
import { greet } from '../hypervisor/lease';
import { quitQemu } from '../hypervisor/launch';
import { cancelMigration, leavePostmigrate, migrationState, type OutgoingState } from '../hypervisor/migration';
import { clearMirrors, type CopyMode, ensureMirrors, type MirrorTarget } from '../hypervisor/mirrors';
import { PostCopyLost, resumePages } from '../hypervisor/post-copy';
import { type Findings, type GuestPlan, inspectSource } from '../hypervisor/preflight';
import { retireCopy, type SourceDisks } from '../hypervisor/retire';
import { stopStorageDaemon } from '../hypervisor/storage-daemon';
import { announceSoon, attached, guarded, type HostDependencies, type MigrationRef, runStep } from './context';
import { watchMemory } from './memory-watch';
import { type Trace, TraceRecorder } from '../workflows/trace';

const HANG_MS = 2_000;
const GREET_MS = 10_000;

/** The source's steps. Until `moveMemory` has sent `migrate-continue` each can be undone and the guest never notices. */
export function sourceActivities(deps: HostDependencies) {
  const { host } = deps;
  const { store } = host;
  return {
    /** Everything at the source that could stop this guest from leaving, and what the destination must know. Changes nothing. */
    async inspectSource(input: MigrationRef): Promise<{ plan?: GuestPlan } & Findings> {
      return await runStep(deps, 'preflight', input, () => inspectSource(host, input.guest, input.attempt));
    },

    /** Whether this host and the destination believe each other, by a connection as those that disks and memory take. Changes nothing. */
    async greetDestination(input: MigrationRef & { lease: { host: string; port: number } }): Promise<Findings> {
      return await runStep(deps, 'preflight', input, async () => {
        const refusal = await greet(host.config, { ...input.lease, name: input.to }, GREET_MS);
        return { blockers: refusal === undefined ? [] : [refusal], warnings: [] };
      });
    },

    /** Starts one mirror a disk, all in parallel. Removes leftovers of earlier attempts first; with `anew` also this attempt's own. */
    async startMirrors(input: MigrationRef & { targets: MirrorTarget[]; copyMode: CopyMode; anew: boolean }): Promise<void> {
      await runStep(deps, 'mirror', input, async () => {
        const { guest, attempt, to, targets, anew } = input;
        const monitor = host.monitor(guest);
        const record = store.attempt(guest);
        if (record?.attempt !== attempt) {
          if (record) await endEarlier(deps, guest, record);
          await clearMirrors(monitor, { silent: false, keep: attempt });
          await store.setAttempt(guest, { role: 'source', attempt, to, memoryTry: 0, wasRunning: true, ...(input.copyMode === 'write-blocking' && { writeBlocking: true }) });
        } else if (anew) {
          await clearMirrors(monitor, { silent: false });
        }
        await ensureMirrors(monitor, targets, attempt, { sync: 'full', copyMode: sourceRecord(host, guest).writeBlocking ? 'write-blocking' : 'background', channel: host.outgoingChannel(guest, to) });
      });
    },

    /**
     * Undo of the mirrors: jobs, nodes and limits of ours go, the guest runs on. A copy that was marked as handed over is given back to this host only
     * if its destination is known to be destroyed: otherwise it throws `OwnershipUnknown`. `instead`: see `reviveSource`.
     */
    async removeMirrors(input: MigrationRef & { destinationDestroyed: boolean; instead?: Instead }): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const { guest, attempt } = input;
        const record = store.attempt(guest);
        if (record?.role !== 'source' || record.attempt !== attempt) return;
        await deps.switchovers.leave(guest);
        await stopGuard(host, guest);
        if (host.process(guest)) {
          const monitor = host.monitor(guest);
          const qmp = await monitor.connection();
          if (record.memoryTry > 0 && isHandedOver(await cancelMigration(qmp, HANG_MS))) throw unknownOwner(guest, record.to);
          await endPause(host, guest, qmp);
          await liftThrottle(host, guest);
          await clearMirrors(monitor, { silent: false });
        }
        if (store.ownership(guest)?.state !== 'owner') {
          if (!input.destinationDestroyed) throw unknownOwner(guest, record.to);
          await store.setOwnership(guest, owner(input.instead));
        }
        await store.setAttempt(guest, undefined);
        await deps.announce();
      });
    },

    /** Moves the memory and hands the guest over: the source's half of the switchover. How the memory went is in the result. */
    async moveMemory(input: MigrationRef & { handOver: HandOverPlan }): Promise<HandOverResult & { trace?: Trace | undefined }> {
      return await runStep(deps, 'memory', input, async (step) => {
        const { guest, attempt, handOver: plan } = input;
        const task = await deps.switchovers.start(guest, `hand over ${attempt} ${plan.memoryTry}`, (signals) =>
          guarded(host, { config: host.config, guest, startedAt: new Date().toISOString(), role: 'source', plan }, () =>
            handOver(host, guest, plan, { ...signals, paused: () => undefined, note: (what) => step.log.info(what) }),
          ).finally(() => announceSoon(deps)),
        );
        const over = new AbortController();
        const recorder = new TraceRecorder();
        step.keep(() => ({ trace: recorder.trace }));
        const watching = watchMemory(host, input, step, recorder, over.signal);
        try {
          return { ...(await attached(step, task, () => task.cancel())), trace: recorder.trace };
        } finally {
          over.abort();
          await watching;
        }
      });
    },

    /**
     * What became of the guest here, when `moveMemory` could not say it itself. A migration that is still before the point of no return is cancelled: the
     * guest, paused or not, is this host's, and runs on (R2: what was cancelled or failed was not wholly handed over).
     */
    async sourceState(input: MigrationRef): Promise<'running' | 'completed' | 'gone'> {
      return await runStep(deps, 'switchover', input, async () => {
        const { guest } = input;
        await deps.switchovers.leave(guest);
        await stopGuard(host, guest);
        if (!host.process(guest)) return 'gone';
        const qmp = await host.monitor(guest).connection();
        const end = await cancelMigration(qmp, HANG_MS);
        if (isHandedOver(end)) return 'completed';
        // A post-copy that failed as it began: the guest is paused, and only the destination knows whether it is whole.
        const record = store.attempt(guest);
        if (record?.role === 'source' && record.postCopy && store.ownership(guest)?.state === 'handed-over' && (await qmp.execute('query-status')).status === 'postmigrate') return 'completed';
        if (store.ownership(guest)?.state !== 'owner') await store.setOwnership(guest, owner());
        if (end === 'cancelled' && record?.role === 'source') await leavePostmigrate(qmp, record.wasRunning);
        return 'running';
      });
    },

    /**
     * R5: only after the destination is proven dead and unmarked, or a person has said that its host is fenced (`instead`). The source's copy holds
     * everything and runs again. Throws `PostCopyLost` if it was sending pages: then it may only be started anew.
     */
    async reviveSource(input: MigrationRef & { instead?: Instead }): Promise<void> {
      await runStep(deps, 'switchover', input, async () => {
        const { guest } = input;
        const record = store.attempt(guest);
        await store.setOwnership(guest, owner(input.instead));
        if (!host.process(guest)) return;
        const qmp = await host.monitor(guest).connection();
        const state = await migrationState(qmp);
        if (state === 'post-copy' || state === 'post-copy-paused') {
          // QEMU takes neither `cont` ("Migration is not finalized yet") nor a cancel that would end: measured on 7.2.
          await quitQemu(host, guest);
          throw new PostCopyLost(`guest ${guest} is lost as a running one: ${input.instead ? `${input.instead.host}, where it ran, was confirmed fenced` : 'its destination ended just after post-copy had begun'}, and QEMU cannot take post-copy back. Its disks on ${host.name} are whole${input.instead ? ', as they were when it left' : ''}: start it here (vmferry vm start ${guest})`);
        }
        await leavePostmigrate(qmp, !(record?.role === 'source' && !record.wasRunning));
      });
    },

    /** Post-copy: lets the source's QEMU go on sending pages to a destination that listens there. `gone`: there is nobody to send them any more. */
    async resumePages(input: MigrationRef & { host: string; port: number }): Promise<'completed' | 'under-way' | 'broken' | 'gone'> {
      return await runStep(deps, 'switchover', input, async () => {
        if (!host.process(input.guest)) return 'gone';
        return await resumePages(await host.monitor(input.guest).connection(), input.host, input.port);
      });
    },

    /** The guest lives elsewhere now: ends this copy's QEMU, puts its images aside or wipes them, forgets it. */
    async retireSource(input: MigrationRef & { sourceDisks: SourceDisks; keepHours: number }): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const { guest, attempt } = input;
        const ownership = store.ownership(guest);
        if (!store.definition(guest)) return;
        if (ownership?.state !== 'handed-over' || ownership.attempt !== attempt) throw new GuestStateError(`the copy of guest ${guest} on ${host.name} was not handed over by attempt ${attempt}: it is not thrown away`);
        await deps.switchovers.leave(guest);
        await retireCopy(host, guest, attempt, input);
        await deps.announce();
      });
    },
  };
}

/** Ends what a migration that was terminated left of this guest here, whether it was to leave or had come. Throws if its window brought the guest away. */
async function endEarlier(deps: HostDependencies, guest: string, record: Attempt): Promise<void> {
  const { host, lease, meter, switchovers } = deps;
  meter.count('vmferry_leftovers_found_total', {});
  await switchovers.leave(guest);
  await stopGuard(host, guest);
  if (host.store.ownership(guest)?.state !== 'owner') throw unknownOwner(guest, record.role === 'source' ? record.to : host.name);
  if (record.role === 'destination') {
    await stopStorageDaemon(host, guest);
    lease.forget(record.attempt);
    return;
  }
  const qmp = await host.monitor(guest).connection();
  await cancelMigration(qmp, HANG_MS);
  await endPause(host, guest, qmp);
  await liftThrottle(host, guest);
}

/** Everything, or all but the pages of a post-copy, is at the destination: this copy must not run by itself. */
const isHandedOver = (state: OutgoingState): boolean => state === 'completed' || state === 'post-copy' || state === 'post-copy-paused';

function owner(instead?: Instead): Ownership {
  return { state: 'owner', since: new Date().toISOString(), ...(instead && { instead }) };
}

/** Transient states must not be taken for facts: who runs the guest must be found out. */
function unknownOwner(guest: string, to: string): OwnershipUnknown {
  return new OwnershipUnknown(`guest ${guest} was handed over to ${to}: its copy here must not run before that one is known to be destroyed`);
}
