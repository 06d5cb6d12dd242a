import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Logger, pino } from 'pino';
import { stringify } from 'yaml';
import { MigrationClient } from '../../client/migration-client';
import { definitionSchema } from '../../hypervisor/definition';
import { Host } from '../../hypervisor/host';
import type { HostConfig } from '../../hypervisor/host-config';
import { startGuest } from '../../hypervisor/launch';
import { connectClient, connectWorker } from '../../workers/connection';
import { bundleWorkflows, type RunningWorker, startControlWorker } from '../../workers/control';
import { devHostConfig } from '../../workers/dev';
import { type RunningAgent, type SharedConnections, startHostAgent } from '../../workers/host-agent';
import { installRuntime } from '../../workers/logger';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { type GuestBehaviour, type HypervisorOptions, SimulatedHypervisor } from './hypervisor';
import type { SimulatedQemu } from './qemu';

export interface FleetOptions extends HypervisorOptions {
  hosts: number;
  /** Guests that run on each host at first; they are called `h00-g000` and so on. */
  guestsPerHost: number;
  disksPerGuest?: number;
  diskBytes?: number;
  memoryBytes?: number;
  /** What each guest does, by its number over all; default: `QUIET`. */
  behaviour?: (guest: number) => GuestBehaviour;
  /** Further fields of each host's configuration, by its number. */
  config?: (host: number) => Record<string, unknown>;
  /** A Temporal server that runs already. Default: one of its own. */
  temporal?: string;
  /** Whether this process also runs the workflows. Default: yes. */
  control?: boolean;
  folder?: string;
}

let runtimeInstalled = false;

/**
 * Hosts with real agents and simulated QEMUs, all in this process, on one connection to Temporal. Every host has a loopback address, and with it a
 * range of ports, of its own.
 */
export class SimulatedFleet {
  readonly agents = new Map<string, RunningAgent>();
  readonly configs = new Map<string, HostConfig>();
  readonly guests: string[] = [];
  client!: MigrationClient;
  private server: TemporalServer | undefined;
  private control: RunningWorker | undefined;
  private shared!: SharedConnections;
  private closeShared!: () => Promise<void>;

  private constructor(readonly folder: string, readonly world: SimulatedHypervisor, private readonly logger: Logger, private readonly options: FleetOptions) {}

  /** Starts everything; the guests run when it resolves. */
  static async open(options: FleetOptions): Promise<SimulatedFleet> {
    const base = options.folder ?? process.env['VMFERRY_LAB'] ?? (existsSync('/dev/shm') ? '/dev/shm' : tmpdir());
    const folder = mkdtempSync(join(base, 'sim-'));
    const logger = pino({ level: process.env['VMFERRY_LOG'] ?? 'info' }, pino.destination({ dest: join(folder, 'fleet.log'), sync: true }));
    const fleet = new SimulatedFleet(folder, new SimulatedHypervisor(options), logger, options);
    if (!runtimeInstalled) installRuntime(logger);
    runtimeInstalled = true;
    try {
      await fleet.start();
      return fleet;
    } catch (error) {
      await fleet.close();
      throw error;
    }
  }

  get temporal() {
    return { address: this.options.temporal ?? this.server!.address, namespace: 'default' };
  }

  /** Of the Temporal server that this fleet started. */
  get serverPid(): number | undefined {
    return this.server?.pid;
  }

  hostName(index: number): string {
    return `h${String(index).padStart(2, '0')}`;
  }

  /** The hosts on which this guest runs: one, if all is well. */
  hostsOf(guest: string): string[] {
    return [...this.configs.keys()].filter((name) => this.qemu(name, guest)?.running);
  }

  qemu(host: string, guest: string): SimulatedQemu | undefined {
    return this.world.host(host).qemu(guest);
  }

  async startAgent(name: string): Promise<void> {
    this.agents.set(name, await startHostAgent(this.configs.get(name)!, this.logger, { programs: this.world.host(name).programs, shared: this.shared }));
  }

  /** The host goes silent; its guests run on. */
  async stopAgent(name: string): Promise<void> {
    await this.agents.get(name)?.stop();
    this.agents.delete(name);
  }

  async stopControl(): Promise<void> {
    await this.control?.stop();
    this.control = undefined;
  }

  /** What must be true whenever no migration is under way, in words; empty if all is well. */
  problems(): string[] {
    const found = [...this.world.ledger.violations];
    const running = new Map<string, string[]>();
    for (const name of this.configs.keys()) {
      for (const process of this.world.host(name).processes.values()) {
        if (!process.alive) continue;
        const { guest, runState, jobs } = process as Partial<SimulatedQemu>;
        if (guest === undefined) found.push(`${name}: a ${process.constructor.name} is left`);
        else if (runState !== 'running') found.push(`${name}: guest ${guest} is ${runState}`);
        else running.set(guest, [...(running.get(guest) ?? []), name]);
        if (jobs?.size) found.push(`${name}: guest ${guest} has ${jobs.size} jobs`);
      }
      const guests = join(this.configs.get(name)!.stateDir, 'guests');
      for (const guest of existsSync(guests) ? readdirSync(guests) : []) if (existsSync(join(guests, guest, 'attempt.json'))) found.push(`${name}: an attempt of ${guest} is on record`);
    }
    for (const guest of this.guests) if (running.get(guest)?.length !== 1) found.push(`guest ${guest} runs on ${running.get(guest)?.join(' and ') ?? 'no host'}`);
    return found;
  }

  async close(): Promise<void> {
    await Promise.all([...this.agents.keys()].map((name) => this.stopAgent(name)));
    await this.stopControl();
    await this.client?.close();
    await this.closeShared?.();
    this.world.close();
    await this.server?.stop();
    if (process.env['VMFERRY_KEEP_LAB']) console.error(`fleet kept: ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
  }

  private async start(): Promise<void> {
    const { hosts, temporal, control = true } = this.options;
    if (temporal === undefined) this.server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(this.folder, 'temporal.log') });
    if (control) this.control = await startControlWorker({ temporal: this.temporal, logger: this.logger, bundle: await bundleWorkflows() });
    const { client, connection: clientConnection } = await connectClient(this.temporal);
    const { connection } = await connectWorker(this.temporal);
    this.shared = { client, connection };
    this.closeShared = async () => {
      await connection.close();
      await clientConnection.close();
    };
    this.client = await MigrationClient.connect(this.temporal);
    for (let index = 0; index < hosts; index++) this.configs.set(this.hostName(index), this.configure(index));
    await Promise.all([...this.configs.keys()].map(async (name, index) => {
      await this.startGuests(name, index);
      await this.startAgent(name);
    }));
    this.guests.sort();
  }

  private configure(index: number): HostConfig {
    const bin = join(this.folder, 'bin');
    const programs = ['qemu-system-x86_64', 'qemu-storage-daemon', 'qemu-img'].map((name) => join(bin, name)) as [string, string, string];
    mkdirSync(bin, { recursive: true });
    programs.forEach((path) => writeFileSync(path, ''));
    const address = `127.1.${1 + Math.floor(index / 250)}.${1 + (index % 250)}`;
    return devHostConfig(this.folder, this.hostName(index), this.temporal.address, { address, insecure: true, memory: '1T', binaries: { qemu: [programs[0]], storageDaemon: programs[1], qemuImg: programs[2] }, ...this.options.config?.(index) });
  }

  /** Writes the host's state as `defineGuest` would, and starts its QEMUs. */
  private async startGuests(name: string, hostIndex: number): Promise<void> {
    const { guestsPerHost, disksPerGuest = 2, diskBytes = 8e9, memoryBytes = 2 ** 31, behaviour } = this.options;
    const config = this.configs.get(name)!;
    const host = new Host(config, this.world.host(name).programs);
    try {
      for (let index = 0; index < guestsPerHost; index++) {
        const guest = `${name}-g${String(index).padStart(3, '0')}`;
        this.guests.push(guest);
        if (behaviour) this.world.setBehaviour(guest, behaviour(hostIndex * guestsPerHost + index));
        const disks = Array.from({ length: disksPerGuest }, (_, disk) => ({ id: `disk${disk}`, path: `\${images}/${guest}-${disk}.raw` }));
        const definition = definitionSchema.parse({ name: guest, machine: 'pc-q35-7.2', accelerator: 'kvm', memory: memoryBytes, disks });
        const folder = join(config.stateDir, 'guests', guest);
        mkdirSync(folder, { recursive: true });
        writeFileSync(join(folder, 'definition.yaml'), stringify(definition));
        writeFileSync(join(folder, 'ownership.json'), JSON.stringify({ state: 'owner', since: new Date().toISOString() }));
        for (const { path } of definition.disks) {
          const image = host.path(guest, path);
          writeFileSync(image, '');
          truncateSync(image, Math.ceil(diskBytes / 512) * 512);
        }
        await startGuest(host, guest);
      }
    } finally {
      host.close();
    }
  }
}
