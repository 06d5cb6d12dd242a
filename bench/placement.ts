import type { GuestReport, PlacementHost } from '../workflows/fleet';
import { placeGuests } from '../workflows/placement';
import { formatSpread } from './statistics';

/**
 * `npm run bench:placement [-- GUESTS HOSTS]`: how long it takes to plan a fleet's evacuation, without any host: a tenth of the hosts is
 * emptied onto the others, or as many as have that many guests.
 */
const [guests = 10_000, hosts = 500] = process.argv.slice(2).map(Number);
const RUNS = 7;
const GIB = 2 ** 30;

/** Guests of 1 to 64 GiB, mostly small, on hosts of two processors; one in ten belongs to a pair that must be apart, one in fifty is stopped. */
function fleet(fullness: number): { guests: { guest: GuestReport; from: string }[]; hosts: PlacementHost[]; sources: string[] } {
  const names = Array.from({ length: hosts }, (_, index) => `host-${String(index).padStart(4, '0')}`);
  const emptied = Math.ceil(hosts / 10);
  const all = Array.from({ length: guests }, (_, index): { guest: GuestReport; from: string } => {
    const gib = [1, 2, 2, 4, 4, 8, 8, 16, 32, 64][(index * 7) % 10]!;
    return {
      from: names[index % emptied]!,
      guest: {
        name: `guest-${index}`,
        state: index % 50 === 0 ? 'stopped' : 'running',
        memoryBytes: gib * GIB,
        disks: [{ root: 'images', bytes: gib * 5 * GIB }, ...(index % 4 === 0 ? [{ root: 'data', bytes: 100 * GIB }] : [])],
        machine: `pc-q35-${index % 3 === 0 ? '9.2' : '7.2'}`,
        cpuModel: index % 2 === 0 ? 'EPYC' : 'qemu64',
        labels: {},
        migratable: 'always',
        antiAffinity: index % 10 < 1 ? [`pair-${Math.floor(index / 20)}`] : [],
        hostSelector: index % 5 === 0 ? 'zone in (a,b)' : '',
      },
    };
  });
  const needed = all.reduce((sum, { guest }) => sum + guest.memoryBytes, 0);
  const free = Math.ceil(needed / fullness / (hosts - emptied));
  return {
    guests: all,
    sources: names.slice(0, emptied),
    hosts: names.map((name, index) => ({
      name,
      labels: { zone: 'abcd'[index % 4]! },
      slots: { outgoing: 2, incoming: 2 },
      qemu: [{ path: 'qemu-system-x86_64', version: '9.2', machines: ['pc-q35-7.2', 'pc-q35-9.2'], cpuModels: ['qemu64', ...(index % 3 === 0 ? [] : ['EPYC'])] }],
      processor: 'EPYC',
      reachable: true,
      totalMemoryBytes: 2 * free,
      freeMemoryBytes: free,
      roots: [
        { name: 'images', fileSystem: '1', freeBytes: 20_000 * GIB },
        { name: 'data', fileSystem: '1', freeBytes: 20_000 * GIB },
      ],
      moving: { outgoing: 0, incoming: 0 },
      guests: all.filter(({ from }) => from === name).map(({ guest }) => guest),
    })),
  };
}

console.log(`${guests} guests, ${hosts} hosts; median (lowest–highest) of ${RUNS} runs`);
for (const [what, fullness] of [['room for all', 0.7], ['room for nearly all', 0.99], ['room for half', 2]] as const) {
  const given = fleet(fullness);
  const times: number[] = [];
  let moved = 0;
  for (let run = 0; run < RUNS; run++) {
    const began = performance.now();
    moved = placeGuests(given.guests, given.hosts, { sources: given.sources }).moves.length;
    times.push(performance.now() - began);
  }
  console.log(`${what}: ${moved} move, ${guests - moved} stay, planned in ${formatSpread(times)} ms`);
}
