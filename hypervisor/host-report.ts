import { readFileSync, realpathSync, statfsSync, statSync } from 'node:fs';
import { totalmem } from 'node:os';
import { type Definition, movingDisks } from './definition';
import type { Host } from './host';

/** `never`: it stays whatever is asked for; `ask`: only when it is named, or approved; `always`. */
export type Migratable = 'never' | 'ask' | 'always';

/** What a guest needs of a host, as its own host reports it. Plain JSON, no secrets, no paths. */
export interface GuestReport {
  name: string;
  /** QEMU's run state, or `stopped`, `arriving from …`, `handed over to …`, `monitor does not answer`. */
  state: string;
  memoryBytes: number;
  /** What its images take, by the root that they are in. Read-only and removable media are not copied and not here. */
  disks: { root: string; bytes: number }[];
  /** How many are copied. Absent in reports of older agents. */
  diskCount?: number;
  /** The machine type that the running QEMU has, or the definition asks for. */
  machine: string;
  /** The CPU model without its features, such as `qemu64`. */
  cpuModel: string;
  labels: Record<string, string>;
  migratable: Migratable;
  /** Guests of the same group do not share a host. */
  antiAffinity: string[];
  /** A selector for labels of the hosts that it may live on; empty: any. */
  hostSelector: string;
}

/** The file system behind a root of a host. Roots with the same `fileSystem` share their free bytes. */
export interface RootReport {
  name: string;
  fileSystem: string;
  freeBytes: number;
}

/** What does not change while an agent runs. */
export interface HostFacts {
  labels: Record<string, string>;
  /** Slots that its configuration gives; `set-limits` overrides them. */
  slots: { outgoing: number; incoming: number };
  qemu: { path: string; version: string; machines: string[]; cpuModels: string[] }[];
  /** The processor, by its name in /proc/cpuinfo. */
  processor: string;
}

/** What this host is, as long as its agent runs. A QEMU that does not answer is left out. */
export async function hostFacts(host: Host): Promise<HostFacts> {
  const processor = /^model name\s*:\s*(.+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown';
  const known = await Promise.all(host.config.binaries.qemu.map((path) => qemuFacts(host, path).catch(() => undefined)));
  return { labels: host.config.labels, slots: host.config.slots, qemu: known.filter((one) => one !== undefined), processor };
}

async function qemuFacts({ programs }: Host, path: string): Promise<HostFacts['qemu'][number]> {
  const [version, machines, models] = await Promise.all([programs.run(path, ['--version']), programs.run(path, ['-machine', 'help']), programs.run(path, ['-cpu', 'help'])]);
  return {
    path,
    version: /version (\S+)/.exec(version)?.[1] ?? 'unknown',
    machines: firstWords(machines.split('\n').slice(1), /^([\w.-]+)/),
    // Of x86 every line begins with the architecture, before QEMU 9.
    cpuModels: firstWords(models.split(/Recognized CPUID/)[0]!.split('\n'), /^(?:x86)?\s+([\w.-]+)/),
  };
}

const firstWords = (lines: string[], pattern: RegExp) => lines.map((line) => pattern.exec(line)?.[1]).filter((word) => word !== undefined);

/** The file systems behind this host's roots. One that cannot be read is left out: nothing can be placed there. */
export function rootReports(host: Host): RootReport[] {
  return Object.entries(host.config.roots).flatMap(([name, { path }]) => {
    try {
      const { bavail, bsize } = statfsSync(path);
      return [{ name, fileSystem: String(statSync(realpathSync(path)).dev), freeBytes: bavail * bsize }];
    } catch {
      return [];
    }
  });
}

export function totalMemoryBytes(host: Host): number {
  return host.config.memory ?? totalmem();
}

/** What a guest needs of a host. */
export function guestReport(host: Host, guest: string, state: string): GuestReport {
  const definition = host.definition(guest);
  return {
    name: guest,
    state,
    memoryBytes: definition.memory,
    disks: diskNeeds(host, definition),
    diskCount: movingDisks(definition).length,
    machine: definition.machine,
    cpuModel: definition.cpu.model.split(',')[0]!,
    labels: definition.labels,
    migratable: definition.migratable,
    antiAffinity: definition.antiAffinity,
    hostSelector: definition.hostSelector,
  };
}

function diskNeeds(host: Host, definition: Definition): GuestReport['disks'] {
  const needs: Record<string, number> = {};
  for (const { path } of movingDisks(definition)) {
    const root = /^\$\{([a-z][a-z0-9-]*)\}/.exec(path)![1]!;
    needs[root] = (needs[root] ?? 0) + allocatedBytes(host, definition.name, path);
  }
  return Object.entries(needs).map(([root, bytes]) => ({ root, bytes }));
}

/** Of a block device 0: it takes nothing from a file system. What is wrong with an image is preflight's to say. */
function allocatedBytes(host: Host, guest: string, path: string): number {
  try {
    const stat = statSync(host.path(guest, path));
    return stat.isFile() ? stat.blocks * 512 : 0;
  } catch {
    return 0;
  }
}
