import { CancelledFailure, Context } from '@temporalio/activity';
import type { Logger } from 'pino';
import { Guard, type GuardJob } from '../hypervisor/guard';
import type { Host } from '../hypervisor/host';
import type { LeaseServer } from '../hypervisor/lease';
import { type Switchovers, type Task, TaskLeft } from '../hypervisor/switchovers';
import type { News } from '../workflows/messages';
import type { Assessment } from '../workflows/convergence';
import type { Trace } from '../workflows/trace';
import { toFailure } from './errors';

/** What a host agent's activities work with. */
export interface HostDependencies {
  host: Host;
  lease: LeaseServer;
  logger: Logger;
  switchovers: Switchovers;
  /** Tells the fleet what this host has now. Called after every change of its guests. */
  announce: () => Promise<void>;
  /** Tells the workflow that an activity belongs to what has changed. */
  tell: (workflow: { workflowId: string; runId: string }, news: News) => Promise<void>;
}

/** Names one attempt to move one guest; on every payload and log line. */
export interface MigrationRef {
  guest: string;
  /** Eight characters of the workflow's run id; in the names of everything that the attempt makes. */
  attempt: string;
  from: string;
  to: string;
}

/** What a running activity shows in the Temporal UI, in `watch`, and to a retry of itself. Never an event of history. */
export interface Progress {
  phase: string;
  disks?: { id: string; remainingBytes: number; lengthBytes: number; ready: boolean; bytesPerSecond: number; dirtyBytesPerSecond?: number; etaMs?: number | null; predictedDrainMs?: number }[];
  memory?: { remainingBytes: number; totalBytes: number; dirtyBytesPerSecond: number; bytesPerSecond: number; predictedDowntimeMs?: number };
  /** What all of it means, in words. */
  verdict?: { verdict: Assessment['verdict']; message: string };
}

export interface Step {
  log: Logger;
  /** Aborted when the user cancels: undo. */
  cancelled: AbortSignal;
  /** Aborted when this worker stops (R8), or when Temporal waits no longer for this activity: leave QEMU as it is; somebody will go on. */
  leaving: AbortSignal;
  /** Both. */
  ended: AbortSignal;
  progress: (progress: Progress) => void;
  /** Tells the workflow what has changed; a failure to do so is tried again with the next news. */
  tell: (news: News) => Promise<void>;
  /** What goes on record, for a report, if this step fails or is cancelled; one that succeeds has it in its result. */
  keep: (say: () => Kept) => void;
}

/** The details of a step's failure, or of its cancellation. */
export interface Kept {
  trace?: Trace | undefined;
}

/** The fleet hears where a guest is also when the workflow that moved it is gone. Lost, it is no loss: the next report says as much. */
export function announceSoon({ announce }: HostDependencies): void {
  announce().catch(() => undefined);
}

/** Well below the heartbeat timeout of every activity. */
const HEARTBEAT_MS = 1_000;

/**
 * Runs one step inside an activity: heartbeats while it runs, logs its beginning and end with migration, guest, host and phase, keeps a
 * worker's stop apart from a user's cancel, and turns every error into one of `activities/errors.ts`.
 */
export async function runStep<T>({ host, logger, tell }: HostDependencies, phase: string, ref: Partial<MigrationRef> & { guest?: string }, work: (step: Step) => Promise<T>): Promise<T> {
  // Held, since an abort's listeners run outside the activity's asynchronous context.
  const context = Context.current();
  const { activityType, attempt: activityTry, workflowExecution } = context.info;
  const log = logger.child({ migration: workflowExecution?.workflowId, guest: ref.guest, host: host.name, phase, step: activityType });
  let progress: Progress = { phase };
  let kept: (() => Kept) | undefined;
  const timer = setInterval(() => context.heartbeat(progress), HEARTBEAT_MS);
  const cancelled = new AbortController();
  const leaving = new AbortController();
  const signal = context.cancellationSignal;
  // A worker's stop, a heartbeat that Temporal missed, a terminated workflow: none of them is a user who wants an undo (R8).
  const onAbort = () => (context.cancellationDetails?.cancelRequested ? cancelled : leaving).abort(signal.reason);
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort);
  const started = Date.now();
  log.info({ try: activityTry }, `${activityType} begins`);
  try {
    const result = await work({
      log,
      cancelled: cancelled.signal,
      leaving: leaving.signal,
      ended: AbortSignal.any([cancelled.signal, leaving.signal]),
      progress: (now) => {
        progress = now;
        context.heartbeat(now);
        measure(context, ref.guest, now);
      },
      tell: async (news) => {
        if (workflowExecution) await tell(workflowExecution, news);
      },
      keep: (say) => {
        kept = say;
      },
    });
    log.info({ ms: Date.now() - started }, `${activityType} done`);
    return result;
  } catch (error) {
    if (signal.aborted && (error === signal.reason || (error as Error).name === 'AbortError')) {
      log.info({ leaving: leaving.signal.aborted }, `${activityType} stops: ${leaving.signal.aborted ? 'this agent ends, QEMU stays as it is' : 'cancelled'}`);
      if (kept && cancelled.signal.aborted) throw new CancelledFailure((signal.reason as Error).message, [kept()]);
      return await context.cancelled;
    }
    log.warn({ ms: Date.now() - started, error: (error as Error).message }, `${activityType} failed`);
    throw toFailure(error, host.name, ref.guest, kept?.());
  } finally {
    clearInterval(timer);
    signal.removeEventListener('abort', onAbort);
  }
}

/** The same numbers as gauges, by guest and disk, at the worker's Prometheus endpoint (`VMFERRY_METRICS`). */
function measure({ metricMeter }: Context, guest: string | undefined, { disks = [], memory }: Progress): void {
  const set = (name: string, unit: string, description: string, value: number | undefined, tags: Record<string, string> = {}) => {
    if (value !== undefined && guest !== undefined) metricMeter.createGauge(`vmferry_${name}`, 'float', unit, description).set(value, { guest, ...tags });
  };
  for (const { id, remainingBytes, bytesPerSecond, dirtyBytesPerSecond, predictedDrainMs } of disks) {
    set('disk_remaining_bytes', 'bytes', 'what the mirror of a disk has still to copy', remainingBytes, { disk: id });
    set('disk_copy_bytes_per_second', 'bytes/s', 'what the mirror of a disk copies', bytesPerSecond, { disk: id });
    set('disk_dirty_bytes_per_second', 'bytes/s', 'what the guest makes the mirror of a disk copy again', dirtyBytesPerSecond, { disk: id });
    set('disk_predicted_drain_ms', 'ms', 'how long the drain of a disk would take, were the guest paused now', predictedDrainMs, { disk: id });
  }
  set('memory_remaining_bytes', 'bytes', 'memory that is still to be sent', memory?.remainingBytes);
  set('memory_dirty_bytes_per_second', 'bytes/s', 'memory that the guest dirties', memory?.dirtyBytesPerSecond);
  set('memory_predicted_downtime_ms', 'ms', 'how long the rest of the memory would take, were the guest paused now', memory?.predictedDowntimeMs);
}

/** Awaits a task that outlives this activity: `onCancel` is for a user's cancel; when Temporal or this worker just goes away, the task goes on. */
export async function attached<T>({ cancelled, leaving }: Step, task: Task<T>, onCancel: () => void): Promise<T> {
  cancelled.addEventListener('abort', onCancel);
  if (cancelled.aborted) onCancel();
  const left = new Promise<never>((_resolve, reject) => {
    const leave = () => reject(leaving.reason as Error);
    leaving.addEventListener('abort', leave);
    if (leaving.aborted) leave();
  });
  left.catch(() => undefined);
  try {
    return await Promise.race([task.result, left]);
  } catch (error) {
    // Left because of the cancel: the activity was cancelled.
    throw error instanceof TaskLeft && cancelled.aborted ? (cancelled.reason as Error) : error;
  }
}

/** Does the work of a window with a guard beside it (R9), which goes on with it if this process dies, or leaves. */
export async function guarded<T>(host: Host, job: GuardJob, work: () => Promise<T>): Promise<T> {
  const guard = await Guard.start(host, job);
  try {
    const result = await work();
    await guard.over();
    return result;
  } catch (error) {
    if (error instanceof TaskLeft) guard.leave();
    else await guard.over();
    throw error;
  }
}
