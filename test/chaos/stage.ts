import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { MigrationClient } from '../../client/migration-client';
import { guestArtifacts, guestKernelArguments } from '../../demo/guest/artifacts';
import { TestGuest } from '../../demo/guest/test-guest';
import type { Attempt, Ownership } from '../../hypervisor/guest-store';
import type { HostConfig } from '../../hypervisor/host-config';
import { readJson } from '../../hypervisor/durable';
import { identify, isAlive, processExit, processOfPidFile } from '../../hypervisor/processes';
import { devHostConfig } from '../../workers/dev';
import { startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { guardProcesses, qemuProcesses } from '../support/leftovers';
import { NEVER } from '../support/never-converging';
import { freePorts } from '../support/free-ports';
import { newerBinaries } from '../support/newer-qemu';
import { Moments } from './moments';

const ROOT = join(__dirname, '../..');
const MIB = 2 ** 20;
export const GUEST = 'chaos';
export const HOSTS = ['host-a', 'host-b'] as const;
/** The guest's memory never converges, and goes by post-copy in the second try. */
export const POST_COPY = process.env['VMFERRY_CHAOS_POST_COPY'] !== undefined;

export type HostName = (typeof HOSTS)[number];
/** What runs as a process of ours, and is started again when it ends. */
export type Program = 'control' | HostName;

/** Each stage has loopback addresses of its own, so that what is done to its connections is done to nobody else's. */
const ADDRESSES: Record<HostName, string> = { 'host-a': `127.${(process.pid >> 8) & 255}.${process.pid & 255}.11`, 'host-b': `127.${(process.pid >> 8) & 255}.${process.pid & 255}.12` };
/** Both disks of the guest, twice; small enough to be filled in a moment. */
const IMAGES_BYTES = 192 * MIB;

/**
 * A Temporal server on a database, the control worker and two host agents, each a process of its own, and one real guest on real disks; all below one
 * folder. Whatever ends is started again at once, as an init system would.
 */
export class Stage {
  guest = new TestGuest();
  client!: MigrationClient;
  readonly configs = new Map<HostName, HostConfig>();
  /** What ended without being asked to. */
  readonly unexpectedEnds: string[] = [];
  private readonly children = new Map<Program, ChildProcess>();
  private readonly held = new Set<Program>();
  private closing = false;
  private mounted: string[] = [];

  private constructor(readonly folder: string, private temporal: TemporalServer, private readonly ports: { port: number; uiPort: number }, readonly moments: Moments) {}

  static async open(): Promise<Stage> {
    const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'vmc-'));
    const [port, uiPort] = (await freePorts(2)) as [number, number];
    const ports = { port, uiPort };
    const temporal = await startTemporalServer({ ...ports, database: join(folder, 'temporal.db'), logFile: join(folder, 'temporal.log') });
    const stage = new Stage(folder, temporal, ports, await Moments.listen(join(folder, 'chaos.sock')));
    try {
      await stage.build();
      return stage;
    } catch (error) {
      await stage.close();
      throw error;
    }
  }

  private async build(): Promise<void> {
    const roots = { boot: dirname(guestArtifacts().kernel) };
    const qemu = process.env['VMFERRY_CHAOS_NEWER_QEMU'] ? { binaries: newerBinaries() } : {};
    for (const host of HOSTS) {
      const extra = { address: ADDRESSES[host], insecure: true, ...qemu };
      this.configs.set(host, devHostConfig(this.folder, host, this.temporal.address, extra, roots));
      this.mount(join(this.folder, host, 'images'));
      const { name, address, stateDir, runDir } = this.configs.get(host)!;
      const config = { name, address, insecure: true, stateDir, runDir, temporal: { address: this.temporal.address }, ...qemu, roots: { images: join(this.folder, host, 'images'), ...roots } };
      writeFileSync(join(this.folder, `${host}.yaml`), JSON.stringify(config));
    }
    for (const program of ['control', ...HOSTS] as const) this.start(program);
    this.client = await MigrationClient.connect({ address: this.temporal.address, namespace: 'default' });
    for (let known = 0; known < HOSTS.length; known = (await this.client.hosts().catch(() => [])).length) await delay(50);
    for (const index of [0, 1]) {
      const image = join(this.folder, 'host-a', 'images', `${GUEST}-${index}.raw`);
      writeFileSync(image, '');
      truncateSync(image, 32 * MIB);
    }
    await this.client.onHost('host-a', 'defineGuest', { definition: definition() });
    await this.client.onHost('host-a', 'startGuest', { guest: GUEST });
    await this.watchGuest();
  }

  /** A file system of its own, where we may: a full disk then is full for nobody else. */
  private mount(path: string): void {
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${IMAGES_BYTES}`, 'vmc', path], { stdio: 'ignore' });
      this.mounted.push(path);
    } catch {
      // Not root: the faults that need it say so.
    }
  }

  get mayFillDisks(): boolean {
    return this.mounted.length === HOSTS.length;
  }

  config(host: HostName): HostConfig {
    return this.configs.get(host)!;
  }

  runFile(host: HostName, file: string): string {
    return join(this.config(host).runDir, GUEST, file);
  }

  /** The guest's QEMU on a host, or its storage daemon there. */
  pidOf(host: HostName, what: 'qemu' | 'storage'): number | undefined {
    return processOfPidFile(this.runFile(host, `${what}.pid`))?.pid;
  }

  pidOfProgram(program: Program): number {
    return this.children.get(program)!.pid!;
  }

  ownership(host: HostName): Ownership | undefined {
    return readJson(join(this.config(host).stateDir, 'guests', GUEST, 'ownership.json'));
  }

  attempt(host: HostName): Attempt | undefined {
    try {
      return readJson(join(this.config(host).stateDir, 'guests', GUEST, 'attempt.json'));
    } catch (error) {
      // Its agent removes it at just this moment.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  hostFolder(host: HostName): string {
    return join(this.folder, host);
  }

  start(program: Program): void {
    const options = program === 'control' ? ['--temporal-address', this.temporal.address, 'control'] : ['agent', '--config', join(this.folder, `${program}.yaml`)];
    const log = openSync(join(this.folder, `${program}.log`), 'a', 0o600);
    const env = { ...process.env, NODE_OPTIONS: `--require ${join(ROOT, 'test/chaos/preload.js')}`, VMFERRY_CHAOS: join(this.folder, 'chaos.sock'), VMFERRY_LOG: 'debug' };
    const child = spawn(process.execPath, [join(ROOT, 'bin/vmferry'), ...options], { stdio: ['ignore', 'ignore', log], env, cwd: '/' });
    closeSync(log);
    this.children.set(program, child);
    child.once('exit', (code, signal) => {
      if (this.closing || this.children.get(program) !== child) return;
      if (this.held.has(program)) return;
      this.unexpectedEnds.push(`${program} ended by itself with ${signal ?? `exit code ${code}`}`);
      this.start(program);
    });
  }

  /** Sends a signal to a program of ours; resolves with a function that starts it again, when it is gone. */
  async end(program: Program, signal: 'SIGKILL' | 'SIGTERM'): Promise<() => Promise<void>> {
    this.held.add(program);
    const child = this.children.get(program)!;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${program} is gone already`);
    child.kill(signal);
    // A stop is graceful: it may wait for what is held at this very moment.
    if (signal === 'SIGKILL') await gone;
    return async () => {
      await gone;
      this.held.delete(program);
      this.start(program);
    };
  }

  async killTemporal(): Promise<() => Promise<void>> {
    const identity = identify(this.temporal.pid)!;
    process.kill(identity.pid, 'SIGKILL');
    await processExit(identity);
    return async () => {
      this.temporal = await startTemporalServer({ ...this.ports, database: join(this.folder, 'temporal.db'), logFile: join(this.folder, 'temporal.log') });
    };
  }

  /** Attaches to every QEMU that has the guest, or is about to get it, for as long as the guest is looked at. */
  private follow(guest: TestGuest): void {
    for (const host of HOSTS) void guest.stayAttached(this.runFile(host, 'serial.sock'), new AbortController().signal);
  }

  /** The guest was lost with its QEMU: another life of it is followed. */
  async followAnew(): Promise<void> {
    this.guest.close();
    this.guest = new TestGuest();
    await this.watchGuest();
  }

  private async watchGuest(): Promise<void> {
    this.follow(this.guest);
    await this.hasWritten();
  }

  /** The guest is up, and has something to lose. */
  async hasWritten(): Promise<void> {
    await this.guest.ready();
    while (Number(/written=(\d+)/.exec(await this.guest.command('stats'))![1]) < 100) await this.guest.nextTick();
  }

  deleteKept(host: HostName): void {
    const folder = join(this.hostFolder(host), 'images');
    for (const image of readdirSync(folder).filter((name) => name.includes('.kept-'))) rmSync(join(folder, image));
  }

  /** What the logs of all programs say, for whoever looks for the reason of a failure. */
  keepLogs(folder: string): void {
    mkdirSync(folder, { recursive: true });
    for (const file of readdirSync(this.folder).filter((name) => name.endsWith('.log'))) writeFileSync(join(folder, file), readFileSync(join(this.folder, file)));
  }

  clearLogs(): void {
    for (const file of readdirSync(this.folder).filter((name) => name.endsWith('.log'))) truncateSync(join(this.folder, file));
  }

  /** Ends everything by its pid, and removes the folder. */
  async close(): Promise<void> {
    this.closing = true;
    this.guest.close();
    await this.client?.close().catch(() => undefined);
    const children = [...this.children.values()].map((child) => child.pid).filter((pid) => pid !== undefined);
    const ours = () => HOSTS.flatMap((host) => [...guardProcesses(this.hostFolder(host)), ...qemuProcesses(this.hostFolder(host))]).map((one) => Number.parseInt(one, 10));
    for (const pid of [...children, this.temporal.pid]) await kill(pid);
    for (const pid of ours()) await kill(pid);
    await this.moments.close();
    for (const path of this.mounted) execFileSync('umount', ['-l', path], { stdio: 'ignore' });
    rmSync(this.folder, { recursive: true, force: true });
  }
}

async function kill(pid: number): Promise<void> {
  const identity = identify(pid);
  if (!identity || !isAlive(identity)) return;
  process.kill(pid, 'SIGKILL');
  await processExit(identity);
}

/** A test guest as `Lab.definition` makes it. Its disks may hold what an earlier life of it wrote. */
function definition() {
  return {
    name: GUEST,
    machine: 'pc-q35-7.2',
    // Odd on purpose: QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB.
    memory: '131080K',
    autostart: true,
    boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img', append: guestKernelArguments({ rate: '2M', memory: '8M', dirty: '1M', ...(POST_COPY && NEVER), dirtyBase: true }) },
    disks: [0, 1].map((index) => ({ id: `drive-scsi-disk-${index}`, path: `\${images}/${GUEST}-${index}.raw`, format: 'raw', bus: 'virtio-scsi' })),
    arguments: ['-chardev', 'socket,id=serial0,path=${run}/serial.sock,server=on,wait=off', '-serial', 'chardev:serial0', '-qmp', 'unix:${run}/look.sock,server=on,wait=off'],
  };
}
