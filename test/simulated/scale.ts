import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { FleetEvacuationStatus } from '../../workflows/evacuation';
import { CONTROL_QUEUE, hostQuery, type HostState } from '../../workflows/messages';
import { idealWallTimeMs } from '../../workflows/start-order';
import { TemporalCluster } from '../cluster/temporal-cluster';
import { SimulatedFleet } from './fleet';
import { QUIET } from './hypervisor';

/**
 * Not a part of CI: scripts/fleet-bench.sh runs this. A fifth of the hosts of a simulated fleet, one rack, is emptied, with faults: 2 % of the moves fail once,
 * one destination goes silent, one is full. All that can move must have moved, no limit may have been exceeded, and nothing may be left; printed is what it took,
 * and how it grows with the number of guests that moved.
 */
const sizes = (process.env['VMFERRY_SCALE_GUESTS'] ?? '100 300 1000 3000').split(' ').map(Number);
/** 0: the dev server on SQLite; else a server on PostgreSQL with so many history shards. */
const SHARDS = Number(process.env['VMFERRY_SCALE_SHARDS'] ?? 0);
const CONTROLS = Number(process.env['VMFERRY_SCALE_CONTROLS'] ?? 1);
/** A smaller fleet has no destinations to spare. */
const FAULTY_FROM_HOSTS = 15;
const GUESTS_PER_HOST = 20;
const SPEED = 20;
/** Of a simulated host, before it is made faster. */
const LINK_BYTES_PER_SECOND = 1.25e9;
const LIMITS = { fleet: Number(process.env['VMFERRY_SCALE_AT_ONCE'] ?? 60), perSource: 4, perDestination: 4 };
const ROOT = join(__dirname, '../..');
const CLOCK_TICKS = 100;
/** Each host reports once in it. */
const IDLE_MS = 30_000;

function say(line: string): void {
  writeSync(2, `${line}\n`);
}

/** CPU seconds and resident bytes of processes; those of a server with the children that PostgreSQL has for its clients. */
function usage(pids: number[], name?: string): { cpuSeconds: number; rssBytes: number } {
  const wanted = new Set(pids);
  const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
      return wanted.has(Number(pid)) || (name === 'server' && wanted.has(Number(fields[1]))) ? [fields] : [];
    } catch {
      return []; // it has ended meanwhile
    }
  });
  // With what children that have ended had used.
  return { cpuSeconds: all.reduce((sum, fields) => sum + [11, 12, 13, 14].reduce((ticks, index) => ticks + Number(fields[index]), 0), 0) / CLOCK_TICKS, rssBytes: all.reduce((sum, fields) => sum + Number(fields[21]) * 4096, 0) };
}

interface Figures {
  moved: number;
  tookSeconds: number;
  server: { cpu: number; rss: number };
  control: { cpu: number; rss: number };
  agents: { cpu: number; rss: number };
}
const measured: Figures[] = [];

/** The exponent of growth: the slope of a straight line through the points in logarithms. */
function exponent(points: [number, number][]): number {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const);
  const mean = (index: 0 | 1) => logs.reduce((sum, point) => sum + point[index], 0) / logs.length;
  const [x, y] = [mean(0), mean(1)];
  return logs.reduce((sum, [a, b]) => sum + (a - x) * (b - y), 0) / logs.reduce((sum, [a]) => sum + (a - x) ** 2, 0);
}

afterAll(() => {
  if (measured.length < 2) return;
  const grows = (of: (one: Figures) => number) => exponent(measured.map((one) => [one.moved, of(one)])).toFixed(2);
  const parts = (['server', 'control', 'agents'] as const).map((name) => `${name}: CPU ${grows((one) => one[name].cpu)}, memory ${grows((one) => one[name].rss)}`);
  say(`growth, as the exponent of the number of moves (1: in proportion): time ${grows(({ tookSeconds }) => tookSeconds)}; ${parts.join('; ')}`);
});

/** The most that ran at once, by when each began and ended. */
function mostAtOnce(spans: { from: number; to: number }[]): number {
  const changes = spans.flatMap(({ from, to }) => [[from, 1], [to, -1]] as const).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let [now, most] = [0, 0];
  for (const [, change] of changes) most = Math.max(most, (now += change));
  return most;
}

test.each(sizes)('%d guests', async (guests) => {
  const hosts = Math.round(guests / GUESTS_PER_HOST);
  const rack = Math.max(1, Math.round(hosts / 5));
  const faulty = hosts >= FAULTY_FROM_HOSTS;
  const opened = performance.now();
  const { VMFERRY_CLUSTER_TEMPORAL: temporal, VMFERRY_CLUSTER_POSTGRES: postgres } = process.env;
  const cluster = SHARDS > 0 ? await TemporalCluster.start({ temporal: temporal!, postgres: postgres! }, SHARDS) : undefined;
  const fleet = await SimulatedFleet.open({
    hosts,
    guestsPerHost: GUESTS_PER_HOST,
    speed: SPEED,
    linkBytesPerSecond: LINK_BYTES_PER_SECOND,
    control: false,
    ...(cluster && { temporal: cluster.address }),
    config: (index) => ({ labels: { rack: index < rack ? 'r0' : `r${1 + Math.floor(index / 10)}` }, slots: { outgoing: LIMITS.perSource, incoming: LIMITS.perDestination } }),
    behaviour: () => QUIET,
  });
  const controls: ChildProcess[] = [];
  try {
    for (let index = 0; index < CONTROLS; index++) controls.push(spawn(process.execPath, [join(ROOT, 'bin/vmferry'), '--temporal-address', fleet.temporal.address, 'control'], { stdio: 'ignore', cwd: '/' }));
    const sources = Array.from({ length: rack }, (_, index) => fleet.hostName(index));
    const moving = fleet.guests.filter((guest) => sources.some((host) => fleet.hostsOf(guest).includes(host)));
    for (let known = 0; known < hosts; await delay(200)) known = (await fleet.client.hosts().catch(() => [])).length;
    const opensMs = performance.now() - opened;
    for (let index = 0; index < moving.length; index += 50) fleet.world.inject(moving[index]!, 'migrationFails');
    const full = fleet.hostName(hosts - 1);
    const dying = fleet.hostName(hosts - 2);
    if (faulty) fleet.world.host(full).full = true;

    const pids = { server: cluster?.pids ?? [fleet.serverPid!], control: controls.map(({ pid }) => pid!), agents: [process.pid] };
    const used = (since: Record<string, ReturnType<typeof usage>>) => Object.fromEntries(Object.entries(pids).map(([name, pid]) => [name, { cpu: usage(pid, name).cpuSeconds - since[name]!.cpuSeconds, rss: usage(pid, name).rssBytes }])) as Pick<Figures, keyof typeof pids>;
    const idleSince = Object.fromEntries(Object.entries(pids).map(([name, pid]) => [name, usage(pid, name)]));
    await delay(IDLE_MS);
    const idle = used(idleSince);
    const before = Object.fromEntries(Object.entries(pids).map(([name, pid]) => [name, usage(pid, name)]));
    const began = performance.now();
    const handle = await fleet.client.temporal.workflow.start('evacuateFleet', {
      workflowId: `evacuation/rack-${guests}`,
      taskQueue: CONTROL_QUEUE,
      args: [{ selector: 'rack=r0', hostsAtOnce: rack, limits: LIMITS, maxFailures: 1_000, tries: 5, minFreeMemory: 0, migration: { sourceDisks: 'wipe', maxDowntimeMs: 2_000 } }],
    });
    if (faulty) {
      await delay(3_000);
      await fleet.stopAgent(dying);
    }
    const result = (await handle.result()) as FleetEvacuationStatus;
    const tookMs = performance.now() - began;
    const spent = used(before);
    if (faulty) await fleet.startAgent(dying);

    const moved = result.hosts.reduce((sum, one) => sum + one.moved, 0);
    measured.push({ moved, tookSeconds: tookMs / 1000, ...spent });
    const bytes = 2 * QUIET.disk.dataBytes + QUIET.memory.dataBytes;
    const ideal = idealWallTimeMs(moving.map((guest, index) => ({ guest, from: hostOf(guest), to: String(index % (hosts - rack)), cold: false, memoryBytes: 0, diskBytes: bytes })), { fleet: LIMITS.fleet, perSource: { default: LIMITS.perSource }, perDestination: { default: LIMITS.perDestination } }, { perMove: LINK_BYTES_PER_SECOND * SPEED, perHost: LINK_BYTES_PER_SECOND * SPEED });
    const spans = await migrationSpans(fleet, moving);
    const events = await longestHistory(fleet, [`evacuation/rack-${guests}`, ...sources.map((host) => `evacuate/${host}`), ...moving.map((guest) => `migrate/${guest}`)]);
    say(
      [
        `${cluster ? `PostgreSQL, ${SHARDS} shards` : 'dev server'}, ${CONTROLS} control worker${CONTROLS > 1 ? 's' : ''}: ${guests} guests on ${hosts} hosts, ${rack} emptied: ${moved} of ${moving.length} moved in ${(tookMs / 1000).toFixed(1)} s, ${((moved * 60_000) / tookMs).toFixed(0)} guests a minute`,
        `  ideal by limits and bandwidth alone ${(ideal / 1000).toFixed(2)} s, ratio ${(tookMs / ideal).toFixed(1)}; opened in ${(opensMs / 1000).toFixed(1)} s`,
        `  ${Object.entries(spent).map(([name, { cpu, rss }]) => `${name}: ${cpu.toFixed(1)} CPU s (${((1000 * cpu) / moved).toFixed(0)} ms a guest), ${(rss / 1e6).toFixed(0)} MB`).join('; ')}`,
        `  idle, a report of each host: ${Object.entries(idle).map(([name, { cpu }]) => `${name} ${((1000 * cpu) / hosts).toFixed(1)} ms`).join(', ')}`,
        `  at once: ${mostAtOnce(spans)} of ${LIMITS.fleet}; longest history ${events} events`,
      ].join('\n'),
    );
    expect(result.hosts.filter((one) => one.state !== 'done' || one.stayed > 0)).toEqual([]);
    expect(moved).toBe(moving.length);
    expect(mostAtOnce(spans)).toBeLessThanOrEqual(LIMITS.fleet);
    for (const host of sources) expect(mostAtOnce(spans.filter(({ source }) => source === host))).toBeLessThanOrEqual(LIMITS.perSource);
    expect(events).toBeLessThan(5_000);
    expect(await reservations(fleet)).toEqual([]);
    expect(fleet.problems()).toEqual([]);
  } finally {
    controls.forEach((control) => control.kill('SIGTERM'));
    await fleet.close();
    await cluster?.close();
  }
}, 1_800_000);

/** Where it was at first. */
const hostOf = (guest: string): string => guest.slice(0, guest.indexOf('-'));

async function migrationSpans(fleet: SimulatedFleet, guests: string[]): Promise<{ from: number; to: number; source: string }[]> {
  const spans: { from: number; to: number; source: string }[] = [];
  const wanted = new Set(guests);
  for await (const { workflowId, startTime, closeTime } of fleet.client.temporal.workflow.list({ query: 'WorkflowType = "migrateVm"' })) {
    const guest = workflowId.replace('migrate/', '');
    if (wanted.has(guest)) spans.push({ from: startTime.getTime(), to: closeTime?.getTime() ?? Date.now(), source: hostOf(guest) });
  }
  return spans;
}

async function longestHistory(fleet: SimulatedFleet, ids: string[]): Promise<number> {
  const lengths = await Promise.all(ids.map(async (id) => (await fleet.client.temporal.workflow.getHandle(id).describe()).historyLength));
  return Math.max(...lengths);
}

async function reservations(fleet: SimulatedFleet): Promise<string[]> {
  const left: string[] = [];
  for (const host of fleet.configs.keys()) {
    const state = await fleet.client.temporal.workflow.getHandle(`host/${host}`).query<HostState>(hostQuery.name);
    left.push(...state.reservations.map(({ workflowId }) => `${workflowId} on ${host}`));
  }
  return left;
}
