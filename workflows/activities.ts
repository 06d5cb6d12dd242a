import { ActivityCancellationType, ActivityFailure, type ActivityOptions, proxyActivities, TimeoutFailure } from '@temporalio/workflow';
import type { destinationActivities } from '../activities/destination';
import type { FleetActivities } from '../activities/fleet';
import type { coldActivities } from '../activities/cold';
import type { convergenceActivities } from '../activities/convergence';
import type { repairActivities } from '../activities/repair';
import type { sourceActivities } from '../activities/source';
import { CONTROL_QUEUE } from './messages';

type Repair = ReturnType<typeof repairActivities>;
type Source = ReturnType<typeof sourceActivities> & ReturnType<typeof convergenceActivities> & Cold;
type Destination = ReturnType<typeof destinationActivities> & Cold;
type Cold = ReturnType<typeof coldActivities>;

const COMMON = {
  // The default goes on while the activity still cleans up (facts/temporal.md §1).
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  heartbeatTimeout: '5 seconds',
  retry: { initialInterval: '100 milliseconds', maximumInterval: '5 seconds' },
} as const satisfies ActivityOptions;

/** A look: a host whose agent does not answer now is not waited for. */
const LOOK = { ...COMMON, scheduleToStartTimeout: '10 seconds', scheduleToCloseTimeout: '2 minutes' } as const;
/** One that was away a moment ago is not waited for as long again. */
const GLANCE = { ...LOOK, scheduleToStartTimeout: '2 seconds' } as const;
/** A step before the switchover: an agent that is being restarted is waited for, a dead host is not. */
const STEP = { ...COMMON, scheduleToStartTimeout: '2 minutes', scheduleToCloseTimeout: '10 minutes' } as const;
/** What a host that is away leaves undone is done by `finishCleanup` when it returns. */
const UNDO = { ...COMMON, scheduleToStartTimeout: '1 minute', scheduleToCloseTimeout: '10 minutes' } as const;
/** However long it takes. */
const AT_LAST = { ...COMMON, startToCloseTimeout: '1 day' } as const;
/** Only the hosts themselves can say who owns the guest: no timeout of ours may decide it. */
const SWITCHOVER = { ...COMMON, startToCloseTimeout: '30 days' } as const;

export const control = proxyActivities<FleetActivities>({ taskQueue: CONTROL_QUEUE, startToCloseTimeout: '20 seconds', retry: { maximumAttempts: 3 } });

/** For what is free only after a while. */
export const controlPatiently = (patienceSeconds: number) =>
  proxyActivities<FleetActivities>({ cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED, taskQueue: CONTROL_QUEUE, startToCloseTimeout: '20 seconds', scheduleToCloseTimeout: patienceSeconds * 1000, retry: { initialInterval: '500 milliseconds', backoffCoefficient: 1.5, maximumInterval: '10 seconds' } });

export function sourceHost(host: string) {
  const on = (options: ActivityOptions) => proxyActivities<Source>({ ...options, taskQueue: host });
  return {
    look: on(LOOK),
    step: on(STEP),
    /** The workflow's own deadlines bound it. */
    converge: on({ ...COMMON, scheduleToStartTimeout: '2 minutes', startToCloseTimeout: '365 days' }),
    /** However large the images are; an agent that is away for long ends it. */
    copy: on({ ...COMMON, scheduleToStartTimeout: '10 minutes', startToCloseTimeout: '30 days' }),
    switchover: on(SWITCHOVER),
    undo: on(UNDO),
    atLast: on(AT_LAST),
  };
}

export function destinationHost(host: string) {
  const on = (options: ActivityOptions) => proxyActivities<Destination>({ ...options, taskQueue: host });
  return { look: on(LOOK), step: on(STEP), switchover: on(SWITCHOVER), undo: on(UNDO), atLast: on(AT_LAST) };
}

/** For a repair, which does not know yet which side a host is. */
export function anyHost(host: string) {
  const on = (options: ActivityOptions) => proxyActivities<Source & Destination & Repair>({ ...options, taskQueue: host });
  return { look: on(LOOK), glance: on(GLANCE), step: on(STEP), atLast: on(AT_LAST) };
}

/** Whether an activity ended since no agent of its host took it, or went on with it, in time. */
export function isAway(error: unknown): boolean {
  return error instanceof ActivityFailure && error.cause instanceof TimeoutFailure;
}
