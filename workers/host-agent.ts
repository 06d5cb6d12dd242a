import { mkdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import { createHostActivities } from '../activities';
import { summary } from '../activities/guests';
import { readJson, writeDurably } from '../hypervisor/durable';
import { Host } from '../hypervisor/host';
import type { HostConfig } from '../hypervisor/host-config';
import { LeaseServer } from '../hypervisor/lease';
import { CONTROL_QUEUE, hostWorkflowId, type HostReport, reportSignal } from '../workflows/messages';
import { connectClient, connectWorker } from './connection';
import type { RunningWorker } from './control';

export interface RunningAgent extends RunningWorker {
  host: Host;
}

/** How often a host says that it is there. */
const REFRESH_MS = 30_000;
/** Activities hear of the stop after this; a window that has begun is finished all the same (R8). */
const GRACE = '100 milliseconds';

/**
 * The agent of one host: the only process that touches its QEMUs, files and sockets. It may be started, stopped and killed at any time;
 * the guests do not notice.
 */
export async function startHostAgent(config: HostConfig, logger: Logger): Promise<RunningAgent> {
  await mkdir(config.stateDir, { recursive: true, mode: 0o700 });
  await mkdir(config.runDir, { recursive: true, mode: 0o700 });
  const host = new Host(config);
  const leasePortFile = join(config.stateDir, 'lease-port.json');
  const lease = await LeaseServer.listen(config, readJson<number>(leasePortFile));
  await writeDurably(leasePortFile, String(lease.port));

  const { client, connection: clientConnection } = await connectClient(config.temporal);
  const { connection, namespace } = await connectWorker(config.temporal);
  const announce = async () => {
    await client.workflow.signalWithStart('host', {
      workflowId: hostWorkflowId(config.name),
      taskQueue: CONTROL_QUEUE,
      args: [config.name],
      signal: reportSignal,
      signalArgs: [await report(host)],
    });
  };
  const worker = await Worker.create({
    connection,
    namespace,
    taskQueue: config.name,
    activities: createHostActivities({ host, lease, logger, announce }),
    shutdownGraceTime: GRACE,
    // Progress is live, and a cancel arrives, within half a second.
    maxHeartbeatThrottleInterval: '500 milliseconds',
    defaultHeartbeatThrottleInterval: '500 milliseconds',
    maxConcurrentActivityTaskExecutions: 200,
  });
  const done = worker.run();
  done.catch(() => undefined);
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
      await lease.close();
      host.close();
      await connection.close();
      await clientConnection.close();
    },
  };
}

async function report(host: Host): Promise<HostReport> {
  const guests = await Promise.all(host.store.names().map(async (name) => ({ name, state: (await summary(host, name)).state })));
  return { name: host.name, address: host.config.address, guests, freeMemoryBytes: host.freeMemory() };
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
