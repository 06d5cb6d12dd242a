import { SimulatedFleet } from './fleet';
import { QUIET } from './hypervisor';

const HOSTS = 4;
const GUESTS = 10;
const AT_ONCE = 12;

let fleet: SimulatedFleet;
beforeAll(async () => {
  fleet = await SimulatedFleet.open({ hosts: HOSTS, guestsPerHost: GUESTS, speed: 20, behaviour: (index) => ({ ...QUIET, disk: { ...QUIET.disk, writeBytesPerSecond: (index % 5) * 4e6 } }) });
}, 60_000);
afterAll(async () => await fleet?.close());

test('forty guests on four hosts all move, twelve at a time, some after a failure, and at no moment does one have two copies or lack a block', async () => {
  const waiting = fleet.guests.map((guest, index) => ({ guest, to: fleet.hostName((Math.floor(index / GUESTS) + 1 + (index % (HOSTS - 1))) % HOSTS) }));
  expect(waiting).toHaveLength(HOSTS * GUESTS);
  for (const { guest } of waiting.filter((_one, index) => index % 8 === 0)) fleet.world.inject(guest, 'migrationFails');
  const destinations = new Map(waiting.map(({ guest, to }) => [guest, to]));
  const outcomes: string[] = [];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { guest, to } = next;
      outcomes.push(await (await fleet.client.migrate({ vm: guest, to, sourceDisks: 'wipe' })).result().then(({ outcome }) => outcome, (error: Error) => `${guest}: ${error.message}`));
    }
  }));
  expect(outcomes.filter((outcome) => outcome !== 'completed')).toEqual([]);
  expect(outcomes).toHaveLength(HOSTS * GUESTS);
  for (const [guest, to] of destinations) expect({ guest, on: fleet.hostsOf(guest) }).toEqual({ guest, on: [to] });
  expect(fleet.problems()).toEqual([]);
  const continued = fleet.world.ledger.entries.filter(({ what }) => what === 'migrate-continue');
  expect(continued.length).toBeGreaterThanOrEqual(HOSTS * GUESTS);
  expect(continued.flatMap(({ mirrors }) => mirrors!)).toEqual([]);
}, 60_000);
