import type { HostDependencies } from './context';
import { coldActivities } from './cold';
import { convergenceActivities } from './convergence';
import { destinationActivities } from './destination';
import { toFailure } from './errors';
import { guestActivities } from './guests';
import { checkInput } from './host-input';
import { repairActivities } from './repair';
import { sourceActivities } from './source';

/** All that a host agent can be asked to do. */
export function createHostActivities(deps: HostDependencies) {
  return checked(deps, { ...sourceActivities(deps), ...convergenceActivities(deps), ...destinationActivities(deps), ...coldActivities(deps), ...guestActivities(deps), ...repairActivities(deps) });
}

/** The same activities, none of which begins with an input that is not what it says. */
function checked<A extends object>({ host }: HostDependencies, activities: A): A {
  const guard = (name: string, run: (input: unknown) => Promise<unknown>) => async (input: unknown) => {
    try {
      checkInput(name, input);
    } catch (error) {
      throw toFailure(error, host.name);
    }
    return await run(input);
  };
  return Object.fromEntries(Object.entries(activities).map(([name, run]) => [name, guard(name, run as (input: unknown) => Promise<unknown>)])) as A;
}
