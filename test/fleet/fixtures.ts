import fc from 'fast-check';
import type { GuestReport, Migratable, PlacementHost } from '../../workflows/fleet';
import type { PlacementOptions } from '../../workflows/placement';

export const GIB = 2 ** 30;

export const guest = (name: string, given: Partial<GuestReport> = {}): GuestReport => ({
  name,
  state: 'running',
  memoryBytes: 4 * GIB,
  disks: [{ root: 'images', bytes: 10 * GIB }],
  machine: 'pc-q35-7.2',
  cpuModel: 'qemu64',
  labels: {},
  migratable: 'always',
  antiAffinity: [],
  hostSelector: '',
  ...given,
});

/** Half full, with room for three guests. */
export const host = (name: string, given: Partial<PlacementHost> = {}): PlacementHost => ({
  name,
  labels: {},
  slots: { outgoing: 2, incoming: 2 },
  qemu: [{ path: 'qemu-system-x86_64', version: '7.2.0', machines: ['pc-q35-7.2'], cpuModels: ['qemu64'] }],
  processor: 'some processor',
  reachable: true,
  totalMemoryBytes: 32 * GIB,
  freeMemoryBytes: 16 * GIB,
  roots: [{ name: 'images', fileSystem: '8:1', freeBytes: 100 * GIB }],
  moving: { outgoing: 0, incoming: 0 },
  guests: [],
  ...given,
});

export interface Question {
  guests: { guest: GuestReport; from: string }[];
  hosts: PlacementHost[];
  options: PlacementOptions;
}

const HOSTS = ['a', 'b', 'c', 'd', 'e'];
const labels = fc.record({ rack: fc.constantFrom('r1', 'r2'), gpu: fc.constant('') }, { requiredKeys: [] });
/** The first most of the time: with every rule in the way of every guest none would ever move. */
const mostly = <T>(usual: T, ...others: T[]): fc.Arbitrary<T> => fc.oneof({ weight: 12, arbitrary: fc.constant(usual) }, { weight: others.length, arbitrary: fc.constantFrom(...others) });
const selectors = mostly('', 'rack=r1', 'rack!=r1', 'gpu', '!gpu', 'rack in (r1,r2)');
const disks = fc.array(fc.record({ root: mostly('images', 'data', 'data', 'data'), bytes: fc.integer({ min: 0, max: 6 }).map((gib) => gib * GIB) }), { maxLength: 3 });
const reports = fc.record({
  state: fc.oneof({ weight: 3, arbitrary: fc.constant('running') }, { weight: 1, arbitrary: mostly('stopped', 'paused', 'arriving from b', 'handed over to c', 'monitor does not answer', 'io-error') }),
  memoryBytes: fc.integer({ min: 1, max: 6 }).map((gib) => gib * GIB),
  disks,
  machine: mostly('pc-q35-7.2', 'pc-q35-9.2', 'pc-q35-9.2'),
  cpuModel: mostly('qemu64', 'EPYC', 'EPYC'),
  labels: fc.constant({}),
  migratable: mostly<Migratable>('always', 'ask', 'never'),
  antiAffinity: mostly<string[]>([], ['db'], ['web'], ['db', 'web']),
  hostSelector: fc.oneof({ weight: 29, arbitrary: selectors }, { weight: 1, arbitrary: fc.constant('rack=(') }),
});
const qemu = fc.record({ path: fc.constant('qemu-system-x86_64'), version: fc.constant('7.2.0'), machines: fc.constantFrom(1, 2).map((count) => ['pc-q35-7.2', 'pc-q35-9.2'].slice(0, count)), cpuModels: fc.constantFrom(1, 2).map((count) => ['qemu64', 'EPYC'].slice(0, count)) });
const hostsFacts = fc.record({
  labels,
  slots: fc.record({ outgoing: mostly(2, 1, 0), incoming: mostly(2, 1, 0) }),
  qemu: fc.array(qemu, { minLength: 1, maxLength: 2 }),
  reachable: mostly(true, false),
  cordoned: mostly(undefined, { by: 'ada', reason: 'a fan is loud' }),
  usedMemoryBytes: fc.integer({ min: 0, max: 16 }).map((gib) => gib * GIB),
  freeMemoryBytes: fc.integer({ min: -2, max: 16 }).map((gib) => gib * GIB),
  roots: fc.tuple(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: 40 }), mostly('8:1', '8:2'), mostly(2, 1, 0)).map(([one, other, fileSystem, count]) => [{ name: 'images', fileSystem: '8:1', freeBytes: one * GIB }, { name: 'data', fileSystem, freeBytes: other * GIB }].slice(0, count)),
});

/** Small numbers, so that everything that can be in the way is. Guests are on their hosts' lists, as their agents report them. */
export const questions: fc.Arbitrary<Question> = fc
  .record({
    hosts: fc.array(hostsFacts, { minLength: 1, maxLength: HOSTS.length, size: 'max' }),
    guests: fc.array(fc.record({ report: reports, from: fc.nat(HOSTS.length), asked: fc.constantFrom(true, true, true, false), copyOf: mostly(undefined, 0) }), { maxLength: 16, size: 'max' }),
    sources: fc.subarray(HOSTS, { maxLength: 1 }),
    destinations: selectors,
    approved: fc.oneof(fc.constant('all' as const), fc.subarray(['g0', 'g1', 'g2', 'g3'])),
  })
  .map(({ hosts, guests, ...options }) => {
    // A host beyond the known ones is one whose reports are lost.
    const known = guests.map(({ report, from, asked, copyOf }, index) => ({ guest: { ...report, name: `g${copyOf ?? index}` }, from: HOSTS[from % (hosts.length + 1)] ?? 'z', asked }));
    const once = known.filter(({ guest: { name }, from }, index) => known.findIndex((other) => other.guest.name === name && other.from === from) === index);
    return {
      guests: once.filter(({ asked }) => asked).map(({ guest: report, from }) => ({ guest: report, from })),
      hosts: hosts.map(({ usedMemoryBytes, cordoned, ...facts }, index) =>
        host(HOSTS[index]!, { ...facts, ...(cordoned && { cordoned }), totalMemoryBytes: usedMemoryBytes + Math.max(0, facts.freeMemoryBytes), guests: once.filter(({ from }) => from === HOSTS[index]).map(({ guest: report }) => report) }),
      ),
      options,
    };
  });
