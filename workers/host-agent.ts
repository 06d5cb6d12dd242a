import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Client } from '@temporalio/client';
import { type NativeConnection, Runtime, Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import { createHostActivities } from '../activities';
import { guarded, type HostDependencies } from '../activities/context';
import { receiveGuest } from '../activities/destination';
import { summary } from '../activities/guests';
import { type HostFigures, HostMeter } from '../activities/host-meter';
import { autostartAfterBoot } from '../hypervisor/autostart';
import { readJson, writeDurably } from '../hypervisor/durable';
import { parseWith } from '../hypervisor/definition';
import { endRemedy } from '../hypervisor/copy-mode';
import { guardJob, stopGuard } from '../hypervisor/guard';
import { guardSource } from '../hypervisor/handover';
import { Host } from '../hypervisor/host';
import { guestReport, type HostFacts, hostFacts, rootReports, totalMemoryBytes } from '../hypervisor/host-report';
import type { HostConfig } from '../hypervisor/host-config';
import { LeaseServer } from '../hypervisor/lease';
import { makePrivateFolders } from '../hypervisor/private-folders';
import type { Programs } from '../hypervisor/programs';
import { Switchovers } from '../hypervisor/switchovers';
import { CONTROL_QUEUE, convergencePolicySchema, hostWorkflowId, type HostReport, newsSignal, reportSignal } from '../workflows/messages';
import { connectClient, connectWorker } from './connection';
import type { RunningWorker } from './control';
import { payloadConverter } from './payload-codec';
import { flushTraces, tracing } from './tracing';

export interface RunningAgent extends RunningWorker {
  host: Host;
}

/** Agents that share a process may share its connections to Temporal; whoever made them closes them. */
export interface SharedConnections {
  client: Client;
  connection: NativeConnection;
}

export interface AgentOptions {
  /** Default: the processes of this machine. */
  programs?: Programs;
  shared?: SharedConnections;
}

/** How often a host says that it is there. */
const REFRESH_MS = 30_000;
/** What does not change is in every so manieth report, should the host's entity have been ended in between. */
const FACTS_EVERY = 20;
/**
 * Every poll is a request that stays open, and a frontend of the server takes 1,200 of a namespace (`frontend.namespaceCount`): with the SDK's 10 polls an agent 120 hosts
 * are too many for it. A host gets a task every few seconds.
 */
const POLLS = 2;
/** Activities hear of the stop after this; a window that has begun is finished all the same (R8). */
const GRACE = '100 milliseconds';

/**
 * The agent of one host: the only process that touches its QEMUs, files and sockets. It may be started, stopped and killed at any time;
 * the guests do not notice.
 */
export async function startHostAgent(config: HostConfig, logger: Logger, { programs, shared }: AgentOptions = {}): Promise<RunningAgent> {
  for (const problem of await makePrivateFolders(config)) logger.warn({ host: config.name }, problem);
  parseWith(convergencePolicySchema.partial(), config.migration, `migration in the configuration of ${config.name}`);
  const host = new Host(config, programs);
  const leasePortFile = join(config.stateDir, 'lease-port.json');
  const lease = await LeaseServer.listen(config, readJson<number>(leasePortFile));
  await writeDurably(leasePortFile, String(lease.port));

  const { client, connection, close } = shared ? { ...shared, close: async () => undefined } : await connectOwn(config);
  const facts = await hostFacts(host);
  let reports = 0;
  const meter = new HostMeter(Runtime.instance().metricMeter, config.name);
  const announce = async () => {
    const said = await report(host, facts, reports++ % FACTS_EVERY === 0);
    meter.show(figures(host, said));
    await client.workflow.signalWithStart('host', {
      workflowId: hostWorkflowId(config.name),
      taskQueue: CONTROL_QUEUE,
      args: [config.name],
      staticSummary: `${config.name}: what it said last, and who may move there`,
      signal: reportSignal,
      signalArgs: [said],
    });
    meter.taken();
  };
  const tell: HostDependencies['tell'] = async ({ workflowId, runId }, news) => {
    // Lost news is no loss: the next says as much, and the samples are on the activity.
    await client.workflow.getHandle(workflowId, runId).signal(newsSignal, news).catch((error: Error) => logger.warn({ host: config.name, workflowId, error: error.message }, 'the migration could not be told what has changed'));
  };
  const deps: HostDependencies = { host, lease, logger, meter, announce, tell, switchovers: new Switchovers() };
  await resumeWindows(deps);
  const dataConverter = payloadConverter();
  const traces = await tracing('vmferry-agent', (message) => logger.warn({ host: config.name }, message));
  const worker = await Worker.create({
    ...traces?.activities,
    connection,
    namespace: client.options.namespace,
    taskQueue: config.name,
    ...(dataConverter && { dataConverter }),
    activities: createHostActivities(deps),
    shutdownGraceTime: GRACE,
    // Progress is live, and a cancel arrives, within half a second.
    maxHeartbeatThrottleInterval: '500 milliseconds',
    defaultHeartbeatThrottleInterval: '500 milliseconds',
    maxConcurrentActivityTaskExecutions: 200,
    // The SDK (1.24) takes no notice of maxConcurrentActivityTaskPolls.
    activityTaskPollerBehavior: { type: 'simple-maximum', maximum: POLLS },
  });
  const done = worker.run();
  done.catch(() => undefined);
  // A guest on its way is gone on with first: whose it is must be settled before anything is started.
  for (const { guest, error } of await autostartAfterBoot(host)) {
    if (error) logger.error({ host: config.name, guest, error }, 'this host has booted, and a guest with autostart could not be started');
    else logger.info({ host: config.name, guest }, 'this host has booted: a guest with autostart was started');
  }
  await announce();
  const refresh = setInterval(() => {
    announce().catch((error: Error) => logger.warn({ host: config.name, error: error.message }, 'Temporal does not take this host\'s report'));
    deleteExpiredImages(host, logger).catch((error: Error) => logger.warn({ host: config.name, error: error.message }, 'kept images could not be deleted'));
  }, REFRESH_MS);
  logger.info({ host: config.name, address: config.address, leasePort: lease.port, guests: host.store.names() }, 'agent runs');
  return {
    host,
    done,
    stop: async () => {
      clearInterval(refresh);
      if (worker.getState() === 'RUNNING') worker.shutdown();
      await done.catch(() => undefined);
      await flushTraces();
      // Windows that have begun are finished; for others a guard stays.
      await deps.switchovers.leave();
      await lease.close();
      host.close();
      await close();
    },
  };
}

async function connectOwn(config: HostConfig): Promise<SharedConnections & { close: () => Promise<void> }> {
  const { client, connection: clientConnection } = await connectClient(config.temporal);
  const { connection } = await connectWorker(config.temporal);
  return {
    client,
    connection,
    close: async () => {
      await connection.close();
      await clientConnection.close();
    },
  };
}

/**
 * Takes over from the guards of an agent that ended before this one: their windows are this agent's again. Whether a guest was paused when
 * that happened is seen before anything else is done.
 */
async function resumeWindows(deps: HostDependencies): Promise<void> {
  const { host, switchovers, logger } = deps;
  await Promise.all(
    host.store.names().map(async (guest) => {
      const job = guardJob(host, guest);
      if (!job) return;
      await stopGuard(host, guest);
      if (!host.process(guest)) return;
      logger.info({ host: host.name, guest, role: job.role }, 'goes on with a switchover that an agent left');
      if (job.role === 'remedy') await endRemedy(host, guest);
      else if (job.role === 'destination') await receiveGuest(deps, guest, job.attempt);
      else await switchovers.start(guest, 'watch', async ({ leave }) => await guarded(host, job, () => guardSource(host, guest, job.plan, leave)));
    }),
  ).catch((error: Error) => logger.error({ host: host.name, error: error.message }, 'a switchover that an agent left cannot be gone on with'));
}

async function report(host: Host, facts: HostFacts, withFacts: boolean): Promise<HostReport> {
  const guests = await Promise.all(host.store.names().map(async (name) => guestReport(host, name, (await summary(host, name)).state)));
  return { name: host.name, address: host.config.address, guests, totalMemoryBytes: totalMemoryBytes(host), freeMemoryBytes: host.freeMemory(), roots: rootReports(host), ...(withFacts && { facts }) };
}

function figures({ store }: Host, { guests }: HostReport): HostFigures {
  const attempts = store.names().flatMap((guest) => {
    const role = store.attempt(guest)?.role;
    return role === undefined ? [] : [{ guest, role }];
  });
  return { states: guests.map(({ state }) => state), attempts, keptImages: store.kept().reduce((sum, { paths }) => sum + paths.length, 0) };
}

/** Source images that were put aside for a set time go when it is over. */
export async function deleteExpiredImages(host: Host, logger: Logger, now = new Date()): Promise<void> {
  const kept = host.store.kept();
  const expired = kept.filter(({ until }) => new Date(until) <= now);
  if (expired.length === 0) return;
  for (const { paths, guest } of expired) {
    for (const path of paths) {
      await unlink(path).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error;
      });
    }
    logger.info({ host: host.name, guest, paths }, 'deleted the images of a guest that left');
  }
  await host.store.setKept(kept.filter((one) => !expired.includes(one)));
}
