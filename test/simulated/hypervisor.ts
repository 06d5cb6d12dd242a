import { readFileSync, statSync } from 'node:fs';
import type { BlockGraph } from './block-graph';
import type { DiskBehaviour } from './guest-disk';
import { Ledger } from './ledger';
import type { MemoryBehaviour } from './migration';
import { type Link, Network } from './network';
import { SimulatedPrograms } from './programs';
import type { SimulatedProcess } from './program';
import type { SimulatedQemu } from './qemu';
import { SimulatedStorageDaemon } from './storage-daemon';

/** What one guest does, wherever it runs; bytes a second are of the simulated time. */
export interface GuestBehaviour {
  disk: DiskBehaviour;
  memory: MemoryBehaviour;
}

export const QUIET: GuestBehaviour = {
  disk: { writeBytesPerSecond: 1e6, workingSetBytes: 64e6, dataBytes: 512e6 },
  memory: { dirtyBytesPerSecond: 2e6, hotBytes: 32e6, dataBytes: 64e6 },
};

export interface HypervisorOptions {
  /** How much faster than wall-clock time copies, guests and QEMU's own delays are. What agents set and wait for (caps, limits, deadlines) stays wall-clock. */
  speed?: number;
  /** Of each host's link each way, in simulated bytes a second. */
  linkBytesPerSecond?: number;
  /** Of every in-band QMP command, wall-clock. */
  latencyMs?: number;
}

/** The contents of an image, as the number of bytes that its guest had written when it was last equal to the guest's disk. */
export interface ImageContent {
  version: number;
}

/** A file of an image holds nothing: its size is what matters. */
export class Images {
  private readonly contents = new Map<string, ImageContent>();

  /** By inode: an image that is renamed keeps its contents, one that is made anew has none. */
  of(path: string): ImageContent {
    const { dev, ino } = statSync(path);
    const key = `${dev}:${ino}`;
    const content = this.contents.get(key) ?? { version: 0 };
    this.contents.set(key, content);
    return content;
  }

  virtualSize(path: string): number {
    const { size } = statSync(path);
    if (size > 64) return size;
    const header = /^simulated (\d+)$/.exec(readFileSync(path, 'utf8'));
    return header ? Number(header[1]) : size;
  }
}

/** One host: its link, and the processes that run there. */
export class SimulatedHost {
  readonly uplink: Link;
  readonly downlink: Link;
  /** No byte can be written to a disk here any more. */
  full = false;
  readonly processes = new Map<number, SimulatedProcess>();
  readonly programs = new SimulatedPrograms(this);

  constructor(readonly world: SimulatedHypervisor, readonly name: string) {
    const bytesPerSecond = world.linkBytesPerSecond * world.speed;
    this.uplink = { bytesPerSecond };
    this.downlink = { bytesPerSecond };
  }

  /** Simulated bytes a second, each way. */
  setLink(bytesPerSecond: number): void {
    this.world.network.advance();
    this.uplink.bytesPerSecond = this.downlink.bytesPerSecond = bytesPerSecond * this.world.speed;
  }

  /** Whether a storage daemon here has one of these images open: it locks what it opens, and an incoming QEMU only what it runs on. */
  opensElsewhere(images: string[], except: SimulatedProcess): boolean {
    const others = [...this.processes.values()].filter((one) => one !== except && one.alive && one instanceof SimulatedStorageDaemon) as SimulatedStorageDaemon[];
    return others.some(({ blocks }) => [...blocks.nodes.values()].some((node) => !node.file && images.includes(node.filename)));
  }

  /** The guest's QEMU here. */
  qemu(guest: string): SimulatedQemu | undefined {
    return [...this.processes.values()].find((one) => one.alive && 'guest' in one && one.guest === guest) as SimulatedQemu | undefined;
  }
}

/**
 * Many QEMUs and storage daemons in one process, each a QMP server on sockets of its own, driven by the agents' own code: an agent that is given
 * `host(name).programs` starts, finds and ends simulated processes instead of real ones.
 *
 * Modelled, as QEMU 7.2 does it (conformance.test.ts): greeting, one client a monitor, negotiation, out-of-band commands, a main loop that is held
 * while QEMU drains or connects; nodes, exports, throttle groups, an NBD server that greets; mirrors with a bulk pass, guest writes that make bytes
 * dirty less and less the more are dirty, a latched ready, an offset that lags, both copy modes, graceful and forced cancels, errors that end or stop
 * them; memory in passes, auto-converge, the downtime limit, the pause before the switchover, cancels, dead and hanging peers, yanks; which bytes
 * each image lacks. Links are shared fairly among all streams of a host.
 *
 * Not modelled: bytes; TLS; mirrors that hover short of ready on a link that is not full; QEMU's own races; versions from 8.2 on; post-copy, multifd,
 * xbzrle and the like (taken, without effect); block devices; adoption; file locks but those that `cont` meets; the guest's system.
 */
export class SimulatedHypervisor {
  readonly network = new Network();
  readonly ledger = new Ledger();
  readonly images = new Images();
  readonly speed: number;
  readonly latencyMs: number;
  readonly linkBytesPerSecond: number;
  /** By `address:port`. */
  readonly nbdServers = new Map<string, BlockGraph>();
  readonly incoming = new Map<string, SimulatedQemu>();
  private readonly hosts = new Map<string, SimulatedHost>();
  private readonly behaviours = new Map<string, GuestBehaviour>();
  private readonly versions = new Map<string, ImageContent>();
  private readonly faults = new Map<string, Set<string>>();

  constructor({ speed = 1, linkBytesPerSecond = 1.25e9, latencyMs = 0 }: HypervisorOptions = {}) {
    this.speed = speed;
    this.linkBytesPerSecond = linkBytesPerSecond;
    this.latencyMs = latencyMs;
  }

  host(name: string): SimulatedHost {
    const host = this.hosts.get(name) ?? new SimulatedHost(this, name);
    this.hosts.set(name, host);
    return host;
  }

  /** Says what a guest does from its next start, or arrival, on. */
  setBehaviour(guest: string, behaviour: GuestBehaviour): void {
    this.behaviours.set(guest, behaviour);
  }

  /** A fault that strikes once. */
  inject(guest: string, fault: 'migrationFails'): void {
    this.faults.set(guest, (this.faults.get(guest) ?? new Set()).add(fault));
  }

  takeFault(guest: string, fault: 'migrationFails'): boolean {
    return this.faults.get(guest)?.delete(fault) ?? false;
  }

  behaviourOf(guest: string): GuestBehaviour {
    const { disk, memory } = this.behaviours.get(guest) ?? QUIET;
    return { disk: { ...disk, writeBytesPerSecond: disk.writeBytesPerSecond * this.speed }, memory: { ...memory, dirtyBytesPerSecond: memory.dirtyBytesPerSecond * this.speed } };
  }

  diskBehaviour(guest: string, sizeBytes: number): DiskBehaviour {
    const { disk } = this.behaviourOf(guest);
    return { ...disk, dataBytes: Math.min(disk.dataBytes, sizeBytes), workingSetBytes: Math.min(disk.workingSetBytes, sizeBytes) };
  }

  /** What the guest's disk must hold: what its last running copy wrote. */
  newestVersion(guest: string, disk: number): number {
    return this.versions.get(`${guest}/${disk}`)?.version ?? 0;
  }

  watchVersion(guest: string, disk: number, content: ImageContent): void {
    this.versions.set(`${guest}/${disk}`, content);
  }

  /** QEMU's NBD client connects again to an export whose storage daemon still has it. */
  reconnected(filename: string): { server: BlockGraph['owner']; broken: false } | undefined {
    const [, place, name] = /^nbd:\/\/(.+:\d+)\/(.+)$/.exec(filename)!;
    const graph = this.nbdServers.get(place!);
    return graph?.exports.has(name!) ? { server: graph.owner, broken: false } : undefined;
  }

  /** Wall-clock milliseconds of this many simulated ones. */
  scaled(ms: number): number {
    return ms / this.speed;
  }

  async sleep(simulatedMs: number): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, this.scaled(simulatedMs)));
  }

  /** Every process that lives: what a test's "nothing is left" is about. */
  get processes(): SimulatedProcess[] {
    return [...this.hosts.values()].flatMap((host) => [...host.processes.values()].filter(({ alive }) => alive));
  }

  close(): void {
    this.processes.forEach((process) => process.kill());
    this.network.close();
  }
}
