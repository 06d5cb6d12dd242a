import { type ChildProcess, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Migration, MigrationClient } from '../client/migration-client';
import { freePort, startTemporalServer, type TemporalServer } from '../workers/temporal-server';
import { formatSpread } from './statistics';
import { requests, usage } from './usage';

const PROGRAM = [join(__dirname, '../../bin/vmferry'), join(__dirname, '../bin/vmferry')].find((path) => existsSync(path))!;
/** A little more than 16 MiB: QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB. */
const MEMORY = '16392K';
const DISK_BYTES = 32 * 2 ** 20;
/** Two reports of each agent. */
const IDLE_MS = 60_000;
const MOVING = 8;
/** So that copies of eight disks at once are under way for as long as they are measured. */
const COPY_BYTES_PER_SECOND = 2 ** 19;
const MOVING_MS = 30_000;
const MOVES = 10;
/** Of agents that start, and guests that were started. */
const SETTLES_MS = 10_000;

type Program = 'server' | 'control' | 'a' | 'b';
const PROGRAMS: readonly Program[] = ['server', 'control', 'a', 'b'];
const NAMES: Record<Program, string> = { server: 'Temporal server', control: 'control worker', a: 'agent of the source', b: 'agent of the destination' };

/** Two agents, a control worker and a Temporal server, each a process of its own. */
class Processes {
  readonly folder = mkdtempSync(join(process.env['VMFERRY_LAB'] ?? tmpdir(), 'cost-'));
  private readonly children = new Map<string, ChildProcess>();
  server!: TemporalServer;
  client!: MigrationClient;

  async start(): Promise<void> {
    this.server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(this.folder, 'temporal.log') });
    this.run('control', ['--temporal-address', this.server.address, 'control']);
    for (const name of ['a', 'b'] as const) {
      const images = join(this.folder, name, 'images');
      mkdirSync(images, { recursive: true });
      const config = { name, address: '127.0.0.1', temporal: { address: this.server.address }, insecure: true, stateDir: join(this.folder, name, 'state'), runDir: join(this.folder, name, 'run'), roots: { images }, slots: { outgoing: MOVING, incoming: MOVING } };
      const file = join(this.folder, `${name}.yaml`);
      writeFileSync(file, JSON.stringify(config));
      this.run(name, ['agent', '--config', file]);
    }
    this.client = await MigrationClient.connect({ address: this.server.address, namespace: 'default' });
    for (const end = Date.now() + 60_000; (await this.client.hosts().catch(() => [])).length < 2; await delay(100)) if (Date.now() > end) throw new Error(`the agents do not come: see ${this.folder}`);
  }

  private run(name: Program, words: string[]): void {
    const log = openSync(join(this.folder, `${name}.log`), 'a');
    this.children.set(name, spawn(process.execPath, [PROGRAM, ...words], { stdio: ['ignore', log, log] }));
    closeSync(log);
  }

  usage(name: Program): ReturnType<typeof usage> {
    return usage(name === 'server' ? this.server.pid : this.children.get(name)!.pid!);
  }

  /** A guest without anything to boot, whose firmware waits for ever, and with one disk full of bytes that do not compress. */
  async boot(name: string, bytes: number): Promise<void> {
    const image = openSync(join(this.folder, 'a/images', `${name}.raw`), 'w');
    if (bytes > 0) writeSync(image, randomFillSync(Buffer.alloc(bytes)));
    closeSync(image);
    const definition = { name, machine: 'pc-q35-7.2', cpu: { model: 'qemu64', count: 1 }, memory: MEMORY, disks: bytes > 0 ? [{ id: 'disk', path: `\${images}/${name}.raw`, format: 'raw', bus: 'virtio-blk' }] : [] };
    await this.client.onHost('a', 'defineGuest', { definition });
    await this.client.onHost('a', 'startGuest', { guest: name });
  }

  async close(): Promise<void> {
    for (const host of ['a', 'b']) for (const { name } of (await this.client?.onHost(host, 'listGuests').catch(() => [])) ?? []) await this.client.onHost(host, 'stopGuest', { guest: name, graceMs: 0 }).catch(() => undefined);
    await this.client?.close();
    for (const child of this.children.values()) {
      const gone = new Promise((resolve) => child.once('exit', resolve));
      if (child.exitCode === null && child.kill('SIGTERM')) await gone;
    }
    await this.server?.stop();
    if (process.env['VMFERRY_KEEP_LAB']) console.error(`kept: ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
  }
}

interface Used {
  cpuSeconds: Record<Program, number>;
  rssBytes: Record<Program, number>;
}

/** What each program used while `work` went on. */
async function during(processes: Processes, work: () => Promise<unknown>): Promise<Used> {
  const each = <T>(of: (name: Program) => T) => Object.fromEntries(PROGRAMS.map((name) => [name, of(name)])) as Record<Program, T>;
  const before = each((name) => processes.usage(name));
  await work();
  const after = each((name) => processes.usage(name));
  return { cpuSeconds: each((name) => after[name].cpuSeconds - before[name].cpuSeconds), rssBytes: each((name) => after[name].rssBytes) };
}

/** Prints what agents use for idle guests, for guests whose disks are copied, and for whole moves. */
export async function measureAgents(guests: number, say: (text: string) => void): Promise<void> {
  const processes = new Processes();
  const under: Migration[] = [];
  try {
    await processes.start();
    await delay(SETTLES_MS);
    say('agents without guests');
    const none = await during(processes, () => delay(IDLE_MS));
    for (let index = 0; index < guests; index++) await processes.boot(`idle-${index}`, 0);
    await delay(SETTLES_MS);
    say(`${guests} guests idle on one agent`);
    const idle = await during(processes, () => delay(IDLE_MS));
    const entity = async () => await processes.client.temporal.workflow.getHandle('host/a').describe();
    const [asked, before] = [await requests(processes.server.pid), await entity()];
    await delay(IDLE_MS);
    const after = await entity();
    const said = { events: after.historyLength - before.historyLength, bytes: after.historySize! - before.historySize! };
    const idleRequests = [...(await requests(processes.server.pid))].map(([name, count]) => [name, count - (asked.get(name) ?? 0)] as const).filter(([, count]) => count > 0);

    const moved: Used[] = [];
    await processes.boot('moving', DISK_BYTES);
    const begin = async (name: string, to: string, bandwidthBytesPerSecond?: number) => await processes.client.migrate({ vm: name, to, sourceDisks: 'wipe', maxDowntimeMs: 5_000, ...(bandwidthBytesPerSecond !== undefined && { bandwidthBytesPerSecond }) });
    for (let index = 0; index < MOVES; index++) {
      moved.push(await during(processes, async () => await (await begin('moving', index % 2 === 0 ? 'b' : 'a')).result()));
      say(`move ${index + 1} of ${MOVES}`);
    }

    const movers = Array.from({ length: MOVING }, (_, index) => `copied-${index}`);
    for (const name of movers) await processes.boot(name, DISK_BYTES);
    for (const name of movers) under.push(await begin(name, 'b', COPY_BYTES_PER_SECOND));
    for (const one of under) while ((await one.status())?.phase !== 'converge') await delay(200);
    await delay(SETTLES_MS);
    say(`${MOVING} guests whose disks are copied`);
    const moving = await during(processes, () => delay(MOVING_MS));
    await Promise.all(under.splice(0).map(async (one) => await one.result()));
    print({ guests, none, idle, moving, moved, idleRequests, said });
  } finally {
    // A guest that moves cannot be stopped.
    await Promise.all(under.map(async (one) => await one.cancel().then(() => one.result()).catch(() => undefined)));
    await processes.close();
  }
}

function print({ guests, none, idle, moving, moved, idleRequests, said }: { guests: number; none: Used; idle: Used; moving: Used; moved: Used[]; idleRequests: (readonly [string, number])[]; said: { events: number; bytes: number } }): void {
  const percent = (seconds: number, ms: number) => `${((seconds * 100_000) / ms).toFixed(1)} %`;
  const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;
  console.log(`\nProcesses of their own; guests are real QEMUs of ${MEMORY} under TCG that have nothing to boot; CPU as a share of one core, over ${IDLE_MS / 1000} s (copies: ${MOVING_MS / 1000} s)\n`);
  console.log(`| program | no guest: CPU, RSS | ${guests} idle guests: CPU, RSS | and ${MOVING} disks copied at ${COPY_BYTES_PER_SECOND / 2 ** 10} KiB/s: CPU, RSS | a whole move: CPU ms |\n|---|---|---|---|---|`);
  for (const name of PROGRAMS) {
    const cell = ({ cpuSeconds, rssBytes }: Used, ms: number) => `${percent(cpuSeconds[name], ms)}, ${megabytes(rssBytes[name])}`;
    console.log(`| ${NAMES[name]} | ${cell(none, IDLE_MS)} | ${cell(idle, IDLE_MS)} | ${cell(moving, MOVING_MS)} | ${formatSpread(moved.map(({ cpuSeconds }) => cpuSeconds[name] * 1000))} |`);
  }
  const slope = (of: (used: Used) => number) => of(idle) - of(none);
  console.log(`\nan idle guest: ${((slope(({ cpuSeconds }) => cpuSeconds.a) * 1e6) / IDLE_MS / guests).toFixed(2)} ms of CPU a second, ${(slope(({ rssBytes }) => rssBytes.a) / guests / 1e6).toFixed(2)} MB; their host's entity in ${IDLE_MS / 1000} s: ${said.events} events, ${said.bytes} bytes; requests to Temporal: ${idleRequests.sort((x, y) => y[1] - x[1]).map(([name, count]) => `${name} ${count}`).join(', ')}`);
}
