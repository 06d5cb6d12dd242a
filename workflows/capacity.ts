import { megabytes } from './convergence';
import { type HostCapacity, type PlacementHost, SILENT_AFTER_MS, type Slots } from './fleet';
import type { HostState, Reservation } from './messages';

/** Until an agent of an older build reports its own. */
const DEFAULT_SLOTS: Slots = { outgoing: 2, incoming: 2 };

/** What an operator set, else what the host's configuration gives. */
export function slotsOf({ slots, facts }: Pick<HostState, 'slots' | 'facts'>): Slots {
  return slots ?? facts?.slots ?? DEFAULT_SLOTS;
}

export function isSilent({ reportedAt }: Pick<HostState, 'reportedAt'>, nowMs: number): boolean {
  return nowMs - Date.parse(reportedAt) > SILENT_AFTER_MS;
}

const count = ({ reservations }: HostState, direction: Reservation['direction']) => reservations.filter((one) => one.direction === direction).length;

/** Reservations whose guest the host does not count itself yet: once a guest is on its way the host's own figures are without its memory and disks. */
function uncounted({ reservations, guests }: HostState): Reservation[] {
  return reservations.filter(({ direction, guest }) => direction === 'incoming' && !guests.some(({ name }) => name === guest));
}

/** Memory that another guest can have, in bytes. */
export function freeMemoryOf(host: HostState): number {
  return host.freeMemoryBytes - uncounted(host).reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
}

/** A host as placement sees it. */
export function placementHost(host: HostState, nowMs: number): PlacementHost {
  const reserved = uncounted(host);
  const roots = host.roots ?? [];
  return {
    name: host.name,
    labels: host.facts?.labels ?? {},
    qemu: host.facts?.qemu ?? [],
    processor: host.facts?.processor ?? '',
    slots: slotsOf(host),
    ...(host.cordoned && { cordoned: host.cordoned }),
    reachable: !isSilent(host, nowMs),
    totalMemoryBytes: host.totalMemoryBytes ?? host.freeMemoryBytes,
    freeMemoryBytes: freeMemoryOf(host),
    roots: roots.map((root) => ({ ...root, freeBytes: root.freeBytes - reserved.flatMap(({ disks }) => disks).filter((disk) => roots.find(({ name }) => name === disk.root)?.fileSystem === root.fileSystem).reduce((sum, { bytes }) => sum + bytes, 0) })),
    moving: { outgoing: count(host, 'outgoing'), incoming: count(host, 'incoming') },
    guests: host.guests,
  };
}

export function capacityOf({ name, labels, reachable, cordoned, totalMemoryBytes, freeMemoryBytes, guests }: PlacementHost): HostCapacity {
  const guestMemoryBytes = guests.filter(({ state }) => state === 'running' || state === 'paused').reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  return { name, labels, reachable, cordoned: cordoned !== undefined, totalMemoryBytes, freeMemoryBytes, guestMemoryBytes, guests: guests.map((guest) => guest.name) };
}

/** Why a host cannot give this now; `NoSlot` may be otherwise in a moment. Pure: an update's validator. */
export function refuseReservation(host: HostState, wanted: Reservation, nowMs: number): { type: 'NoSlot' | 'MigrationRefused' | 'HostUnreachable'; why: string } | undefined {
  if (isSilent(host, nowMs)) return { type: 'HostUnreachable', why: `host ${host.name} has been silent for ${Math.round((nowMs - Date.parse(host.reportedAt)) / 1000)} s: start its agent` };
  const slots = slotsOf(host)[wanted.direction];
  if (slots === 0) return { type: 'MigrationRefused', why: `host ${host.name} takes part in no ${wanted.direction} move: its ${wanted.direction} slots are 0 (vmferry host set-limits)` };
  if (wanted.direction === 'incoming') {
    if (host.cordoned) return { type: 'MigrationRefused', why: `host ${host.name} is cordoned by ${host.cordoned.by}: ${host.cordoned.reason} (vmferry host uncordon ${host.name})` };
    const free = freeMemoryOf(host);
    const counted = host.guests.some(({ name }) => name === wanted.guest);
    if (!counted && wanted.memoryBytes > free) return { type: 'MigrationRefused', why: `host ${host.name} is ${megabytes(wanted.memoryBytes - free)} of memory short for guest ${wanted.guest}, with what is reserved for guests on their way` };
  }
  const busy = count(host, wanted.direction);
  if (busy >= slots) return { type: 'NoSlot', why: `host ${host.name} has no ${wanted.direction} slot free: ${busy} of ${slots} are in use (${host.reservations.filter(({ direction }) => direction === wanted.direction).map(({ guest }) => guest).join(', ')})` };
  return undefined;
}
