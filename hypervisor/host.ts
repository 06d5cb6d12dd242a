import { statfsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { QmpMonitor } from '../qmp/monitor';
import { QmpMonitors } from '../qmp/monitor';
import { monitorPath } from './command-line';
import { type Channel, folderSeenBy, outgoingChannel } from './credentials';
import type { Definition } from './definition';
import { GuestStore } from './guest-store';
import { type HostConfig, resolvePath, runFolder } from './host-config';
import type { ProcessIdentity } from './processes';
import { launchedPrograms } from './launched';
import { machinePrograms, type Programs } from './programs';

/** A guest, or something it needs, that is not on this host or not in the state that a step needs. */
export class GuestStateError extends Error {
  override readonly name = 'GuestStateError';
}

/** Nobody here can say which copy of a guest is the one that may run. */
export class OwnershipUnknown extends Error {
  override readonly name = 'OwnershipUnknown';
}

/** The guest's QEMU does not run (any more). */
export class GuestGone extends Error {
  override readonly name = 'GuestGone';
}

/** One host as its agent sees it: configuration, durable state, and a shared monitor per QEMU. */
export class Host {
  readonly store: GuestStore;
  readonly monitors = new QmpMonitors();

  constructor(readonly config: HostConfig, readonly programs: Programs = config.launcher ? launchedPrograms(config.launcher) : machinePrograms) {
    this.store = new GuestStore(config.stateDir);
  }

  get name(): string {
    return this.config.name;
  }

  /** The guest's definition. Throws `GuestStateError` with the names of those that are here. */
  definition(guest: string): Definition {
    const definition = this.store.definition(guest);
    if (!definition) throw new GuestStateError(`guest "${guest}" is not defined on ${this.name} (here are: ${this.store.names().join(', ') || 'none'})`);
    return definition;
  }

  path(guest: string, portable: string): string {
    return resolvePath(this.config, guest, portable);
  }

  runFile(guest: string, file: string): string {
    return join(runFolder(this.config, guest), file);
  }

  /** The guest's running QEMU, found by its pid file or, for an adopted one, by what was recorded. Undefined if none runs. */
  process(guest: string): ProcessIdentity | undefined {
    const adopted = this.store.adopted(guest);
    if (adopted && this.programs.isAlive(adopted)) return adopted;
    return this.programs.ofPidFile(this.runFile(guest, 'qemu.pid'));
  }

  /** The monitor of the guest's QEMU, shared by all who talk to it. Throws `GuestGone` if no QEMU runs. */
  monitor(guest: string): QmpMonitor {
    const process = this.process(guest);
    if (!process) throw new GuestGone(`guest "${guest}" has no running QEMU on ${this.name}`);
    const adopted = this.store.adopted(guest);
    if (adopted?.pid === process.pid) return this.monitors.get(adopted.monitor);
    return this.monitors.get(monitorPath(this.config, this.definition(guest)));
  }

  /** How this guest's QEMU sends it to another host; undefined: as plain text. Throws `TlsRefused` if it cannot see the TLS files, `GuestGone` if it has ended. */
  outgoingChannel(guest: string, to: string): Channel | undefined {
    if (this.config.insecure) return undefined;
    const process = this.process(guest);
    if (!process) throw new GuestGone(`guest "${guest}" has no running QEMU on ${this.name}`);
    return outgoingChannel(this.config, to, folderSeenBy(this.config, process));
  }

  /** Memory in bytes that another guest can have: the configured amount, or what is available, less that of guests on their way here. */
  freeMemory(except?: string): number {
    const guests = this.store.names().filter((name) => name !== except);
    const incoming = guests.map((name) => this.store.attempt(name)).filter((attempt) => attempt?.role === 'destination');
    const reserved = incoming.reduce((sum, attempt) => sum + (attempt?.role === 'destination' ? attempt.memoryBytes : 0), 0);
    if (this.config.memory === undefined) {
      const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'));
      return Number(available?.[1] ?? 0) * 1024 - reserved;
    }
    const running = guests.filter((name) => this.process(name) && this.store.attempt(name)?.role !== 'destination');
    return this.config.memory - reserved - running.reduce((sum, name) => sum + (this.store.definition(name)?.memory ?? 0), 0);
  }

  /** Free bytes of the file system that holds this folder. */
  freeDisk(folder: string): number {
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize;
  }

  close(): void {
    this.monitors.close();
  }
}
