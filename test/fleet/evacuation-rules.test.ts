import { capacityOf } from '../../workflows/capacity';
import { whyTooFull } from '../../workflows/evacuate-fleet';
import { changedLimits, type EvacuateHostInput, evacuateHostSchema, evacuateFleetSchema, type PlannedMove } from '../../workflows/evacuation';
import { leastMs, refuseEvacuation } from '../../workflows/evacuation-rules';
import { GIB, guestReport, placementHost } from './fleet-model';

const fleet = [placementHost('host-a', { guests: [guestReport('web'), guestReport('db')] }), placementHost('host-b')];
const move = (given: Partial<PlannedMove> = {}): PlannedMove => ({ guest: 'web', from: 'host-a', to: 'host-b', cold: false, memoryBytes: 1e9, diskBytes: 9e9, why: '', ...given });
const stay = (guest: string, ...reasons: string[]) => ({ guest, from: 'host-a', reasons });
const refuse = (given: Partial<EvacuateHostInput> = {}, moves = [move()], stays = [stay('db', 'host-b: is unreachable')], hosts = fleet) => {
  const input = evacuateHostSchema.parse({ host: 'host-a', ...given });
  const home = hosts.find(({ name }) => name === input.host);
  return refuseEvacuation(input, { hosts: hosts.map(({ name }) => name), ...(home && { home }), moves, stays });
};

describe('an evacuation is refused', () => {
  test('of a host that nobody knows, or that does not answer', () => {
    expect(refuse({ host: 'host-x' })).toEqual(['there is no host "host-x" (known are: host-a, host-b)']);
    expect(refuse({}, [], [], [])).toEqual(['there is no host "host-a" (known are: none; start an agent)']);
    expect(refuse({}, [], [], [placementHost('host-a', { reachable: false })])).toEqual(['host host-a is unreachable: start its agent']);
  });

  test('that names guests which are not there', () => {
    expect(refuse({ skip: ['wbe'], approved: ['dc', 'db'] })).toEqual(['there is no guest "wbe", "dc" on host-a (here are: web, db)']);
  });

  test('of which nothing can move, with the reasons of every guest; its plan is shown all the same', () => {
    const stays = [stay('web', 'host-b: has no CPU model EPYC', 'host-c: is unreachable'), stay('db', 'its definition says migratable: never')];
    expect(refuse({}, [], stays)).toEqual(['guest web would stay: host-b: has no CPU model EPYC; host-c: is unreachable', 'guest db would stay: its definition says migratable: never']);
    expect(refuse({ mode: 'plan' }, [], stays)).toBeUndefined();
  });

  test('whose window is too short for even the smallest guest', () => {
    const moves = [move({ guest: 'large', diskBytes: 90e9 }), move()];
    expect(refuse({ windowSeconds: 10 }, moves)).toEqual(['windowSeconds: the window of 10.0 s is shorter than even the smallest guest needs: web (10000 MB) takes 12.0 s at least']);
    expect(refuse({ windowSeconds: 12.1 }, moves)).toBeUndefined();
    expect(refuse({ windowSeconds: 100, migration: { bandwidthBytesPerSecond: 1e8 } }, moves)).toEqual([expect.stringContaining('takes 104.0 s at least')]);
    expect(refuse({ windowSeconds: 1 }, [], [])).toBeUndefined();
  });

  test('with all reasons at once', () => {
    expect(refuse({ windowSeconds: 1, skip: ['wbe'] })).toHaveLength(2);
  });

  test('and not if some guests stay, or there are none', () => {
    expect(refuse()).toBeUndefined();
    expect(refuse({}, [], [])).toBeUndefined();
  });
});

test('a stopped guest copies no memory', () => {
  expect(leastMs(move(), 1e9)).toBe(14_000);
  expect(leastMs(move({ cold: true }), 1e9)).toBe(13_000);
});

describe('the input', () => {
  const wrong = (schema: typeof evacuateHostSchema | typeof evacuateFleetSchema, raw: unknown) => schema.safeParse(raw).error!.issues.map(({ path, message }) => `${path.join('.')}: ${message}`);

  test('of a host has defaults', () => {
    expect(evacuateHostSchema.parse({ host: 'host-a' })).toMatchObject({ mode: 'move', stopped: 'move', limits: { fleet: 10, perSource: 2, perDestination: 2 }, maxFailures: 3, tries: 2, atWindowEnd: 'finish', atCancel: 'undo', andReturn: false });
  });

  test('with a wrong field is refused by its name', () => {
    expect(wrong(evacuateHostSchema, { host: 'host-a', limits: { fleet: 0 }, tries: 0, windowSeconds: -1, modus: 'plan' })).toEqual([expect.stringMatching(/^limits.fleet: /), expect.stringMatching(/^tries: /), expect.stringMatching(/^windowSeconds: /), expect.stringContaining('modus')]);
    expect(wrong(evacuateHostSchema, { host: 'host-a', migration: { to: 'host-b' } })).toEqual([expect.stringContaining('to')]);
  });

  test('with destinations that cannot be read is refused, by a host and by a fleet', () => {
    expect(wrong(evacuateHostSchema, { host: 'host-a', destinations: 'rack in' })).toEqual([expect.stringMatching(/^destinations: the selector "rack in" cannot be read/)]);
    expect(wrong(evacuateFleetSchema, { hosts: ['host-a'], destinations: 'rack in' })).toEqual([expect.stringMatching(/^destinations: the selector "rack in"/)]);
  });

  test('of a fleet names hosts or a selector, not both and not neither', () => {
    for (const given of [{}, { hosts: ['host-a'], selector: 'rack=r1' }]) expect(wrong(evacuateFleetSchema, given)).toEqual(['hosts: give either hosts or a selector, not both and not neither']);
    expect(evacuateFleetSchema.parse({ selector: 'rack=r1' })).toMatchObject({ hostsAtOnce: 1, minFreeMemory: 0.1 });
  });

  test('limits are changed one at a time, and never to nonsense', () => {
    const limits = { fleet: 10, perSource: 2, perDestination: 2 };
    expect(changedLimits(limits, { perSource: 5 })).toEqual({ limits: { ...limits, perSource: 5 } });
    for (const change of [{ fleet: 0 }, { perSource: 1.5 }, { perDestination: 20_000 }, { sideways: 1 }]) expect(changedLimits(limits, change)).toEqual({ wrong: expect.stringMatching(/^limits/) });
  });
});

describe('a wave waits while the other hosts would be too full', () => {
  const host = (name: string, freeGib: number, given = {}) => capacityOf(placementHost(name, { totalMemoryBytes: 10 * GIB, freeMemoryBytes: freeGib * GIB, ...given }));
  const leaving = host('host-a', 0, { guests: [guestReport('web', { memoryBytes: 4 * GIB }), guestReport('off', { memoryBytes: 50 * GIB, state: 'stopped' })] });

  test('by the memory that is free once the guests have come; stopped ones bring none', () => {
    const hosts = [leaving, host('host-b', 3), host('host-c', 3)];
    expect(whyTooFull(['host-a'], hosts, 0.1)).toBeUndefined();
    expect(whyTooFull(['host-a'], hosts, 0.11)).toBe('the hosts that take guests would have 10 % of their memory free, less than 11 % (minFreeMemory)');
    expect(whyTooFull(['host-a'], hosts, 0)).toBeUndefined();
  });

  test('and hosts that are cordoned, silent or emptied themselves take none', () => {
    for (const given of [{ cordoned: { by: 'ann', reason: 'x' } }, { reachable: false }]) expect(whyTooFull(['host-a'], [leaving, host('host-b', 10, given)], 0.1)).toContain('0 %');
    expect(whyTooFull(['host-a', 'host-b'], [leaving, host('host-b', 10), host('host-c', 5)], 0.2)).toContain('10 %');
  });

  test('and an empty host can be emptied when nobody is there to take its guests only if none must be free', () => {
    expect(whyTooFull(['host-b'], [host('host-b', 10)], 0.1)).toContain('0 %');
    expect(whyTooFull(['host-b'], [host('host-b', 10)], 0)).toBeUndefined();
  });
});
