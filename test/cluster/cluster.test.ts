import { execFileSync } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import type { Connection } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import { CONTROL_QUEUE, migrationWorkflowId, type MigrationResult, SEARCH_ATTRIBUTES } from '../../workflows/messages';
import { expectClean, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';
import { ControlProcess } from './control-process';
import { TemporalCluster } from './temporal-cluster';

/** Far below where Temporal warns (10,240), and what this move takes with room for a retry or two. */
const MOST_EVENTS = 200;
/** What each guest writes to each of its two disks, a second. */
const RATE = '2M';
/** Twice that, so that the copy of 64 MiB ends, but only after seconds in which it can be disturbed. */
const BANDWIDTH = 8 * MIB;

let cluster: TemporalCluster;
let controls: ControlProcess[] = [];
let lab: Lab;
let moves: Promise<MigrationResult[]> | undefined;

beforeAll(async () => {
  const { VMFERRY_CLUSTER_TEMPORAL, VMFERRY_CLUSTER_POSTGRES } = process.env;
  if (!VMFERRY_CLUSTER_TEMPORAL || !VMFERRY_CLUSTER_POSTGRES) throw new Error('run this by "npm run test:cluster": it installs what is needed, and says where it is');
  cluster = await TemporalCluster.start({ temporal: VMFERRY_CLUSTER_TEMPORAL, postgres: VMFERRY_CLUSTER_POSTGRES });
  // Both at once: on a new server both want to make the search attributes known.
  controls = [1, 2].map((index) => new ControlProcess(cluster.address, cluster.logFile(`control-${index}`)));
  lab = await Lab.open(undefined, undefined, cluster.address);
  await soon('both control workers poll', async () => {
    const dead = controls.find(({ isRunning }) => !isRunning);
    if (dead) throw new Error(`control worker ${dead.identity} ended at start:\n${dead.log}`);
    const polling = await pollers();
    return controls.every(({ identity }) => polling.includes(identity));
  });
}, 180_000);

afterAll(async () => {
  // Of a test that failed half-way: its migrations end, and with them whoever waits for them.
  await lab?.reset();
  await moves?.catch(() => undefined);
  await lab?.close();
  await Promise.all(controls.map(async (one) => await one.end()));
  await cluster?.close();
}, 60_000);

test('a host is emptied while one of two control workers is killed: both guests arrive whole, and their histories are short', async () => {
  const names = ['alpha', 'beta'];
  const guests = [];
  for (const name of names) guests.push(await lab.boot('host-a', name, { rate: RATE }));

  moves = evacuate(names, 'host-b');
  moves.catch(() => undefined);
  // Both copy, and none is near its end: memory and switchover are still to come.
  await Promise.all(names.map(async (name) => await lab.phase(name, 'converge')));
  const holder = (await workersOf(names[0]!)).at(-1);
  const killed = controls.find(({ identity }) => identity === holder)!;
  const survivor = controls.find((one) => one !== killed)!;
  await killed.end('SIGKILL');
  const killedAtMs = Date.now();

  const results = await moves;
  expect(results).toEqual(names.map((vm): unknown => expect.objectContaining({ vm, from: 'host-a', to: 'host-b', outcome: 'completed' })));
  for (const guest of guests) {
    await lab.written(guest, 400);
    await expectWhole(guest);
  }
  await expectClean(lab, { 'host-b': names });

  for (const { vm, downtimeMs, totalMs } of results) {
    const { events } = await lab.history(vm);
    expect(events!.length).toBeLessThan(MOST_EVENTS);
    // The last steps were the survivor's.
    expect((await workersOf(vm)).at(-1)).toBe(survivor.identity);
    await soon(`the migration of ${vm} is found`, async () => (await found(`${SEARCH_ATTRIBUTES.guest.name} = '${vm}'`)).join() === migrationWorkflowId(vm));
    // Only then was there anything to do for a control worker.
    const wakes = events!.findIndex(({ eventTime, workflowTaskScheduledEventAttributes: task }) => task && timestampMs(eventTime) > killedAtMs);
    const takenUp = events!.slice(wakes).find(({ workflowTaskCompletedEventAttributes: task }) => task?.identity === survivor.identity)!;
    const [wokenMs, takenUpMs] = [timestampMs(events![wakes]!.eventTime) - killedAtMs, timestampMs(takenUp.eventTime) - killedAtMs];
    console.log(`${vm}: moved in ${totalMs} ms with a pause of ${downtimeMs} ms and ${events!.length} events; there was something to do ${Math.round(wokenMs)} ms after the kill, and the other control worker had done it ${Math.round(takenUpMs - wokenMs)} ms later`);
  }
  expect(await workersOf(names[0]!)).toContain(killed.identity);
  expect(survivor.isRunning).toBe(true);
  await soon('both are found by where they went', async () => (await found(`${SEARCH_ATTRIBUTES.destination.name} = 'host-b' AND ExecutionStatus = 'Completed'`)).length === names.length);
}, 300_000);

test('the control workers, started at once on a new server, made each search attribute known once', async () => {
  const { operatorService, workflowService } = lab.client.temporal.connection as Connection;
  const names = Object.values(SEARCH_ATTRIBUTES).map(({ name }) => name);
  const { customAttributes } = await operatorService.listSearchAttributes({ namespace: 'default' });
  expect(customAttributes).toEqual(Object.fromEntries(names.map((name) => [name, temporal.api.enums.v1.IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD])));
  // Which column of the database means which name.
  const { config } = await workflowService.describeNamespace({ namespace: 'default' });
  expect(Object.values(config!.customSearchAttributeAliases!).sort()).toEqual(names.sort());
});

test('nothing of the server or its store listens on anything but loopback', () => {
  const listening = execFileSync('ss', ['-ltnpH'], { encoding: 'utf8' }).split('\n').filter((line) => cluster.pids.some((pid) => line.includes(`pid=${pid},`)));
  const addresses = listening.map((line) => line.trim().split(/\s+/)[3]!.replace(/:\d+$/, ''));
  expect(new Set(addresses)).toEqual(new Set(['127.0.0.1']));
});

/** Empties host-a; the results are those of the moves, in the order of the guests. */
async function evacuate(guests: string[], to: string): Promise<MigrationResult[]> {
  const over = new AbortController();
  const followed = guests.map((guest) => lab.follow(guest, to, over.signal));
  try {
    const { evacuation } = await lab.client.fleet.evacuate({ host: 'host-a', migration: { sourceDisks: 'wipe', maxDowntimeMs: 3_000, bandwidthBytesPerSecond: BANDWIDTH } });
    expect(await evacuation.result()).toMatchObject({ outcome: 'completed', stayed: [], failures: [] });
    return await Promise.all(guests.map(async (guest) => await (await lab.client.migration(guest)).result()));
  } finally {
    over.abort();
    await Promise.all(followed);
  }
}

/** Who worked on the workflow of a guest's migration, task by task. */
async function workersOf(guest: string): Promise<string[]> {
  const { events } = await lab.history(guest);
  return events!.flatMap(({ workflowTaskCompletedEventAttributes }) => workflowTaskCompletedEventAttributes?.identity ?? []);
}

function timestampMs(time: temporal.api.history.v1.IHistoryEvent['eventTime']): number {
  return Number(time!.seconds) * 1000 + time!.nanos! / 1e6;
}

async function found(query: string): Promise<string[]> {
  const ids: string[] = [];
  for await (const { workflowId } of lab.client.temporal.workflow.list({ query })) ids.push(workflowId);
  return ids;
}

/** Who polls for workflow tasks, or did a moment ago. */
async function pollers(): Promise<string[]> {
  const { workflowService } = lab.client.temporal.connection as Connection;
  const { pollers: all } = await workflowService.describeTaskQueue({ namespace: 'default', taskQueue: { name: CONTROL_QUEUE }, taskQueueType: temporal.api.enums.v1.TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW });
  return all.map(({ identity }) => identity!);
}

/** What Temporal learns a moment later. Throws if it never does, and what `holds` throws. */
async function soon(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (const end = performance.now() + 60_000; !(await holds()); await delay(100)) if (performance.now() > end) throw new Error(`not within a minute: ${what}`);
}
