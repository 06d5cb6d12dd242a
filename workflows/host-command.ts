import type { GuestActivities } from '../activities/guests';
import { ActivityFailure, ApplicationFailure, TimeoutFailure } from '@temporalio/workflow';
import { activitiesOn } from './activities';
import { lastWord } from './last-word';

/** The operations on a host's guests that a person or program may ask for; each is one activity on the host's queue. */
export interface HostCommand<Name extends keyof GuestActivities = keyof GuestActivities> {
  host: string;
  command: Name;
  input: Parameters<GuestActivities[Name]>[0];
}

/** Runs one operation on one host, so that it is on record who did what when. */
export async function hostCommand({ host, command, input }: HostCommand): Promise<unknown> {
  const activities = activitiesOn<GuestActivities>({
    taskQueue: host,
    scheduleToStartTimeout: '10 seconds',
    scheduleToCloseTimeout: '5 minutes',
    startToCloseTimeout: '5 minutes',
    heartbeatTimeout: '5 seconds',
    // Who asks is told at once whom to disconnect.
    retry: { initialInterval: '200 milliseconds', maximumAttempts: 5, nonRetryableErrorTypes: ['QmpMonitorBusy'] },
  });
  try {
    return await (activities[command] as (input: unknown) => Promise<unknown>)(input);
  } catch (error) {
    if (error instanceof ActivityFailure && error.cause instanceof TimeoutFailure && error.cause.timeoutType === 'SCHEDULE_TO_START') {
      throw ApplicationFailure.nonRetryable(`the agent of host ${host} does not answer: start it, or check the host's name. Nothing was changed`, 'HostUnreachable');
    }
    throw lastWord(error, `${command} on ${host} was not done`);
  }
}
