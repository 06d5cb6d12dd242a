import { z } from 'zod';
import type { Ending, RecordedChild, RecordedRun } from './history';

const momentMs = z.number();
const limitsSchema = z.object({ fleet: z.number(), perSource: z.number(), perDestination: z.number() });
const staySchema = z.object({ guest: z.string(), from: z.string(), reasons: z.array(z.string()) });
const moveSchema = z.object({
  guest: z.string(),
  from: z.string(),
  to: z.string(),
  /** It did not run: definition and images were copied. */
  stopped: z.boolean(),
  workflowId: z.string(),
  runId: z.string(),
  fromMs: momentMs,
  toMs: momentMs,
  ending: z.enum(['running', 'completed', 'failed', 'cancelled']),
  why: z.string().optional(),
  downtimeMs: z.number().optional(),
  memoryTries: z.number().optional(),
  bytes: z.number().optional(),
  warnings: z.array(z.string()),
  decisions: z.array(z.object({ at: z.string(), by: z.string(), what: z.string(), why: z.string() })),
});
export type RecordedMove = z.output<typeof moveSchema>;

/** The evacuation of a host as it is on record. */
export const evacuationRecordSchema = z.object({
  kind: z.literal('evacuation'),
  workflowId: z.string(),
  runId: z.string(),
  host: z.string(),
  startedAtMs: momentMs,
  /** Of its last event, while it is under way. */
  endedAtMs: momentMs,
  /** `partly`: some guest stayed that nobody had asked to stay. */
  outcome: z.enum(['running', 'planned', 'completed', 'partly', 'cancelled', 'failed', 'terminated']),
  why: z.string().optional(),
  limits: limitsSchema,
  /** Every try to move a guest, in the order of their starts. */
  moves: z.array(moveSchema),
  stayed: z.array(staySchema),
  /** What people have done: pauses, limits, skips. In order. */
  orders: z.array(z.object({ atMs: momentMs, by: z.string(), what: z.string(), why: z.string() })),
  pauses: z.array(z.object({ fromMs: momentMs, toMs: momentMs })),
});
export type EvacuationRecord = z.output<typeof evacuationRecordSchema>;

/** The evacuation of many hosts: when each was emptied, and what is on record of that. */
export const fleetRecordSchema = z.object({
  kind: z.literal('fleet'),
  workflowId: z.string(),
  runId: z.string(),
  startedAtMs: momentMs,
  endedAtMs: momentMs,
  outcome: z.enum(['running', 'completed', 'partly', 'cancelled', 'failed', 'terminated']),
  why: z.string().optional(),
  hosts: z.array(z.object({ host: z.string(), state: z.string(), moved: z.number(), stayed: z.number(), why: z.string().optional() })),
  evacuations: z.array(evacuationRecordSchema),
});
export type FleetRecord = z.output<typeof fleetRecordSchema>;

const inputSchema = z.object({ host: z.string(), limits: limitsSchema.partial().optional() });
const moveInputSchema = z.object({ vm: z.string(), to: z.string() });
const moveResultSchema = moveSchema.pick({ downtimeMs: true, memoryTries: true, warnings: true, decisions: true }).extend({ from: z.string(), disks: z.array(z.object({ sizeBytes: z.number() })).default([]) });
const reportSchema = z.object({ outcome: z.enum(['planned', 'completed', 'partly', 'cancelled']), stayed: z.array(staySchema), limits: limitsSchema, stopped: z.string().optional(), moved: z.array(z.object({ guest: z.string(), to: z.string(), bytes: z.number() })) });
const planSchema = z.object({ stays: z.array(staySchema) });
const orderSchema = z.object({ by: z.string(), reason: z.string(), paused: z.boolean().optional(), limits: limitsSchema.partial().optional(), guest: z.string().optional() });
const DEFAULT_LIMITS = { fleet: 10, perSource: 2, perDestination: 2 };

/** What a run of `evacuateHost` tells. Pure. Throws if the run is of something else. */
export function evacuationRecord(run: RecordedRun): EvacuationRecord {
  const { host, limits } = inputSchema.parse(run.input);
  const endedAtMs = run.endedAtMs ?? run.lastAtMs;
  const { ending } = run;
  const report = ending?.how === 'completed' ? reportSchema.parse(ending.result) : undefined;
  const lastPlan = run.activities.findLast(({ type, ending: end }) => type === 'planMoves' && end?.how === 'completed')?.ending as (Ending & { how: 'completed' }) | undefined;
  const orders = run.updates.flatMap(({ atMs, name, input }) => {
    const { data } = orderSchema.safeParse(input);
    return data ? [{ atMs, by: data.by, what: whatOf(name, data), why: data.reason, paused: name === 'pause' ? data.paused : undefined }] : [];
  });
  return evacuationRecordSchema.parse({
    kind: 'evacuation',
    workflowId: run.workflowId,
    runId: run.runId,
    host,
    startedAtMs: run.startedAtMs,
    endedAtMs,
    ...outcomeOf(ending, report),
    limits: report?.limits ?? { ...DEFAULT_LIMITS, ...limits },
    moves: run.children.flatMap((child) => moveOf(child, host, endedAtMs, report?.moved)),
    stayed: report?.stayed ?? planSchema.safeParse(lastPlan?.result).data?.stays ?? [],
    orders,
    pauses: orders.flatMap(({ atMs, paused }, index) => (paused ? [{ fromMs: atMs, toMs: orders.slice(index + 1).find((one) => one.paused === false)?.atMs ?? endedAtMs }] : [])),
  });
}

function outcomeOf(ending: RecordedRun['ending'], report: z.output<typeof reportSchema> | undefined): { outcome: EvacuationRecord['outcome']; why?: string } {
  switch (ending?.how) {
    case 'completed':
      return { outcome: report!.outcome, ...(report!.stopped !== undefined && { why: report!.stopped }) };
    case 'failed':
    case 'timed-out':
      return { outcome: 'failed', why: ending.failure?.message ?? 'it did not end in time' };
    case 'terminated':
      return { outcome: 'terminated', why: ending.reason || 'no reason was given' };
    case 'cancelled':
      return { outcome: 'cancelled' };
    case undefined:
    case 'continued-as-new':
      return { outcome: 'running' };
  }
}

function whatOf(update: string, { paused, limits, guest }: z.output<typeof orderSchema>): string {
  switch (update) {
    case 'pause':
      return paused ? 'pauses: no other guest starts' : 'resumes';
    case 'setLimits':
      return `sets limits: ${Object.entries(limits ?? {}).map(([name, value]) => `${name} ${value}`).join(', ')}`;
    case 'skip':
      return `lets ${guest} stay`;
    case 'bringBack':
      return 'brings the guests back';
    case 'approve':
      return 'approves the plan';
    default:
      return update;
  }
}

function moveOf({ workflowId, runId = '', type, input, startedAtMs, endedAtMs, ending }: RecordedChild, host: string, untilMs: number, moved: { guest: string; to: string; bytes: number }[] = []): RecordedMove[] {
  const { data } = moveInputSchema.safeParse(input);
  if (!data) return [];
  const result = ending?.how === 'completed' ? moveResultSchema.safeParse(ending.result).data : undefined;
  const bytes = moved.find(({ guest, to }) => guest === data.vm && to === data.to)?.bytes ?? result?.disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return [{
    guest: data.vm,
    from: result?.from ?? host,
    to: data.to,
    stopped: type === 'moveCold',
    workflowId,
    runId,
    fromMs: startedAtMs,
    toMs: endedAtMs ?? untilMs,
    ending: ending === undefined ? 'running' : ending.how === 'timed-out' ? 'failed' : ending.how,
    ...(ending && ending.how !== 'completed' && { why: ending.failure?.message ?? (ending.how === 'cancelled' ? 'it was cancelled' : 'it did not end in time') }),
    ...(result?.downtimeMs !== undefined && { downtimeMs: result.downtimeMs }),
    ...(result?.memoryTries !== undefined && { memoryTries: result.memoryTries }),
    ...(bytes !== undefined && { bytes }),
    warnings: result?.warnings ?? [],
    decisions: result?.decisions ?? [],
  }];
}

const fleetStatusSchema = fleetRecordSchema.pick({ hosts: true }).extend({ cancelled: z.literal(true).optional() });

/** What the runs of one `evacuateFleet`, oldest first, and the evacuations that it started tell. Pure. */
export function fleetRecord(runs: RecordedRun[], evacuations: EvacuationRecord[]): FleetRecord {
  const last = runs.at(-1)!;
  const { ending } = last;
  const status = ending?.how === 'completed' ? fleetStatusSchema.parse(ending.result) : undefined;
  const children = runs.flatMap((run) => run.children);
  const hosts = status?.hosts ?? children.map((child) => {
    const { host } = inputSchema.parse(child.input);
    const known = evacuations.find((one) => one.host === host);
    return { host, state: child.ending?.how === 'completed' ? 'done' : child.ending ? 'failed' : 'emptying', moved: known?.moves.filter((move) => move.ending === 'completed').length ?? 0, stayed: known?.stayed.length ?? 0 };
  });
  const done = hosts.every(({ state, stayed }) => state === 'done' && stayed === 0);
  return fleetRecordSchema.parse({
    kind: 'fleet',
    workflowId: last.workflowId,
    runId: last.runId,
    startedAtMs: runs[0]!.startedAtMs,
    endedAtMs: last.endedAtMs ?? last.lastAtMs,
    ...(status ? { outcome: status.cancelled ? 'cancelled' : done ? 'completed' : 'partly' } : outcomeOf(ending, undefined)),
    hosts,
    evacuations,
  });
}
