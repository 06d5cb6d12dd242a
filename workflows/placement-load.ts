import { formatBytes } from '../hypervisor/size';
import type { GuestReport, PlacementHost } from './fleet';

/** What a guest needs of a host, worked out once. */
export interface Need {
  guest: GuestReport;
  from: string;
  /** It is stopped: its definition and images move, and it takes no memory until it is started. */
  cold: boolean;
  diskBytes: number;
  /** Bytes by root, each root once. */
  roots: [root: string, bytes: number][];
  groups: string[];
}

/** Why a guest cannot be on a host now, though it might another time. `shortBytes` where there is too little of something. */
export interface Obstacle {
  host: string;
  what: 'memory' | 'root' | 'disk' | 'anti-affinity';
  /** The root or the group. */
  which: string;
  shortBytes: number;
}

export function needOf(guest: GuestReport, from: string): Need {
  const roots = new Map<string, number>();
  for (const { root, bytes } of guest.disks) roots.set(root, (roots.get(root) ?? 0) + bytes);
  return { guest, from, cold: guest.state === 'stopped', diskBytes: guest.disks.reduce((sum, { bytes }) => sum + bytes, 0), roots: [...roots], groups: [...new Set(guest.antiAffinity)] };
}

/**
 * A host with what is planned to go there. Nothing is ever given back for guests that are planned to leave: they may leave late, or not at
 * all, and a plan must hold whatever the order.
 *
 * Stopped guests that are planned here take no memory that a running one needs, but are counted in `shareAfter` as if they ran: load is
 * spread as it will be when they are started.
 */
export class HostLoad {
  guests: number;
  #freeMemoryBytes: number;
  /** Of stopped guests planned to come. */
  #promisedBytes = 0;
  /** By root; roots of the same file system have the same object. */
  readonly #disks = new Map<string, { freeBytes: number }>();
  /** How many guests of each anti-affinity group are here, or planned. */
  readonly #groups = new Map<string, number>();

  constructor(readonly facts: PlacementHost) {
    this.guests = facts.guests.length;
    this.#freeMemoryBytes = facts.freeMemoryBytes;
    const fileSystems = new Map<string, { freeBytes: number }>();
    for (const { name, fileSystem, freeBytes } of facts.roots) {
      const disk = fileSystems.get(fileSystem) ?? { freeBytes };
      // Measured one after the other, they may differ: the least is sure.
      disk.freeBytes = Math.min(disk.freeBytes, freeBytes);
      fileSystems.set(fileSystem, disk);
      this.#disks.set(name, disk);
    }
    for (const guest of facts.guests) this.#join(new Set(guest.antiAffinity), 1);
  }

  get name(): string {
    return this.facts.name;
  }

  /** `obstacle` for the many times that nobody asks which. */
  fits(need: Need): boolean {
    return (need.cold || need.guest.memoryBytes <= this.#freeMemoryBytes) && !this.obstacle(need);
  }

  obstacle({ guest, cold, roots, groups }: Need): Obstacle | undefined {
    if (!cold && guest.memoryBytes > this.#freeMemoryBytes) return { host: this.name, what: 'memory', which: '', shortBytes: guest.memoryBytes - this.#freeMemoryBytes };
    for (const [root] of roots) {
      const disk = this.#disks.get(root);
      if (!disk) return { host: this.name, what: 'root', which: root, shortBytes: 0 };
      let bytes = 0;
      for (const [other, needed] of roots) if (this.#disks.get(other) === disk) bytes += needed;
      if (bytes > disk.freeBytes) return { host: this.name, what: 'disk', which: root, shortBytes: bytes - disk.freeBytes };
    }
    for (const group of groups) if (this.#groups.has(group)) return { host: this.name, what: 'anti-affinity', which: group, shortBytes: 0 };
    return undefined;
  }

  /** What a stopped guest would lack if it and all other stopped ones that are planned to come were started; 0 if it fits. */
  shortIfStarted({ guest }: Need): number {
    return Math.max(0, guest.memoryBytes - (this.#freeMemoryBytes - this.#promisedBytes));
  }

  /** The share of its memory that is in use once this guest is there. Above 1 if more is promised than there is. */
  shareAfter({ guest }: Need): number {
    const total = this.facts.totalMemoryBytes;
    return total > 0 ? (total - this.#freeMemoryBytes + this.#promisedBytes + guest.memoryBytes) / total : 1;
  }

  add(need: Need): void {
    this.#change(need, 1);
  }

  /** Takes back an `add`. */
  remove(need: Need): void {
    this.#change(need, -1);
  }

  #change({ guest, cold, roots, groups }: Need, sign: 1 | -1): void {
    this.guests += sign;
    if (cold) this.#promisedBytes += sign * guest.memoryBytes;
    else this.#freeMemoryBytes -= sign * guest.memoryBytes;
    for (const [root, bytes] of roots) this.#disks.get(root)!.freeBytes -= sign * bytes;
    this.#join(groups, sign);
  }

  #join(groups: Iterable<string>, sign: 1 | -1): void {
    for (const group of groups) {
      const guests = (this.#groups.get(group) ?? 0) + sign;
      if (guests > 0) this.#groups.set(group, guests);
      else this.#groups.delete(group);
    }
  }
}

/** An obstacle in words. Of many hosts `shortBytes` is the least that one of them lacks. */
export function describeObstacle({ what, which, shortBytes }: Obstacle, hosts = 1): string {
  const short = `${hosts > 1 ? 'at least ' : ''}${formatBytes(shortBytes)}`;
  switch (what) {
    case 'memory':
      return `${short} of memory short`;
    case 'root':
      return `no root "${which}"`;
    case 'disk':
      return `${short} of disk space short in root "${which}"`;
    case 'anti-affinity':
      return `a guest of anti-affinity group "${which}" is there, or planned`;
  }
}
