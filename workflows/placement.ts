import type { GuestReport, PlacementHost } from './fleet';
import { describeObstacle, HostLoad, type Need, needOf, type Obstacle } from './placement-load';
import { InvalidSelector, matches, parseSelector, type Selector } from './selector';

export interface PlacementOptions {
  /** The hosts that are emptied: nothing goes there. */
  sources?: string[];
  /** A selector for labels of the hosts that guests may go to; empty: any. */
  destinations?: string;
  /** Guests with `migratable: ask` that may be moved, by name. */
  approved?: string[] | 'all';
  /** Hosts that a guest is not to go to, by guest: they failed it before. */
  avoid?: Record<string, string[]>;
}

export interface PlannedMove {
  guest: string;
  from: string;
  to: string;
  /** Of a stopped guest: definition and images only. */
  cold: boolean;
  memoryBytes: number;
  diskBytes: number;
  diskCount?: number;
  /** Why there, in words and numbers. */
  why: string;
}

export interface Stay {
  guest: string;
  from: string;
  /** Never empty: what is in the way with the guest itself; else what is with every other host. */
  reasons: string[];
}

/** Plain JSON. Both lists are in the order in which guests were looked at: by memory, disks, name. */
export interface Placement {
  moves: PlannedMove[];
  stays: Stay[];
}

const MOVABLE = ['running', 'paused', 'stopped'];
/** As many hosts that are out for the same reason are named one by one. */
const NAMED = 5;
/** How many planned moves are looked at to make room for what fits nowhere; each guest has its part of it. About 0.1 s. */
const MOST_LOOKS = 1_000_000;
/** And for how many of them another host is looked for. About 0.1 s for 500 hosts. */
const MOST_SEARCHES = 10_000;
const CORDONED = 'cordoned';

/** Guests with the same demands on what does not change while we plan. */
interface Kind {
  /** By name. */
  candidates: HostLoad[];
  out: { why: string; hosts: HostLoad[] }[];
}

interface Place {
  to: HostLoad;
  why: string;
}

interface Planned extends Place {
  need: Need;
  kind: Kind;
}

/**
 * Where guests can go: which move where, which stay, and why. Pure, and the same for any order of guests and hosts.
 *
 * Every guest is in exactly one of the two lists. If the moves are made, in any order and at any pace, no host gets more than it has memory
 * and disk space for, and no two guests of an anti-affinity group meet.
 *
 * Greedy: the largest guest first, each to the host with the lowest share of memory in use. What then fits nowhere gets a second chance
 * after all others: one planned move may go elsewhere to make room, so a guest more moves and never one fewer.
 *
 * Throws `InvalidSelector` for `destinations`; a guest with a bad `hostSelector` stays.
 */
export function placeGuests(guests: { guest: GuestReport; from: string }[], hosts: PlacementHost[], options: PlacementOptions = {}): Placement {
  const fleet = new Fleet(hosts, options);
  const needs = guests.map(({ guest, from }) => needOf(guest, from)).sort(largestFirst);
  const planned = new Map<Need, Planned>();
  /** Where the guest of this name moves from: migrations have the guest's name, so there can be only one. */
  const moving = new Map<string, string>();
  const stays = new Map<Need, string[]>();
  const sameName = ({ guest: { name } }: Need) => (moving.has(name) ? [`a guest of this name moves already, from ${moving.get(name)}`] : []);
  const keep = (need: Need, plan: Planned) => {
    planned.set(need, plan);
    moving.set(need.guest.name, need.from);
  };

  const homeless: { need: Need; kind: Kind }[] = [];
  for (const need of needs) {
    const kind = fleet.kindOf(need);
    const reasons = [...fleet.refusals(need), ...sameName(need), ...(typeof kind === 'string' ? [kind] : [])];
    if (typeof kind === 'string' || reasons.length > 0) {
      stays.set(need, reasons);
      continue;
    }
    const best = fleet.best(need, kind);
    if (best) keep(need, fleet.plan({ need, kind, ...best }));
    else homeless.push({ need, kind });
  }

  const most = { looks: Math.ceil(MOST_LOOKS / homeless.length), searches: Math.ceil(MOST_SEARCHES / homeless.length) };
  // Only a move that goes elsewhere leaves room that was not there before.
  let roomLeft = false;
  // The second time none does, so that at the end no host is left that a guest which stays would fit on.
  for (const mayMoveOthers of [true, false]) {
    for (const { need, kind } of homeless) {
      if (moving.has(need.guest.name)) continue;
      const best: Place | undefined = roomLeft ? fleet.best(need, kind) : undefined;
      const made: Planned | undefined = !best && mayMoveOthers ? fleet.makeRoom(need, kind, most) : undefined;
      if (best) keep(need, fleet.plan({ need, kind, ...best }));
      if (made) keep(need, made);
      roomLeft ||= made !== undefined;
    }
  }
  for (const { need, kind } of homeless) if (!planned.has(need)) stays.set(need, [...sameName(need), ...fleet.whyNowhere(need, kind)]);

  return {
    moves: needs.flatMap((need) => {
      const plan = planned.get(need);
      return plan ? [{ guest: need.guest.name, from: need.from, to: plan.to.name, cold: need.cold, memoryBytes: need.guest.memoryBytes, diskBytes: need.diskBytes, ...(need.guest.diskCount !== undefined && { diskCount: need.guest.diskCount }), why: plan.why }] : [];
    }),
    stays: needs.flatMap((need) => {
      const reasons = stays.get(need);
      return reasons ? [{ guest: need.guest.name, from: need.from, reasons }] : [];
    }),
  };
}

class Fleet {
  /** By name. */
  readonly #hosts: HostLoad[];
  readonly #byName: Map<string, HostLoad>;
  /** Why a host gets no guest at all. */
  readonly #closed = new Map<HostLoad, string>();
  readonly #homes = new Map<string, HostLoad[]>();
  readonly #kinds = new Map<string, Kind | string>();
  readonly #coming = new Map<HostLoad, Planned[]>();
  readonly #approved: ReadonlySet<string> | 'all';
  readonly #avoid: Record<string, string[]>;

  constructor(hosts: PlacementHost[], { sources = [], destinations = '', approved = [], avoid = {} }: PlacementOptions) {
    this.#avoid = avoid;
    this.#hosts = hosts.map((facts) => new HostLoad(facts)).sort((a, b) => byText(a.name, b.name));
    this.#byName = new Map(this.#hosts.map((host) => [host.name, host]));
    this.#approved = approved === 'all' ? 'all' : new Set(approved);
    const emptied = new Set(sources);
    const selector = parseSelector(destinations);
    for (const host of this.#hosts) {
      const closed = whyClosed(host.facts, emptied, selector, destinations);
      if (closed !== undefined) this.#closed.set(host, closed);
      for (const { name } of host.facts.guests) this.#homes.set(name, [...(this.#homes.get(name) ?? []), host]);
    }
  }

  /** What keeps this guest where it is, whatever the hosts have. */
  refusals({ guest, from }: Need): string[] {
    const source = this.#byName.get(from)?.facts;
    return [
      ...(MOVABLE.includes(guest.state) ? [] : [`its state is "${guest.state}": only running, paused and stopped guests move`]),
      ...(guest.migratable === 'never' ? ['it is never to be moved (migratable: never)'] : []),
      ...(guest.migratable === 'ask' && this.#approved !== 'all' && !this.#approved.has(guest.name) ? ['it moves only when somebody approves (migratable: ask)'] : []),
      ...(source?.reachable === false ? [`${from}: unreachable, so nothing can leave it`] : []),
      ...(source && source.slots.outgoing <= 0 ? [`${from}: its limit of outgoing migrations is 0`] : []),
    ];
  }

  /** The hosts that guests like this one can be on at all, or why its `hostSelector` cannot be read. */
  kindOf({ guest: { machine, cpuModel, hostSelector } }: Need): Kind | string {
    const key = JSON.stringify([machine, cpuModel, hostSelector]);
    let kind = this.#kinds.get(key);
    if (kind === undefined) this.#kinds.set(key, (kind = this.#makeKind(machine, cpuModel, hostSelector)));
    return kind;
  }

  #makeKind(machine: string, cpuModel: string, hostSelector: string): Kind | string {
    let selector: Selector;
    try {
      selector = parseSelector(hostSelector);
    } catch (error) {
      if (error instanceof InvalidSelector) return `its hostSelector is wrong: ${error.message}`;
      throw error;
    }
    const candidates: HostLoad[] = [];
    const out = new Map<string, HostLoad[]>();
    for (const host of this.#hosts) {
      const { labels, qemu } = host.facts;
      const why =
        this.#closed.get(host) ??
        (!matches(selector, labels) ? `outside of the guest's hostSelector ${hostSelector}` : undefined) ??
        (!qemu.some(({ machines, cpuModels }) => machines.includes(machine) && cpuModels.includes(cpuModel)) ? `no QEMU with machine ${machine} and CPU model ${cpuModel}` : undefined);
      if (why === undefined) candidates.push(host);
      else gather(out, why, host);
    }
    return { candidates, out: [...out].map(([why, hosts]) => ({ why, hosts })) };
  }

  /** The host to take, of those that fit, and why. */
  best(need: Need, { candidates }: Kind, except?: HostLoad): Place | undefined {
    const homes = this.#homesOf(need);
    const avoided = this.#avoidedBy(need);
    let to: HostLoad | undefined;
    let [short, leastShare, fit, equal] = [true, Infinity, 0, 0];
    for (const host of candidates) {
      if (host === except || homes.includes(host) || avoided.includes(host.name) || !host.fits(need)) continue;
      // A stopped guest goes where it can be started. Where it can nowhere, how much is short makes no difference.
      const shortHere = need.cold && host.shortIfStarted(need) > 0;
      if (shortHere && !short) continue;
      if (!shortHere && short) [short, leastShare, fit, equal] = [false, Infinity, 0, 0];
      fit++;
      const share = host.shareAfter(need);
      if (share > leastShare) continue;
      // Candidates are in the order of their names: of equals the first stays.
      if (share < leastShare || host.guests < to!.guests) to = host;
      equal = share < leastShare ? 1 : equal + 1;
      leastShare = share;
    }
    return to && { to, why: whyThere(to, need, leastShare, short, fit, equal) };
  }

  plan(plan: Planned): Planned {
    plan.to.add(plan.need);
    gather(this.#coming, plan.to, plan);
    return plan;
  }

  /**
   * A place for a guest that fits nowhere, by sending one move that is planned to go there elsewhere: the first that does, by the host's
   * name, the smallest guest first. Bounded, so that a fleet that is full does not cost minutes.
   */
  makeRoom(need: Need, kind: Kind, most: { looks: number; searches: number }): Planned | undefined {
    let { looks, searches } = most;
    const homes = this.#homesOf(need);
    for (const host of kind.candidates) {
      const coming = this.#coming.get(host);
      const obstacle = host.obstacle(need);
      if (!coming || !obstacle || homes.includes(host) || this.#avoidedBy(need).includes(host.name)) continue;
      for (const other of coming.toReversed()) {
        if (looks-- <= 0 || searches <= 0) return undefined;
        if (!mayLift(other.need, obstacle)) continue;
        host.remove(other.need);
        const elsewhere = !host.fits(need) || searches-- <= 0 ? undefined : this.best(other.need, other.kind, host);
        if (!elsewhere) {
          host.add(other.need);
          continue;
        }
        coming.splice(coming.indexOf(other), 1);
        other.to = elsewhere.to;
        other.why = `${elsewhere.why}; it leaves ${host.name} to guest "${need.guest.name}", which fits nowhere else`;
        this.plan(other);
        const share = `${percent(host.shareAfter(need))} of memory in use ${need.cold ? 'if it is started' : 'after it'}`;
        return this.plan({ need, kind, to: host, why: `${host.name}: ${share}; it fits since guest "${other.need.guest.name}" goes to ${other.to.name} instead` });
      }
    }
    return undefined;
  }

  /** What is in the way with every host but its own: a line for each, or one for many that say the same. */
  whyNowhere(need: Need, { candidates, out }: Kind): string[] {
    const homes = this.#homesOf(need);
    const lines = say(homes.filter(({ name }) => name !== need.from), () => `a guest of the name "${need.guest.name}" is there`);
    for (const { why, hosts } of out) {
      lines.push(...say(hosts.filter((host) => !homes.includes(host)), (one) => (why === CORDONED && one?.facts.cordoned ? `cordoned by ${one.facts.cordoned.by}: ${one.facts.cordoned.reason}` : why)));
    }
    const obstacles = new Map<string, Obstacle[]>();
    const avoided = this.#avoidedBy(need);
    lines.push(...say(candidates.filter(({ name }) => avoided.includes(name)), () => 'it failed this guest before'));
    for (const host of candidates) {
      const obstacle = homes.includes(host) || avoided.includes(host.name) ? undefined : host.obstacle(need);
      if (obstacle) gather(obstacles, obstacle.which === '' ? obstacle.what : `${obstacle.what} ${obstacle.which}`, obstacle);
    }
    for (const found of obstacles.values()) {
      if (found.length <= NAMED) lines.push(...found.map((obstacle) => `${obstacle.host}: ${describeObstacle(obstacle)}`));
      else lines.push(`${found.length} hosts: ${describeObstacle(found.reduce((a, b) => (b.shortBytes < a.shortBytes ? b : a)), found.length)}`);
    }
    return lines.length > 0 ? lines : ['no other host is known'];
  }

  #avoidedBy({ guest: { name } }: Need): string[] {
    return Object.hasOwn(this.#avoid, name) ? this.#avoid[name]! : [];
  }

  /** Where a guest of this name is: its own host, and any that has kept a copy or is getting one. */
  #homesOf({ guest, from }: Need): HostLoad[] {
    const homes = this.#homes.get(guest.name) ?? [];
    const own = this.#byName.get(from);
    return own && !homes.includes(own) ? [own, ...homes] : homes;
  }
}

/** Without this guest the obstacle might be gone. */
function mayLift({ guest, cold, diskBytes, groups }: Need, { what, which, shortBytes }: Obstacle): boolean {
  switch (what) {
    case 'memory':
      return !cold && guest.memoryBytes >= shortBytes;
    case 'disk':
      return diskBytes >= shortBytes;
    case 'anti-affinity':
      return groups.includes(which);
    case 'root':
      return false;
  }
}

/** What keeps every guest away. */
function whyClosed({ name, reachable, cordoned, slots, labels }: PlacementHost, emptied: ReadonlySet<string>, selector: Selector, destinations: string): string | undefined {
  if (emptied.has(name)) return 'being emptied';
  if (!reachable) return 'unreachable';
  if (cordoned) return CORDONED;
  if (!matches(selector, labels)) return `outside of the destinations ${destinations}`;
  return slots.incoming <= 0 ? 'its limit of incoming migrations is 0' : undefined;
}

function whyThere(host: HostLoad, need: Need, share: number, short: boolean, fit: number, equal: number): string {
  const fits = need.cold && !short ? 'have the memory to start it' : 'fit';
  const one = need.cold && !short ? 'has the memory to start it' : 'fits';
  const least = fit === 1 ? `the only one that ${one}` : equal > 1 ? `the least, of ${equal} with that the one with the fewest guests or the first name, of ${fit} that ${fits}` : `the least of ${fit} that ${fits}`;
  return `${host.name}: ${percent(share)} of memory in use ${need.cold ? 'if it is started' : 'after it'}, ${least}${short ? '; none has the memory to start it now' : ''}`;
}

/** A line for each host, or one for all of them if they are many. */
function say(hosts: HostLoad[], what: (host?: HostLoad) => string): string[] {
  return hosts.length > NAMED ? [`${hosts.length} hosts: ${what()}`] : hosts.map((host) => `${host.name}: ${what(host)}`);
}

function gather<K, V>(lists: Map<K, V[]>, key: K, value: V): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}

const percent = (share: number) => `${Math.round(share * 100)} %`;
/** By code unit: the same on every machine, whatever its locale. */
const byText = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
const largestFirst = (a: Need, b: Need) => b.guest.memoryBytes - a.guest.memoryBytes || b.diskBytes - a.diskBytes || byText(a.guest.name, b.guest.name) || byText(a.from, b.from);
