import type { GuestReport, PlacementHost } from '../workflows/fleet';
import { placeGuests } from '../workflows/placement';

/**
 * `npm run bench:placement`: how long a plan takes for 10,000 guests on 500 hosts of which 50 are emptied, and for all guests at once. Nearly full hosts are the
 * slow case: a guest that fits nowhere looks for one that makes room. Made up by a fixed sequence, so that every run plans the same.
 */
const HOSTS = 500;
const GUESTS = 10_000;
const GIB = 2 ** 30;

let state = 1;
/** Lehmer's generator. */
const upTo = (most: number) => (state = (state * 48_271) % 2_147_483_647) % most;

function guest(index: number): GuestReport {
  return {
    name: `guest-${index}`,
    state: upTo(10) === 0 ? 'stopped' : 'running',
    memoryBytes: [2, 4, 4, 8, 16, 32][upTo(6)]! * GIB,
    disks: [{ root: 'images', bytes: (10 + upTo(200)) * GIB }],
    machine: 'pc-q35-7.2',
    cpuModel: upTo(4) === 0 ? 'EPYC' : 'qemu64',
    labels: {},
    migratable: upTo(50) === 0 ? 'never' : 'always',
    antiAffinity: upTo(10) === 0 ? [`group-${upTo(100)}`] : [],
    hostSelector: upTo(10) === 0 ? `rack=r${upTo(10)}` : '',
  };
}

/** `fullness`: the share of the memory of the hosts that is in use, 0 to 1. */
function plan(name: string, emptied: number, guests: number, fullness: number): void {
  state = 1;
  const leaving = Array.from({ length: guests }, (_, index) => ({ guest: guest(index), from: `host-${index % emptied}` }));
  const hosts = Array.from({ length: HOSTS }, (_, index): PlacementHost => ({
    name: `host-${index}`,
    labels: { rack: `r${index % 10}` },
    slots: { outgoing: 2, incoming: 2 },
    qemu: [{ path: '/usr/bin/qemu-system-x86_64', version: '8.0', machines: ['pc-q35-8.0', 'pc-q35-7.2'], cpuModels: index % 2 === 0 ? ['qemu64', 'EPYC'] : ['qemu64'] }],
    processor: 'a processor',
    reachable: true,
    totalMemoryBytes: 512 * GIB,
    freeMemoryBytes: Math.round(512 * GIB * (1 - fullness)),
    roots: [{ name: 'images', fileSystem: 'fs', freeBytes: 5_000 * GIB }],
    moving: { outgoing: 0, incoming: 0 },
    guests: [],
  }));
  const sources = hosts.slice(0, emptied).map(({ name }) => name);
  const began = performance.now();
  const { moves, stays } = placeGuests(leaving, hosts, { sources });
  console.log(`${name}: ${Math.round(performance.now() - began)} ms, ${moves.length} guests move, ${stays.length} stay`);
}

console.log(`${GUESTS} guests on ${HOSTS} hosts`);
plan('50 hosts are emptied, the others half full', 50, GUESTS / 10, 0.5);
plan('all guests leave 50 hosts, the others are empty', 50, GUESTS, 0);
plan('all guests leave 50 hosts, the others are two thirds full: many fit nowhere', 50, GUESTS, 0.67);
plan('all guests leave 50 hosts, the others are full', 50, GUESTS, 1);
