import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type { Client, Connection } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import { knownHosts } from '../../activities/fleet';
import { type Check, check, type Finding, ok, problem, warning } from '../../hypervisor/doctor/findings';
import { SILENT_AFTER_MS } from '../../workflows/fleet';
import { CONTROL_QUEUE, SEARCH_ATTRIBUTES } from '../../workflows/messages';
import type { Leftover, MigrationClient } from '../migration-client';
import { formatDuration } from '../quantities';

const { IndexedValueType, TaskQueueType } = temporal.api.enums.v1;

export interface TemporalContext {
  /** Where it is looked for. */
  address: string;
  namespace: string;
  /** Undefined if nobody answers there: the check `temporal` says so, and the others find nothing. */
  client: Promise<MigrationClient | undefined>;
  /** Why nobody answers. */
  failure: Promise<string | undefined>;
}

const CALL_MS = 15_000;

/** Checks of what is behind the connection. */
function behind<Facts>(name: string, about: string, look: (client: Client, signal: AbortSignal, vmferry: MigrationClient) => Promise<Facts>, judge: (facts: Facts, context: TemporalContext) => Finding[]): Check<TemporalContext> {
  return {
    name,
    about,
    deadlineMs: 2 * CALL_MS,
    run: async (context, signal) => {
      const vmferry = await context.client;
      return vmferry ? judge(await look(vmferry.temporal, signal, vmferry), context) : [];
    },
  };
}

/** What `vmferry doctor` looks at from any machine. Nothing is changed; the clock's check shows for some minutes as a poller of the queue `vmferry-doctor`. */
export const TEMPORAL_CHECKS: readonly Check<TemporalContext>[] = [
  check('temporal', 'a Temporal server answers at the address that is in force, and its version', 2 * CALL_MS, lookAtServer, judgeServer),
  behind('namespace', 'the namespace exists, takes updates, and keeps ended migrations for a day or more', lookAtNamespace, judgeNamespace),
  behind('search-attributes', 'each [search attribute](#temporal) is registered, as a Keyword', lookAtSearchAttributes, judgeSearchAttributes),
  behind('clock', 'this machine\'s clock against the server\'s: a warning from 1 s, a problem from 30 s on', lookAtClock, judgeClock),
  behind('control-worker', 'a control worker polls the queue `vmferry-control`', async (client) => ({ agesMs: await pollersOf(client, CONTROL_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW) }), judgeControlWorker),
  behind('hosts', 'hosts are known, were heard of within 75 s, and their agents poll their queues', lookAtHosts, judgeHosts),
  behind('unfinished', 'what hosts that were away have [still to do](#leftovers)', async (_client, _signal, vmferry) => await vmferry.leftovers(), judgeUnfinished),
];

export interface ServerFacts {
  version?: string;
  failure?: string;
}

async function lookAtServer({ client, failure }: TemporalContext): Promise<ServerFacts> {
  const vmferry = await client;
  if (!vmferry) return { failure: (await failure) ?? 'nobody answers' };
  const { serverVersion } = await serviceOf(vmferry.temporal).getSystemInfo({});
  return { version: serverVersion };
}

export function judgeServer({ version, failure }: ServerFacts, { address }: Pick<TemporalContext, 'address'>): Finding[] {
  if (failure !== undefined) return [problem(`no Temporal server answers at ${address} (${failure})`, 'start one (vmferry dev, or temporal server start-dev), or correct TEMPORAL_ADDRESS, --temporal-address or temporal.address')];
  return [ok(`Temporal ${version || 'of an unknown version'} answers at ${address}`)];
}

export interface NamespaceFacts {
  exists: boolean;
  updates: boolean;
  retentionHours: number;
}

async function lookAtNamespace(client: Client): Promise<NamespaceFacts> {
  try {
    const { namespaceInfo, config } = await serviceOf(client).describeNamespace({ namespace: client.options.namespace });
    const { syncUpdate, asyncUpdate } = namespaceInfo?.capabilities ?? {};
    return { exists: true, updates: (syncUpdate ?? false) && (asyncUpdate ?? false), retentionHours: Number(config?.workflowExecutionRetentionTtl?.seconds ?? 0) / 3600 };
  } catch (error) {
    if ((error as { code?: number }).code === NOT_FOUND) return { exists: false, updates: false, retentionHours: 0 };
    throw error;
  }
}

/** gRPC's status code. */
const NOT_FOUND = 5;

export function judgeNamespace({ exists, updates, retentionHours }: NamespaceFacts, { namespace }: Pick<TemporalContext, 'namespace'>): Finding[] {
  if (!exists) return [problem(`there is no namespace "${namespace}"`, `temporal operator namespace create --retention 720h ${namespace}, or correct TEMPORAL_NAMESPACE, --namespace or temporal.namespace`)];
  if (!updates) return [problem(`namespace "${namespace}" takes no updates: nothing could be reserved, steered or approved`, 'upgrade the Temporal server (tried with 1.29.1), or set frontend.enableUpdateWorkflowExecution in its dynamic configuration')];
  if (retentionHours < 24) return [warning(`namespace "${namespace}" forgets ended migrations after ${retentionHours} h`, `temporal operator namespace update --retention 720h ${namespace}`)];
  return [ok(`namespace "${namespace}" is there and keeps ended migrations for ${formatDuration(retentionHours * 3_600_000)}`)];
}

/** Each name with its type's name, `Keyword`. */
export type SearchAttributeFacts = Record<string, string>;

async function lookAtSearchAttributes(client: Client): Promise<SearchAttributeFacts> {
  const { customAttributes } = await (client.connection as Connection).operatorService.listSearchAttributes({ namespace: client.options.namespace });
  return Object.fromEntries(Object.entries(customAttributes).map(([name, type]) => [name, typeName(type)]));
}

/** `INDEXED_VALUE_TYPE_KEYWORD_LIST` is what the `temporal` command calls `KeywordList`. */
const typeName = (type: number) => (IndexedValueType[type] ?? 'Unspecified').replace('INDEXED_VALUE_TYPE_', '').toLowerCase().replace(/(^|_)([a-z])/g, (_all, _line, letter: string) => letter.toUpperCase());

export function judgeSearchAttributes(known: SearchAttributeFacts): Finding[] {
  const names = Object.values(SEARCH_ATTRIBUTES).map(({ name }) => name);
  const [missing, wrong] = [names.filter((name) => !Object.hasOwn(known, name)), names.filter((name) => Object.hasOwn(known, name) && known[name] !== 'Keyword')];
  const create = (some: string[]) => `temporal operator search-attribute create ${some.map((name) => `--name ${name} --type Keyword`).join(' ')}`;
  const found = [
    ...(missing.length > 0 ? [problem(`search attributes are not registered: ${missing.join(', ')}: no migration can begin`, `start a control worker, which registers them (vmferry control), or: ${create(missing)}`)] : []),
    ...wrong.map((name) => problem(`search attribute ${name} is of type ${known[name]}, not Keyword`, `temporal operator search-attribute remove --name ${name} --yes && ${create([name])}`)),
  ];
  return found.length > 0 ? found : [ok(`all ${names.length} search attributes are registered as Keyword`)];
}

/** When the server says that we asked it, and between which moments of this machine's clock that was; ms since the epoch. */
export interface ClockFacts {
  serverMs: number;
  beforeMs: number;
  afterMs: number;
}

const CLOCK_QUEUE = 'vmferry-doctor';
const CLOCK_LOOK_MS = 20;
/** The server refuses a poll with less. */
const POLL_MS = 60_000;

/** No call gives the server's time; but it notes when a queue was polled. So polls one that nobody else uses, and reads that. */
async function lookAtClock(client: Client, signal: AbortSignal): Promise<ClockFacts> {
  const { namespace } = client.options;
  const identity = `doctor@${hostname()} ${randomUUID()}`;
  const service = serviceOf(client);
  const over = new AbortController();
  const beforeMs = Date.now();
  const polling = client.connection.withDeadline(Date.now() + POLL_MS, () => client.connection.withAbortSignal(over.signal, () => service.pollActivityTaskQueue({ namespace, taskQueue: { name: CLOCK_QUEUE }, identity }))).then(
    () => undefined,
    (error: Error) => error,
  );
  try {
    for (;;) {
      const refused = await Promise.race([polling, delay(CLOCK_LOOK_MS, undefined, { signal })]);
      if (refused) throw refused;
      const { pollers } = await service.describeTaskQueue({ namespace, taskQueue: { name: CLOCK_QUEUE }, taskQueueType: TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY });
      const mine = pollers?.find((poller) => poller.identity === identity)?.lastAccessTime;
      if (mine) return { serverMs: timeMs(mine), beforeMs, afterMs: Date.now() };
    }
  } finally {
    over.abort();
  }
}

const CLOCK_WARNING_MS = 1_000;
/** Hosts that have been silent for 75 s count as unreachable, by the clock of whoever asks. */
const CLOCK_PROBLEM_MS = 30_000;

export function judgeClock({ serverMs, beforeMs, afterMs }: ClockFacts): Finding[] {
  const [ahead, behindBy] = [serverMs - afterMs, beforeMs - serverMs];
  const apartMs = Math.max(ahead, behindBy, 0);
  const saw = `this machine's clock is ${apartMs === 0 ? `the server's, within ${afterMs - beforeMs} ms` : `${formatDuration(apartMs)} ${ahead > 0 ? 'behind' : 'ahead of'} the server's`}`;
  const fix = 'keep clocks in step: timedatectl set-ntp true, or chronyc makestep';
  if (apartMs >= CLOCK_PROBLEM_MS) return [problem(saw, fix)];
  return [apartMs >= CLOCK_WARNING_MS ? warning(saw, fix) : ok(saw)];
}

/** A worker polls for a minute at a time; the server remembers one that has ended for five. */
const POLLS_WITHIN_MS = 75_000;

/** How long ago each poller of a queue asked last, by this machine's clock; only those that may poll still. */
async function pollersOf(client: Client, queue: string, type: temporal.api.enums.v1.TaskQueueType): Promise<number[]> {
  const { pollers } = await serviceOf(client).describeTaskQueue({ namespace: client.options.namespace, taskQueue: { name: queue }, taskQueueType: type });
  return (pollers ?? []).map(({ lastAccessTime }) => (lastAccessTime ? Math.max(0, Date.now() - timeMs(lastAccessTime)) : Infinity)).filter((ageMs) => ageMs <= POLLS_WITHIN_MS);
}

export function judgeControlWorker({ agesMs }: { agesMs: number[] }): Finding[] {
  if (agesMs.length === 0) return [problem(`no control worker polls the queue ${CONTROL_QUEUE}: nothing begins, and moves under way stand still`, 'start one: vmferry control')];
  return [ok(`${agesMs.length === 1 ? 'one poller asks' : `${agesMs.length} pollers ask`} for tasks of ${CONTROL_QUEUE}, the last ${formatDuration(Math.min(...agesMs))} ago`)];
}

export interface HostsFacts {
  /** Without a control worker hosts cannot be asked for. */
  asked: boolean;
  hosts: { name: string; silentMs: number; polls: boolean }[];
}

async function lookAtHosts(client: Client): Promise<HostsFacts> {
  if ((await pollersOf(client, CONTROL_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)).length === 0) return { asked: false, hosts: [] };
  const hosts = await knownHosts(client);
  return { asked: true, hosts: await Promise.all(hosts.map(async ({ name, reportedAt }) => ({ name, silentMs: Math.max(0, Date.now() - Date.parse(reportedAt)), polls: (await pollersOf(client, name, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)).length > 0 }))) };
}

export function judgeHosts({ asked, hosts }: HostsFacts): Finding[] {
  if (!asked) return [problem('hosts cannot be asked for without a control worker', 'start one: vmferry control')];
  if (hosts.length === 0) return [warning('no host is known', 'start an agent on each hypervisor: vmferry agent --config FILE')];
  const away = hosts.filter(({ silentMs, polls }) => silentMs > SILENT_AFTER_MS || !polls);
  const here = hosts.filter((one) => !away.includes(one)).map(({ name }) => name);
  return [
    ...(here.length > 0 ? [ok(`${here.length === 1 ? 'the agent' : 'the agents'} of ${list(here)} answer${here.length === 1 ? 's' : ''}`)] : []),
    ...away.map(({ name, silentMs, polls }) => problem(`host ${name} was heard of ${formatDuration(silentMs)} ago${polls ? '' : ', and no agent polls its queue'}: its guests cannot be moved`, `start its agent (systemctl start vmferry-agent, or vmferry agent --config FILE). If it is gone for good: temporal workflow terminate --workflow-id host/${name}`)),
  ];
}

const MOST_NAMES = 20;
const list = (names: string[]) => `${names.slice(0, MOST_NAMES).join(', ')}${names.length > MOST_NAMES ? ` and ${names.length - MOST_NAMES} more` : ''}`;

export function judgeUnfinished(leftovers: Leftover[]): Finding[] {
  if (leftovers.length === 0) return [ok('no host has anything left to do')];
  return leftovers.map(({ host, vm, step, since, workflowId }) => warning(`host ${host} has still to do ${step} of guest ${vm}, since ${since}`, `start its agent. If it is gone for good: temporal workflow terminate --workflow-id ${workflowId}`));
}

const serviceOf = (client: Client) => client.workflowService;
const timeMs = ({ seconds, nanos }: { seconds?: unknown; nanos?: number | null }) => Number(seconds ?? 0) * 1000 + (nanos ?? 0) / 1e6;
