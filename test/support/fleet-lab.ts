import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ApplicationFailure, Context } from '@temporalio/activity';
import type { Client, Connection, WorkflowHandle } from '@temporalio/client';
import { type NativeConnection, Worker } from '@temporalio/worker';
import { pino } from 'pino';
import type { MigrationRef } from '../../activities/context';
import { connectClient, connectWorker } from '../../workers/connection';
import { builtBundle, type RunningWorker, startControlWorker } from '../../workers/control';
import { installRuntime } from '../../workers/logger';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import type { evacuateFleet } from '../../workflows/evacuate-fleet';
import type { evacuateHost } from '../../workflows/evacuate-host';
import { type EvacuateFleetInput, type EvacuateHostInput, evacuationQuery, type EvacuationStatus, evacuationWorkflowId } from '../../workflows/evacuation';
import type { GuestReport } from '../../workflows/fleet';
import { CONTROL_QUEUE, cordonUpdate, type HostState, hostQuery, hostWorkflowId, reportSignal, setSlotsUpdate } from '../../workflows/messages';
import { guestReport } from '../fleet/fleet-model';

const MIB = 2 ** 20;
const QEMU = [{ path: '/usr/bin/qemu', version: '7.2', machines: ['pc-q35-7.2'], cpuModels: ['qemu64'] }];
const TOTAL_BYTES = 1000 * MIB;
const REPORT_MS = 20_000;

/** A host whose activities change only this object. */
class StubHost {
  readonly guests = new Map<string, GuestReport>();
  labels: Record<string, string> = {};
  constructor(readonly name: string) {}
}

/** A real Temporal server and control worker, and hosts that only say that they did it: what the fleet's workflows decide, without QEMU. */
export class FleetLab {
  readonly hosts = new Map<string, StubHost>();
  /** Every step that a host was asked for: `host step guest`. */
  readonly steps: string[] = [];
  /** Moves under way, from the first look at the source until it is retired, or all is undone. */
  readonly under = new Map<string, { from: string; to: string }>();
  /** The most moves that were under way at once: of all, of one source, and of one destination. */
  most = { fleet: 0, perSource: 0, perDestination: 0 };
  /** Guests whose copy waits; `*`: all. */
  readonly held = new Set<string>();
  /** Steps that wait, as in `steps`. */
  readonly slow = new Set<string>();
  private readonly failing: { host: string; step: string; guest: string; type: string; times: number }[] = [];
  private readonly started: WorkflowHandle[] = [];
  private readonly workers: { worker: Worker; done: Promise<void> }[] = [];
  private control!: RunningWorker;
  client!: Client;
  private connection!: Connection;
  private workerConnection!: NativeConnection;
  private timer!: NodeJS.Timeout;

  private constructor(private readonly folder: string, private readonly server: TemporalServer) {}

  static async open(names: string[]): Promise<FleetLab> {
    const folder = mkdtempSync(join(process.env['VMFERRY_LAB'] ?? tmpdir(), 'vmf-fleet-'));
    const logger = pino({ level: 'info' }, pino.destination({ dest: join(folder, 'lab.log'), sync: true }));
    installRuntime(logger);
    const server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(folder, 'temporal.log') });
    const lab = new FleetLab(folder, server);
    const temporal = { address: server.address, namespace: 'default' };
    lab.control = await startControlWorker({ temporal, logger });
    ({ client: lab.client, connection: lab.connection } = await connectClient(temporal));
    ({ connection: lab.workerConnection } = await connectWorker(temporal));
    for (const name of names) {
      lab.hosts.set(name, new StubHost(name));
      const worker = await Worker.create({ connection: lab.workerConnection, namespace: 'default', taskQueue: name, activities: lab.activities(name), maxHeartbeatThrottleInterval: '100 milliseconds', defaultHeartbeatThrottleInterval: '100 milliseconds' });
      lab.workers.push({ worker, done: worker.run() });
    }
    await lab.reportAll();
    lab.timer = setInterval(() => void lab.reportAll().catch(() => undefined), REPORT_MS);
    // The list of hosts lags behind.
    await until(async () => {
      const listed: string[] = [];
      for await (const { workflowId } of lab.client.workflow.list({ query: 'WorkflowType = "host"' })) listed.push(workflowId);
      return listed.length === names.length;
    });
    return lab;
  }

  /** Puts guests on a host, small ones that run unless said otherwise, and tells the fleet. */
  async put(host: string, ...guests: (string | [name: string, given: Partial<GuestReport>])[]): Promise<void> {
    for (const one of guests) {
      const [name, given] = typeof one === 'string' ? [one, {}] : one;
      this.host(host).guests.set(name, guestReport(name, { memoryBytes: 10 * MIB, disks: [{ root: 'images', bytes: MIB }], ...given }));
    }
    await this.report(host);
  }

  where(guest: string): string[] {
    return [...this.hosts.values()].filter(({ guests }) => guests.has(guest)).map(({ name }) => name);
  }

  /** The next `times` calls of a step for a guest fail. */
  fail(host: string, step: string, guest: string, type = 'MirrorFailed', times = 1): void {
    this.failing.push({ host, step, guest, type, times });
  }

  async evacuate(input: EvacuateHostInput): Promise<WorkflowHandle<typeof evacuateHost>> {
    const handle = await this.client.workflow.start<typeof evacuateHost>('evacuateHost', { workflowId: evacuationWorkflowId(input.host), taskQueue: CONTROL_QUEUE, args: [input] });
    this.started.push(handle);
    return handle;
  }

  async evacuateFleet(input: EvacuateFleetInput): Promise<WorkflowHandle<typeof evacuateFleet>> {
    const handle = await this.client.workflow.start<typeof evacuateFleet>('evacuateFleet', { workflowId: `fleet/${Date.now()}`, taskQueue: CONTROL_QUEUE, args: [input] });
    this.started.push(handle);
    return handle;
  }

  async migrate(vm: string, to: string): Promise<WorkflowHandle> {
    const handle = await this.client.workflow.start('migrateVm', { workflowId: `migrate/${vm}`, taskQueue: CONTROL_QUEUE, args: [{ vm, to }] });
    this.started.push(handle);
    return handle;
  }

  /** Rejects if a workflow would not do again what its history says that it did. Returns the history's length. */
  async replay(handle: WorkflowHandle): Promise<number> {
    const history = await handle.fetchHistory();
    await Worker.runReplayHistory({ workflowBundle: builtBundle()! }, history, handle.workflowId);
    return history.events!.length;
  }

  async status(host: string): Promise<EvacuationStatus> {
    return await this.client.workflow.getHandle(evacuationWorkflowId(host)).query(evacuationQuery);
  }

  async untilStatus(host: string, so: (status: EvacuationStatus) => boolean): Promise<EvacuationStatus> {
    let last!: EvacuationStatus;
    await until(async () => so((last = await this.status(host))));
    return last;
  }

  async entity(host: string): Promise<HostState> {
    return (await this.client.workflow.getHandle(hostWorkflowId(host)).query<HostState | undefined>(hostQuery.name))!;
  }

  async setSlots(host: string, slots?: { outgoing?: number; incoming?: number }): Promise<void> {
    await this.client.workflow.getHandle(hostWorkflowId(host)).executeUpdate(setSlotsUpdate, { args: [{ ...(slots && { slots }) }] });
  }

  async cordon(host: string, cordon?: { by: string; reason: string }): Promise<void> {
    await this.client.workflow.getHandle(hostWorkflowId(host)).executeUpdate(cordonUpdate, { args: [{ ...(cordon && { cordon }) }] });
  }

  /** Ends what a test left, and empties all hosts. */
  async reset(): Promise<void> {
    this.held.clear();
    this.slow.clear();
    this.failing.length = 0;
    for (const handle of this.started.splice(0)) await handle.terminate('the test is over').catch(() => undefined);
    for (const guest of [...this.hosts.values()].flatMap(({ guests }) => [...guests.keys()])) await this.client.workflow.getHandle(`migrate/${guest}`).terminate('the test is over').catch(() => undefined);
    this.under.clear();
    this.steps.length = 0;
    this.most = { fleet: 0, perSource: 0, perDestination: 0 };
    for (const host of this.hosts.values()) {
      host.guests.clear();
      host.labels = {};
      await this.cordon(host.name);
      await this.setSlots(host.name);
    }
    await this.reportAll();
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    for (const { worker } of this.workers) worker.shutdown();
    await Promise.all(this.workers.map(({ done }) => done));
    await this.control.stop();
    await this.workerConnection.close();
    await this.connection.close();
    await this.server.stop();
    if (process.env['VMFERRY_KEEP_LAB']) console.error(readFileSync(join(this.folder, 'lab.log'), 'utf8').slice(-10_000));
    rmSync(this.folder, { recursive: true, force: true });
  }

  host(name: string): StubHost {
    return this.hosts.get(name)!;
  }

  async reportAll(): Promise<void> {
    for (const name of this.hosts.keys()) await this.report(name);
  }

  /** As an agent does, see workers/host-agent.ts. */
  async report(name: string): Promise<void> {
    const { guests, labels } = this.host(name);
    const used = [...guests.values()].filter(({ state }) => state !== 'stopped').reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
    const report = { name, address: '127.0.0.1', guests: [...guests.values()], totalMemoryBytes: TOTAL_BYTES, freeMemoryBytes: TOTAL_BYTES - used, roots: [{ name: 'images', fileSystem: 'fs', freeBytes: 1000 * MIB }], facts: { labels, slots: { outgoing: 100, incoming: 100 }, qemu: QEMU, processor: 'a processor' } };
    await this.client.workflow.signalWithStart('host', { workflowId: hostWorkflowId(name), taskQueue: CONTROL_QUEUE, args: [name], signal: reportSignal, signalArgs: [report] });
  }

  private begin({ guest, from, to }: MigrationRef): void {
    this.under.set(guest, { from, to });
    const all = [...this.under.values()];
    this.most.fleet = Math.max(this.most.fleet, all.length);
    this.most.perSource = Math.max(this.most.perSource, ...all.map((one) => all.filter((other) => other.from === one.from).length));
    this.most.perDestination = Math.max(this.most.perDestination, ...all.map((one) => all.filter((other) => other.to === one.to).length));
  }

  private activities(name: string): Record<string, (input: MigrationRef) => Promise<unknown>> {
    const host = this.host(name);
    const gone = async (ref: MigrationRef) => {
      host.guests.delete(ref.guest);
      await this.report(name);
      this.under.delete(ref.guest);
    };
    const here = async (ref: MigrationRef, state: string) => {
      const report = [...this.hosts.values()].map(({ guests }) => guests.get(ref.guest)).find((one) => one !== undefined);
      host.guests.set(ref.guest, { ...report!, state });
      await this.report(name);
    };
    const inspect = async (ref: MigrationRef) => {
      this.begin(ref);
      const report = host.guests.get(ref.guest);
      if (!report) return { blockers: [`guest "${ref.guest}" is not defined on ${name}`], warnings: [] };
      return { blockers: [], warnings: [], plan: { definition: { memory: report.memoryBytes }, disks: [{ id: 'vda', path: '${images}/disk.raw', format: 'raw', cache: 'none', device: 'vda', sizeBytes: MIB, allocatedBytes: MIB, blockDevice: false }], running: report.state === 'running', features: { writeBlockingLive: false, rearm: false, ioThrottle: false }, memoryFeatures: [], defaults: {} } };
    };
    const copy = async ({ guest }: MigrationRef) => {
      while (this.held.has(guest) || this.held.has('*')) {
        Context.current().heartbeat();
        await Context.current().sleep(50);
      }
    };
    const step: Record<string, (ref: MigrationRef) => Promise<unknown>> = {
      inspectSource: inspect,
      inspectStopped: inspect,
      inspectDestination: async () => ({ blockers: [], warnings: [] }),
      prepareDestination: async (ref) => await here(ref, `arriving from ${ref.from}`),
      exportDisks: async () => ({ host: '127.0.0.1', port: 1, names: { vda: 'vda' } }),
      startMirrors: async () => undefined,
      setBandwidth: async () => undefined,
      awaitMirrors: async (ref) => {
        await copy(ref);
        return { verdict: 'converging', sinceMs: Date.now(), changed: false, message: 'all is well', disks: [], remainingBytes: 0, throughputBytesPerSecond: 1e9, predictedDrainMs: 0, stopDrainMs: 0, fitsBudget: true };
      },
      openIncoming: async () => ({ host: '127.0.0.1', port: 2, leasePort: 3 }),
      moveMemory: async () => ({ source: 'completed' }),
      receive: async (ref) => {
        await here(ref, 'running');
        return { guest: 'running' };
      },
      settleDestination: async () => undefined,
      retireSource: gone,
      copyStopped: copy,
      handOverStopped: async () => undefined,
      takeStopped: async (ref) => await here(ref, 'stopped'),
      stopExports: async () => undefined,
      destroyIncoming: async () => ({ destroyed: true }),
      removeMirrors: async (ref) => void this.under.delete(ref.guest),
      stayCold: async (ref) => void this.under.delete(ref.guest),
      discardDestination: gone,
    };
    return Object.fromEntries(
      Object.entries(step).map(([what, work]) => [
        what,
        async (ref: MigrationRef) => {
          this.steps.push(`${name} ${what} ${ref.guest}`);
          while (this.slow.has(`${name} ${what} ${ref.guest}`)) {
            Context.current().heartbeat();
            await Context.current().sleep(50);
          }
          const failing = this.failing.find((one) => one.host === name && one.step === what && (one.guest === ref.guest || one.guest === '*') && one.times-- > 0);
          if (failing) throw ApplicationFailure.nonRetryable(`${name}: ${what} of ${ref.guest} fails as the test said`, failing.type);
          return await work(ref);
        },
      ]),
    );
  }
}

/** Looks until something is so. */
export async function until(so: () => boolean | Promise<boolean>, mostMs = 60_000): Promise<void> {
  const giveUp = Date.now() + mostMs;
  while (!(await so())) {
    if (Date.now() > giveUp) throw new Error(`it was not so within ${mostMs / 1000} s: ${so.toString()}`);
    await delay(50);
  }
}
