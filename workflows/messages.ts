import { defineSearchAttributeKey, SearchAttributeType } from '@temporalio/common';
import { defineQuery, defineSignal } from '@temporalio/workflow';
import { z } from 'zod';
import type { DestinationWindow } from '../hypervisor/takeover';
import type { SourceWindow } from '../hypervisor/handover';
import type { Phase } from './phases';

/** The task queue of all workflows. A host's activities are on a queue with the host's name. */
export const CONTROL_QUEUE = 'vmferry-control';

export const SEARCH_ATTRIBUTES = {
  guest: defineSearchAttributeKey('VmferryGuest', SearchAttributeType.KEYWORD),
  source: defineSearchAttributeKey('VmferrySource', SearchAttributeType.KEYWORD),
  destination: defineSearchAttributeKey('VmferryDestination', SearchAttributeType.KEYWORD),
  phase: defineSearchAttributeKey('VmferryPhase', SearchAttributeType.KEYWORD),
} as const;

const positive = z.number().positive();

/** The input of `migrateVm`: plain JSON, so that any Temporal SDK can start it. */
export const migrateVmSchema = z.strictObject({
  vm: z.string().min(1),
  /** The destination host. The source is found. */
  to: z.string().min(1),
  /** The longest pause, in milliseconds, that a try to switch over may cost the guest. */
  maxDowntimeMs: z.number().min(20).max(2_000_000).default(500),
  /** A cap for disks, and one for memory, in bytes a second. Default: as fast as the link. */
  bandwidthBytesPerSecond: z.number().min(65_536).optional(),
  /** What becomes of the source's images: `keep` puts them aside for `keepHours`, `wipe` deletes them. */
  sourceDisks: z.enum(['keep', 'wipe']).default('keep'),
  keepHours: positive.default(24),
  /** How long the disks may take to catch up, in seconds. */
  disksDeadlineSeconds: positive.default(24 * 3600),
  /** How long one try to move the memory may take, in seconds. */
  memoryDeadlineSeconds: positive.default(3600),
  /** How often the memory phase is tried before the migration is undone. */
  memoryTries: z.int().min(1).max(100).default(5),
});

export type MigrateVmInput = z.input<typeof migrateVmSchema>;

export interface MigrationResult {
  vm: string;
  from: string;
  to: string;
  outcome: 'completed';
  totalMs: number;
  /** From the source QEMU's STOP to the destination's RESUME, by the two hosts' clocks; absent when an agent was restarted in between, or the guest was paused. */
  downtimeMs?: number;
  memoryTries: number;
  disks: { id: string; sizeBytes: number }[];
  warnings: string[];
  window?: { source: SourceWindow; destination: DestinationWindow };
}

export interface MigrationStatus {
  vm: string;
  from?: string;
  to: string;
  phase: Phase;
  memoryTry: number;
  warnings: string[];
}

/** What a host says of itself. */
export interface HostReport {
  name: string;
  address: string;
  guests: { name: string; state: string }[];
  freeMemoryBytes: number;
}

export interface HostState extends HostReport {
  /** When it was last heard of, ISO 8601. */
  reportedAt: string;
}

export const statusQuery = defineQuery<MigrationStatus>('status');
export const reportSignal = defineSignal<[HostReport]>('report');
export const hostQuery = defineQuery<HostState | undefined>('host');

export const migrationWorkflowId = (vm: string) => `migrate/${vm}`;
export const hostWorkflowId = (host: string) => `host/${host}`;
