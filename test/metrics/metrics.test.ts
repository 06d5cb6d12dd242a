import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { Runtime } from '@temporalio/worker';
import { pino } from 'pino';
import { Census } from '../../workers/census';
import { freePort } from '../../workers/temporal-server';
import { METRICS, type Metric } from '../../workflows/metric-table';
import { SimulatedFleet } from '../simulated/fleet';
import { QUIET } from '../simulated/hypervisor';
import { Scrape } from './scrape';

/** Labels that the SDK gives to what workflow code counts. */
const SDK_LABELS = ['namespace', 'taskQueue', 'workflowType'];
const FULL_LINK = QUIET.disk.dataBytes * 4;
const DISKS = 2;
let fleet: SimulatedFleet;
let address: string;
let census: Census;

/** Real workflows and agents on simulated QEMUs, in one process with one endpoint. No workflow is kept in memory: each task replays all that happened before. */
beforeAll(async () => {
  address = `127.0.0.1:${await freePort()}`;
  fleet = await SimulatedFleet.open({ hosts: 2, guestsPerHost: 2, speed: 20, disksPerGuest: DISKS, behaviour: () => QUIET, metrics: address, cachedWorkflows: 0 });
  census = new Census(fleet.client.temporal, Runtime.instance().metricMeter, pino({ level: 'silent' }));
}, 60_000);
afterAll(async () => await fleet?.close());

const scrape = async () => await Scrape.of(address);
async function until(so: (now: Scrape) => boolean | undefined): Promise<Scrape> {
  for (;;) {
    const now = await scrape();
    if (so(now)) return now;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test('the figures of a guest appear when it moves, and are 0 once it has moved; its move is counted once, however often its workflow is replayed', async () => {
  const guest = 'h00-g000';
  fleet.world.host('h01').setLink(20e6);
  const migration = await fleet.client.migrate({ vm: guest, to: 'h01', sourceDisks: 'wipe', maxDowntimeMs: 2_000 });
  const moving = await until((now) => (now.sum('vmferry_disk_copy_bytes_per_second', { guest }) ?? 0) > 0);
  expect(moving.find('vmferry_disk_remaining_bytes', { host: 'h00', guest }).map(({ labels, value }) => ({ disk: labels['disk'], left: value > 0 }))).toEqual(expect.arrayContaining([{ disk: 'disk0', left: true }, { disk: 'disk1', left: true }]));
  expect(moving.find('vmferry_guest_verdict', { host: 'h00', guest }).filter(({ value }) => value === 1)).toHaveLength(1);
  await census.take();
  const counted = await scrape();
  expect(counted.sum('vmferry_migrations_running', { phase: 'converge' })).toBe(1);
  expect(counted.sum('vmferry_host_slots_taken', { host: 'h00', direction: 'outgoing' })).toBe(1);
  expect(counted.sum('vmferry_host_slots_taken', { host: 'h01', direction: 'incoming' })).toBe(1);
  expect(counted.sum('vmferry_host_slots', { host: 'h01', direction: 'incoming' })).toBe(2);
  expect(counted.sum('vmferry_host_reserved_memory_bytes', { host: 'h01' })).toBe(2 ** 31);
  expect(counted.sum('vmferry_attempts', { host: 'h01', role: 'destination' })).toBeUndefined();

  fleet.world.host('h01').setLink(FULL_LINK);
  const { downtimeMs } = await migration.result();
  const after = await scrape();
  const own = Object.keys(METRICS).filter((name) => METRICS[name as keyof typeof METRICS].labels.includes('guest' as never));
  for (const name of own) expect({ name, left: after.find(name, { guest }).filter(({ value }) => value !== 0) }).toEqual({ name, left: [] });
  expect(after.find('vmferry_migrations_total').map(({ labels: { kind, outcome, type }, value }) => ({ kind, outcome, type, value }))).toEqual([{ kind: 'live', outcome: 'completed', type: '', value: 1 }]);
  expect(after.sum('temporal_workflow_task_replay_latency_count', { workflow_type: 'migrateVm' })).toBeGreaterThan(10);
  expect(after.sum('vmferry_migration_duration_seconds_count', { kind: 'live' })).toBe(1);
  expect(after.sum('vmferry_migration_downtime_seconds_count')).toBe(1);
  expect(after.sum('vmferry_migration_downtime_seconds_sum')).toBeCloseTo(downtimeMs! / 1000, 6);
  expect(after.sum('vmferry_migration_slot_wait_seconds_count')).toBe(1);
  expect(after.sum('vmferry_migration_downtime_over_budget_total')).toBe(0);
  expect(after.sum('vmferry_copied_bytes_total', { host: 'h00', of: 'disk' })).toBeGreaterThan(DISKS * QUIET.disk.dataBytes * 0.9);
  expect(after.sum('vmferry_copied_bytes_total', { host: 'h00', of: 'memory' })).toBeGreaterThan(0);
  expect(after.sum('vmferry_guests', { host: 'h01', state: 'running' })).toBe(3);
  expect(after.sum('vmferry_guests', { host: 'h00' })).toBe(1);
  await census.take();
  const over = await scrape();
  expect(over.sum('vmferry_migrations_running')).toBe(0);
  expect(over.sum('vmferry_host_slots_taken')).toBe(0);
  expect(fleet.problems()).toEqual([]);
});

test('a move that fails, one that is refused and one that is cancelled are counted as such, with why', async () => {
  fleet.world.host('h00').full = true;
  await expect((await fleet.client.migrate({ vm: 'h01-g000', to: 'h00', memoryTries: 1 })).result()).rejects.toMatchObject({ type: 'MirrorFailed' });
  fleet.world.host('h00').full = false;
  await expect((await fleet.client.migrate({ vm: 'h01-g000', to: 'nowhere' })).result()).rejects.toMatchObject({ type: 'MigrationRefused' });
  fleet.world.host('h00').setLink(20e6);
  const cancelled = await fleet.client.migrate({ vm: 'h01-g001', to: 'h00' });
  await until((now) => (now.sum('vmferry_disk_remaining_bytes', { guest: 'h01-g001' }) ?? 0) > 0);
  await cancelled.cancel();
  await expect(cancelled.result()).rejects.toMatchObject({ type: 'Cancelled' });
  fleet.world.host('h00').setLink(FULL_LINK);
  const after = await scrape();
  expect(after.find('vmferry_migrations_total').map(({ labels: { outcome, type }, value }) => `${outcome} ${type}: ${value}`).sort()).toEqual(['cancelled : 1', 'completed : 1', 'failed MirrorFailed: 1', 'refused MigrationRefused: 1']);
  expect(after.sum('vmferry_migration_duration_seconds_count')).toBe(1);
  expect(after.find('vmferry_disk_remaining_bytes').filter(({ value }) => value !== 0)).toEqual([]);
  expect(after.sum('vmferry_undo_failures_total')).toBe(0);
  expect(after.sum('vmferry_step_failures_total', { host: 'h01', type: 'MirrorFailed' })).toBeGreaterThan(0);
  expect(after.sum('vmferry_attempts')).toBe(0);
});

test('what the endpoint serves is what the table says: kinds, labels and buckets', async () => {
  const { samples, types } = await scrape();
  const ours = [...types].filter(([name]) => name.startsWith('vmferry_'));
  expect(ours.length).toBeGreaterThan(25);
  for (const [name, type] of ours) {
    const metric = METRICS[name as keyof typeof METRICS] as Metric | undefined;
    expect({ name, type }).toEqual({ name, type: metric?.kind });
    const own = samples.filter((one) => one.name.replace(/_(bucket|sum|count)$/, '') === name || one.name === name);
    const labels = new Set(own.flatMap((one) => Object.keys(one.labels)).filter((label) => label !== 'le' && !(metric!.origin === 'workflow' && SDK_LABELS.includes(label))));
    expect({ name, labels: [...labels].sort() }).toEqual({ name, labels: [...metric!.labels].sort() });
    if (type === 'histogram') expect([...new Set(own.flatMap((one) => one.labels['le'] ?? []))]).toEqual([...metric!.buckets!.map(String), '+Inf']);
  }
  // Zero from the start, under the labels that the SDK gives them later.
  expect(samples.filter(({ name }) => name === 'vmferry_fences_total')).toEqual([{ name: 'vmferry_fences_total', labels: { namespace: 'default', taskQueue: 'vmferry-control', workflowType: 'migrateVm' }, value: 0 }]);
  expect(samples.filter(({ name }) => name === 'vmferry_migration_downtime_over_budget_total')).toHaveLength(1);
  expect(types.get('temporal_num_pollers')).toBe('gauge');
});

test.each([
  ['one that another process has', [], () => address, 1, () => `vmferry: metrics cannot be served at ${address} (something listens there already): end that, or give another address (--metrics, or VMFERRY_METRICS)\n`],
  ['a name', ['--metrics', 'localhost:9464'], () => '', 2, () => '"localhost:9464" is no address for metrics: give one of this machine and a port, such as 127.0.0.1:9464 or [::1]:9464'],
  ['no port', [], () => '[::1]', 2, () => '"[::1]" is no address for metrics'],
])('an address for metrics that cannot be had, %s, is refused in one line', (_what, options, variable, code, says) => {
  const { status, stderr } = spawnSync(join(__dirname, '../../bin/vmferry'), ['--temporal-address', '127.0.0.1:1', 'control', ...options], { encoding: 'utf8', env: { ...process.env, ...(variable() && { VMFERRY_METRICS: variable() }) } });
  expect({ status, stderr }).toEqual({ status: code, stderr: expect.stringContaining(says()) });
  expect(stderr).not.toMatch(/^\s+at /m);
});
