import type { PlannedMove, Stay } from './evacuation';
import type { GuestReport, PlacementHost } from './fleet';
import { InvalidSelector, matches, parseSelector, type Selector } from './selector';

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
  fileSystems: Map<string, string>;
  groups: Record<string, number>;
  guests: number;
  /** Guests that are planned to come, largest first. */
  coming: Placed[];
  /** Those of them that could go elsewhere, when so many hosts had been made room on. */
  loose?: { at: number; guests: Placed[] };
  /** What its QEMUs have not, by `Wanted.kind`; looked up once. */
  lacks: string[];
}

/** A guest, and what is asked of a host for it. */
interface Wanted {
  guest: GuestReport;
  selector: Selector;
  avoid: string[];
  /** A number for its machine type and CPU model. */
  kind: number;
}

interface Placed extends Wanted {
  /** In the order of the plan. */
  index: number;
  move: PlannedMove;
  /** Another host where it fitted when that was asked last. */
  mayGoTo?: Room;
  /** It fitted on no other host when so many hosts had been made room on. */
  stuckAt?: number;
}

/** Why a host is out. Most answers are never read: the words are made when they are. */
interface Obstacle {
  /** The words without what differs from host to host. */
  kind: string;
  words: () => string;
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
  const homes = new Map(hosts.map((host) => [host.name, host]));
  const out: [host: string, Obstacle][] = [];
  for (const host of byName) {
    const why = whyNoDestination(host, options.sources, matches(destinations, host.labels), options.destinations ?? '');
    if (why) out.push([host.name, { kind: why.replace(/\([^]*\)/, ''), words: () => why }]);
  }
  const isOut = new Set(out.map(([name]) => name));
  const rooms = byName.filter(({ name }) => !isOut.has(name)).map(roomOf);
  /** Hosts that have been made room on, in turn: only there may a guest fit that fitted there before in vain. */
  const eased: Room[] = [];
  const kinds = new Map<string, number>();
  const kindOf = ({ machine, cpuModel }: GuestReport) => {
    const key = `${machine} ${cpuModel}`;
    if (!kinds.has(key)) kinds.set(key, kinds.size);
    return kinds.get(key)!;
  };
  const sorted = [...guests].sort((a, b) => b.guest.memoryBytes - a.guest.memoryBytes || diskBytes(b.guest) - diskBytes(a.guest) || compare(a.guest.name, b.guest.name));
  for (const { guest, from } of sorted) {
    const stay = (reasons: string[]) => stays.push({ guest: guest.name, from, reasons });
    const why = whyItStays(guest, homes.get(from), options.approved ?? []);
    if (why) {
      stay([why]);
      continue;
    }
    const selector = readSelector(guest.hostSelector);
    if (selector instanceof InvalidSelector) {
      stay([`its hostSelector cannot be read: ${selector.message}`]);
      continue;
    }
    const wanted: Wanted = { guest, selector, avoid: options.avoid?.[guest.name] ?? [], kind: kindOf(guest) };
    const obstacles = rooms.map((room) => obstacle(wanted, room));
    let best: Room | undefined;
    let fitting = 0;
    rooms.forEach((room, index) => {
      if (obstacles[index]) return;
      fitting++;
      if (!best || isBetter(room, best, guest)) best = room;
    });
    best ??= makeRoom(wanted, rooms, eased);
    if (!best) {
      const rejected = [...out, ...rooms.map(({ host }, index): [string, Obstacle] => [host.name, obstacles[index]!])];
      stay(together(rejected.filter(([name]) => name !== from)));
      continue;
    }
    take(best, guest, 1);
    const share = Math.round(100 * usedShare(best, 0));
    const move = {
      guest: guest.name,
      from,
      to: best.host.name,
      cold: guest.state === 'stopped',
      memoryBytes: guest.memoryBytes,
      diskBytes: diskBytes(guest),
      why: `${best.host.name}: ${share} % of its memory in use afterwards, ${fitting > 1 ? `the least of ${fitting} hosts that fit` : fitting === 1 ? 'the only host that fits' : 'with another guest planned elsewhere'}`,
    };
    best.coming.push({ ...wanted, index: moves.length, move });
    delete best.loose;
    moves.push(move);
  }
  return { moves, stays };
}

function readSelector(text: string): Selector | InvalidSelector {
  try {
    return parseSelector(text);
  } catch (error) {
    if (error instanceof InvalidSelector) return error;
    throw error;
  }
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
  return { host, freeMemoryBytes: host.freeMemoryBytes, freeBytes, fileSystems: new Map(host.roots.map(({ name, fileSystem }) => [name, fileSystem])), groups, guests: host.guests.length, coming: [], lacks: [] };
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

/** Why a guest cannot come to a host, as it is planned now; undefined if it can. */
function obstacle(wanted: Wanted, room: Room): Obstacle | undefined {
  const { guest } = wanted;
  const lasting = lastingObstacle(wanted, room);
  if (lasting) return lasting;
  const group = guest.antiAffinity.find((one) => (room.groups[one] ?? 0) > 0);
  if (group !== undefined) return always(`has a guest of the group "${group}" already`);
  const short = memoryNow(guest) - room.freeMemoryBytes;
  if (short > 0) return { kind: 'memory', words: () => `${bytesText(short)} of memory short` };
  for (const [index, { root }] of guest.disks.entries()) {
    const fileSystem = room.fileSystems.get(root)!;
    let needed = 0;
    for (const disk of guest.disks.slice(0, index + 1)) if (room.fileSystems.get(disk.root) === fileSystem) needed += disk.bytes;
    const missing = needed - room.freeBytes[fileSystem]!;
    if (missing > 0) return { kind: `disk ${root}`, words: () => `${bytesText(missing)} of disk space short in root "${root}"` };
  }
  return undefined;
}

/** What no other guest that goes elsewhere could change. */
function lastingObstacle(wanted: Wanted, room: Room): Obstacle | undefined {
  const { guest, selector, avoid } = wanted;
  if (avoid.includes(room.host.name)) return always('failed it before');
  if (!matches(selector, room.host.labels)) return always(`does not match its hostSelector "${guest.hostSelector}"`);
  const lacks = whatItLacks(wanted, room);
  if (lacks) return always(lacks);
  const missing = guest.disks.find(({ root }) => !room.fileSystems.has(root));
  return missing && always(`has no root "${missing.root}"`);
}

const always = (words: string): Obstacle => ({ kind: words, words: () => words });

function whatItLacks({ guest: { machine, cpuModel }, kind }: Wanted, { host, lacks }: Room): string {
  return (lacks[kind] ??= look());
  function look(): string {
    const machines = host.qemu.filter((one) => one.machines.includes(machine));
    if (machines.length === 0) return `has no machine type ${machine}`;
    return machines.some(({ cpuModels }) => cpuModels.includes(cpuModel)) ? '' : `has no CPU model ${cpuModel}`;
  }
}

/** Adds a guest to a host, or with −1 takes it away again. */
function take(room: Room, guest: GuestReport, sign: 1 | -1): void {
  room.freeMemoryBytes -= sign * memoryNow(guest);
  room.guests += sign;
  for (const { root, bytes } of guest.disks) room.freeBytes[room.fileSystems.get(root)!]! -= sign * bytes;
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
function makeRoom(wanted: Wanted, rooms: Room[], eased: Room[]): Room | undefined {
  for (const room of rooms) {
    if (lastingObstacle(wanted, room)) continue;
    if (room.loose?.at !== eased.length) room.loose = { at: eased.length, guests: room.coming.filter((other) => !isStuck(other, room, rooms, eased)) };
    for (const other of room.loose.guests) {
      if (memoryNow(wanted.guest) > room.freeMemoryBytes + memoryNow(other.guest) || isStuck(other, room, rooms, eased)) continue;
      take(room, other.guest, -1);
      const elsewhere = obstacle(wanted, room) ? undefined : rooms.find((one) => one !== room && !obstacle(other, one));
      if (!elsewhere) {
        take(room, other.guest, 1);
        continue;
      }
      take(elsewhere, other.guest, 1);
      room.coming = room.coming.filter((one) => one !== other);
      elsewhere.coming = [...elsewhere.coming, other].sort((a, b) => a.index - b.index);
      delete room.loose;
      delete elsewhere.loose;
      delete other.mayGoTo;
      delete other.stuckAt;
      other.move.to = elsewhere.host.name;
      other.move.why = `${elsewhere.host.name}: makes room on ${room.host.name} for ${wanted.guest.name}`;
      eased.push(room);
      return room;
    }
  }
  return undefined;
}

/** Whether a guest that is planned to come to this host fits on no other. Other hosts only get fuller, but for those that were made room on: only they are asked again. */
function isStuck(one: Placed, room: Room, rooms: Room[], eased: Room[]): boolean {
  if (one.stuckAt === eased.length) return true;
  if (one.mayGoTo && !obstacle(one, one.mayGoTo)) return false;
  const elsewhere = (one.stuckAt === undefined ? rooms : eased.slice(one.stuckAt)).find((other) => other !== room && !obstacle(one, other));
  if (elsewhere) {
    one.mayGoTo = elsewhere;
    delete one.stuckAt;
  } else one.stuckAt = eased.length;
  return elsewhere === undefined;
}

/** One line a reason; many hosts that are out for the same kind of reason share one. */
function together(rejected: [host: string, Obstacle][]): string[] {
  if (rejected.length === 0) return ['there is no other host'];
  const kinds = new Map<string, [host: string, Obstacle][]>();
  for (const one of rejected) {
    const same = kinds.get(one[1].kind);
    if (same) same.push(one);
    else kinds.set(one[1].kind, [one]);
  }
  const line = ([host, { words }]: [string, Obstacle]) => `${host}: ${words()}`;
  return [...kinds.values()].flatMap((hosts) => (hosts.length <= MOST_NAMED ? hosts.map(line) : [`${hosts.length} hosts, such as ${line(hosts[0]!)}`]));
}

function bytesText(bytes: number): string {
  const [unit, size] = bytes >= 2 ** 30 ? (['GiB', 2 ** 30] as const) : (['MiB', 2 ** 20] as const);
  return `${(bytes / size).toFixed(1)} ${unit}`;
}
