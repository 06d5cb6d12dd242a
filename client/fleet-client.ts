import { setTimeout as delay } from 'node:timers/promises';
import { ApplicationFailure, type Client, type UpdateDefinition, type Workflow, WithStartWorkflowOperation, type WorkflowHandle, WorkflowExecutionAlreadyStartedError, WorkflowNotFoundError, WorkflowUpdateFailedError } from '@temporalio/client';
import { randomUUID } from 'node:crypto';
import { knownHosts } from '../activities/fleet';
import { InvalidDefinition, parseWith } from '../hypervisor/definition';
import type { evacuateFleet } from '../workflows/evacuate-fleet';
import type { evacuateHost } from '../workflows/evacuate-host';
import { approveUpdate, bringBackUpdate, type EvacuateFleetInput, evacuateFleetSchema, type EvacuateHostInput, evacuateHostSchema, type EvacuationLimits, evacuationQuery, type EvacuationReport, type EvacuationStatus, evacuationWorkflowId, type FleetEvacuationStatus, fleetEvacuationQuery, fleetVerdictUpdate, fleetWorkflowId, pauseUpdate, setLimitsUpdate, type Signed, skipUpdate, verdictUpdate } from '../workflows/evacuation';
import type { Slots } from '../workflows/fleet';
import { CONTROL_QUEUE, cordonUpdate, hostWorkflowId, SEARCH_ATTRIBUTES, setSlotsUpdate } from '../workflows/messages';
import { evacuationStaticDetails, oneLine } from '../workflows/summaries';
import { explain, refusal, VmferryError } from './errors';

/** How often `watch` looks. */
const LOOK_MS = 1_000;
/** How long a verdict is waited for; planning asks no host, so only a missing control worker takes as long. */
const VERDICT_MS = 60_000;

/** Hosts and their evacuations. A part of `MigrationClient`. */
export class FleetClient {
  constructor(private readonly temporal: Client) {}

  /** The host gets nothing new until it is uncordoned. Throws `VmferryError`. */
  async cordon(host: string, { by, reason }: Signed): Promise<void> {
    await this.askHost(host, cordonUpdate, { cordon: { by, reason } });
  }

  async uncordon(host: string): Promise<void> {
    await this.askHost(host, cordonUpdate, {});
  }

  /** How many guests may leave and come at once; what is left out stays. Without `slots`, what the host's configuration says. */
  async setSlots(host: string, slots?: Partial<Slots>): Promise<void> {
    await this.askHost(host, setSlotsUpdate, { ...(slots && { slots }) });
  }

  /** Starts to empty a host, and resolves once that is accepted: with its plan. Throws `VmferryError` (`EvacuationRefused`) with every reason. */
  async evacuate(input: EvacuateHostInput): Promise<{ evacuation: Evacuation; plan: EvacuationStatus }> {
    return await this.startOnHost(input, evacuationWorkflowId(input.host));
  }

  /** What `evacuate` would do. Nothing is changed. */
  async plan(host: string, options: Omit<EvacuateHostInput, 'host' | 'mode'> = {}): Promise<EvacuationReport> {
    const { evacuation } = await this.startOnHost({ ...options, host, mode: 'plan' }, `plan/${host}/${randomUUID()}`);
    return await evacuation.result();
  }

  /** Starts to empty many hosts, one wave after the other, and resolves once it is accepted. A name is taken by one evacuation at a time. */
  async evacuateFleet(name: string, input: EvacuateFleetInput): Promise<{ evacuation: FleetEvacuation; status: FleetEvacuationStatus }> {
    check(evacuateFleetSchema, input);
    const workflowId = fleetWorkflowId(name);
    const { handle, verdict } = await this.startAndHear<typeof evacuateFleet, FleetEvacuationStatus>('evacuateFleet', workflowId, input, fleetVerdictUpdate, `empties ${input.selector || input.hosts?.join(', ')}`);
    return { evacuation: new FleetEvacuation(name, handle, await runOf(handle)), status: verdict };
  }

  /** The current or last evacuation of a host. Throws `VmferryError` if there is none. */
  async evacuation(host: string): Promise<Evacuation> {
    const handle = this.temporal.workflow.getHandle<typeof evacuateHost>(evacuationWorkflowId(host));
    return new Evacuation(host, handle, await runOf(handle, `there is no evacuation of a host "${host}" on record`));
  }

  /** The current or last evacuation of many hosts with this name. Throws `VmferryError` if there is none. */
  async fleetEvacuation(name: string): Promise<FleetEvacuation> {
    const handle = this.temporal.workflow.getHandle<typeof evacuateFleet>(fleetWorkflowId(name));
    return new FleetEvacuation(name, handle, await runOf(handle, `there is no evacuation "${fleetWorkflowId(name)}" on record`));
  }

  /** Workflow ids of the evacuations under way, of hosts and of fleets. */
  async evacuations(): Promise<string[]> {
    const found: string[] = [];
    for await (const { workflowId } of this.temporal.workflow.list({ query: 'WorkflowType IN ("evacuateHost", "evacuateFleet") AND ExecutionStatus = "Running"' })) {
      if (!workflowId.startsWith('plan/')) found.push(workflowId);
    }
    return found.sort();
  }

  private async startOnHost(input: EvacuateHostInput, workflowId: string): Promise<{ evacuation: Evacuation; plan: EvacuationStatus }> {
    check(evacuateHostSchema, input);
    const { host } = input;
    const { handle, verdict } = await this.startAndHear<typeof evacuateHost, EvacuationStatus>('evacuateHost', workflowId, input, verdictUpdate, `${input.mode === 'plan' ? 'plans to empty' : 'empties'} ${host}`, host);
    return { evacuation: new Evacuation(host, handle, await runOf(handle)), plan: verdict };
  }

  /** Starts a workflow and hears, in one call, whether it takes the request. */
  private async startAndHear<W extends Workflow, Status>(type: string, workflowId: string, input: Parameters<W>[0], update: UpdateDefinition<Status, []>, staticSummary: string, host?: string): Promise<{ handle: WorkflowHandle<W>; verdict: Status }> {
    const start = new WithStartWorkflowOperation<Workflow>(type, {
      workflowId,
      taskQueue: CONTROL_QUEUE,
      args: [input],
      workflowIdConflictPolicy: 'FAIL',
      staticSummary: oneLine(staticSummary),
      staticDetails: evacuationStaticDetails(host ?? workflowId, input),
      ...(host !== undefined && { typedSearchAttributes: [{ key: SEARCH_ATTRIBUTES.source, value: host }, { key: SEARCH_ATTRIBUTES.evacuation, value: host }] }),
    });
    // Rejects with the same error as the update.
    const started = start.workflowHandle();
    started.catch(() => undefined);
    const waited = new AbortController();
    const tooLong = delay(VERDICT_MS, undefined, { signal: waited.signal }).then(
      () => Promise.reject(new VmferryError('TimedOut', `no control worker has taken ${workflowId} for ${VERDICT_MS / 1000} s: is one running? It begins when one is; "vmferry evacuation cancel" ends it`)),
      () => new Promise<never>(() => undefined),
    );
    try {
      const verdict = await Promise.race([this.temporal.workflow.executeUpdateWithStart(update, { startWorkflowOperation: start }), tooLong]);
      return { handle: (await started) as WorkflowHandle<W>, verdict };
    } catch (error) {
      if (error instanceof WorkflowExecutionAlreadyStartedError) throw new VmferryError('EvacuationRefused', `${workflowId} is under way already: see "vmferry evacuation show ${host ?? workflowId}"`);
      if (!(error instanceof WorkflowUpdateFailedError)) throw error;
      if (error.cause instanceof ApplicationFailure && error.cause.type === 'EvacuationRefused') throw refusal(error.cause, 'EvacuationRefused');
      // It ended before it could answer: its end says why.
      const why: unknown = await (await started).result().then(() => error, (failed: unknown) => explain(failed, workflowId, 'nothing was changed'));
      throw why;
    } finally {
      waited.abort();
    }
  }

  private async askHost<Argument>(host: string, update: UpdateDefinition<void, [Argument]>, argument: Argument): Promise<void> {
    await ask(this.temporal.workflow.getHandle(hostWorkflowId(host)), update, argument, async () => {
      const names = (await knownHosts(this.temporal)).map(({ name }) => name);
      return new VmferryError('HostUnreachable', `there is no host "${host}" (known are: ${names.join(', ') || 'none; start an agent'})`);
    });
  }
}

/** One evacuation of a host, under way or over. */
export class Evacuation {
  constructor(readonly host: string, private readonly handle: WorkflowHandle<typeof evacuateHost>, readonly runId: string) {}

  get workflowId(): string {
    return this.handle.workflowId;
  }

  /** Also after its end. Undefined while no control worker answers. */
  async status(): Promise<EvacuationStatus | undefined> {
    return await this.handle.query<EvacuationStatus, []>(evacuationQuery.name).catch(() => undefined);
  }

  /** Its status once a second, until the end. Makes no event of history. Rejects with an `AbortError` when `signal` is aborted. */
  async *watch(signal?: AbortSignal): AsyncGenerator<EvacuationStatus> {
    yield* watch(this.handle, () => this.status(), signal);
  }

  /** Lets one that waits for it begin (`mode: approve`). This and all below throw `VmferryError` (`EvacuationRefused`) if it makes no sense now. */
  async approve(signed: Signed): Promise<void> {
    await this.ask(approveUpdate, signed);
  }

  /** No other guest starts; what moves is finished. */
  async pause(signed: Signed): Promise<void> {
    await this.ask(pauseUpdate, { ...signed, paused: true });
  }

  async resume(signed: Signed): Promise<void> {
    await this.ask(pauseUpdate, { ...signed, paused: false });
  }

  /** Limits that are left out stay. Gives those that apply now. */
  async setLimits(limits: Partial<EvacuationLimits>, signed: Signed): Promise<EvacuationLimits> {
    return await this.ask(setLimitsUpdate, { ...signed, limits });
  }

  /** A guest that has not begun to move stays. */
  async skip(guest: string, signed: Signed): Promise<void> {
    await this.ask(skipUpdate, { ...signed, guest });
  }

  /** The maintenance is over: the guests come home (`andReturn`). */
  async bringBack(signed: Signed): Promise<void> {
    await this.ask(bringBackUpdate, signed);
  }

  /** No other guest starts; what moves is undone, or finished, as `atCancel` says. */
  async cancel(): Promise<void> {
    await this.handle.cancel();
  }

  async isRunning(): Promise<boolean> {
    return await isRunning(this.handle);
  }

  /** ISO 8601. */
  async startedAt(): Promise<string> {
    return (await this.handle.describe()).startTime.toISOString();
  }

  /** Waits for the end. A host that could be emptied in part only is a report, not an error. */
  async result(): Promise<EvacuationReport> {
    return await this.handle.result().catch((error: unknown) => {
      throw explain(error, `the evacuation of ${this.host}`, 'its guests stay where they are');
    });
  }

  private async ask<Result, Argument>(update: UpdateDefinition<Result, [Argument]>, argument: Argument): Promise<Result> {
    return await ask(this.handle, update, argument, () => new VmferryError('NotFound', `host ${this.host} is not being emptied now`));
  }
}

/** One evacuation of many hosts, under way or over. */
export class FleetEvacuation {
  constructor(readonly name: string, private readonly handle: WorkflowHandle<typeof evacuateFleet>, readonly runId: string) {}

  get workflowId(): string {
    return this.handle.workflowId;
  }

  /** Also after its end. Undefined while no control worker answers. */
  async status(): Promise<FleetEvacuationStatus | undefined> {
    return await this.handle.query<FleetEvacuationStatus, []>(fleetEvacuationQuery.name).catch(() => undefined);
  }

  async *watch(signal?: AbortSignal): AsyncGenerator<FleetEvacuationStatus> {
    yield* watch(this.handle, () => this.status(), signal);
  }

  /** No other host is begun; those that are being emptied go on. */
  async pause(signed: Signed): Promise<void> {
    await this.ask({ ...signed, paused: true });
  }

  async resume(signed: Signed): Promise<void> {
    await this.ask({ ...signed, paused: false });
  }

  /** No other host is begun; those that are being emptied are cancelled too. */
  async cancel(): Promise<void> {
    await this.handle.cancel();
  }

  async isRunning(): Promise<boolean> {
    return await isRunning(this.handle);
  }

  /** ISO 8601. */
  async startedAt(): Promise<string> {
    return (await this.handle.describe()).startTime.toISOString();
  }

  async result(): Promise<FleetEvacuationStatus> {
    return await this.handle.result().catch((error: unknown) => {
      throw explain(error, `the evacuation ${this.workflowId}`, 'guests that were moved stay where they are');
    });
  }

  private async ask(argument: Signed & { paused: boolean }): Promise<void> {
    await ask(this.handle, pauseUpdate, argument, () => new VmferryError('NotFound', `the evacuation ${this.workflowId} is not under way`));
  }
}

/** Throws `VmferryError` with every wrong field. */
export function check(schema: typeof evacuateHostSchema | typeof evacuateFleetSchema, input: unknown): void {
  try {
    parseWith(schema, input, 'the evacuation that was asked for');
  } catch (error) {
    throw error instanceof InvalidDefinition ? new VmferryError('EvacuationRefused', error.message, { blockers: error.reasons }) : error;
  }
}

async function ask<Result, Argument>(handle: WorkflowHandle, update: UpdateDefinition<Result, [Argument]>, argument: Argument, notFound: () => Error | Promise<Error>): Promise<Result> {
  try {
    return await handle.executeUpdate<Result, [Argument]>(update.name, { args: [argument] });
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) throw await notFound();
    if (error instanceof WorkflowUpdateFailedError && error.cause instanceof ApplicationFailure) throw refusal(error.cause, 'EvacuationRefused');
    throw error;
  }
}

async function isRunning(handle: WorkflowHandle): Promise<boolean> {
  return (await handle.describe()).status.name === 'RUNNING';
}

async function runOf(handle: WorkflowHandle, otherwise = 'it is gone'): Promise<string> {
  try {
    return (await handle.describe()).runId;
  } catch (error) {
    throw error instanceof WorkflowNotFoundError ? new VmferryError('NotFound', otherwise) : error;
  }
}

async function* watch<Status>(handle: WorkflowHandle, status: () => Promise<Status | undefined>, signal?: AbortSignal): AsyncGenerator<Status> {
  for (;;) {
    signal?.throwIfAborted();
    if (!(await isRunning(handle))) return;
    const now = await status();
    if (now) yield now;
    await delay(LOOK_MS, undefined, signal ? { signal } : {});
  }
}
