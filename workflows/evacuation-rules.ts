import { megabytes, seconds } from './convergence';
import type { EvacuationRequest, MovePlan, PlannedMove } from './evacuation';
import type { HostCapacity } from './fleet';
import { InvalidSelector, matches, parseSelector } from './selector';

/** What a link carries that nobody has limited: 10 Gbit/s. An estimate that is too short refuses nothing that could be done. */
const FASTEST_BYTES_PER_SECOND = 1.25e9;
/** What every move takes beside its copy: 4.3 s in all were measured for an idle guest (docs/performance.md). */
const OVERHEAD_MS = 4_000;
/** In a message. */
const MOST_LABELS = 20;

/** The least time that a move needs, in milliseconds. */
export function leastMs({ memoryBytes, diskBytes, cold }: Pick<PlannedMove, 'memoryBytes' | 'diskBytes' | 'cold'>, bytesPerSecond = FASTEST_BYTES_PER_SECOND): number {
  return OVERHEAD_MS + (((cold ? 0 : memoryBytes) + diskBytes) * 1000) / bytesPerSecond;
}

/** Why a host cannot be evacuated at all, every reason; undefined if it can. Pure. */
export function refuseEvacuation(input: EvacuationRequest, { hosts, home, moves, stays }: MovePlan): string[] | undefined {
  if (!home) return [`there is no host "${input.host}" (known are: ${hosts.join(', ') || 'none; start an agent'})`];
  if (!home.reachable) return [`host ${input.host} is unreachable: start its agent`];
  const reasons: string[] = [];
  const unknown = [...input.skip, ...input.approved].filter((guest) => !home.guests.some(({ name }) => name === guest));
  if (unknown.length > 0) reasons.push(`there is no guest ${unknown.map((guest) => `"${guest}"`).join(', ')} on ${input.host} (here are: ${home.guests.map(({ name }) => name).join(', ') || 'none'})`);
  if (moves.length === 0 && stays.length > 0 && input.mode !== 'plan') reasons.push(...stays.map((stay) => `guest ${stay.guest} would stay: ${stay.reasons.join('; ')}`));
  if (input.windowSeconds !== undefined && moves.length > 0) {
    const rate = input.migration.bandwidthBytesPerSecond;
    const [smallest] = [...moves].sort((a, b) => leastMs(a, rate) - leastMs(b, rate));
    const needs = leastMs(smallest!, rate);
    if (needs > input.windowSeconds * 1000) reasons.push(`windowSeconds: the window of ${seconds(input.windowSeconds * 1000)} is shorter than even the smallest guest needs: ${smallest!.guest} (${megabytes(smallest!.memoryBytes + smallest!.diskBytes)}) takes ${seconds(needs)} at least`);
  }
  return reasons.length > 0 ? reasons : undefined;
}

/** The hosts that are meant, in the order of their names, or why there is none. Pure. */
export function chosenHosts({ hosts = [], selector = '' }: { hosts?: string[] | undefined; selector?: string | undefined }, fleet: Pick<HostCapacity, 'name' | 'labels'>[]): { hosts: string[] } | { refused: string } {
  const unknown = hosts.filter((host) => !fleet.some(({ name }) => name === host));
  if (unknown.length > 0) return { refused: `hosts: there is no host ${unknown.map((host) => `"${host}"`).join(', ')} (known are: ${fleet.map(({ name }) => name).join(', ') || 'none; start an agent'})` };
  if (hosts.length > 0) return { hosts: [...new Set(hosts)].sort() };
  try {
    const wanted = parseSelector(selector);
    const found = fleet.filter(({ labels }) => matches(wanted, labels)).map(({ name }) => name);
    if (found.length > 0) return { hosts: found.sort() };
    const labels = [...new Set(fleet.flatMap((host) => Object.entries(host.labels).map(([key, value]) => `${key}=${value}`)))].sort();
    return { refused: `selector: "${selector}" matches no host (labels are: ${labels.slice(0, MOST_LABELS).join(', ') || 'none; give hosts some in their configuration'}${labels.length > MOST_LABELS ? `, and ${labels.length - MOST_LABELS} more` : ''})` };
  } catch (error) {
    if (error instanceof InvalidSelector) return { refused: error.message };
    throw error;
  }
}
