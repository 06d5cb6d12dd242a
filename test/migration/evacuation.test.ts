import { execFileSync } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { WorkflowHandle } from '@temporalio/client';
import { knownHosts } from '../../activities/fleet';
import type { evacuateHost } from '../../workflows/evacuate-host';
import { type EvacuateHostInput, evacuationQuery, type EvacuationStatus, evacuationWorkflowId } from '../../workflows/evacuation';
import { CONTROL_QUEUE } from '../../workflows/messages';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab, MIB } from '../support/lab';

const RUNNING = ['ant', 'bee', 'cat', 'dog'];
const LIMITS = { fleet: 2, perSource: 2, perDestination: 1 };
const DISKS = [{ sizeBytes: 16 * MIB }, { sizeBytes: 16 * MIB }];

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open({ 'host-a': '127.0.0.1', 'host-b': '::1', 'host-c': '127.0.0.1' });
}, 60_000);
afterAll(async () => await lab?.close());

async function evacuate(input: EvacuateHostInput): Promise<WorkflowHandle<typeof evacuateHost>> {
  return await lab.client.temporal.workflow.start<typeof evacuateHost>('evacuateHost', { workflowId: evacuationWorkflowId(input.host), taskQueue: CONTROL_QUEUE, args: [input] });
}

async function untilStatus(evacuation: WorkflowHandle, so: (status: EvacuationStatus) => boolean): Promise<EvacuationStatus> {
  for (;;) {
    const status = await evacuation.query(evacuationQuery);
    if (status.phase === 'done' || so(status)) return status;
    await delay(100);
  }
}

interface Move {
  to: string;
  startMs: number;
  closeMs: number;
}

/** When each of an evacuation's moves was under way, failed ones too, by the server's own times. */
async function movesOf(evacuation: WorkflowHandle): Promise<Move[]> {
  const { events } = await evacuation.fetchHistory();
  return await Promise.all(
    events!.flatMap(({ childWorkflowExecutionStartedEventAttributes: started }) => (started ? [started.workflowExecution!] : [])).map(async ({ workflowId, runId }) => {
      const { startTime, closeTime, searchAttributes } = await lab.client.temporal.workflow.getHandle(workflowId!, runId!).describe();
      return { to: String(searchAttributes['VmferryDestination']), startMs: startTime.getTime(), closeMs: closeTime!.getTime() };
    }),
  );
}

/** The most that were under way at any moment: it is reached when one begins. */
const most = (moves: Move[]) => Math.max(0, ...moves.map(({ startMs }) => moves.filter((other) => other.startMs <= startMs && startMs < other.closeMs).length));

test('a host is emptied of guests that write, and of one that does not run, within the limits, while a destination\'s agent is stopped and comes back', async () => {
  const small = { disks: DISKS, rate: '1M', memory: '4M', dirty: '512K' };
  const still = await lab.boot('host-a', 'still', { ...small, dirtyBase: true }, 100);
  still.close();
  await lab.client.onHost('host-a', 'stopGuest', { guest: 'still', graceMs: 0 });
  const before = DISKS.map((_, index) => join(lab.folder, `still-${index}.before`));
  before.forEach((copy, index) => copyFileSync(lab.image('host-a', `still-${index}.raw`), copy));
  await Promise.all(RUNNING.map((name) => lab.boot('host-a', name, small, 50)));

  const over = new AbortController();
  const followed = RUNNING.flatMap((name) => ['host-b', 'host-c'].map((host) => lab.follow(name, host, over.signal)));
  const evacuation = await evacuate({ host: 'host-a', limits: LIMITS, tries: 4, maxFailures: 10, migration: { sourceDisks: 'wipe', maxDowntimeMs: 3_000, bandwidthBytesPerSecond: 12_000_000, memory: { maxBandwidthBytesPerSecond: 1e9 } } });
  const { moving } = await untilStatus(evacuation, ({ moved, moving }) => moved.length > 0 && moving.some(({ guest, to }) => to === 'host-b' && guest !== 'still'));
  const { guest: onItsWay } = moving.find(({ to }) => to === 'host-b')!;
  await lab.phase(onItsWay, 'converge');
  await lab.stopAgent('host-b');
  // It is needed now, and waited for.
  await lab.phase(onItsWay, 'memory');
  await delay(1_000);
  await lab.startAgent('host-b');
  const report = await evacuation.result();
  over.abort();
  await Promise.all(followed);

  expect(report).toMatchObject({ outcome: 'completed', stayed: [], planned: [], moving: [], failures: [] });
  const where = Object.fromEntries(report.moved.map(({ guest, to }) => [guest, to]));
  expect(Object.keys(where).sort()).toEqual([...RUNNING, 'still']);
  expect(report.moved.filter(({ cold }) => cold).map(({ guest }) => guest)).toEqual(['still']);
  expect(new Set(Object.values(where))).toEqual(new Set(['host-b', 'host-c']));

  const moves = await movesOf(evacuation);
  expect(moves.length).toBeGreaterThanOrEqual(5);
  expect(most(moves)).toBe(LIMITS.fleet);
  for (const host of ['host-b', 'host-c']) expect(most(moves.filter(({ to }) => to === host))).toBe(LIMITS.perDestination);

  before.forEach((copy, index) => execFileSync('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', copy, lab.image(where['still']!, `still-${index}.raw`)]));
  await lab.client.onHost(where['still']!, 'startGuest', { guest: 'still' });
  for (const name of RUNNING) {
    await expectRuns(lab, where[name]!, name);
    await expectWhole(lab.guests.get(name)!);
  }
  await expectRuns(lab, where['still']!, 'still');
  const on = (host: string) => Object.keys(where).filter((guest) => where[guest] === host);
  await expectClean(lab, { 'host-a': [], 'host-b': on('host-b'), 'host-c': on('host-c') });

  const hosts = await knownHosts(lab.client.temporal);
  expect(hosts.map(({ name, reservations }) => ({ name, reservations }))).toEqual(['host-a', 'host-b', 'host-c'].map((name) => ({ name, reservations: [] })));
  expect(hosts.map(({ cordoned }) => cordoned?.reason)).toEqual(['evacuate/host-a', undefined, undefined]);
}, 120_000);
