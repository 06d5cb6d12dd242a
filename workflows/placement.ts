import type { PlannedMove, Stay } from './evacuation';
import type { GuestReport, PlacementHost } from './fleet';
import { InvalidSelector, matches, parseSelector } from './selector';

export interface PlacementOptions {
  /** Hosts that are emptied: nothing goes there. */
  sources: string[];
  /** A selector that destinations match; empty: all. */
  destinations?: string;
  /** Guests with `migratable: ask` that may go. */
  approved?: string[];
  /** Hosts that a guest is not to go to, by guest: they failed it before. */
  avoid?: Record<string, string[]>;
}

export interface Plan {
  moves: PlannedMove[];
  stays: Stay[];
}

/** States in which a guest can move. */
const MOVABLE = ['running', 'paused', 'stopped'];
/** More hosts than this that are out for the same reason are counted, not named. */
const MOST_NAMED = 5;

/** A host while a plan is made: what is left of it shrinks with every guest that is to come. */
interface Room {
  host: PlacementHost;
  freeMemoryBytes: number;
  freeBytes: Record<string, number>;
  groups: Record<string, number>;
  guests: number;
}

/**
 * Where each guest goes: largest first, to the host among those that fit which is then the least full. Pure and deterministic: the order of what it is given
 * does not matter. A guest that fits nowhere gets room where one planned before it fits elsewhere too. Throws `InvalidSelector`.
 */
export function placeGuests(guests: { guest: GuestReport; from: string }[], hosts: PlacementHost[], options: PlacementOptions): Plan {
  const moves: PlannedMove[] = [];
  const stays: Stay[] = [];
  const destinations = parseSelector(options.destinations ?? '');
  const byName = [...hosts].sort((a, b) => compare(a.name, b.name));
  const out = new Map<string, string>();
  for (const host of byName) {
    const why = whyNoDestination(host, options.sources, matches(destinations, host.labels), options.destinations ?? '');
    if (why) out.set(host.name, why);
  }
  const rooms = byName.filter(({ name }) => !out.has(name)).map(roomOf);
  const reports = new Map<string, GuestReport>();
  const sorted = [...guests].sort((a, b) => b.guest.memoryBytes - a.guest.memoryBytes || diskBytes(b.guest) - diskBytes(a.guest) || compare(a.guest.name, b.guest.name));
  for (const { guest, from } of sorted) {
    const stay = (reasons: string[]) => stays.push({ guest: guest.name, from, reasons });
    const why = whyItStays(guest, hosts.find(({ name }) => name === from), options.approved ?? []);
    if (why) {
      stay([why]);
      continue;
    }
    const avoid = options.avoid?.[guest.name] ?? [];
    const rejected = new Map<string, string>(out);
    let best: Room | undefined;
    let fitting = 0;
    try {
      const selector = parseSelector(guest.hostSelector);
      for (const room of rooms) {
        const reason = whyNotThere(guest, room, selector, avoid);
        if (reason) rejected.set(room.host.name, reason);
        else {
          fitting++;
          if (!best || isBetter(room, best, guest)) best = room;
        }
      }
      best ??= makeRoom(guest, rooms, moves, reports, selector, options.avoid ?? {});
    } catch (error) {
      if (!(error instanceof InvalidSelector)) throw error;
      stay([`its hostSelector cannot be read: ${error.message}`]);
      continue;
    }
    if (!best) {
      rejected.delete(from);
      stay(together(rejected));
      continue;
    }
    take(best, guest, 1);
    reports.set(guest.name, guest);
    const share = Math.round(100 * usedShare(best, 0));
    moves.push({
      guest: guest.name,
      from,
      to: best.host.name,
      cold: guest.state === 'stopped',
      memoryBytes: guest.memoryBytes,
      diskBytes: diskBytes(guest),
      why: `${best.host.name}: ${share} % of its memory in use afterwards, ${fitting > 1 ? `the least of ${fitting} hosts that fit` : fitting === 1 ? 'the only host that fits' : 'with another guest planned elsewhere'}`,
    });
  }
  return { moves, stays };
}

const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
const diskBytes = ({ disks }: GuestReport) => disks.reduce((sum, { bytes }) => sum + bytes, 0);
/** A guest that does not run needs its memory only when it is started. */
const memoryNow = ({ state, memoryBytes }: GuestReport) => (state === 'stopped' ? 0 : memoryBytes);

function roomOf(host: PlacementHost): Room {
  const freeBytes: Record<string, number> = {};
  for (const root of host.roots) freeBytes[root.fileSystem] = Math.min(freeBytes[root.fileSystem] ?? Infinity, root.freeBytes);
  const groups: Record<string, number> = {};
  for (const group of host.guests.flatMap((guest) => guest.antiAffinity)) groups[group] = (groups[group] ?? 0) + 1;
  return { host, freeMemoryBytes: host.freeMemoryBytes, freeBytes, groups, guests: host.guests.length };
}

function whyNoDestination(host: PlacementHost, sources: string[], selected: boolean, selector: string): string | undefined {
  if (sources.includes(host.name)) return 'is emptied itself';
  if (!host.reachable) return 'is unreachable';
  if (host.cordoned) return `is cordoned by ${host.cordoned.by} (${host.cordoned.reason})`;
  if (host.slots.incoming === 0) return 'takes no guests (its incoming slots are 0)';
  return selected ? undefined : `does not match the selector "${selector}"`;
}

function whyItStays(guest: GuestReport, home: PlacementHost | undefined, approved: string[]): string | undefined {
  if (!MOVABLE.includes(guest.state)) return `it cannot move as it is: ${guest.state}`;
  if (guest.migratable === 'never') return 'its definition says migratable: never';
  if (guest.migratable === 'ask' && !approved.includes(guest.name)) return 'its definition says migratable: ask, and it was not approved (--approve-guest)';
  if (home?.slots.outgoing === 0) return `${home.name} lets no guest go (its outgoing slots are 0)`;
  return undefined;
}

function whyNotThere(guest: GuestReport, room: Room, selector: ReturnType<typeof parseSelector>, avoid: string[]): string | undefined {
  const { host } = room;
  if (avoid.includes(host.name)) return 'failed it before';
  if (!matches(selector, host.labels)) return `does not match its hostSelector "${guest.hostSelector}"`;
  const machines = host.qemu.filter(({ machines }) => machines.includes(guest.machine));
  if (machines.length === 0) return `has no machine type ${guest.machine}`;
  if (!machines.some(({ cpuModels }) => cpuModels.includes(guest.cpuModel))) return `has no CPU model ${guest.cpuModel}`;
  const group = guest.antiAffinity.find((one) => (room.groups[one] ?? 0) > 0);
  if (group !== undefined) return `has a guest of the group "${group}" already`;
  return whyNoSpace(guest, room);
}

function whyNoSpace(guest: GuestReport, room: Room): string | undefined {
  const short = memoryNow(guest) - room.freeMemoryBytes;
  if (short > 0) return `${bytesText(short)} of memory short`;
  const needed: Record<string, number> = {};
  for (const { root, bytes } of guest.disks) {
    const fileSystem = room.host.roots.find(({ name }) => name === root)?.fileSystem;
    if (fileSystem === undefined) return `has no root "${root}"`;
    needed[fileSystem] = (needed[fileSystem] ?? 0) + bytes;
    const missing = needed[fileSystem] - room.freeBytes[fileSystem]!;
    if (missing > 0) return `${bytesText(missing)} of disk space short in root "${root}"`;
  }
  return undefined;
}

/** Adds a guest to a host, or with −1 takes it away again. */
function take(room: Room, guest: GuestReport, sign: 1 | -1): void {
  room.freeMemoryBytes -= sign * memoryNow(guest);
  room.guests += sign;
  for (const { root, bytes } of guest.disks) room.freeBytes[room.host.roots.find(({ name }) => name === root)!.fileSystem]! -= sign * bytes;
  for (const group of guest.antiAffinity) room.groups[group] = (room.groups[group] ?? 0) + sign;
}

function usedShare({ host, freeMemoryBytes }: Room, moreBytes: number): number {
  return (host.totalMemoryBytes - freeMemoryBytes + moreBytes) / host.totalMemoryBytes;
}

function isBetter(a: Room, b: Room, guest: GuestReport): boolean {
  // A stopped guest goes where it could be started.
  const difference = usedShare(a, guest.memoryBytes) - usedShare(b, guest.memoryBytes) || a.guests - b.guests;
  return difference < 0 || (difference === 0 && a.host.name < b.host.name);
}

/** A host where this guest fits once a guest that was planned to go there goes elsewhere; that one's plan is changed. */
function makeRoom(guest: GuestReport, rooms: Room[], moves: PlannedMove[], reports: Map<string, GuestReport>, selector: ReturnType<typeof parseSelector>, avoided: Record<string, string[]>): Room | undefined {
  const avoid = avoided[guest.name] ?? [];
  for (const room of rooms) {
    // Only a host that is too full can be made fit.
    if (whyNotThere(guest, { ...room, freeMemoryBytes: Infinity, freeBytes: Object.fromEntries(Object.keys(room.freeBytes).map((key) => [key, Infinity])), groups: {} }, selector, avoid)) continue;
    for (const move of moves) {
      if (move.to !== room.host.name) continue;
      const other = reports.get(move.guest)!;
      take(room, other, -1);
      const elsewhere = whyNotThere(guest, room, selector, avoid) === undefined ? rooms.find((one) => one !== room && whyNotThere(other, one, parseSelector(other.hostSelector), avoided[other.name] ?? []) === undefined) : undefined;
      if (elsewhere) {
        take(elsewhere, other, 1);
        move.to = elsewhere.host.name;
        move.why = `${elsewhere.host.name}: makes room on ${room.host.name} for ${guest.name}`;
        return room;
      }
      take(room, other, 1);
    }
  }
  return undefined;
}

/** One line a reason; many hosts that are out for the same kind of reason share one. */
function together(rejected: Map<string, string>): string[] {
  if (rejected.size === 0) return ['there is no other host'];
  const kinds: Record<string, [host: string, reason: string][]> = {};
  for (const [host, reason] of rejected) (kinds[reason.replace(/^[\d.]+ \S+ of/, 'of').replace(/\([^]*\)/, '')] ??= []).push([host, reason]);
  return Object.values(kinds).flatMap((hosts) => (hosts.length <= MOST_NAMED ? hosts.map(([host, reason]) => `${host}: ${reason}`) : [`${hosts.length} hosts, such as ${hosts[0]![0]}: ${hosts[0]![1]}`]));
}

function bytesText(bytes: number): string {
  const [unit, size] = bytes >= 2 ** 30 ? (['GiB', 2 ** 30] as const) : (['MiB', 2 ** 20] as const);
  return `${(bytes / size).toFixed(1)} ${unit}`;
}
