import fc from 'fast-check';
import { placeGuests, type PlacementOptions } from '../../workflows/placement';
import { matches, parseSelector } from '../../workflows/selector';
import { anySituation, GIB, guestReport, MACHINES, MODELS, placementHost, type Situation } from './fleet-model';

const place = ({ guests, hosts, ...options }: Situation) => placeGuests(guests, hosts, options);
const sum = (values: number[]) => values.reduce((all, one) => all + one, 0);

describe('a plan', () => {
  test('has every guest exactly once, among the moves or the stays, and every stay has a reason', () => {
    fc.assert(
      fc.property(anySituation, (situation) => {
        const { moves, stays } = place(situation);
        expect([...moves, ...stays].map(({ guest }) => guest).sort()).toEqual(situation.guests.map(({ guest }) => guest.name).sort());
        for (const { reasons } of stays) {
          expect(reasons.length).toBeGreaterThan(0);
          for (const reason of reasons) expect(reason).not.toMatch(/^\s*$|undefined|NaN/);
        }
        for (const { why } of moves) expect(why).not.toMatch(/^\s*$|undefined|NaN/);
      }),
      { numRuns: 500 },
    );
  });

  test('puts no more on a host than its memory and each of its file systems hold', () => {
    fc.assert(
      fc.property(anySituation, (situation) => {
        const { moves } = place(situation);
        for (const host of situation.hosts) {
          const coming = moves.filter(({ to }) => to === host.name).map(({ guest }) => situation.guests.find((one) => one.guest.name === guest)!.guest);
          expect(sum(coming.filter(({ state }) => state !== 'stopped').map(({ memoryBytes }) => memoryBytes))).toBeLessThanOrEqual(host.freeMemoryBytes);
          const fileSystem = (root: string) => host.roots.find(({ name }) => name === root)?.fileSystem;
          for (const one of new Set(host.roots.map((root) => root.fileSystem))) {
            const free = Math.min(...host.roots.filter((root) => root.fileSystem === one).map(({ freeBytes }) => freeBytes));
            expect(sum(coming.flatMap(({ disks }) => disks).filter(({ root }) => fileSystem(root) === one).map(({ bytes }) => bytes))).toBeLessThanOrEqual(free);
          }
          for (const { root } of coming.flatMap(({ disks }) => disks)) expect(fileSystem(root)).toBeDefined();
        }
      }),
      { numRuns: 1000 },
    );
  });

  test('puts no two guests of a group on one host', () => {
    fc.assert(
      fc.property(anySituation, (situation) => {
        const { moves } = place(situation);
        for (const host of situation.hosts) {
          const coming = moves.filter(({ to }) => to === host.name).flatMap(({ guest }) => situation.guests.find((one) => one.guest.name === guest)!.guest.antiAffinity);
          const here = host.guests.flatMap(({ antiAffinity }) => antiAffinity);
          expect(new Set(coming).size).toBe(coming.length);
          expect(coming.filter((group) => here.includes(group))).toEqual([]);
        }
      }),
      { numRuns: 1000 },
    );
  });

  test('never uses a host that is cordoned, silent, emptied itself, without slots, not selected, or that failed the guest, nor one that could not run it', () => {
    fc.assert(
      fc.property(anySituation, (situation) => {
        for (const move of place(situation).moves) {
          const host = situation.hosts.find(({ name }) => name === move.to)!;
          const { guest, from } = situation.guests.find((one) => one.guest.name === move.guest)!;
          expect(host).toMatchObject({ reachable: true, slots: { incoming: 2 } });
          expect(host.cordoned).toBeUndefined();
          expect(situation.sources).not.toContain(host.name);
          expect(situation.avoid[guest.name] ?? []).not.toContain(host.name);
          expect(matches(parseSelector(situation.destinations), host.labels) && matches(parseSelector(guest.hostSelector), host.labels)).toBe(true);
          expect(host.qemu[0]!.machines).toContain(guest.machine);
          expect(host.qemu[0]!.cpuModels).toContain(guest.cpuModel);
          expect(move).toMatchObject({ from, cold: guest.state === 'stopped', memoryBytes: guest.memoryBytes, diskBytes: sum(guest.disks.map(({ bytes }) => bytes)) });
          expect(['running', 'paused', 'stopped']).toContain(guest.state);
          expect(guest.migratable === 'always' || (guest.migratable === 'ask' && situation.approved.includes(guest.name))).toBe(true);
        }
      }),
      { numRuns: 1000 },
    );
  });

  test('does not depend on the order of guests and hosts', () => {
    const shuffled = anySituation.chain((situation) => fc.record({ situation: fc.constant(situation), hosts: fc.shuffledSubarray(situation.hosts, { minLength: situation.hosts.length }), guests: fc.shuffledSubarray(situation.guests, { minLength: situation.guests.length }) }));
    fc.assert(
      fc.property(shuffled, ({ situation, hosts, guests }) => {
        expect(place({ ...situation, hosts, guests })).toEqual(place(situation));
      }),
      { numRuns: 500 },
    );
  });

  test('leaves what it was given as it was', () => {
    fc.assert(
      fc.property(anySituation, (situation) => {
        const before = structuredClone(situation);
        place(situation);
        expect(situation).toEqual(before);
      }),
    );
  });

  test('moves no fewer guests when an empty host is added on which all of them fit', () => {
    const empty = placementHost('host-new', { labels: { rack: 'r1' }, totalMemoryBytes: 1000 * GIB, freeMemoryBytes: 1000 * GIB, qemu: [{ path: '/usr/bin/qemu', version: '8.0', machines: MACHINES, cpuModels: MODELS }], roots: ['images', 'fast'].map((name) => ({ name, fileSystem: name, freeBytes: 10_000 * GIB })) });
    fc.assert(
      fc.property(anySituation, (situation) => {
        expect(place({ ...situation, hosts: [...situation.hosts, empty] }).moves.length).toBeGreaterThanOrEqual(place(situation).moves.length);
      }),
      { numRuns: 1000 },
    );
  });
});

describe('the largest guest goes first, to the host that is then the least full', () => {
  const from = (...guests: ReturnType<typeof guestReport>[]) => guests.map((guest) => ({ guest, from: 'host-a' }));
  const options: PlacementOptions = { sources: ['host-a'] };
  const a = placementHost('host-a');

  test('and the plan says why', () => {
    const b = placementHost('host-b', { freeMemoryBytes: 32 * GIB });
    const c = placementHost('host-c', { freeMemoryBytes: 20 * GIB });
    const { moves } = placeGuests(from(guestReport('small'), guestReport('large', { memoryBytes: 16 * GIB })), [a, b, c], options);
    expect(moves).toMatchObject([
      { guest: 'large', to: 'host-b', why: 'host-b: 75 % of its memory in use afterwards, the least of 2 hosts that fit' },
      { guest: 'small', to: 'host-c', why: 'host-c: 72 % of its memory in use afterwards, the least of 2 hosts that fit' },
    ]);
  });

  test('a stopped guest takes no memory, but goes where it could be started', () => {
    const full = placementHost('host-b', { freeMemoryBytes: 0 });
    expect(placeGuests(from(guestReport('off', { state: 'stopped' })), [a, full], options).moves).toMatchObject([{ to: 'host-b', cold: true }]);
    expect(placeGuests(from(guestReport('off', { state: 'stopped' })), [a, full, placementHost('host-c')], options).moves).toMatchObject([{ to: 'host-c', cold: true }]);
  });

  test('a guest that fits nowhere gets room by one that fits elsewhere too', () => {
    const b = placementHost('host-b', { labels: { gpu: 'yes' }, totalMemoryBytes: 10 * GIB, freeMemoryBytes: 10 * GIB });
    const c = placementHost('host-c', { totalMemoryBytes: 10 * GIB, freeMemoryBytes: 8 * GIB });
    const { moves, stays } = placeGuests(from(guestReport('first', { memoryBytes: 8 * GIB }), guestReport('needs-gpu', { memoryBytes: 6 * GIB, hostSelector: 'gpu' })), [a, b, c], options);
    expect(stays).toEqual([]);
    expect(moves).toMatchObject([{ guest: 'first', to: 'host-c', why: 'host-c: makes room on host-b for needs-gpu' }, { guest: 'needs-gpu', to: 'host-b', why: expect.stringContaining('with another guest planned elsewhere') }]);
  });

  test('a guest that makes room for another does not go to a host that failed it', () => {
    const b = placementHost('host-b', { labels: { gpu: 'yes' }, totalMemoryBytes: 10 * GIB, freeMemoryBytes: 10 * GIB });
    const c = placementHost('host-c', { totalMemoryBytes: 10 * GIB, freeMemoryBytes: 8 * GIB });
    const { moves, stays } = placeGuests(from(guestReport('first', { memoryBytes: 8 * GIB }), guestReport('needs-gpu', { memoryBytes: 6 * GIB, hostSelector: 'gpu' })), [a, b, c], { ...options, avoid: { first: ['host-c'] } });
    expect(moves).toMatchObject([{ guest: 'first', to: 'host-b' }]);
    expect(stays).toMatchObject([{ guest: 'needs-gpu', reasons: expect.arrayContaining(['host-b: 4.0 GiB of memory short']) }]);
  });
});

describe('what stays says why', () => {
  const a = placementHost('host-a');
  const why = (guest: Parameters<typeof guestReport>[1], hosts = [placementHost('host-b')], options: Partial<PlacementOptions> = {}) => placeGuests([{ guest: guestReport('web', guest), from: 'host-a' }], [a, ...hosts], { sources: ['host-a'], ...options }).stays[0]?.reasons;

  test.each([
    ['never', { migratable: 'never' }, 'its definition says migratable: never'],
    ['ask', { migratable: 'ask' }, 'its definition says migratable: ask, and it was not approved (--approve-guest)'],
    ['a state', { state: 'handed over to host-c' }, 'it cannot move as it is: handed over to host-c'],
    ['a selector that cannot be read', { hostSelector: 'rack=' }, expect.stringMatching(/^its hostSelector cannot be read: selector "rack=": "rack=" is none of/)],
    ['a machine type', { machine: 'pc-q35-9.0' }, 'host-b: has no machine type pc-q35-9.0'],
    ['a CPU model', { cpuModel: 'EPYC' }, 'host-b: has no CPU model EPYC'],
    ['labels', { hostSelector: 'rack=r1' }, 'host-b: does not match its hostSelector "rack=r1"'],
    ['memory', { memoryBytes: 65.5 * GIB }, 'host-b: 1.5 GiB of memory short'],
    ['a little memory', { memoryBytes: 64 * GIB + 3 * 2 ** 20 }, 'host-b: 3.0 MiB of memory short'],
    ['a disk', { disks: [{ root: 'images', bytes: 600 * GIB }, { root: 'images', bytes: 500 * GIB }] }, 'host-b: 100.0 GiB of disk space short in root "images"'],
    ['a root', { disks: [{ root: 'fast', bytes: 0 }] }, 'host-b: has no root "fast"'],
  ] as const)('%s', (_name, guest, reason) => expect(why(guest as never)).toEqual([reason]));

  test.each([
    ['a group', placementHost('host-b', { guests: [guestReport('other', { antiAffinity: ['db'] })] }), 'host-b: has a guest of the group "db" already'],
    ['a cordon', placementHost('host-b', { cordoned: { by: 'ann', reason: 'new disks' } }), 'host-b: is cordoned by ann (new disks)'],
    ['silence', placementHost('host-b', { reachable: false }), 'host-b: is unreachable'],
    ['no slots', placementHost('host-b', { slots: { incoming: 0, outgoing: 2 } }), 'host-b: takes no guests (its incoming slots are 0)'],
  ])('%s of the other host', (_name, host, reason) => expect(why({ antiAffinity: ['db'] }, [host])).toEqual([reason]));

  test('the destinations that were asked for, those that failed, those that are emptied too, and no host at all', () => {
    expect(why({}, [placementHost('host-b')], { destinations: 'rack=r1' })).toEqual(['host-b: does not match the selector "rack=r1"']);
    expect(why({}, [placementHost('host-b')], { avoid: { web: ['host-b'] } })).toEqual(['host-b: failed it before']);
    expect(why({}, [placementHost('host-b')], { sources: ['host-a', 'host-b'] })).toEqual(['host-b: is emptied itself']);
    expect(why({}, [])).toEqual(['there is no other host']);
  });

  test('a home that lets no guest go', () => {
    const home = placementHost('host-a', { slots: { incoming: 2, outgoing: 0 } });
    expect(placeGuests([{ guest: guestReport('web'), from: 'host-a' }], [home, placementHost('host-b')], { sources: ['host-a'] }).stays).toMatchObject([{ reasons: ['host-a lets no guest go (its outgoing slots are 0)'] }]);
  });

  test('`ask` goes when it is approved, `never` does not', () => {
    expect(why({ migratable: 'ask' }, undefined, { approved: ['web'] })).toBeUndefined();
    expect(why({ migratable: 'never' }, undefined, { approved: ['web'] })).toEqual(['its definition says migratable: never']);
  });

  test('many hosts that are out for one kind of reason are counted, not named', () => {
    const hosts = Array.from({ length: 40 }, (_, index) => placementHost(`host-b${index}`, index < 30 ? { freeMemoryBytes: index * 2 ** 20 } : { cordoned: { by: 'ann', reason: `ticket ${index}` } }));
    const reasons = why({}, hosts)!;
    expect(reasons).toHaveLength(2);
    expect(reasons).toEqual(expect.arrayContaining(['30 hosts, such as host-b0: 2.0 GiB of memory short', expect.stringMatching(/^10 hosts, such as host-b3\d: is cordoned by ann/)]));
  });
});
