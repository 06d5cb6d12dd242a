import { z } from 'zod';
import type { GuestReport, HostFacts, Migratable, RootReport } from '../hypervisor/host-report';

/** How long after its last report a host counts as unreachable, and gets nothing new. Agents report every 30 s. */
export const SILENT_AFTER_MS = 75_000;

/** How many guests may leave and come at once. */
export const slotsSchema = z.strictObject({ outgoing: z.int().min(0).max(1000), incoming: z.int().min(0).max(1000) });
export type Slots = z.output<typeof slotsSchema>;

export type { GuestReport, HostFacts, Migratable, RootReport };

/** What a host has, without its guests. */
export interface HostCapacity {
  name: string;
  labels: Record<string, string>;
  reachable: boolean;
  cordoned: boolean;
  totalMemoryBytes: number;
  freeMemoryBytes: number;
  /** Of its guests that run or are paused. */
  guestMemoryBytes: number;
  /** Their names. */
  guests: string[];
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
