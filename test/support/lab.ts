import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type Logger, pino } from 'pino';
import { guestArtifacts, guestKernelArguments, type GuestOptions } from '../../demo/guest/artifacts';
import { TestGuest } from '../../demo/guest/test-guest';
import { MigrationClient } from '../../client/migration-client';
import type { HostConfig } from '../../hypervisor/host-config';
import { setBandwidth } from '../../hypervisor/storage-daemon';
import { QmpConnection } from '../../qmp/connection';
import { bundleWorkflows, type RunningWorker, startControlWorker } from '../../workers/control';
import { devHostConfig } from '../../workers/dev';
import { type RunningAgent, startHostAgent } from '../../workers/host-agent';
import { installRuntime } from '../../workers/logger';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { leftovers, qemuProcesses } from './leftovers';

export const MIB = 2 ** 20;
/** Odd on purpose: see shared facts on QEMU 7.2 under TCG. */
export const MEMORY = '131080K';

export interface LabDisk {
  id?: string;
  sizeBytes?: number;
  format?: 'raw' | 'qcow2';
  bus?: 'virtio-scsi' | 'virtio-blk';
  /** A portable path instead of an image in `${images}`; nothing is made. */
  path?: string;
  readOnly?: boolean;
  removable?: boolean;
}

export interface LabGuestOptions extends GuestOptions {
  disks?: LabDisk[];
  /** Further fields of the definition. */
  extra?: Record<string, unknown>;
  arguments?: string[];
}

let runtimeInstalled = false;

/** A Temporal server, a control worker and host agents of one test file, all real. Everything is below one folder, on tmpfs where there is one. */
export class Lab {
  readonly configs = new Map<string, HostConfig>();
  readonly agents = new Map<string, RunningAgent>();
  readonly guests = new Map<string, TestGuest>();
  control?: RunningWorker;
  client!: MigrationClient;

  private constructor(readonly folder: string, readonly server: Pick<TemporalServer, 'address' | 'stop'>, readonly logger: Logger) {}

  /**
   * `host-a` is on 127.0.0.1 and `host-b` on ::1, so that a move one way is IPv6, and the way back IPv4. With `temporal`, the address of a server,
   * that one is used, and its control workers: the lab then starts and ends neither.
   */
  static async open(addresses: Record<string, string> = { 'host-a': '127.0.0.1', 'host-b': '::1' }, base = process.env['VMFERRY_LAB'] ?? (existsSync('/dev/shm') ? '/dev/shm' : tmpdir()), temporal?: string): Promise<Lab> {
    const folder = mkdtempSync(join(base, 'vmf-'));
    const logger = pino({ level: process.env['VMFERRY_LOG'] ?? 'debug' }, pino.destination({ dest: join(folder, 'lab.log'), sync: true }));
    if (!runtimeInstalled) installRuntime(logger);
    runtimeInstalled = true;
    const server = temporal ? { address: temporal, stop: async () => undefined } : await startTemporalServer({ port: await freePort(), uiPort: await freePort(), database: join(folder, 'temporal.db'), logFile: join(folder, 'temporal.log') });
    const lab = new Lab(folder, server, logger);
    try {
      if (!temporal) lab.control = await startControlWorker({ temporal: lab.temporal, logger, bundle: await bundleWorkflows() });
      for (const [name, address] of Object.entries(addresses)) await lab.addHost(name, { address });
      lab.client = await MigrationClient.connect(lab.temporal);
      return lab;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  get temporal() {
    return { address: this.server.address, namespace: 'default' };
  }

  /** `roots` are further ones. */
  async addHost(name: string, { roots, ...extra }: Record<string, unknown> & { roots?: Record<string, unknown> } = {}, start = true): Promise<HostConfig> {
    const devices = join(this.folder, name, 'devices');
    mkdirSync(devices, { recursive: true });
    const config = devHostConfig(this.folder, name, this.server.address, { ...(!('tls' in extra || 'psk' in extra) && { insecure: true }), ...extra }, { boot: dirname(guestArtifacts().kernel), devices: { path: devices, blockDevices: true }, ...roots });
    this.configs.set(name, config);
    if (start) await this.startAgent(name);
    return config;
  }

  async startAgent(name: string): Promise<void> {
    this.agents.set(name, await startHostAgent(this.configs.get(name)!, this.logger));
  }

  async stopAgent(name: string): Promise<void> {
    await this.agents.get(name)?.stop();
    this.agents.delete(name);
  }

  config(host: string): HostConfig {
    return this.configs.get(host)!;
  }

  image(host: string, name: string): string {
    return join(this.folder, host, 'images', name);
  }

  runFile(host: string, guest: string, file: string): string {
    return join(this.config(host).runDir, guest, file);
  }

  /** The definition of a test guest. It has a second monitor, `look.sock`, for looking without asking vmferry. */
  definition(name: string, options: LabGuestOptions = {}): Record<string, unknown> & { name: string } {
    const { disks = [{}, {}], extra, arguments: more = [], ...guest } = options;
    return {
      name,
      machine: 'pc-q35-7.2',
      memory: MEMORY,
      boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img', append: guestKernelArguments({ rate: '4M', memory: '8M', dirty: '1M', ...guest }) },
      disks: disks.map((disk, index) => ({
        id: disk.id ?? `drive-scsi-disk-${index}`,
        path: disk.path ?? `\${images}/${name}-${index}.${disk.format ?? 'raw'}`,
        format: disk.format ?? 'raw',
        bus: disk.bus ?? 'virtio-scsi',
        ...(disk.readOnly && { readOnly: true }),
        ...(disk.removable && { removable: true }),
      })),
      arguments: ['-chardev', 'socket,id=serial0,path=${run}/serial.sock,server=on,wait=off', '-serial', 'chardev:serial0', '-qmp', 'unix:${run}/look.sock,server=on,wait=off', ...more],
      ...extra,
    };
  }

  makeImages(host: string, name: string, disks: LabDisk[] = [{}, {}]): void {
    disks.forEach(({ path, format = 'raw', sizeBytes = 32 * MIB }, index) => {
      if (path) return;
      const image = this.image(host, `${name}-${index}.${format}`);
      if (format === 'qcow2') execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(sizeBytes)]);
      else {
        writeFileSync(image, '');
        truncateSync(image, sizeBytes);
      }
    });
  }

  /** Defines and starts a guest on a host, and waits until it has written `writes` blocks. */
  async boot(host: string, name: string, options: LabGuestOptions = {}, writes = 200): Promise<TestGuest> {
    this.makeImages(host, name, options.disks);
    await this.client.onHost(host, 'defineGuest', { definition: this.definition(name, options) });
    await this.client.onHost(host, 'startGuest', { guest: name });
    const guest = new TestGuest();
    this.guests.set(name, guest);
    await guest.attach(this.runFile(host, name, 'serial.sock'));
    await guest.ready();
    await this.written(guest, writes);
    return guest;
  }

  /** Waits until the guest has completed this many writes. */
  async written(guest: TestGuest, writes: number): Promise<void> {
    while (Number(/written=(\d+)/.exec(await guest.command('stats'))![1]) < writes) await guest.nextTick();
  }

  /** Moves a guest and follows it with its console. Source images are deleted unless asked otherwise. */
  async move(name: string, to: string, input: Record<string, unknown> = {}) {
    const migration = await this.client.migrate({ vm: name, to, sourceDisks: 'wipe', maxDowntimeMs: 3_000, ...input });
    const over = new AbortController();
    const followed = this.follow(name, to, over.signal);
    try {
      return await migration.result();
    } finally {
      over.abort();
      await followed;
      await this.record(name);
    }
  }

  /** For test/replay: see scripts/record-histories.sh. */
  async record(name: string, kind: 'migrate' | 'repair' = 'migrate'): Promise<void> {
    const folder = process.env['VMFERRY_RECORD'];
    if (folder) execFileSync('sh', ['-c', `"$VMFERRY_TEMPORAL" workflow show --address ${this.server.address} --workflow-id ${kind}/${name} --output json > ${join(folder, `${kind === 'migrate' ? name : `${kind}-${name}`}.json`)}`]);
  }

  /** Attaches the guest's console on a host, and to each QEMU that comes after one that died there, until `over`; then to the one that stays. */
  async follow(name: string, host: string, over: AbortSignal): Promise<void> {
    const guest = this.guests.get(name);
    const path = this.runFile(host, name, 'serial.sock');
    const aborted = new Promise<void>((resolve) => over.addEventListener('abort', () => resolve()));
    // Closed when the test is over, which may be before the move is: attach() then rejects at once.
    while (guest && !guest.isClosed) {
      const last = over.aborted;
      const attached = await guest.attach(path, { signal: last ? AbortSignal.timeout(1_000) : over }).catch(() => undefined);
      if (last || (attached && !(await Promise.race([attached.ended.then(() => true), aborted.then(() => false)])))) return;
    }
  }

  /** Talks to the guest's second monitor. */
  async look<T>(host: string, name: string, work: (qmp: QmpConnection) => Promise<T>): Promise<T> {
    const qmp = await QmpConnection.connect(this.runFile(host, name, 'look.sock'));
    try {
      return await work(qmp);
    } finally {
      qmp.close();
    }
  }

  /** The guest's mirrors, as QEMU shows them. */
  async mirrors(host: string, name: string): Promise<{ ready: boolean; remaining: number }[]> {
    return await this.look(host, name, async (qmp) => (await qmp.execute('query-block-jobs')).map(({ ready, len, offset }) => ({ ready, remaining: len - offset })));
  }

  /** Changes the cap on the copy to this host, as a slower or faster link would. */
  async setBandwidth(host: string, name: string, bytesPerSecond: number | undefined): Promise<void> {
    // The agent of this process holds the storage daemon's monitor: its own is used.
    await setBandwidth(this.agents.get(host)!.host, name, bytesPerSecond);
  }

  /** Resolves when the guest's QEMU on this host has sent its whole memory. */
  async sourceCompleted(host: string, name: string): Promise<void> {
    await this.look(host, name, async (qmp) => {
      const events = qmp.listen('MIGRATION');
      while ((await qmp.execute('query-status')).status !== 'postmigrate') await events.next({ timeoutMs: 50 }).catch(() => undefined);
    });
  }

  /** Resolves when the guest's migration is in this phase. */
  async phase(name: string, phase: string): Promise<void> {
    let migration = await this.client.migration(name).catch(() => undefined);
    while (!migration) migration = await this.client.migration(name).catch(() => undefined);
    for await (const view of migration.watch()) if (view.phase === phase) return;
    throw new Error(`the migration of ${name} ended before phase ${phase}`);
  }

  /** All QEMU processes of this host: `pid program`. */
  processes(host: string): string[] {
    return qemuProcesses(join(this.folder, host));
  }

  /** See `leftovers`. */
  async leftovers(host: string, guests: string[]): Promise<string[]> {
    return await leftovers(join(this.folder, host), this.config(host), guests);
  }

  /** The number of events in the history of a guest's last migration, and the run's id. */
  async history(name: string) {
    const handle = this.client.temporal.workflow.getHandle(`migrate/${name}`);
    return await handle.fetchHistory();
  }

  /** Bytes that an image really takes. */
  allocated(path: string): number {
    return statSync(path).blocks * 512;
  }

  /** After a test: ends whatever it left running on this lab, so that a failed test does not slow down or fail the next. */
  async reset(): Promise<void> {
    for (const { workflowId } of await this.runningMigrations()) await this.client.temporal.workflow.getHandle(workflowId).terminate('the test is over').catch(() => undefined);
    for (const guest of this.guests.values()) guest.close();
    this.guests.clear();
    for (const host of this.configs.keys()) {
      for (const one of this.processes(host)) process.kill(Number.parseInt(one, 10), 'SIGKILL');
      for (const folder of [join(this.config(host).stateDir, 'guests'), this.config(host).runDir, join(this.folder, host, 'images')]) {
        for (const entry of existsSync(folder) ? readdirSync(folder) : []) rmSync(join(folder, entry), { recursive: true, force: true });
      }
      if (!this.agents.has(host)) await this.startAgent(host);
    }
  }

  private async runningMigrations(): Promise<{ workflowId: string }[]> {
    const found: { workflowId: string }[] = [];
    for await (const { workflowId } of this.client.temporal.workflow.list({ query: 'WorkflowType = "migrateVm" AND ExecutionStatus = "Running"' })) found.push({ workflowId });
    return found;
  }

  /** Ends all guests by their process ids, then everything else. */
  async close(): Promise<void> {
    this.guests.forEach((guest) => guest.close());
    for (const name of [...this.agents.keys()]) await this.stopAgent(name);
    await this.control?.stop();
    await this.client?.close();
    for (const host of this.configs.keys()) for (const one of this.processes(host)) process.kill(Number.parseInt(one, 10), 'SIGKILL');
    await this.server.stop();
    if (process.env['VMFERRY_KEEP_LAB']) console.error(`lab kept: ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
  }
}
