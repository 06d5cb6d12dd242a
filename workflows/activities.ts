import { ActivityCancellationType, type ActivityOptions, proxyActivities } from '@temporalio/workflow';
import type { destinationActivities } from '../activities/destination';
import type { FleetActivities } from '../activities/fleet';
import type { sourceActivities } from '../activities/source';
import { CONTROL_QUEUE } from './messages';

type Source = ReturnType<typeof sourceActivities>;
type Destination = ReturnType<typeof destinationActivities>;

const COMMON = {
  // The default goes on while the activity still cleans up (facts/temporal.md §1).
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  heartbeatTimeout: '5 seconds',
  retry: { initialInterval: '100 milliseconds', maximumInterval: '5 seconds' },
} as const satisfies ActivityOptions;

/** A look: a host whose agent does not answer now is not waited for. */
const LOOK = { ...COMMON, scheduleToStartTimeout: '10 seconds', scheduleToCloseTimeout: '2 minutes' } as const;
/** A step before the switchover: an agent that is being restarted is waited for, a dead host is not. */
const STEP = { ...COMMON, scheduleToStartTimeout: '2 minutes', scheduleToCloseTimeout: '10 minutes' } as const;
const UNDO = { ...COMMON, scheduleToCloseTimeout: '10 minutes' } as const;
/** Only the hosts themselves can say who owns the guest: no timeout of ours may decide it. */
const SWITCHOVER = { ...COMMON, startToCloseTimeout: '30 days' } as const;

export const control = proxyActivities<FleetActivities>({ taskQueue: CONTROL_QUEUE, startToCloseTimeout: '20 seconds', retry: { maximumAttempts: 3 } });

/** The source host's activities. `disksDeadlineSeconds` bounds the time until every mirror is READY. */
export function sourceHost(host: string, disksDeadlineSeconds: number) {
  const on = (options: ActivityOptions) => proxyActivities<Source>({ ...options, taskQueue: host });
  return {
    look: on(LOOK),
    step: on(STEP),
    converge: on({ ...COMMON, scheduleToStartTimeout: '2 minutes', scheduleToCloseTimeout: `${disksDeadlineSeconds} seconds` }),
    switchover: on(SWITCHOVER),
    undo: on(UNDO),
  };
}

export function destinationHost(host: string) {
  const on = (options: ActivityOptions) => proxyActivities<Destination>({ ...options, taskQueue: host });
  return { look: on(LOOK), step: on(STEP), switchover: on(SWITCHOVER), undo: on(UNDO) };
}
