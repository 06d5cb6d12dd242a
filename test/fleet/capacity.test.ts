import fc from 'fast-check';
import { freeMemoryOf, isSilent, placementHost, refuseReservation, slotsOf } from '../../workflows/capacity';
import { SILENT_AFTER_MS } from '../../workflows/fleet';
import type { HostState } from '../../workflows/messages';
import { GIB, guestReport, hostState, NOW_MS, reservation } from './fleet-model';

describe('a reservation is refused', () => {
  test('by a host that has been silent', () => {
    const host = hostState({ reportedAt: new Date(NOW_MS - SILENT_AFTER_MS - 1_000).toISOString() });
    expect(refuseReservation(host, reservation('web'), NOW_MS)).toEqual({ type: 'HostUnreachable', why: 'host host-b has been silent for 76 s: start its agent' });
    expect(isSilent(hostState({ reportedAt: new Date(NOW_MS - SILENT_AFTER_MS).toISOString() }), NOW_MS)).toBe(false);
  });

  test('by a host that takes part in no move, for good; by one whose slots are all in use, for now', () => {
    expect(refuseReservation(hostState({ slots: { incoming: 0, outgoing: 2 } }), reservation('web'), NOW_MS)).toEqual({ type: 'MigrationRefused', why: 'host host-b takes part in no incoming move: its incoming slots are 0 (vmferry host set-limits)' });
    expect(refuseReservation(hostState({ slots: { incoming: 2, outgoing: 0 } }), reservation('web', { direction: 'outgoing' }), NOW_MS)).toMatchObject({ type: 'MigrationRefused', why: expect.stringContaining('its outgoing slots are 0') });
    const busy = hostState({ reservations: [reservation('one'), reservation('two')] });
    expect(refuseReservation(busy, reservation('web'), NOW_MS)).toEqual({ type: 'NoSlot', why: 'host host-b has no incoming slot free: 2 of 2 are in use (one, two)' });
    expect(refuseReservation(busy, reservation('web', { direction: 'outgoing' }), NOW_MS)).toBeUndefined();
    expect(refuseReservation({ ...busy, slots: { incoming: 3, outgoing: 0 } }, reservation('web'), NOW_MS)).toBeUndefined();
  });

  test('by a host that is cordoned, though guests may leave it', () => {
    const cordoned = hostState({ cordoned: { by: 'ann', reason: 'new disks', at: '' } });
    expect(refuseReservation(cordoned, reservation('web'), NOW_MS)).toEqual({ type: 'MigrationRefused', why: 'host host-b is cordoned by ann: new disks (vmferry host uncordon host-b)' });
    expect(refuseReservation(cordoned, reservation('web', { direction: 'outgoing' }), NOW_MS)).toBeUndefined();
  });

  test('by a host that is short of memory, with what is reserved, for good and before any slot is waited for', () => {
    const host = hostState({ freeMemoryBytes: 7 * GIB, reservations: [reservation('one')], slots: { incoming: 1, outgoing: 1 } });
    expect(refuseReservation(host, reservation('web'), NOW_MS)).toEqual({ type: 'MigrationRefused', why: 'host host-b is 1074 MB of memory short for guest web, with what is reserved for guests on their way' });
    expect(refuseReservation(host, reservation('web', { memoryBytes: 3 * GIB }), NOW_MS)).toMatchObject({ type: 'NoSlot' });
    expect(refuseReservation(host, reservation('web', { direction: 'outgoing', memoryBytes: 100 * GIB }), NOW_MS)).toBeUndefined();
  });
});

describe('a guest that a host counts itself', () => {
  const host = hostState({ freeMemoryBytes: 6 * GIB, reservations: [reservation('coming'), reservation('here'), reservation('leaving', { direction: 'outgoing' })], guests: [guestReport('here', { state: 'arriving from host-a' })] });

  test('is not counted twice, in memory or on disk', () => {
    expect(freeMemoryOf(host)).toBe(2 * GIB);
    const [images, scratch, fast] = placementHost(host, NOW_MS).roots;
    // Roots on one file system share it.
    expect([images!.freeBytes, scratch!.freeBytes, fast!.freeBytes]).toEqual([90 * GIB, 90 * GIB, 50 * GIB]);
  });

  test('may reserve what the host has given it already', () => {
    const full = hostState({ freeMemoryBytes: 0, guests: [guestReport('here', { state: 'arriving from host-a' })] });
    expect(refuseReservation(full, reservation('here'), NOW_MS)).toBeUndefined();
    expect(refuseReservation(full, reservation('other'), NOW_MS)).toMatchObject({ type: 'MigrationRefused' });
  });
});

test('whatever reserves, and in whatever order, no slot is given twice and no byte of memory', () => {
  const asked = fc.array(fc.record({ guest: fc.integer({ min: 0, max: 9 }), incoming: fc.boolean(), memory: fc.integer({ min: 0, max: 8 }) }), { maxLength: 20 });
  fc.assert(
    fc.property(asked, fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 16 }), (asked, slots, free) => {
      let host = hostState({ freeMemoryBytes: free * GIB, slots: { incoming: slots, outgoing: slots } });
      for (const [index, { guest, incoming, memory }] of asked.entries()) {
        const one = reservation(`guest-${guest}`, { runId: `run-${index}`, direction: incoming ? 'incoming' : 'outgoing', memoryBytes: memory * GIB });
        if (!refuseReservation(host, one, NOW_MS)) host = { ...host, reservations: [...host.reservations, one] };
        expect(freeMemoryOf(host)).toBeGreaterThanOrEqual(0);
        for (const direction of ['incoming', 'outgoing'] as const) expect(placementHost(host, NOW_MS).moving[direction]).toBeLessThanOrEqual(slots);
      }
    }),
  );
});

test('slots are what an operator set, else what the configuration gives, else two', () => {
  const facts = { labels: { rack: 'r1' }, slots: { outgoing: 3, incoming: 4 }, qemu: [], processor: 'a processor' };
  expect(slotsOf(hostState())).toEqual({ outgoing: 2, incoming: 2 });
  expect(slotsOf(hostState({ facts }))).toEqual(facts.slots);
  expect(slotsOf(hostState({ facts, slots: { outgoing: 0, incoming: 1 } }))).toEqual({ outgoing: 0, incoming: 1 });
});

test('placement sees a host whose agent is of an older build, too', () => {
  const old: Partial<HostState> = hostState();
  delete old.totalMemoryBytes;
  delete old.roots;
  expect(placementHost(old as HostState, NOW_MS)).toMatchObject({ labels: {}, qemu: [], reachable: true, totalMemoryBytes: 32 * GIB, freeMemoryBytes: 32 * GIB, roots: [], moving: { outgoing: 0, incoming: 0 } });
});
