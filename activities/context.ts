import { Context } from '@temporalio/activity';
import type { Logger } from 'pino';
import type { Host } from '../hypervisor/host';
import type { LeaseServer } from '../hypervisor/lease';
import { toFailure } from './errors';

/** What a host agent's activities work with. */
export interface HostDependencies {
  host: Host;
  lease: LeaseServer;
  logger: Logger;
  /** Tells the fleet what this host has now. Called after every change of its guests. */
  announce: () => Promise<void>;
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
  disks?: { id: string; remainingBytes: number; lengthBytes: number; ready: boolean; bytesPerSecond: number }[];
  memory?: { remainingBytes: number; totalBytes: number; dirtyBytesPerSecond: number; bytesPerSecond: number };
}

export interface Step {
  log: Logger;
  /** Aborted when the user cancels: undo. */
  cancelled: AbortSignal;
  /** Aborted when this worker stops (R8): leave QEMU as it is; somebody will go on. */
  leaving: AbortSignal;
  /** Both. */
  ended: AbortSignal;
  progress: (progress: Progress) => void;
}

/** Well below the heartbeat timeout of every activity. */
const HEARTBEAT_MS = 1_000;

/**
 * Runs one step inside an activity: heartbeats while it runs, logs its beginning and end with migration, guest, host and phase, keeps a
 * worker's stop apart from a user's cancel, and turns every error into one of `activities/errors.ts`.
 */
export async function runStep<T>({ host, logger }: HostDependencies, phase: string, ref: Partial<MigrationRef> & { guest?: string }, work: (step: Step) => Promise<T>): Promise<T> {
  // Held, since an abort's listeners run outside the activity's asynchronous context.
  const context = Context.current();
  const { activityType, attempt: activityTry, workflowExecution } = context.info;
  const log = logger.child({ migration: workflowExecution?.workflowId, guest: ref.guest, host: host.name, phase, step: activityType });
  let progress: Progress = { phase };
  const timer = setInterval(() => context.heartbeat(progress), HEARTBEAT_MS);
  const cancelled = new AbortController();
  const leaving = new AbortController();
  const signal = context.cancellationSignal;
  const onAbort = () => {
    const reason: unknown = signal.reason;
    (context.cancellationDetails?.workerShutdown && !context.cancellationDetails.cancelRequested ? leaving : cancelled).abort(reason);
  };
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
      },
    });
    log.info({ ms: Date.now() - started }, `${activityType} done`);
    return result;
  } catch (error) {
    if (signal.aborted && (error === signal.reason || (error as Error).name === 'AbortError')) {
      log.info({ leaving: leaving.signal.aborted }, `${activityType} stops: ${leaving.signal.aborted ? 'this agent ends, QEMU stays as it is' : 'cancelled'}`);
      return await context.cancelled;
    }
    log.warn({ ms: Date.now() - started, error: (error as Error).message }, `${activityType} failed`);
    throw toFailure(error, host.name, ref.guest);
  } finally {
    clearInterval(timer);
    signal.removeEventListener('abort', onAbort);
  }
}
