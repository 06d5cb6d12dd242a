import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Client, Connection } from '@temporalio/client';
import { pino } from 'pino';
import { type RunningWorker, startControlWorker } from '../../workers/control';
import { installRuntime } from '../../workers/logger';
import { findTemporal, freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { CONTROL_QUEUE, DEPLOYMENT } from '../../workflows/messages';

/** Upgrades of control workers with worker versioning: opt-in, by VMFERRY_BUILD. */
const folder = mkdtempSync(join(tmpdir(), 'vmv-'));
const logger = pino({ level: 'silent' });
const workers: RunningWorker[] = [];
let server: TemporalServer;
let connection: Connection;

beforeAll(async () => {
  installRuntime(logger);
  server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(folder, 'temporal.log') });
  connection = await Connection.connect({ address: server.address });
}, 60_000);
afterAll(async () => {
  await Promise.all(workers.map((worker) => worker.stop()));
  await connection?.close();
  await server?.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function startBuild(buildId: string): Promise<void> {
  process.env['VMFERRY_BUILD'] = buildId;
  try {
    workers.push(await startControlWorker({ temporal: { address: server.address, namespace: 'default' }, logger }));
  } finally {
    delete process.env['VMFERRY_BUILD'];
  }
}

/** Until the server has heard of the build's pollers it refuses to make it current. */
async function makeCurrent(buildId: string): Promise<void> {
  const args = ['worker', 'deployment', 'set-current-version', '--address', server.address, '--deployment-name', DEPLOYMENT, '--build-id', buildId, '--yes'];
  for (const end = Date.now() + 30_000; ; await delay(200)) {
    try {
      return void execFileSync(findTemporal(), args, { stdio: 'pipe' });
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
}

/** The builds whose workers took this workflow's tasks, in order. */
async function buildsOf(client: Client, workflowId: string): Promise<string[]> {
  const { events } = await client.workflow.getHandle(workflowId).fetchHistory();
  return (events ?? []).flatMap(({ workflowTaskCompletedEventAttributes: done }) => (done?.deploymentVersion?.buildId ? [done.deploymentVersion.buildId] : []));
}

test('a move stays with the build that began it, a host goes on with the current one, and new moves begin with it', async () => {
  const client = new Client({ connection });
  await startBuild('one');
  await makeCurrent('one');
  const report = { name: 'host-a', address: '127.0.0.1', guests: [], totalMemoryBytes: 1, freeMemoryBytes: 1, roots: [] };
  await client.workflow.signalWithStart('host', { workflowId: 'host/host-a', taskQueue: CONTROL_QUEUE, args: ['host-a'], signal: 'report', signalArgs: [report] });
  // It waits for an agent that does not exist, for ten seconds.
  const old = await client.workflow.start('hostCommand', { workflowId: 'old', taskQueue: CONTROL_QUEUE, args: [{ host: 'nowhere', command: 'listGuests', input: {} }] });
  while ((await buildsOf(client, 'old')).length === 0) await delay(50);
  await startBuild('two');
  await makeCurrent('two');
  // The server tells its task queues of the new build after its answer: a host reports again and again, and so goes on with it.
  const host = client.workflow.getHandle('host/host-a');
  for (const end = Date.now() + 30_000; (await buildsOf(client, 'host/host-a')).at(-1) !== 'two' && Date.now() < end; await delay(200)) await host.signal('report', report);
  await old.result().catch(() => undefined);
  const refused = await client.workflow.start('migrateVm', { workflowId: 'new', taskQueue: CONTROL_QUEUE, args: [{ vm: 'web', to: 'nowhere' }] });
  await expect(refused.result()).rejects.toThrow();
  expect([...new Set(await buildsOf(client, 'old'))]).toEqual(['one']);
  expect([...new Set(await buildsOf(client, 'new'))]).toEqual(['two']);
  expect((await buildsOf(client, 'host/host-a')).at(-1)).toBe('two');
}, 120_000);
