import type { PlannedMove } from './placement';

/** How many migrations there may be at once. A host that is not named has `default`. */
export interface MoveLimits {
  fleet: number;
  /** How many may leave a host. */
  perSource: HostLimits;
  /** How many may come to a host. */
  perDestination: HostLimits;
}
export interface HostLimits {
  default: number;
  byHost?: Record<string, number>;
}

type Route = Pick<PlannedMove, 'from' | 'to'>;

/**
 * The moves to start now, in the order of the plan. With those that run they exceed no limit; a move whose hosts are busy does not hold up
 * later ones. Of those left out each would exceed one: when a move ends, or a limit is raised, ask again.
 */
export function mayStart<Move extends Route>(waiting: readonly Move[], running: readonly Route[], limits: MoveLimits): Move[] {
  const leaving = new Map<string, number>();
  const coming = new Map<string, number>();
  const count = ({ from, to }: Route) => {
    leaving.set(from, (leaving.get(from) ?? 0) + 1);
    coming.set(to, (coming.get(to) ?? 0) + 1);
  };
  running.forEach(count);
  let free = limits.fleet - running.length;
  const now: Move[] = [];
  for (const move of waiting) {
    if (free <= 0) break;
    if ((leaving.get(move.from) ?? 0) >= limitOf(limits.perSource, move.from) || (coming.get(move.to) ?? 0) >= limitOf(limits.perDestination, move.to)) continue;
    count(move);
    free--;
    now.push(move);
  }
  return now;
}

/**
 * No schedule of these moves takes less, whatever its order: the longest of what the largest move takes, what all take that share a host's
 * slots, and what all take that share the fleet's. `bytesPerSecond` is what one migration can have, and for a link that all of a host's
 * migrations share, `perHost` what it carries each way. Infinite where a limit is 0.
 *
 * Every byte is counted once, as the plan has it: what a guest rewrites comes on top, and memory that it never touched takes less.
 */
export function idealWallTimeMs(moves: readonly Pick<PlannedMove, 'from' | 'to' | 'cold' | 'memoryBytes' | 'diskBytes'>[], limits: MoveLimits, bytesPerSecond: number | { perMove: number; perHost: number }): number {
  const { perMove, perHost } = typeof bytesPerSecond === 'number' ? { perMove: bytesPerSecond, perHost: Infinity } : bytesPerSecond;
  const leaving = new Map<string, number>();
  const coming = new Map<string, number>();
  let [total, largest] = [0, 0];
  for (const { from, to, cold, memoryBytes, diskBytes } of moves) {
    const bytes = diskBytes + (cold ? 0 : memoryBytes);
    leaving.set(from, (leaving.get(from) ?? 0) + bytes);
    coming.set(to, (coming.get(to) ?? 0) + bytes);
    total += bytes;
    largest = Math.max(largest, bytes);
  }
  const takes = (bytes: number, slots: number, most = Infinity) => (bytes === 0 ? 0 : (bytes * 1000) / Math.min(slots * perMove, most));
  return Math.max(
    takes(largest, 1, perHost),
    takes(total, limits.fleet),
    ...[...leaving].map(([host, bytes]) => takes(bytes, limitOf(limits.perSource, host), perHost)),
    ...[...coming].map(([host, bytes]) => takes(bytes, limitOf(limits.perDestination, host), perHost)),
  );
}

function limitOf({ default: usual, byHost = {} }: HostLimits, host: string): number {
  return Object.hasOwn(byHost, host) ? byHost[host]! : usual;
}
