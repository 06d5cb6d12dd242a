import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Connection } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import { bundleWorkflowCode, Runtime, Worker, type WorkerOptions, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import type { Logger } from 'pino';
import { fleetActivities } from '../activities/fleet';
import { CONTROL_QUEUE, DEPLOYMENT, SEARCH_ATTRIBUTES } from '../workflows/messages';
import { Census } from './census';
import { connectClient, connectWorker, type TemporalAddress } from './connection';
import { countFromZero, metricsAreOn } from './metrics';
import { flushTraces, tracing } from './tracing';

/** A part of vmferry that runs until it is stopped; stopping never touches a guest. */
export interface RunningWorker {
  /** Rejects if the worker fails. */
  done: Promise<void>;
  stop(): Promise<void>;
}

/** Where `npm run build` puts the workflows' bundles, beside this file's compiled form. */
export const BUNDLE_PATH = join(__dirname, 'workflow-bundle.js');
export const TRACED_BUNDLE_PATH = join(__dirname, 'workflow-bundle-traced.js');

/** A bundle that takes part in traces is another one: without them it has nothing of OpenTelemetry. */
export async function bundleWorkflows({ traced = false }: { traced?: boolean } = {}): Promise<WorkflowBundleWithSourceMap> {
  const quiet = { trace() {}, debug() {}, info() {}, log() {}, warn: console.warn, error: console.error };
  return await bundleWorkflowCode({ workflowsPath: require.resolve('../workflows'), ...(traced && { workflowInterceptorModules: [require.resolve('../workflows/tracing')] }), logger: quiet });
}

export interface ControlOptions {
  temporal?: TemporalAddress;
  logger: Logger;
  bundle?: WorkflowBundleWithSourceMap;
  /** Workflows that are kept in memory; with 0 every task replays from the start. Default: the SDK's. */
  cachedWorkflows?: number;
}

/** Runs all workflows. Any number of these may run; they hold no state. */
export async function startControlWorker(options: ControlOptions): Promise<RunningWorker> {
  const { client, connection: clientConnection } = await connectClient(options.temporal);
  await ensureSearchAttributes(clientConnection, client.options.namespace);
  const { connection, namespace } = await connectWorker(options.temporal);
  const traces = await tracing('vmferry-control', (message) => options.logger.warn(message));
  const built = traces ? TRACED_BUNDLE_PATH : BUNDLE_PATH;
  const worker = await Worker.create({
    ...traces?.workflows,
    connection,
    namespace,
    taskQueue: CONTROL_QUEUE,
    workflowBundle: options.bundle ?? (existsSync(built) ? { codePath: built } : await bundleWorkflows({ traced: traces !== undefined })),
    activities: fleetActivities(client),
    shutdownGraceTime: '10 seconds',
    ...(options.cachedWorkflows !== undefined && { maxCachedWorkflows: options.cachedWorkflows }),
    ...versioning(process.env['VMFERRY_BUILD']),
  });
  const done = worker.run();
  done.catch(() => undefined);
  const census = metricsAreOn() ? new Census(client, Runtime.instance().metricMeter, options.logger) : undefined;
  if (census) countFromZero(Runtime.instance().metricMeter, namespace);
  census?.start();
  options.logger.info({ namespace }, 'control worker runs');
  return {
    done,
    stop: async () => {
      await census?.stop();
      if (worker.getState() === 'RUNNING') worker.shutdown();
      await done.catch(() => undefined);
      await flushTraces();
      await connection.close();
      await clientConnection.close();
    },
  };
}

/**
 * Opt-in: with a build id a migration stays with the control workers of the build that began it, and new ones begin with the build that is current
 * (`temporal worker deployment set-current-version`); without one, workers of any age take every task, and the code must replay (test/replay).
 */
function versioning(buildId: string | undefined): Pick<WorkerOptions, 'workerDeploymentOptions'> {
  if (!buildId) return {};
  return { workerDeploymentOptions: { version: { deploymentName: DEPLOYMENT, buildId }, useWorkerVersioning: true, defaultVersioningBehavior: 'PINNED' } };
}

/** How far apart control workers that start at once make search attributes known; to do so takes about 20 ms. */
const SPREAD_MS = 2_000;

/** A workflow that sets an attribute which the server does not know would hang: makes them known first. */
async function ensureSearchAttributes(connection: Connection, namespace: string): Promise<void> {
  const missing = async () => {
    const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
    return Object.values(SEARCH_ATTRIBUTES).filter(({ name }) => !Object.hasOwn(customAttributes, name));
  };
  if ((await missing()).length === 0) return;
  // On a SQL database the server gives a name any free column of its ten. Of two that ask at once each may get one (seen with 1.29.1): nothing
  // then says which of the two the name means, and searches can miss migrations. This makes it unlikely, not impossible.
  await delay(Math.random() * SPREAD_MS);
  const names = (await missing()).map(({ name }) => name);
  if (names.length === 0) return;
  const KEYWORD = temporal.api.enums.v1.IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD;
  await connection.operatorService.addSearchAttributes({ namespace, searchAttributes: Object.fromEntries(names.map((name) => [name, KEYWORD])) });
}
