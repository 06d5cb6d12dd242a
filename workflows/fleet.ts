import { z } from 'zod';

/** How long after its last report a host counts as unreachable, and gets nothing new. Agents report every 30 s. */
export const SILENT_AFTER_MS = 75_000;

/** How many guests may leave and come at once. */
export const slotsSchema = z.strictObject({ outgoing: z.int().min(0).max(1000), incoming: z.int().min(0).max(1000) });
export type Slots = z.output<typeof slotsSchema>;

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
  slots: Slots;
  qemu: { path: string; version: string; machines: string[]; cpuModels: string[] }[];
  /** The processor, by its name in /proc/cpuinfo. */
  processor: string;
}

/** A host as placement sees it, at one moment. */
export interface PlacementHost extends HostFacts {
  name: string;
  /** Why it gets nothing new: who cordoned it, and why. */
  cordoned?: { by: string; reason: string };
  /** Its agent reported within `SILENT_AFTER_MS`. */
  reachable: boolean;
  totalMemoryBytes: number;
  /** Less what is reserved for guests on their way. */
  freeMemoryBytes: number;
  /** Less what is reserved for guests on their way. */
  roots: RootReport[];
  /** Slots in use. */
  moving: Slots;
  guests: GuestReport[];
}
