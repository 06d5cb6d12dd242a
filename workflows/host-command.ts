import type { GuestActivities } from '../activities/guests';
import { activitiesOn } from './activities';

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
  return await (activities[command] as (input: unknown) => Promise<unknown>)(input);
}
