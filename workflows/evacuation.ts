import { defineQuery, defineUpdate } from '@temporalio/workflow';
import { z } from 'zod';
import { type DecisionRecord, migrateVmSchema } from './messages';
import type { PlannedMove, Stay } from './placement';
import { parseSelector } from './selector';

const limit = z.int().min(1).max(10_000);
const limitsSchema = z.strictObject({
  /** Guests under way at once, from all hosts of this evacuation. */
  fleet: limit.default(10),
  perSource: limit.default(2),
  perDestination: limit.default(2),
});
export type EvacuationLimits = z.output<typeof limitsSchema>;

/** A selector of labels. An error that is not said here, while the input is read, would fail a workflow task for ever. */
const selectorText = z.string().superRefine((text, context) => {
  try {
    parseSelector(text);
  } catch (error) {
    context.addIssue({ code: 'custom', message: (error as Error).message });
  }
});

/** How guests are moved off a host: what a host's and a fleet's evacuation have in common. */
const howSchema = z.strictObject({
  /** `plan` only shows what it would do; `approve` shows it and waits for the update `approve`. */
  mode: z.enum(['move', 'plan', 'approve']).default('move'),
  /** A selector of labels that a destination must match; empty: any host. */
  destinations: selectorText.default(''),
  /** Guests with `migratable: ask` that may go all the same. */
  approved: z.array(z.string()).default([]),
  /** Guests that stay. */
  skip: z.array(z.string()).default([]),
  /** What becomes of guests that do not run: `move` copies their definition and images. */
  stopped: z.enum(['move', 'leave']).default('move'),
  limits: limitsSchema.prefault({}),
  /** When more tries than this have failed, no other starts. One that was refused before anything was changed does not count. */
  maxFailures: z.int().min(0).default(3),
  /** How often a guest is tried, each time with another destination if the one failed. */
  tries: z.int().min(1).max(10).default(2),
  /** From its start: afterwards no guest starts. */
  windowSeconds: z.number().positive().optional(),
  /** What becomes of guests that move when the window ends: `postpone` undoes their move. */
  atWindowEnd: z.enum(['finish', 'postpone']).default('finish'),
  /** What becomes of guests that move when it is cancelled. */
  atCancel: z.enum(['finish', 'undo']).default('undo'),
  /** Brings the guests back when the update `bringBack` says that the maintenance is over. */
  andReturn: z.boolean().default(false),
  /** Fields of `migrateVm`'s input, for each guest. */
  migration: migrateVmSchema.omit({ vm: true, to: true }).partial().prefault({}),
});

/** The input of `evacuateHost`: plain JSON. */
export const evacuateHostSchema = howSchema.extend({ host: z.string().min(1) });
export type EvacuateHostInput = z.input<typeof evacuateHostSchema>;
/** With all defaults but those of `migration`: what is left out there is each source host's to say. */
export type EvacuationRequest = Omit<z.output<typeof evacuateHostSchema>, 'migration'> & { migration: NonNullable<EvacuateHostInput['migration']> };

/** The input of `evacuateFleet`: hosts by name, or by a selector of their labels. */
export const evacuateFleetSchema = howSchema
  .omit({ mode: true, andReturn: true })
  .extend({
    hosts: z.array(z.string().min(1)).default([]),
    selector: selectorText.default(''),
    /** Hosts that are emptied at the same time. */
    hostsAtOnce: limit.default(1),
    /** The share of the memory of all hosts that take guests which must be free before another host is cordoned, 0 to 1. */
    minFreeMemory: z.number().min(0).max(1).default(0.1),
  })
  .refine(({ hosts, selector }) => (hosts.length > 0) !== (selector !== ''), { path: ['hosts'], message: 'give either hosts or a selector, not both and not neither' });
export type EvacuateFleetInput = z.input<typeof evacuateFleetSchema>;

export type { PlannedMove, Stay };

/** Where the guests of a host would go. */
export interface MovePlan {
  /** Names of known hosts, for a message; not all of them. */
  hosts: string[];
  /** The guests that are still there. Absent if the host is not known. */
  home?: { reachable: boolean; guests: { name: string; state: string }[] };
  moves: PlannedMove[];
  stays: Stay[];
}

export interface Moved {
  guest: string;
  to: string;
  cold: boolean;
  totalMs: number;
  downtimeMs?: number;
  bytes: number;
  tries: number;
}

export interface EvacuationStatus {
  host: string;
  phase: 'planning' | 'waiting-for-approval' | 'moving' | 'paused' | 'away' | 'returning' | 'done';
  /** Not started yet, in order. */
  planned: PlannedMove[];
  moving: { guest: string; from: string; to: string; workflowId: string; since: string }[];
  moved: Moved[];
  stayed: Stay[];
  /** Tries that failed, and why; `Busy`: it could not be tried, as somebody else moves it. */
  failures: { guest: string; to: string; type: string; why: string }[];
  limits: EvacuationLimits;
  /** ISO 8601. */
  windowEndsAt?: string;
  /** Why no other guest starts. */
  stopped?: string;
  /** What people decided while it ran. */
  decisions?: DecisionRecord[];
}

export interface EvacuationReport extends EvacuationStatus {
  /** `partly`: some guest stayed that nobody had asked to stay. */
  outcome: 'planned' | 'completed' | 'partly' | 'cancelled';
  totalMs: number;
}

export interface FleetEvacuationStatus {
  hosts: { host: string; state: 'waiting' | 'emptying' | 'done' | 'failed'; moved: number; stayed: number; why?: string }[];
  paused: boolean;
  /** Why no other host is begun now. */
  waitsFor?: string;
  /** It was asked to end. */
  cancelled?: true;
  decisions?: DecisionRecord[];
}

export interface Signed {
  by: string;
  reason: string;
}

/** Resolves with the plan once the request is accepted and the host cordoned; rejects with `EvacuationRefused` and every reason if it cannot be done. */
export const verdictUpdate = defineUpdate<EvacuationStatus, []>('verdict');
/** The same of a fleet's evacuation: which hosts are meant. */
export const fleetVerdictUpdate = defineUpdate<FleetEvacuationStatus, []>('verdict');
export const evacuationQuery = defineQuery<EvacuationStatus>('evacuation');
export const fleetEvacuationQuery = defineQuery<FleetEvacuationStatus>('fleetEvacuation');
export const approveUpdate = defineUpdate<void, [Signed]>('approve');
export const pauseUpdate = defineUpdate<void, [Signed & { paused: boolean }]>('pause');
export const setLimitsUpdate = defineUpdate<EvacuationLimits, [Signed & { limits: Partial<EvacuationLimits> }]>('setLimits');
export const skipUpdate = defineUpdate<void, [Signed & { guest: string }]>('skip');
export const bringBackUpdate = defineUpdate<void, [Signed]>('bringBack');

export const evacuationWorkflowId = (host: string) => `evacuate/${host}`;
/** Of an evacuation of many hosts, by the name that it was given. */
export const fleetWorkflowId = (name: string) => `fleet/${name}`;

/** The limits with some changed, or what is wrong with the change. */
export function changedLimits(limits: EvacuationLimits, change: Partial<EvacuationLimits>): { limits: EvacuationLimits } | { wrong: string } {
  const parsed = limitsSchema.safeParse({ ...limits, ...change });
  if (parsed.success) return { limits: parsed.data };
  return { wrong: parsed.error.issues.map(({ path, message }) => `${['limits', ...path].join('.')}: ${message} (got ${JSON.stringify((change as Record<PropertyKey, unknown>)[path[0] ?? ''] ?? change)})`).join('; ') };
}
