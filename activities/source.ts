import { rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { movingDisks } from '../hypervisor/definition';
import { handOver, type HandOverPlan, type HandOverResult } from '../hypervisor/handover';
import { GuestStateError } from '../hypervisor/host';
import { runFolder } from '../hypervisor/host-config';
import { putAside, wipe } from '../hypervisor/images';
import { quitQemu } from '../hypervisor/launch';
import { cancelMigration, migrationState } from '../hypervisor/migration';
import { assertMirroring, clearMirrors, ensureMirrors, mirrorStates, type MirrorState, type MirrorTarget } from '../hypervisor/mirrors';
import { type Findings, type GuestPlan, inspectSource } from '../hypervisor/preflight';
import { type HostDependencies, type MigrationRef, type Progress, runStep, type Step } from './context';

export type SourceDisks = 'keep' | 'wipe';

/** How often progress is read; verdicts never wait for it. */
const SAMPLE_MS = 500;
const HANG_MS = 2_000;

/** The source's steps. Until `moveMemory` has sent `migrate-continue` each can be undone and the guest never notices. */
export function sourceActivities(deps: HostDependencies) {
  const { host } = deps;
  const { store } = host;
  return {
    /** Everything at the source that could stop this guest from leaving, and what the destination must know. Changes nothing. */
    async inspectSource(input: MigrationRef): Promise<{ plan?: GuestPlan } & Findings> {
      return await runStep(deps, 'preflight', input, () => inspectSource(host, input.guest, input.attempt));
    },

    /** Starts one mirror a disk, all in parallel. Removes leftovers of earlier attempts first. */
    async startMirrors(input: MigrationRef & { targets: MirrorTarget[] }): Promise<void> {
      await runStep(deps, 'mirror', input, async () => {
        const { guest, attempt, to, targets } = input;
        const monitor = host.monitor(guest);
        const record = store.attempt(guest);
        if (record?.attempt !== attempt) {
          if (record) await cancelMigration(await monitor.connection(), HANG_MS);
          await clearMirrors(monitor, { silent: false, keep: attempt });
          await store.setAttempt(guest, { role: 'source', attempt, to, memoryTry: 0, wasRunning: true });
        }
        await ensureMirrors(monitor, targets, attempt, { sync: 'full', copyMode: 'background' });
      });
    },

    /**
     * Waits until every mirror has caught up once, and what it is behind now could be drained in half the downtime budget at the rate at
     * which it copies. Throws `MirrorFailed` as soon as one ends.
     */
    async awaitMirrors(input: MigrationRef & { targets: MirrorTarget[]; maxDowntimeMs: number }): Promise<void> {
      await runStep(deps, 'converge', input, async (step) => {
        const qmp = await host.monitor(input.guest).connection();
        const events = qmp.listen('BLOCK_JOB_READY', 'JOB_STATUS_CHANGE');
        const rate = new Rates();
        try {
          for (;;) {
            const states = await mirrorStates(qmp, input.targets, input.attempt);
            assertMirroring(states);
            const disks = states.map((state) => rate.disk(state));
            step.progress({ phase: 'converge', disks });
            const ready = states.every((state) => state.ready);
            if (ready && disks.every(({ remainingBytes, bytesPerSecond }) => remainingBytes <= (bytesPerSecond * input.maxDowntimeMs) / 2000)) return;
            await events.next({ timeoutMs: ready ? SAMPLE_MS / 5 : SAMPLE_MS, signal: step.ended }).catch((error: Error) => {
              if (error.name !== 'QmpTimeout') throw error;
            });
          }
        } finally {
          events.close();
        }
      });
    },

    /** Undo of the mirrors: jobs and nodes of ours go, the guest runs on. */
    async removeMirrors(input: MigrationRef): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const { guest, attempt } = input;
        const record = store.attempt(guest);
        if (record?.role !== 'source' || record.attempt !== attempt) return;
        if (host.process(guest)) {
          const monitor = host.monitor(guest);
          const qmp = await monitor.connection();
          if (record.memoryTry > 0) {
            if ((await migrationState(qmp)) === 'completed') throw new GuestStateError(`guest ${guest} was handed over to ${record.to}: its mirrors are gone, and this copy must not run`);
            await cancelMigration(qmp, HANG_MS);
          }
          await clearMirrors(monitor, { silent: false });
        }
        if (store.ownership(guest)?.state !== 'owner') await store.setOwnership(guest, { state: 'owner', since: new Date().toISOString() });
        await store.setAttempt(guest, undefined);
      });
    },

    /** Moves the memory and hands the guest over: the source's half of the switchover. */
    async moveMemory(input: MigrationRef & { handOver: HandOverPlan }): Promise<HandOverResult> {
      return await runStep(deps, 'memory', input, async (step) => {
        let paused = false;
        const over = new AbortController();
        const watching = showMemory(step, over.signal, () => paused);
        try {
          return await handOver(host, input.guest, input.handOver, {
            cancel: step.cancelled,
            leave: step.leaving,
            paused: () => {
              paused = true;
            },
            note: (what) => step.log.info(what),
          });
        } finally {
          over.abort();
          await watching;
        }

        async function showMemory({ progress }: Pick<Step, 'progress'>, signal: AbortSignal, isPaused: () => boolean): Promise<void> {
          const rate = new Rates();
          const qmp = await host.monitor(input.guest).connection();
          while (!signal.aborted) {
            if (isPaused()) progress({ phase: 'switchover' });
            else progress(await memoryProgress(input, rate).catch((): Progress => ({ phase: 'memory' })));
            await delay(SAMPLE_MS, undefined, { signal }).catch(() => undefined);
            if (!qmp.isOpen) return;
          }
        }
      });
    },

    /** R5: only after the destination is proven dead and unmarked. The source's copy holds everything and runs again. */
    async reviveSource(input: MigrationRef): Promise<void> {
      await runStep(deps, 'switchover', input, async () => {
        const { guest } = input;
        const record = store.attempt(guest);
        await store.setOwnership(guest, { state: 'owner', since: new Date().toISOString() });
        const qmp = await host.monitor(guest).connection();
        const { status } = await qmp.execute('query-status');
        if (status === 'postmigrate' && record?.role === 'source' && record.wasRunning) await qmp.execute('cont');
      });
    },

    /** The guest lives elsewhere now: ends this copy's QEMU, puts its images aside or wipes them, forgets it. */
    async retireSource(input: MigrationRef & { sourceDisks: SourceDisks; keepHours: number }): Promise<void> {
      await runStep(deps, 'cleanup', input, async () => {
        const { guest, attempt } = input;
        const definition = store.definition(guest);
        const ownership = store.ownership(guest);
        if (!definition) return;
        if (ownership?.state !== 'handed-over' || ownership.attempt !== attempt) throw new GuestStateError(`the copy of guest ${guest} on ${host.name} was not handed over by attempt ${attempt}: it is not thrown away`);
        await quitQemu(host, guest);
        const paths = movingDisks(definition).map((disk) => host.path(guest, disk.path));
        if (input.sourceDisks === 'wipe') for (const path of paths) await wipe(path);
        else {
          const until = new Date(Date.now() + input.keepHours * 3_600_000).toISOString();
          const aside = (await Promise.all(paths.map((path) => putAside(path, attempt)))).filter((path) => path !== undefined);
          await store.setKept([...store.kept().filter((kept) => kept.attempt !== attempt), { guest, attempt, paths: aside, until }]);
        }
        await rm(runFolder(host.config, guest), { recursive: true, force: true });
        await store.remove(guest);
        await deps.announce();
      });
    },
  };

  async function memoryProgress(input: MigrationRef & { handOver: HandOverPlan }, rate: Rates): Promise<Progress> {
    const qmp = await host.monitor(input.guest).connection();
    const [{ ram }, states] = await Promise.all([qmp.execute('query-migrate'), mirrorStates(qmp, input.handOver.targets, input.attempt)]);
    return {
      phase: 'memory',
      disks: states.map((state) => rate.disk(state)),
      ...(ram && {
        memory: {
          remainingBytes: ram.remaining,
          totalBytes: ram.total,
          dirtyBytesPerSecond: (ram['dirty-pages-rate'] ?? 0) * (ram['page-size'] ?? 4096),
          bytesPerSecond: ((ram.mbps ?? 0) * 1e6) / 8,
        },
      }),
    };
  }
}

/** Copy throughput from successive samples. */
class Rates {
  private readonly last = new Map<string, { offsetBytes: number; at: number; bytesPerSecond: number }>();

  disk({ id, remainingBytes, lengthBytes, offsetBytes, ready }: MirrorState) {
    const at = performance.now();
    const last = this.last.get(id);
    const bytesPerSecond = last && at > last.at ? Math.round(Math.max(0, offsetBytes - last.offsetBytes) / ((at - last.at) / 1000)) : 0;
    this.last.set(id, { offsetBytes, at, bytesPerSecond });
    return { id, remainingBytes, lengthBytes, ready, bytesPerSecond };
  }
}
