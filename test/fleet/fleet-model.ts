import fc from 'fast-check';
import type { GuestReport, PlacementHost } from '../../workflows/fleet';
import type { HostState, Reservation } from '../../workflows/messages';

export const GIB = 2 ** 30;
export const NOW_MS = Date.parse('2026-11-24T12:00:00Z');

export const guestReport = (name: string, given: Partial<GuestReport> = {}): GuestReport => ({
  name,
  state: 'running',
  memoryBytes: 2 * GIB,
  disks: [{ root: 'images', bytes: 10 * GIB }],
  machine: 'pc-q35-7.2',
  cpuModel: 'qemu64',
  labels: {},
  migratable: 'always',
  antiAffinity: [],
  hostSelector: '',
  ...given,
});

/** An empty host that takes everything. */
export const placementHost = (name: string, given: Partial<PlacementHost> = {}): PlacementHost => ({
  name,
  labels: {},
  slots: { outgoing: 2, incoming: 2 },
  qemu: [{ path: '/usr/bin/qemu', version: '7.2', machines: ['pc-q35-7.2'], cpuModels: ['qemu64'] }],
  processor: 'a processor',
  reachable: true,
  totalMemoryBytes: 64 * GIB,
  freeMemoryBytes: 64 * GIB,
  roots: [{ name: 'images', fileSystem: 'fs', freeBytes: 1000 * GIB }],
  moving: { outgoing: 0, incoming: 0 },
  guests: [],
  ...given,
});

export const hostState = (given: Partial<HostState> = {}): HostState => ({
  name: 'host-b',
  address: '127.0.0.1',
  guests: [],
  totalMemoryBytes: 64 * GIB,
  freeMemoryBytes: 32 * GIB,
  roots: [{ name: 'images', fileSystem: 'fs', freeBytes: 100 * GIB }, { name: 'scratch', fileSystem: 'fs', freeBytes: 100 * GIB }, { name: 'fast', fileSystem: 'ssd', freeBytes: 50 * GIB }],
  reportedAt: new Date(NOW_MS).toISOString(),
  reservations: [],
  ...given,
});

export const reservation = (guest: string, given: Partial<Reservation> = {}): Reservation => ({ workflowId: `migrate/${guest}`, runId: `run-${guest}`, guest, direction: 'incoming', memoryBytes: 4 * GIB, disks: [{ root: 'images', bytes: 10 * GIB }], ...given });

export const MACHINES = ['pc-q35-7.2', 'pc-q35-8.0'];
export const MODELS = ['qemu64', 'EPYC'];
const GROUPS = ['db', 'web'];
const ROOTS = ['images', 'fast'];
const LABELS = fc.record({ rack: fc.constantFrom('r1', 'r2'), gpu: fc.constant('yes') }, { requiredKeys: [] }) as fc.Arbitrary<Record<string, string>>;
const GUEST_STATES = ['running', 'running', 'running', 'paused', 'stopped', 'handed over to host-9', 'monitor does not answer'];

const someGuest = (name: string): fc.Arbitrary<GuestReport> =>
  fc.record({
    name: fc.constant(name),
    state: fc.constantFrom(...GUEST_STATES),
    memoryBytes: fc.integer({ min: 1, max: 8 }).map((gib) => gib * GIB),
    disks: fc.array(fc.record({ root: fc.constantFrom(...ROOTS), bytes: fc.integer({ min: 0, max: 30 }).map((gib) => gib * GIB) }), { maxLength: 2 }),
    machine: fc.constantFrom(MACHINES[0]!, MACHINES[0]!, MACHINES[1]!),
    cpuModel: fc.constantFrom(MODELS[0]!, MODELS[0]!, MODELS[1]!),
    labels: fc.constant({}),
    migratable: fc.constantFrom('always', 'always', 'always', 'ask', 'never'),
    antiAffinity: fc.subarray(GROUPS, { maxLength: 2 }),
    hostSelector: fc.constantFrom('', '', 'rack=r1', '!gpu', 'nonsense='),
  });

const someHost = (name: string, guests: GuestReport[]): fc.Arbitrary<PlacementHost> =>
  fc
    .record({
      labels: LABELS,
      cordoned: fc.option(fc.constant({ by: 'ann', reason: 'new disks' }), { freq: 6, nil: undefined }),
      reachable: fc.boolean().chain((often) => (often ? fc.constant(true) : fc.boolean())),
      incoming: fc.constantFrom(2, 2, 2, 0),
      outgoing: fc.constantFrom(2, 2, 2, 0),
      machines: fc.constantFrom(MACHINES, MACHINES, [MACHINES[0]!]),
      cpuModels: fc.constantFrom(MODELS, [MODELS[0]!]),
      free: fc.integer({ min: 0, max: 24 }),
      roots: fc.subarray(ROOTS, { minLength: 1 }),
      shared: fc.boolean(),
      disk: fc.integer({ min: 0, max: 80 }),
    })
    .map(({ labels, cordoned, reachable, incoming, outgoing, machines, cpuModels, free, roots, shared, disk }) =>
      placementHost(name, {
        labels,
        ...(cordoned && { cordoned }),
        reachable,
        slots: { incoming, outgoing },
        qemu: [{ path: '/usr/bin/qemu', version: '8.0', machines, cpuModels }],
        totalMemoryBytes: 32 * GIB,
        freeMemoryBytes: free * GIB,
        roots: roots.map((root) => ({ name: root, fileSystem: shared ? 'fs' : root, freeBytes: disk * GIB })),
        guests,
      }),
    );

export interface Situation {
  hosts: PlacementHost[];
  guests: { guest: GuestReport; from: string }[];
  sources: string[];
  destinations: string;
  approved: string[];
  avoid: Record<string, string[]>;
}

/** Up to five hosts of which one or two are emptied; the others are of all kinds, full, cordoned, silent, or of no use to some guests. */
export const situations: fc.Arbitrary<Situation> = fc.record({ hosts: fc.integer({ min: 1, max: 5 }), guests: fc.integer({ min: 0, max: 9 }), emptied: fc.integer({ min: 1, max: 2 }) }).chain(({ hosts: count, guests: guestCount, emptied }) => {
  const names = Array.from({ length: count }, (_, index) => `host-${index}`);
  const guestNames = Array.from({ length: guestCount }, (_, index) => `guest-${index}`);
  return fc
    .record({
      guests: fc.tuple(...guestNames.map((name) => someGuest(name))),
      homes: fc.array(fc.nat(), { minLength: guestCount, maxLength: guestCount }),
      destinations: fc.constantFrom('', '', 'rack', 'rack in (r1,r2), !gpu'),
      approved: fc.subarray(guestNames),
      avoid: fc.array(fc.tuple(fc.constantFrom('guest-0', 'guest-1', 'guest-2'), fc.constantFrom(...names)), { maxLength: 3 }),
    })
    .chain(({ guests, homes, destinations, approved, avoid }) => {
      const sources = names.slice(0, Math.min(emptied, count));
      // Those that move are on the emptied hosts; the last of all stay where they are, so that groups are taken already.
      const placed = guests.map((guest, index) => ({ guest, from: names[homes[index]! % count]! }));
      const leaving = placed.filter(({ from }) => sources.includes(from));
      return fc.tuple(...names.map((name) => someHost(name, placed.filter(({ from }) => from === name).map(({ guest }) => guest)))).map((hosts) => ({
        hosts,
        guests: leaving,
        sources,
        destinations,
        approved,
        avoid: avoid.reduce<Record<string, string[]>>((all, [guest, host]) => ({ ...all, [guest]: [...(all[guest] ?? []), host] }), {}),
      }));
    });
});

/** One host is emptied onto a few that are small, with labels, groups and failed tries: guests must often make room for one another. */
export const crowded: fc.Arbitrary<Situation> = fc
  .record({
    guests: fc.array(fc.record({ memory: fc.integer({ min: 1, max: 8 }), disk: fc.integer({ min: 0, max: 10 }), hostSelector: fc.constantFrom('', 'rack=r1', 'rack!=r2'), antiAffinity: fc.subarray(GROUPS), avoid: fc.subarray(['host-1', 'host-2']) }), { minLength: 10, maxLength: 25 }),
    hosts: fc.array(fc.record({ memory: fc.integer({ min: 0, max: 16 }), disk: fc.integer({ min: 0, max: 30 }), rack: fc.constantFrom('r1', 'r2', 'r3') }), { minLength: 2, maxLength: 6 }),
  })
  .map(({ guests, hosts }) => ({
    hosts: [placementHost('host-0'), ...hosts.map(({ memory, disk, rack }, index) => placementHost(`host-${index + 1}`, { labels: { rack }, totalMemoryBytes: 16 * GIB, freeMemoryBytes: memory * GIB, roots: [{ name: 'images', fileSystem: 'fs', freeBytes: disk * GIB }] }))],
    guests: guests.map(({ memory, disk, hostSelector, antiAffinity }, index) => ({ guest: guestReport(`guest-${index}`, { memoryBytes: memory * GIB, disks: [{ root: 'images', bytes: disk * GIB }], hostSelector, antiAffinity }), from: 'host-0' })),
    sources: ['host-0'],
    destinations: '',
    approved: [],
    avoid: Object.fromEntries(guests.map(({ avoid }, index) => [`guest-${index}`, avoid])),
  }));

export const anySituation = fc.oneof(situations, crowded);
