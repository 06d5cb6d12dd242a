import { throttleGuest, liftThrottle, sourceRecord } from '../hypervisor/guest-throttle';
import { makeWriteBlocking } from '../hypervisor/copy-mode';
import { StoppedMirrors } from '../hypervisor/stopped-mirrors';
import { assertNotEnded, MirrorFailed, type MirrorState, mirrorStates, type MirrorTarget } from '../hypervisor/mirrors';
import { type QmpConnection } from '../qmp/connection';
import { type Assessment, Supervision, SUPERVISION_TIMES, type Surroundings, type Verdict } from '../workflows/convergence';
import type { DiskSample } from '../workflows/disk-trend';
import { type Trace, TraceRecorder } from '../workflows/trace';
import { guarded, type HostDependencies, type MigrationRef, runStep } from './context';

/** How often the mirrors are sampled; when all are ready every migration waits for the gate, so more often. */
const SAMPLE_MS = 500;
const GATE_SAMPLE_MS = 100;
/** A job's BLOCK_JOB_ERROR, which says what failed, comes with its end. */
const SAID_WHY_MS = 50;

export interface SuperviseInput extends MigrationRef {
  targets: MirrorTarget[];
  around: Surroundings;
  /** The verdict that the workflow knows: only what differs is news. */
  before?: { verdict: Verdict };
}

/** What the source does about mirrors that run: watches them, and applies remedies. Each is idempotent, and undone by `removeMirrors`. */
export function convergenceActivities(deps: HostDependencies) {
  const { host } = deps;
  const remedy = (guest: string) => ({ config: host.config, guest, startedAt: new Date().toISOString(), role: 'remedy' }) as const;
  return {
    /**
     * Watches every mirror until the memory may be moved: all are ready, and their drain would fit the budget. Tells the workflow when the verdict
     * changes. Throws `MirrorFailed` as soon as one ends. How it went is on record however it ends.
     */
    async awaitMirrors(input: SuperviseInput): Promise<Assessment & { trace?: Trace | undefined }> {
      return await runStep(deps, 'converge', input, async (step) => {
        const { guest, attempt, targets, around, before } = input;
        const qmp = await host.monitor(guest).connection();
        const events = qmp.listen('BLOCK_JOB_READY', 'JOB_STATUS_CHANGE');
        const errors = new ErrorWatch(qmp);
        const stopped = new StoppedMirrors();
        const recorder = new TraceRecorder();
        step.keep(() => ({ trace: recorder.trace }));
        const supervision = new Supervision(SUPERVISION_TIMES, before && { verdict: before.verdict, sinceMs: Date.now() });
        const writeBlocking = sourceRecord(host, guest).writeBlocking === true;
        try {
          for (;;) {
            const states = await mirrorStates(qmp, targets, attempt);
            const standStill = await stopped.goOn(qmp, targets, states);
            const assessment = supervision.push(await samplesOf(qmp, targets, states, writeBlocking, errors), { ...around, peerAnswers: !standStill });
            const { disks, verdict, message } = assessment;
            recorder.push(Date.now(), disks);
            step.progress({ phase: 'converge', disks: disks.map(({ copyBytesPerSecond, ...disk }) => ({ ...disk, bytesPerSecond: Math.round(copyBytesPerSecond) })), verdict: { verdict, message } });
            if (assessment.changed) {
              step.log.info({ verdict, trouble: assessment.trouble }, message);
              await step.tell({ assessment });
            }
            if (assessment.verdict === 'failed') throw new MirrorFailed(message);
            assertNotEnded(states);
            if (assessment.fitsBudget && !standStill) return { ...assessment, trace: recorder.trace };
            await events.next({ timeoutMs: states.every(({ ready }) => ready) ? GATE_SAMPLE_MS : SAMPLE_MS, signal: step.ended }).catch((error: Error) => {
              if (error.name !== 'QmpTimeout') throw error;
            });
          }
        } finally {
          events.close();
          errors.close();
        }
      });
    },

    /** Limits what the guest writes, in bytes a second for all its moving disks together. */
    async throttleGuest({ targets, bytesPerSecond, ...ref }: MigrationRef & { targets: MirrorTarget[]; bytesPerSecond: number }): Promise<void> {
      await runStep(deps, 'converge', ref, () => throttleGuest(host, ref.guest, targets.map(({ device }) => device), bytesPerSecond));
    },

    /** Brings back the limits that the guest's disks had. */
    async liftThrottle(input: MigrationRef): Promise<void> {
      await runStep(deps, 'converge', input, () => liftThrottle(host, input.guest));
    },

    /** Holds the guest's writes back until every mirror is ready, at most for `ms`. */
    async nudge({ targets, ms, ...ref }: MigrationRef & { targets: MirrorTarget[]; ms: number }): Promise<void> {
      await runStep(deps, 'converge', ref, (step) => guarded(host, remedy(ref.guest), async () => {
        const { guest, attempt } = ref;
        const qmp = await host.monitor(guest).connection();
        const ready = qmp.listen('BLOCK_JOB_READY');
        try {
          await throttleGuest(host, guest, targets.map(({ device }) => device), 1);
          const until = performance.now() + ms;
          while (performance.now() < until && !(await mirrorStates(qmp, targets, attempt)).every((state) => state.ready)) {
            await ready.next({ timeoutMs: Math.max(1, until - performance.now()), signal: step.ended }).catch((error: Error) => {
              if (error.name !== 'QmpTimeout') throw error;
            });
          }
        } finally {
          ready.close();
          await liftThrottle(host, guest);
        }
      }));
    },

    /** Makes the running mirrors write-blocking. Throws `RemedyFailed` if that cannot be had now; the mirrors go on as they were. */
    async makeWriteBlocking(input: MigrationRef & { targets: MirrorTarget[]; by: 'block-job-change' | 're-arm'; throughputBytesPerSecond: number; maxPauseMs: number }): Promise<{ pausedMs: number }> {
      return await runStep(deps, 'converge', input, (step) => guarded(host, remedy(input.guest), () => makeWriteBlocking(host, input.guest, { ...input, signal: step.ended })));
    },
  };
}

/** Which side of a mirror an error came from: only an event says so. */
class ErrorWatch {
  private readonly queue;
  private readonly operations = new Map<string, 'read' | 'write'>();

  constructor(qmp: QmpConnection) {
    this.queue = qmp.listen('BLOCK_JOB_ERROR');
  }

  async operation(job: string): Promise<'read' | 'write' | undefined> {
    for (let event = this.queue.tryNext() ?? (await this.queue.next({ timeoutMs: SAID_WHY_MS }).catch(() => undefined)); event; event = this.queue.tryNext()) this.operations.set(event.data.device, event.data.operation);
    return this.operations.get(job);
  }

  close(): void {
    this.queue.close();
  }
}

async function samplesOf(qmp: QmpConnection, targets: MirrorTarget[], states: MirrorState[], writeBlocking: boolean, errors: ErrorWatch): Promise<Record<string, DiskSample>> {
  const stats = await qmp.execute('query-blockstats', {});
  const atMs = Date.now();
  const samples = await Promise.all(
    states.map(async (state): Promise<[string, DiskSample]> => {
      const { device } = targets.find(({ id }) => id === state.id)!;
      const own = stats.filter((one) => [one.device, one['node-name'], ...(one.qdev?.split('/') ?? [])].some((name) => name === device || name === `${state.id}-device` || name === state.id));
      const operation = state.error === undefined ? undefined : await errors.operation(state.job);
      return [
        state.id,
        {
          atMs,
          remainingBytes: state.remainingBytes,
          offsetBytes: state.offsetBytes,
          ready: state.ready,
          writeBlocking,
          ...(own.length === 1 && { guestWrittenBytes: own[0]!.stats.wr_bytes }),
          ...(state.activelySynced !== undefined && { activelySynced: state.activelySynced }),
          ...(state.error !== undefined && { error: state.error }),
          ...(operation && { errorOperation: operation }),
          // One that merely lost its connection is waited for: a stall.
          ...(state.ioStatus && state.ioStatus !== 'failed' && { ioStatus: state.ioStatus }),
        },
      ];
    }),
  );
  return Object.fromEntries(samples);
}
