import { type Client, type Connection, WorkflowExecutionAlreadyStartedError, type WorkflowExecutionDescription, type WorkflowHandle, WorkflowNotFoundError, WorkflowUpdateFailedError } from '@temporalio/client';
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Progress } from '../activities/context';
import { knownHosts } from '../activities/fleet';
import type { GuestActivities } from '../activities/guests';
import { InvalidDefinition, parseWith } from '../hypervisor/definition';
import { connectClient, type TemporalAddress } from '../workers/connection';
import { confirmFencedUpdate, CONTROL_QUEUE, type DecisionRecord, type Fence, fenceSchema, type HostState, type HostWait, migrateVmSchema, type MigrateVmInput, type MigrationResult, type MigrationStatus, migrationWorkflowId, type MoveColdInput, moveColdSchema, type RepairResult, type RepairStatus, repairStatusQuery, repairWorkflowId, SEARCH_ATTRIBUTES, statusQuery, steerUpdate } from '../workflows/messages';
import type { hostCommand } from '../workflows/host-command';
import type { migrateVm } from '../workflows/migrate-vm';
import type { moveCold } from '../workflows/move-cold';
import type { repairGuest } from '../workflows/repair-guest';
import { type Steer, steerSchema } from '../workflows/steer';
import { explain, VmferryError } from './errors';
import { FleetClient } from './fleet-client';
import { type Report, reportOf } from './report/report';
import { Schedules } from './schedules';

export { VmferryError } from './errors';

/** A migration at one moment. */
export interface MigrationView extends Partial<Progress> {
  vm: string;
  from?: string;
  to: string;
  phase: string;
  /** Counts the tries to move the memory. */
  memoryTry: number;
  decisions: DecisionRecord[];
  /** What is waited for, with `onDivergence: ask`. */
  asks?: MigrationStatus['asks'];
  postponedUntil?: string;
  /** Hosts that must say what became of the guest, and have not answered. */
  waitsFor?: HostWait[];
}

/** What a host that was away has still to do, once its agent is back. */
export interface Leftover {
  vm: string;
  host: string;
  attempt: string;
  /** The step of the cleanup, such as `retireSource`. */
  step: string;
  /** ISO 8601. */
  since: string;
  workflowId: string;
}

/** How often `watch` looks. */
const LOOK_MS = 500;

/** Starts and follows migrations; the same that the command `vmferry` uses. Close it when done. */
export class MigrationClient {
  /** Hosts: cordons, limits, evacuations. */
  readonly fleet: FleetClient;
  /** Evacuations at set times. */
  readonly schedules: Schedules;

  private constructor(readonly temporal: Client, private readonly connection: Connection) {
    this.fleet = new FleetClient(temporal);
    this.schedules = new Schedules(temporal);
  }

  /** Connects to Temporal at `address`, or where the standard TEMPORAL_* variables and profiles say. Throws `TemporalUnreachable`. */
  static async connect(address?: TemporalAddress): Promise<MigrationClient> {
    const { client, connection } = await connectClient(address);
    return new MigrationClient(client, connection);
  }

  async close(): Promise<void> {
    await this.connection.close();
  }

  /** Starts to move a running guest; resolves once that is on record. Throws `VmferryError` if it is moving already, or a field is wrong. */
  async migrate(input: MigrateVmInput): Promise<Migration> {
    return await this.start('migrateVm', migrateVmSchema, input);
  }

  /** The same for a guest that does not run: its definition and images are copied. */
  async migrateStopped(input: MoveColdInput): Promise<Migration> {
    return await this.start('moveCold', moveColdSchema, input);
  }

  private async start(type: 'migrateVm' | 'moveCold', schema: typeof migrateVmSchema | typeof moveColdSchema, input: MigrateVmInput | MoveColdInput): Promise<Migration> {
    try {
      parseWith(schema, input, 'the migration that was asked for');
      const handle = await this.temporal.workflow.start<typeof migrateVm | typeof moveCold>(type, {
        workflowId: migrationWorkflowId(input.vm),
        taskQueue: CONTROL_QUEUE,
        args: [input],
        staticSummary: `${input.vm} → ${input.to}${type === 'moveCold' ? ', stopped' : ''}`,
        typedSearchAttributes: [
          { key: SEARCH_ATTRIBUTES.guest, value: input.vm },
          { key: SEARCH_ATTRIBUTES.destination, value: input.to },
        ],
      });
      return new Migration(input.vm, handle, handle.firstExecutionRunId);
    } catch (error) {
      if (error instanceof InvalidDefinition) throw new VmferryError('MigrationRefused', error.message);
      if (error instanceof WorkflowExecutionAlreadyStartedError) throw new VmferryError('MigrationRefused', `guest ${input.vm} is being moved already: watch it with "vmferry watch ${input.vm}"`);
      throw error;
    }
  }

  /** The current or last migration of a guest. Throws `VmferryError` if it never moved. */
  async migration(vm: string): Promise<Migration> {
    const handle = this.temporal.workflow.getHandle<typeof migrateVm>(migrationWorkflowId(vm));
    try {
      const { runId } = await handle.describe();
      return new Migration(vm, handle, runId);
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) throw new VmferryError('NotFound', `there is no migration of a guest "${vm}" on record`);
      throw error;
    }
  }

  /**
   * Starts to bring order after a migration of this guest that was terminated, or finds that under way. With `dryRun` only says what would be done.
   * Its result throws `VmferryError`: `RepairRefused` while the guest is being moved, `OwnershipUnknown` if nobody can say which copy is the guest.
   */
  async repair(vm: string, { dryRun = false }: { dryRun?: boolean } = {}): Promise<Repair> {
    const handle = await this.temporal.workflow.start<typeof repairGuest>('repairGuest', {
      workflowId: repairWorkflowId(vm),
      workflowIdConflictPolicy: 'USE_EXISTING',
      taskQueue: CONTROL_QUEUE,
      args: [{ vm, dryRun }],
      staticSummary: `${dryRun ? 'what a repair would do about' : 'repair'} ${vm}`,
    });
    return new Repair(vm, handle);
  }

  /**
   * Says that a host for which the guest's migration, or its repair, waits is off, or cut from disks and network, and stays so until its copy was
   * retired. Throws `VmferryError` (`FenceRefused`) if it answers, or if nothing waits for it. A wrong word here can make two copies run.
   */
  async confirmFenced({ vm, ...fence }: Fence & { vm: string }): Promise<DecisionRecord> {
    const parsed = fenceSchema.safeParse(fence);
    if (!parsed.success) throw new VmferryError('FenceRefused', parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'fence'}: ${message}`).join('; '));
    for (const workflowId of [migrationWorkflowId(vm), repairWorkflowId(vm)]) {
      try {
        return await this.temporal.workflow.getHandle(workflowId).executeUpdate<DecisionRecord, [Fence]>(confirmFencedUpdate.name, { args: [parsed.data] });
      } catch (error) {
        if (error instanceof WorkflowUpdateFailedError) throw new VmferryError('FenceRefused', error.cause?.message ?? error.message);
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      }
    }
    throw new VmferryError('FenceRefused', `nothing waits for host ${fence.host}: guest ${vm} is neither being moved nor repaired; "vmferry repair ${vm}" says whether it must be known`);
  }

  /**
   * A page, and the data in it, about a migration (a guest's name, or `migrate/<vm>`) or an evacuation (`evacuate/<host>`, `fleet/<name>`), under way or
   * over: from what Temporal has on record, so no agent and no control worker need run. Without `runId` the last run. Throws `VmferryError` (`NotFound`).
   */
  async report(id: string, runId?: string): Promise<Report> {
    return await reportOf(this.temporal, id, runId);
  }

  /** What hosts that were away have still to do, oldest first. Each is done when its host's agent is back. */
  async leftovers(): Promise<Leftover[]> {
    const found: Leftover[] = [];
    for await (const { workflowId, startTime } of this.temporal.workflow.list({ query: 'WorkflowType = "finishCleanup" AND ExecutionStatus = "Running"' })) {
      const [, vm, attempt, host] = workflowId.split('/') as [string, string, string, string];
      const summary = await this.temporal.workflow.getHandle(workflowId).describe().then((description) => description.staticSummary(), () => undefined);
      found.push({ vm, host, attempt, step: summary?.split(' ')[0] ?? 'cleanup', since: startTime.toISOString(), workflowId });
    }
    return found.sort((a, b) => a.since.localeCompare(b.since) || a.workflowId.localeCompare(b.workflowId));
  }

  /** Every host that ever ran an agent, and what it said last. */
  async hosts(): Promise<HostState[]> {
    return await knownHosts(this.temporal);
  }

  /** The host that has this guest, by what hosts said last. Throws `VmferryError` with the known guests if none has. */
  async hostOf(guest: string): Promise<string> {
    const hosts = await this.hosts();
    const having = hosts.filter(({ guests }) => guests.some(({ name, state }) => name === guest && !/^(arriving|handed over)/.test(state)));
    const known = hosts.flatMap((host) => host.guests.map(({ name }) => `${name} on ${host.name}`));
    if (having.length !== 1) throw new VmferryError('NotFound', having.length > 1 ? `guest "${guest}" is on ${having.map(({ name }) => name).join(' and ')}: name one with --host` : `no host has a guest "${guest}" (known are: ${known.join(', ') || 'none'})`);
    return having[0]!.name;
  }

  /** Runs one operation on a host and gives its result. Throws `VmferryError` with the host's own reasons. */
  async onHost<Name extends keyof GuestActivities>(host: string, command: Name, input?: Parameters<GuestActivities[Name]>[0]): Promise<Awaited<ReturnType<GuestActivities[Name]>>> {
    const hosts = await knownHosts(this.temporal, [host]);
    if (!hosts.some(({ name }) => name === host)) throw new VmferryError('HostUnreachable', `there is no host "${host}" (known are: ${hosts.map(({ name }) => name).join(', ') || 'none; start an agent'})`);
    const running = this.temporal.workflow.execute<typeof hostCommand>('hostCommand', {
      workflowId: `command/${host}/${command}/${randomUUID()}`,
      taskQueue: CONTROL_QUEUE,
      args: [{ host, command, input: input }],
      staticSummary: `${command} on ${host}`,
    });
    return (await running.catch((error: unknown) => {
      throw explain(error, `host ${host}`);
    })) as Awaited<ReturnType<GuestActivities[Name]>>;
  }
}

/** One repair under way, or over. */
export class Repair {
  constructor(readonly vm: string, private readonly handle: WorkflowHandle<typeof repairGuest>) {}

  get workflowId(): string {
    return this.handle.workflowId;
  }

  /** Waits for the end. Throws `VmferryError` if nobody can say which copy is the guest. */
  async result(): Promise<RepairResult> {
    return await this.handle.result().catch((error: unknown) => {
      throw explain(error, `the repair of ${this.vm}`, 'run it again');
    });
  }

  /** What was found and done so far, and who is waited for. Undefined while no control worker answers. */
  async status(): Promise<RepairStatus | undefined> {
    return await this.handle.query<RepairStatus>(repairStatusQuery.name).catch(() => undefined);
  }
}

/** One migration under way, or over. */
export class Migration {
  constructor(readonly vm: string, private readonly handle: WorkflowHandle<typeof migrateVm | typeof moveCold>, readonly runId: string) {}

  get workflowId(): string {
    return this.handle.workflowId;
  }

  /** Waits for the end. Throws `VmferryError` if the guest did not move. */
  async result(): Promise<MigrationResult> {
    return await this.handle.result().catch((error: unknown) => {
      throw explain(error, `the migration of ${this.vm}`);
    });
  }

  /** Asks it to stop. Before the switchover the guest stays where it is and everything is undone; during it the move is finished. */
  async cancel(): Promise<void> {
    await this.handle.cancel();
  }

  /**
   * Decides about a copy that does not converge, or about anything else that can be changed while it runs. Resolves with the decision as it is on
   * record; throws `VmferryError` (`SteerRefused`) with the reason if it makes no sense now.
   */
  async steer(steer: Steer): Promise<DecisionRecord> {
    const parsed = steerSchema.safeParse(steer);
    if (!parsed.success) throw new VmferryError('SteerRefused', parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'steer'}: ${message}`).join('; '));
    try {
      return await this.handle.executeUpdate<DecisionRecord, [Steer]>(steerUpdate.name, { args: [parsed.data] });
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) throw new VmferryError('NotFound', `guest ${this.vm} is not being moved`);
      if (error instanceof WorkflowUpdateFailedError) throw new VmferryError('SteerRefused', error.cause?.message ?? error.message);
      throw error;
    }
  }

  /** Whether it is under way still. */
  async isRunning(): Promise<boolean> {
    return (await this.handle.describe()).status.name === 'RUNNING';
  }

  /** Its phase, source and warnings, also after its end. Undefined while no control worker answers. */
  async status(): Promise<MigrationStatus | undefined> {
    return await this.handle.query<MigrationStatus>(statusQuery.name).catch(() => undefined);
  }

  /** What is going on now. Undefined when it is over, or no control worker answers. Makes no event of history. */
  async look(): Promise<MigrationView | undefined> {
    const { status: { name }, raw } = await this.handle.describe();
    if (name !== 'RUNNING') return undefined;
    const status = await this.status();
    const seen = progressOf(raw.pendingActivities ?? []);
    return status && { ...seen, vm: this.vm, ...(status.from && { from: status.from }), to: status.to, phase: seen?.phase ?? status.phase, memoryTry: status.memoryTry, decisions: status.decisions, ...(status.asks && { asks: status.asks }), ...(status.postponedUntil && { postponedUntil: status.postponedUntil }), ...(status.waitsFor && { waitsFor: status.waitsFor }) };
  }

  /** The same twice a second, until the end. Rejects with an `AbortError` when `signal` is aborted. */
  async *watch(signal?: AbortSignal): AsyncGenerator<MigrationView> {
    for (;;) {
      signal?.throwIfAborted();
      const view = await this.look();
      if (view) yield view;
      else if (!(await this.isRunning())) return;
      await delay(LOOK_MS, undefined, signal ? { signal } : {});
    }
  }
}

/** The activities whose heartbeats say how far the migration is. Both halves of the switchover are in flight for the whole memory phase: the source's tells where it is. */
const TELLING = ['moveMemory', 'awaitMirrors', 'copyStopped'];

function progressOf(pending: NonNullable<WorkflowExecutionDescription['raw']['pendingActivities']>): Progress | undefined {
  const telling = pending.find(({ activityType }) => TELLING.includes(activityType?.name ?? ''));
  const data = telling?.heartbeatDetails?.payloads?.[0]?.data;
  return data ? (JSON.parse(Buffer.from(data).toString()) as Progress) : undefined;
}
