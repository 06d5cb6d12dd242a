import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Migration } from '../../client/migration-client';
import { readJson } from '../../hypervisor/durable';
import { identify, processExit } from '../../hypervisor/processes';
import { guardProcesses } from '../support/leftovers';
import type { HostName, Program, Stage } from './stage';

/** One migration that is disturbed. */
export interface Scene {
  stage: Stage;
  source: HostName;
  destination: HostName;
  migration: Migration;
  /** Aborted when the migration has ended: what lasts "for good" lasts until then. */
  over: AbortSignal;
}

/** What is to be done when whoever waits at the step has been let go: mostly to start again what was ended. */
export type Afterwards = () => Promise<void>;

export interface Fault {
  name: string;
  /** Does it; throws `Void` if there is nothing to do it to. */
  apply(scene: Scene): Promise<Afterwards | undefined>;
  /** A process of ours is killed, or the migration cancelled, and nothing else: R9 holds. */
  ours?: true;
  /** The guest may be lost with the QEMU that is killed; then one copy of its disks must be startable. */
  mayLoseGuest?: true;
  /** A guest that is lost is started by its owner's agent. */
  autostarts?: true;
  /** The guest may have been stopped by QEMU, as its disk was full. */
  mayStopGuest?: true;
  /** There is no workflow any more that could undo anything. */
  terminates?: true;
}

/** The fault has no object at this step, such as a QEMU that is not there yet. */
export class Void extends Error {
  override readonly name = 'Void';
}

const SHORT_MS = 2_000;
const CUT_EVERY_MS = 20;

const programs = (name: string, signal: 'SIGKILL' | 'SIGTERM', which: (scene: Scene) => Program[]): Fault => ({
  name,
  ours: true,
  apply: async (scene) => {
    const restarts = await Promise.all(which(scene).map((program) => scene.stage.end(program, signal)));
    return async () => void (await Promise.all(restarts.map((restart) => restart())));
  },
});

type Victim = (scene: Scene) => number | undefined;
const sourceQemu: Victim = ({ stage, source }) => stage.pidOf(source, 'qemu');
const destinationQemu: Victim = ({ stage, destination }) => stage.pidOf(destination, 'qemu');
const storageDaemon: Victim = ({ stage, destination }) => stage.pidOf(destination, 'storage');

function found(scene: Scene, what: string, victim: Victim): number {
  const pid = victim(scene);
  if (pid === undefined) throw new Void(`there is no ${what} at this step`);
  return pid;
}

async function killed(pid: number): Promise<void> {
  const identity = identify(pid);
  if (!identity) return;
  process.kill(pid, 'SIGKILL');
  await processExit(identity);
}

const kill = (what: string, victim: Victim, more: Partial<Fault> = {}): Fault => ({
  name: `SIGKILL ${what}`,
  ...more,
  apply: async (scene) => {
    await killed(found(scene, what, victim));
    return undefined;
  },
});

const freeze = (what: string, victim: Victim): Fault => ({
  name: `SIGSTOP ${what} for 2 s`,
  apply: async (scene) => {
    const pid = found(scene, what, victim);
    const identity = identify(pid);
    process.kill(pid, 'SIGSTOP');
    return async () => {
      await delay(SHORT_MS);
      if (identify(pid)?.startTime === identity?.startTime) process.kill(pid, 'SIGCONT');
    };
  },
});

/** The ports of a migration, as its destination has them on record. */
function ports({ stage, destination }: Scene, link: 'nbd' | 'memory' | 'all'): number[] {
  const record = stage.attempt(destination);
  if (record?.role !== 'destination') return [];
  const lease = readJson<number>(join(stage.config(destination).stateDir, 'lease-port.json'));
  const wanted = { nbd: [record.nbdPort], memory: [record.migrationPort], all: [record.nbdPort, record.migrationPort, lease] }[link];
  return wanted.filter((port) => port !== undefined);
}

/**
 * Resets every connection to these ports, again and again: a new one is accepted, and dies at once. The kernel does that by `ss -K`
 * (CONFIG_INET_DIAG_DESTROY, as root); both ends see an error, as when a firewall's state is lost.
 */
async function cut(scene: Scene, link: 'nbd' | 'memory' | 'all', until: () => boolean): Promise<void> {
  const address = scene.stage.config(scene.destination).address;
  while (!until()) {
    const ends = ports(scene, link).flatMap((port) => [`dst = ${address}:${port}`, `src = ${address}:${port}`]);
    if (ends.length > 0) await once(spawn('ss', ['-K', '-tnH', 'state', 'connected', `( ${ends.join(' or ')} )`], { stdio: 'ignore' }), 'exit');
    await delay(CUT_EVERY_MS);
  }
}

const cutLink = (link: 'nbd' | 'memory' | 'all', forMs: number | undefined): Fault => ({
  name: `cut ${{ nbd: 'the NBD link', memory: 'the memory link', all: 'all links' }[link]} ${forMs === undefined ? 'for good' : `for ${forMs / 1000} s`}`,
  apply: async (scene) => {
    if (process.getuid?.() !== 0) throw new Void('cutting connections needs root');
    if (ports(scene, link).length === 0) throw new Void('there is no such link at this step');
    const began = performance.now();
    const cutting = cut(scene, link, () => scene.over.aborted || (forMs !== undefined && performance.now() - began > forMs));
    // The first cut comes before the step goes on.
    await Promise.race([cutting, delay(3 * CUT_EVERY_MS)]);
    return () => cutting;
  },
});

/** Another client takes the guest's monitor while the agent of that host is away, and keeps it for a while. */
const holdMonitor = (at: 'source' | 'destination'): Fault => ({
  name: `another client holds the ${at}'s monitor for 2 s`,
  apply: async ({ stage, ...hosts }) => {
    const host = hosts[at];
    if (stage.pidOf(host, 'qemu') === undefined) throw new Void(`there is no ${at} QEMU at this step`);
    const restart = await stage.end(host, 'SIGKILL');
    const holder = await greeted(stage.runFile(host, 'qmp.sock'));
    return async () => {
      await restart();
      await delay(SHORT_MS);
      holder?.destroy();
    };
  },
});

/** Connects, and waits for the greeting: then it is the one client. Undefined if somebody else was faster for a second. */
async function greeted(path: string): Promise<Socket | undefined> {
  const over = AbortSignal.timeout(1_000);
  while (!over.aborted) {
    const socket = createConnection(path);
    socket.on('error', () => undefined);
    const heard = await Promise.race([once(socket, 'data').then(() => true, () => false), once(socket, 'close').then(() => false), delay(1_000).then(() => false)]);
    if (heard) return socket;
    socket.destroy();
  }
  return undefined;
}

/** Everything of one host ends at once, as in a power cut, and /run is empty; its agent comes back with the host, with autostart on. */
const reboot = (at: 'source' | 'destination'): Fault => ({
  name: `reboot the ${at} host`,
  mayLoseGuest: true,
  autostarts: true,
  apply: async ({ stage, ...hosts }) => {
    const host = hosts[at];
    const restart = await stage.end(host, 'SIGKILL');
    const pids = [...guardProcesses(stage.hostFolder(host)).map((one) => Number.parseInt(one, 10)), stage.pidOf(host, 'qemu'), stage.pidOf(host, 'storage')];
    await Promise.all(pids.filter((pid) => pid !== undefined).map(killed));
    for (const entry of readdirSync(stage.config(host).runDir)) rmSync(join(stage.config(host).runDir, entry), { recursive: true, force: true });
    rmSync(join(stage.config(host).stateDir, 'boot-id'), { force: true });
    return restart;
  },
});

function freeBytes(folder: string): number {
  const { bavail, bsize } = statfsSync(folder);
  return bavail * bsize;
}

export const FAULTS: Fault[] = [
  { name: 'none', ours: true, apply: async () => undefined },
  programs('SIGKILL control worker', 'SIGKILL', () => ['control']),
  programs('SIGKILL source agent', 'SIGKILL', ({ source }) => [source]),
  programs('SIGKILL destination agent', 'SIGKILL', ({ destination }) => [destination]),
  { ...programs('SIGKILL both agents', 'SIGKILL', ({ source, destination }) => [source, destination]) },
  programs('SIGTERM source agent', 'SIGTERM', ({ source }) => [source]),
  programs('SIGTERM destination agent', 'SIGTERM', ({ destination }) => [destination]),
  programs('SIGTERM both agents', 'SIGTERM', ({ source, destination }) => [source, destination]),
  { name: 'SIGKILL Temporal', ours: true, apply: ({ stage }) => stage.killTemporal() },
  {
    name: 'SIGKILL the guards',
    ours: true,
    apply: async ({ stage, source, destination }) => {
      const guards = [source, destination].flatMap((host) => guardProcesses(stage.hostFolder(host))).map((one) => Number.parseInt(one, 10));
      if (guards.length === 0) throw new Void('there is no guard at this step');
      await Promise.all(guards.map(killed));
      return undefined;
    },
  },
  kill('source QEMU', sourceQemu, { mayLoseGuest: true }),
  freeze('source QEMU', sourceQemu),
  kill('destination QEMU', destinationQemu, { mayLoseGuest: true }),
  freeze('destination QEMU', destinationQemu),
  kill('storage daemon', storageDaemon, { ours: true }),
  freeze('storage daemon', storageDaemon),
  cutLink('nbd', SHORT_MS),
  cutLink('nbd', undefined),
  cutLink('memory', SHORT_MS),
  cutLink('memory', undefined),
  cutLink('all', SHORT_MS),
  cutLink('all', undefined),
  {
    name: "fill the destination's disk",
    mayStopGuest: true,
    apply: async ({ stage, destination, over }) => {
      if (!stage.mayFillDisks) throw new Void('filling a disk needs root, for a file system of its own');
      const folder = join(stage.hostFolder(destination), 'images');
      const filler = join(folder, 'filler');
      // What is free when this begins may be less when it ends: the copy goes on.
      for (let left = freeBytes(folder); left > 0; left = freeBytes(folder)) {
        try {
          appendFileSync(filler, Buffer.alloc(Math.min(left, 2 ** 20)));
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
        }
      }
      // Empty again when the migration has ended, however it did.
      return async () => {
        if (!over.aborted) await once(over, 'abort');
        rmSync(filler, { force: true });
      };
    },
  },
  holdMonitor('source'),
  holdMonitor('destination'),
  reboot('source'),
  reboot('destination'),
  {
    name: 'cancel',
    ours: true,
    apply: async ({ migration }) => {
      await migration.cancel();
      return undefined;
    },
  },
  {
    name: 'terminate',
    terminates: true,
    apply: async ({ stage, migration }) => {
      await stage.client.temporal.workflow.getHandle(migration.workflowId).terminate('chaos');
      return undefined;
    },
  },
];

export function faultNamed(name: string): Fault {
  const fault = FAULTS.find((one) => one.name === name);
  if (!fault) throw new Error(`there is no fault "${name}"; there are: ${FAULTS.map((one) => one.name).join(', ')}`);
  return fault;
}
