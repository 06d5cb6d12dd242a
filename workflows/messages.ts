import { defineSearchAttributeKey, SearchAttributeType } from '@temporalio/common';
import { defineQuery, defineSignal, defineUpdate } from '@temporalio/workflow';
import { z } from 'zod';
import type { DestinationWindow } from '../hypervisor/takeover';
import type { SourceWindow } from '../hypervisor/handover-plan';
import type { Assessment, Verdict } from './convergence';
import type { RemedyName } from './divergence';
import type { GuestReport, HostFacts, RootReport, Slots } from './fleet';
import type { MemoryAssessment, MemoryProgress } from './memory-convergence';
import type { Phase } from './phases';
import type { Steer } from './steer';

/** The task queue of all workflows. A host's activities are on a queue with the host's name. */
export const CONTROL_QUEUE = 'vmferry-control';

/** What Temporal calls the control workers together, where worker versioning is used. */
export const DEPLOYMENT = 'vmferry';

export const SEARCH_ATTRIBUTES = {
  guest: defineSearchAttributeKey('VmferryGuest', SearchAttributeType.KEYWORD),
  source: defineSearchAttributeKey('VmferrySource', SearchAttributeType.KEYWORD),
  destination: defineSearchAttributeKey('VmferryDestination', SearchAttributeType.KEYWORD),
  phase: defineSearchAttributeKey('VmferryPhase', SearchAttributeType.KEYWORD),
  verdict: defineSearchAttributeKey('VmferryVerdict', SearchAttributeType.KEYWORD),
  /** How it ended: `completed`, `cancelled`, what an evacuation or a repair reports, or the type of the failure. */
  outcome: defineSearchAttributeKey('VmferryOutcome', SearchAttributeType.KEYWORD),
  /** The host that is emptied, on its evacuation and on each move that belongs to it. */
  evacuation: defineSearchAttributeKey('VmferryEvacuation', SearchAttributeType.KEYWORD),
} as const;

const positive = z.number().positive();
const percent = z.int().min(1).max(99);

/** How a guest's memory is sent: settings of QEMU's that are taken where it has them, and named as ignored where not. */
export const memorySettingsSchema = z.strictObject({
  /** Slows the guest's vCPUs when its memory does not converge. Default: on with `onDivergence: auto`; it acts only when QEMU sees no progress. */
  autoConverge: z.boolean().optional(),
  cpuThrottleInitial: percent.optional(),
  cpuThrottleIncrement: percent.optional(),
  xbzrle: z.boolean().optional(),
  zeroBlocks: z.boolean().optional(),
  /** Removed in QEMU 9.1. */
  compress: z.boolean().optional(),
  /** A cap of its own for memory, in bytes a second; default: `bandwidthBytesPerSecond`. */
  maxBandwidthBytesPerSecond: z.number().min(65_536).optional(),
});
export type MemorySettings = z.output<typeof memorySettingsSchema>;

/** What becomes of a copy that does not converge: docs/divergence.md. A host's configuration may give other defaults than these. */
export const convergencePolicySchema = z.strictObject({
  /** The longest pause, in milliseconds, that a try to switch over may cost the guest. */
  maxDowntimeMs: z.number().min(20).max(2_000_000).default(500),
  /** `auto` applies the mildest remedy that works; `ask` waits for a steer; `abort` gives up at once. */
  onDivergence: z.enum(['auto', 'ask', 'abort']).default('auto'),
  /** With `ask`: how long an answer is waited for, in seconds, and what then. */
  askSeconds: positive.default(3600),
  afterAsk: z.enum(['auto', 'postpone', 'abort']).default('abort'),
  /** How long the disks may take to catch up, in seconds, and what then. */
  disksDeadlineSeconds: positive.default(24 * 3600),
  atDeadline: z.enum(['postpone', 'abort']).default('abort'),
  /** How long a copy may stand still, in seconds: a link that comes back costs nothing but time. */
  stallSeconds: positive.default(120),
  /** How long one try to move the memory may take, in seconds. */
  memoryDeadlineSeconds: positive.default(3600),
  /** How often the memory phase is tried before the migration is undone. */
  memoryTries: z.int().min(1).max(100).default(5),
  /** `write-blocking`: every guest write waits for the copy from the start, so that it cannot fall behind. */
  copyMode: z.enum(['background', 'write-blocking']).default('background'),
  /** When a migration that was put off without a time is tried again, in minutes, and how often. */
  postponeMinutes: positive.default(60),
  postponements: z.int().min(0).max(100).default(3),
  /**
   * Memory that does not converge is handed over by post-copy: the guest runs at the destination before all of its memory is there. Until the last page has come
   * it needs both hosts and the link, is slow, and is lost as a running one if any of them fails (its disks are whole at the destination).
   */
  postCopy: z.boolean().default(false),
  memory: memorySettingsSchema.prefault({}),
});

/** The input of `migrateVm`: plain JSON, so that any Temporal SDK can start it. */
export const migrateVmSchema = convergencePolicySchema.extend({
  vm: z.string().min(1),
  /** The destination host. The source is found. */
  to: z.string().min(1),
  /** A cap for disks, and one for memory, in bytes a second. Default: as fast as the link. */
  bandwidthBytesPerSecond: z.number().min(65_536).optional(),
  /** What becomes of the source's images: `keep` puts them aside for `keepHours`, `wipe` deletes them. */
  sourceDisks: z.enum(['keep', 'wipe']).default('keep'),
  keepHours: positive.default(24),
  /** How long it waits for a free slot at its hosts, in seconds. */
  slotSeconds: positive.default(24 * 3600),
});

export type MigrateVmInput = z.input<typeof migrateVmSchema>;
export type MigrationRequest = z.output<typeof migrateVmSchema>;

/** The input of `moveCold`: plain JSON. */
export const moveColdSchema = migrateVmSchema.pick({ vm: true, to: true, sourceDisks: true, keepHours: true, bandwidthBytesPerSecond: true, slotSeconds: true });
export type MoveColdInput = z.input<typeof moveColdSchema>;

/** The input of `checkMove`: what a migration would be started with, and how long the guest is watched. */
export const checkMoveSchema = migrateVmSchema.extend({
  /** How long the guest's writes and dirty pages are counted, in seconds. */
  measureSeconds: z.int().min(1).max(60).default(3),
});
export type CheckMoveInput = z.input<typeof checkMoveSchema>;

/** A decision about a migration, as people read it. */
export interface DecisionRecord {
  /** ISO 8601. */
  at: string;
  /** `policy`, or who steered. */
  by: string;
  what: string;
  why: string;
}

/** A migration's memo has its decisions, each under a key of its own: they are counted from 1. */
export const decisionMemoKey = (number: number) => `decision-${String(number).padStart(3, '0')}`;

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
  decisions: DecisionRecord[];
  window?: { source: SourceWindow; destination: DestinationWindow };
}

/** How far a copy was when its agent told it last: when a verdict changed, or another quarter was done. */
export interface CopyProgress {
  /** ISO 8601. */
  at: string;
  disks?: { id: string; remainingBytes: number; lengthBytes: number; ready: boolean; copyBytesPerSecond: number; dirtyBytesPerSecond: number; etaMs: number | null }[];
  memory?: MemoryProgress;
}

export interface MigrationStatus {
  vm: string;
  from?: string;
  to: string;
  phase: Phase;
  memoryTry: number;
  warnings: string[];
  verdict?: Verdict;
  /** What the verdict means, in words and numbers. */
  message?: string;
  decisions: DecisionRecord[];
  /** With `onDivergence: ask`: what can be answered, and until when (ISO 8601). */
  asks?: { choices: RemedyName[]; until: string };
  /** Put off until then, ISO 8601. */
  postponedUntil?: string;
  /** Hosts that must say what became of the guest, and have not answered. */
  waitsFor?: HostWait[];
  progress?: CopyProgress;
}

/** A host that is waited for. `confirmFenced` ends the wait, if that machine is off, or cut from disks and network. */
export interface HostWait {
  host: string;
  /** What it has to say, or to do. */
  why: string;
  /** ISO 8601. */
  since: string;
}

/** A person's word that a host runs no guest any more, and will run none before its copy was retired: it is off, or cut from disks and network. */
export const fenceSchema = z.strictObject({ host: z.string().min(1), author: z.string().min(1), reason: z.string().min(1) });
export type Fence = z.output<typeof fenceSchema>;

/** The input of `repairGuest`. */
export const repairGuestSchema = z.strictObject({
  vm: z.string().min(1),
  /** Says what would be done, and does nothing. */
  dryRun: z.boolean().default(false),
});
export type RepairGuestInput = z.input<typeof repairGuestSchema>;

export interface RepairResult {
  vm: string;
  /** `planned`: it was a dry run, and there is something to do. */
  outcome: 'nothing to repair' | 'repaired' | 'planned';
  /** The host whose copy is the guest; absent in a dry run that cannot know it before its first step. */
  owner?: string;
  /** How the guest is there in the end: QEMU's run state, or `stopped`. */
  state?: string;
  /** What of the guest was where, before anything was done. */
  found: { host: string; copy: string }[];
  /** What was done, or, in a dry run, what would be done first. */
  done: { host: string; step: string; why: string }[];
  /** What was left alone, and why. */
  left: string[];
  decisions: DecisionRecord[];
}

export interface RepairStatus {
  vm: string;
  found: RepairResult['found'];
  done: RepairResult['done'];
  decisions: DecisionRecord[];
  waitsFor: HostWait[];
}

/** What a host says of itself. The facts come with the first report of an agent, and now and then. */
export interface HostReport {
  name: string;
  address: string;
  guests: GuestReport[];
  totalMemoryBytes: number;
  freeMemoryBytes: number;
  roots: RootReport[];
  facts?: HostFacts;
}

/** A slot of a host, and room on it, for one move. It ends with the workflow that took it. */
export interface Reservation {
  workflowId: string;
  runId: string;
  guest: string;
  direction: 'outgoing' | 'incoming';
  memoryBytes: number;
  disks: { root: string; bytes: number }[];
}

export interface HostState extends HostReport {
  /** When it was last heard of, ISO 8601. */
  reportedAt: string;
  reservations: Reservation[];
  /** Gets nothing new. */
  cordoned?: { by: string; reason: string; at: string };
  /** Set by an operator, in place of what its configuration gives. */
  slots?: Slots;
}

/** What an agent tells a migration under way: only what has changed for good. */
export interface News {
  /** With the verdict that is known already: only its numbers are news. */
  assessment?: Assessment;
  memory?: MemoryAssessment & Partial<MemoryProgress>;
}

export const statusQuery = defineQuery<MigrationStatus>('status');
export const newsSignal = defineSignal<[News]>('news');
/** Resolves when the steer was accepted; rejects with the reason why it makes no sense now. */
export const steerUpdate = defineUpdate<DecisionRecord, [Steer]>('steer');
/** Resolves when the host was counted as dead; rejects with the reason if it answers, or if nothing waits for it. */
export const confirmFencedUpdate = defineUpdate<DecisionRecord, [Fence]>('confirmFenced');
export const repairStatusQuery = defineQuery<RepairStatus>('repair');
export const reportSignal = defineSignal<[HostReport]>('report');
/** Rejects with `NoSlot`, `MigrationRefused` or `HostUnreachable` if the host cannot give it now. */
export const reserveUpdate = defineUpdate<void, [Reservation]>('reserve');
export const releaseUpdate = defineUpdate<void, [{ workflowId: string; runId: string }]>('release');
/** Who cordons a host that is being emptied. */
export const EVACUATION = 'evacuation';
/** Without `cordon` the host is uncordoned. A cordon `by` an evacuation does not replace a person's. */
export const cordonUpdate = defineUpdate<void, [{ cordon?: { by: string; reason: string } }]>('cordon');
/** Without `slots` those of its configuration apply again. */
export const setSlotsUpdate = defineUpdate<void, [{ slots?: Partial<Slots> }]>('setSlots');
export const hostQuery = defineQuery<HostState | undefined>('host');

export const migrationWorkflowId = (vm: string) => `migrate/${vm}`;
/** Each check is a workflow of its own: `id` makes it so. */
export const checkWorkflowId = (vm: string, id: string) => `check/${vm}/${id}`;
export const repairWorkflowId = (vm: string) => `repair/${vm}`;
export const leftoverWorkflowId = ({ guest, attempt }: { guest: string; attempt: string }, host: string) => `leftover/${guest}/${attempt}/${host}`;
export const hostWorkflowId = (host: string) => `host/${host}`;
