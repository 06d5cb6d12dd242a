import type { HostDependencies } from './context';
import { checkActivities } from './check';
import { coldActivities } from './cold';
import { convergenceActivities } from './convergence';
import { destinationActivities } from './destination';
import { guestActivities } from './guests';
import { repairActivities } from './repair';
import { sourceActivities } from './source';

/** All that a host agent can be asked to do. */
export function createHostActivities(deps: HostDependencies) {
  return { ...sourceActivities(deps), ...convergenceActivities(deps), ...destinationActivities(deps), ...coldActivities(deps), ...guestActivities(deps), ...repairActivities(deps), ...checkActivities(deps) };
}
