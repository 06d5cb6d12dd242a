import type { EvacuationLimits, PlannedMove } from './evacuation';

type Ends = Pick<PlannedMove, 'from' | 'to'>;

/** The planned moves that may start now, in their order, without any limit being exceeded. A move that must wait holds up none behind it. */
export function mayStart<M extends Ends>(planned: readonly M[], running: readonly Ends[], limits: EvacuationLimits): M[] {
  const under = [...running];
  return planned.filter((move) => {
    const count = (so: (one: Ends) => boolean) => under.filter(so).length;
    if (under.length >= limits.fleet || count(({ from }) => from === move.from) >= limits.perSource || count(({ to }) => to === move.to) >= limits.perDestination) return false;
    under.push(move);
    return true;
  });
}

/**
 * The shortest time in which these moves could be done, in milliseconds: by the limits and the bandwidth of one move alone, with no overhead at all. A lower
 * bound, to compare with.
 */
export function idealWallTimeMs(moves: readonly Pick<PlannedMove, 'from' | 'to' | 'memoryBytes' | 'diskBytes'>[], limits: EvacuationLimits, bytesPerSecond: number): number {
  const ms = (some: readonly Pick<PlannedMove, 'memoryBytes' | 'diskBytes'>[]) => some.reduce((sum, { memoryBytes, diskBytes }) => sum + ((memoryBytes + diskBytes) * 1000) / bytesPerSecond, 0);
  const groups = (end: 'from' | 'to') => [...new Set(moves.map((move) => move[end]))].map((name) => moves.filter((move) => move[end] === name));
  const longest = Math.max(0, ...moves.map((move) => ms([move])));
  return Math.max(longest, ms(moves) / limits.fleet, ...groups('from').map((some) => ms(some) / limits.perSource), ...groups('to').map((some) => ms(some) / limits.perDestination));
}
