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
import { payloadConverter } from './payload-codec';
import { flushTraces, tracing } from './tracing';

/** A part of vmferry that runs until it is stopped; stopping never touches a guest. */
export interface RunningWorker {
  /** Rejects if the worker fails. */
  done: Promise<void>;
  stop(): Promise<void>;
}

/** What a bundle of the workflows takes part in: without traces it has nothing of OpenTelemetry; when `sealed`, the words of a workflow's failures are payloads that are encrypted too. */
export interface BundleKind {
  sealed?: boolean;
  traced?: boolean;
}

export const bundleName = ({ sealed, traced }: BundleKind) => `workflow-bundle${sealed ? '-sealed' : ''}${traced ? '-traced' : ''}.js`;

/** Where a bundle is, if it was built: beside this file's compiled form, or, when this is run from source, where the build puts it. */
export function builtBundle(kind: BundleKind = {}): { codePath: string } | undefined {
  const codePath = [__dirname, join(__dirname, '../dist/workers')].map((folder) => join(folder, bundleName(kind))).find(existsSync);
  return codePath === undefined ? undefined : { codePath };
}


export async function bundleWorkflows({ sealed = false, traced = false }: BundleKind = {}): Promise<WorkflowBundleWithSourceMap> {
  const quiet = { trace() {}, debug() {}, info() {}, log() {}, warn: console.warn, error: console.error };
  return await bundleWorkflowCode({
    workflowsPath: require.resolve('../workflows'),
    ...(sealed && { failureConverterPath: require.resolve('./failure-converter') }),
    ...(traced && { workflowInterceptorModules: [require.resolve('../workflows/tracing')] }),
    logger: quiet,
  });
}

export interface ControlOptions {
  temporal?: TemporalAddress;
  logger: Logger;
  /** Workflows that are kept in memory; with 0 every task replays from the start. Default: the SDK's. */
  cachedWorkflows?: number;
}

/** Runs all workflows. Any number of these may run; they hold no state. */
export async function startControlWorker(options: ControlOptions): Promise<RunningWorker> {
  const { client, connection: clientConnection } = await connectClient(options.temporal);
  await ensureSearchAttributes(clientConnection, client.options.namespace);
  const { connection, namespace } = await connectWorker(options.temporal);
  const dataConverter = payloadConverter();
  const traces = await tracing('vmferry-control', (message) => options.logger.warn(message));
  const kind = { sealed: dataConverter !== undefined, traced: traces !== undefined };
  const worker = await Worker.create({
    ...traces?.workflows,
    connection,
    namespace,
    taskQueue: CONTROL_QUEUE,
    workflowBundle: builtBundle(kind) ?? (await bundleWorkflows(kind)),
    ...(dataConverter && { dataConverter }),
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
