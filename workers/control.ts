import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Connection } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import { bundleWorkflowCode, Worker, type WorkerOptions, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import type { Logger } from 'pino';
import { fleetActivities } from '../activities/fleet';
import { CONTROL_QUEUE, DEPLOYMENT, SEARCH_ATTRIBUTES } from '../workflows/messages';
import { connectClient, connectWorker, type TemporalAddress } from './connection';
import { payloadConverter } from './payload-codec';

/** A part of vmferry that runs until it is stopped; stopping never touches a guest. */
export interface RunningWorker {
  /** Rejects if the worker fails. */
  done: Promise<void>;
  stop(): Promise<void>;
}

/** Where `npm run build` puts the workflows' bundle, beside this file's compiled form; one for plain payloads, and one for encrypted ones. */
export const bundlePath = (sealed: boolean) => join(__dirname, sealed ? 'workflow-bundle-sealed.js' : 'workflow-bundle.js');

/** `sealed`: with payload encryption, the words of a workflow's failures are payloads too. */
export async function bundleWorkflows(sealed = false): Promise<WorkflowBundleWithSourceMap> {
  const quiet = { trace() {}, debug() {}, info() {}, log() {}, warn: console.warn, error: console.error };
  return await bundleWorkflowCode({ workflowsPath: require.resolve('../workflows'), ...(sealed && { failureConverterPath: require.resolve('./failure-converter') }), logger: quiet });
}

/** Runs all workflows. Any number of these may run; they hold no state. */
export async function startControlWorker(options: { temporal?: TemporalAddress; logger: Logger; bundle?: WorkflowBundleWithSourceMap }): Promise<RunningWorker> {
  const { client, connection: clientConnection } = await connectClient(options.temporal);
  await ensureSearchAttributes(clientConnection, client.options.namespace);
  const { connection, namespace } = await connectWorker(options.temporal);
  const dataConverter = payloadConverter();
  const sealed = dataConverter !== undefined;
  const worker = await Worker.create({
    connection,
    namespace,
    taskQueue: CONTROL_QUEUE,
    workflowBundle: options.bundle ?? (existsSync(bundlePath(sealed)) ? { codePath: bundlePath(sealed) } : await bundleWorkflows(sealed)),
    ...(dataConverter && { dataConverter }),
    activities: fleetActivities(client),
    shutdownGraceTime: '10 seconds',
    ...versioning(process.env['VMFERRY_BUILD']),
  });
  const done = worker.run();
  done.catch(() => undefined);
  options.logger.info({ namespace }, 'control worker runs');
  return {
    done,
    stop: async () => {
      if (worker.getState() === 'RUNNING') worker.shutdown();
      await done.catch(() => undefined);
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
