import { z } from 'zod';
import { PHASES } from '../../workflows/phases';
import { SEARCH_ATTRIBUTES } from '../../workflows/messages';
import { VERDICTS } from '../../workflows/lasting-verdict';
import { type Trace, traceSchema } from '../../workflows/trace';
import type { Ending, RecordedActivity, RecordedRun } from './history';

/** Moments are ms since the epoch: those of the window by each host's own clock, all others by Temporal's. */
const momentMs = z.number();
const spanSchema = z.object({ fromMs: momentMs, toMs: momentMs });
const decisionSchema = z.object({ at: z.string(), by: z.string(), what: z.string(), why: z.string() });
const errorSchema = z.object({ type: z.string(), message: z.string() });
const windowSchema = z.object({
  source: z.object({ stopped: momentMs, preSwitchover: momentMs, drained: momentMs, mirrorsEnded: momentMs, continued: momentMs, completed: momentMs }),
  destination: z.object({ completed: momentMs, exportsRemoved: momentMs.optional(), released: momentMs, resumed: momentMs }),
});
const assessmentSchema = z.object({ verdict: z.enum(VERDICTS), message: z.string() });
const trySchema = spanSchema.extend({ ending: z.enum(['completed', 'given-up', 'cancelled', 'failed', 'running']), message: z.string(), /** What it cost the guest, given up or not. */ pausedMs: z.number().optional() });

/** A migration as it is on record: what a report shows, and nothing that it would have to ask for. */
export const migrationRecordSchema = z.object({
  kind: z.literal('migration'),
  workflowId: z.string(),
  runId: z.string(),
  vm: z.string(),
  from: z.string().optional(),
  to: z.string(),
  /** It did not run: definition and images were copied. */
  stopped: z.boolean(),
  maxDowntimeMs: z.number().optional(),
  startedAtMs: momentMs,
  /** Of its last event, while it is under way. */
  endedAtMs: momentMs,
  outcome: z.enum(['running', 'completed', 'failed', 'cancelled', 'terminated']),
  error: errorSchema.optional(),
  downtimeMs: z.number().optional(),
  memoryBytes: z.number().optional(),
  disks: z.array(z.object({ id: z.string(), sizeBytes: z.number(), allocatedBytes: z.number().optional() })),
  /** In order. Each round of a migration that was put off begins with preflight; between two it is put off. */
  phases: z.array(spanSchema.extend({ phase: z.enum([...PHASES, 'put off']), round: z.int() })),
  traces: z.array(z.object({ of: z.enum(['disks', 'memory']), trace: traceSchema })),
  verdicts: z.array(assessmentSchema.extend({ atMs: momentMs, of: z.enum(['disks', 'memory']) })),
  decisions: z.array(decisionSchema),
  tries: z.array(trySchema),
  window: windowSchema.optional(),
  /** Steps that failed, or that had to be tried again. */
  failures: z.array(errorSchema.extend({ atMs: momentMs, host: z.string(), step: z.string(), tries: z.int(), overcome: z.boolean() })),
  /** What is, or was, left for a host that was away, by a workflow of its own; and undos that failed, which `vmferry repair` looks at. */
  leftovers: z.array(z.object({ host: z.string(), step: z.string(), workflowId: z.string().optional(), why: z.string().optional() })),
  warnings: z.array(z.string()),
});
export type MigrationRecord = z.output<typeof migrationRecordSchema>;

const inputSchema = z.object({ vm: z.string(), to: z.string(), maxDowntimeMs: z.number().optional() });
const planSchema = z.object({
  plan: z.object({ definition: z.object({ memory: z.number() }), disks: z.array(z.object({ id: z.string(), sizeBytes: z.number(), allocatedBytes: z.number().optional() })) }).optional(),
  warnings: z.array(z.string()).default([]),
});
const resultSchema = z.object({ warnings: z.array(z.string()).default([]), decisions: z.array(decisionSchema).default([]), downtimeMs: z.number().optional(), window: windowSchema.optional() });
/** Defaults and steers are in what was asked of the source. */
const handOverSchema = z.object({ handOver: z.object({ maxDowntimeMs: z.number() }) });
const newsSchema = z.object({ assessment: assessmentSchema.optional(), memory: assessmentSchema.optional() });
const handedOverSchema = z.object({ source: z.string(), message: z.string().optional(), pausedMs: z.number().optional(), window: windowSchema.shape.source.partial().optional() });
const keptSchema = z.object({ trace: traceSchema });
const leftoverSchema = z.object({ at: z.enum(['source', 'destination']), do: z.string(), ref: z.object({ from: z.string(), to: z.string() }) });

const UNDOS = ['discardDestination', 'stopExports', 'destroyIncoming', 'removeMirrors', 'settleDestination', 'retireSource', 'retireFenced', 'stayCold', 'liftThrottle'];

/** What a run of `migrateVm` or `moveCold` tells. Pure. Throws if the run is of something else. */
export function migrationRecord(run: RecordedRun): MigrationRecord {
  const input = inputSchema.parse(run.input);
  const { activities, ending } = run;
  const endedAtMs = run.endedAtMs ?? run.lastAtMs;
  const plan = activities.filter(({ type }) => type === 'inspectSource' || type === 'inspectStopped').map((look) => parsed(planSchema, look.ending)?.plan).findLast((one) => one !== undefined);
  const result = parsed(resultSchema, ending?.how === 'completed' ? ending : undefined);
  const from = run.attributes.map(({ values }) => values[SEARCH_ATTRIBUTES.source.name]).findLast((value) => typeof value === 'string');
  const tries = activities.filter(({ type }) => type === 'moveMemory').map((move) => tryOf(move, endedAtMs));
  const warnings = activities.flatMap(({ type, ending: end }) => (/^inspect(Source|Stopped|Destination)$/.test(type) ? (parsed(planSchema, end)?.warnings ?? []) : []));
  return migrationRecordSchema.parse({
    kind: 'migration',
    workflowId: run.workflowId,
    runId: run.runId,
    vm: input.vm,
    from,
    to: input.to,
    stopped: run.type === 'moveCold',
    maxDowntimeMs: handOverSchema.safeParse(activities.findLast(({ type }) => type === 'moveMemory')?.input).data?.handOver.maxDowntimeMs ?? input.maxDowntimeMs,
    startedAtMs: run.startedAtMs,
    endedAtMs,
    outcome: outcomeOf(ending),
    error: errorOf(ending),
    downtimeMs: result?.downtimeMs,
    memoryBytes: plan?.definition.memory,
    disks: plan?.disks ?? [],
    phases: phasesOf(run, endedAtMs, result?.window),
    traces: activities.flatMap((activity): { of: 'disks' | 'memory'; trace: Trace }[] => {
      const of = { awaitMirrors: 'disks', moveMemory: 'memory' }[activity.type] as 'disks' | 'memory' | undefined;
      const kept = keptSchema.safeParse(activity.ending?.how === 'completed' ? activity.ending.result : activity.ending?.failure?.details);
      return of && kept.success ? [{ of, trace: kept.data.trace }] : [];
    }),
    verdicts: run.signals.filter(({ name }) => name === 'news').flatMap(({ atMs, input: raw }) => {
      const { data } = newsSchema.safeParse(raw);
      return [...(data?.assessment ? [{ ...data.assessment, atMs, of: 'disks' }] : []), ...(data?.memory ? [{ ...data.memory, atMs, of: 'memory' }] : [])];
    }),
    decisions: decisionsOf(run, result?.decisions),
    tries,
    window: result?.window,
    // A destination that ends because its try was given up has not failed.
    failures: activities.filter(({ type, endedAtMs: at = 0 }) => !(type === 'receive' && tries.some((one) => /given-up|cancelled/.test(one.ending) && one.fromMs <= at && at <= one.toMs + 5_000))).flatMap((activity) => failureOf(activity)),
    leftovers: [...run.children.flatMap((child) => leftoverOf(child.workflowId, child.input)), ...undone(run)],
    warnings: [...new Set([...warnings, ...(result?.warnings ?? [])])],
  });
}

function outcomeOf(ending: RecordedRun['ending']): MigrationRecord['outcome'] {
  switch (ending?.how) {
    case undefined:
    case 'continued-as-new':
      return 'running';
    case 'timed-out':
      return 'failed';
    default:
      return ending!.how;
  }
}

function errorOf(ending: RecordedRun['ending']): MigrationRecord['error'] {
  if (ending?.how === 'terminated') return { type: 'Terminated', message: ending.reason || 'no reason was given' };
  return ending?.how === 'failed' ? { type: ending.failure?.type ?? 'Failed', message: ending.failure?.message ?? '' } : undefined;
}

/** The result of what has ended well, if it is what it should be: a record of an older version may have less. */
function parsed<S extends z.ZodType>(schema: S, ending: Ending | undefined): z.output<S> | undefined {
  return ending?.how === 'completed' ? schema.safeParse(ending.result).data : undefined;
}

function phasesOf(run: RecordedRun, endedAtMs: number, window: MigrationRecord['window']): MigrationRecord['phases'] {
  const entered = run.attributes.flatMap(({ atMs, values }) => {
    const phase = PHASES.find((one) => one === values[SEARCH_ATTRIBUTES.phase.name]);
    return phase ? [{ phase, atMs }] : [];
  });
  let round = 0;
  return entered.flatMap(({ phase, atMs }, index): MigrationRecord['phases'] => {
    if (phase === 'preflight') round++;
    const next = entered[index + 1];
    const toMs = next?.atMs ?? endedAtMs;
    if (next?.phase === 'preflight' && index > 0) {
      // It is put off: from its last step on nothing is done.
      const lastMs = Math.max(atMs, ...run.activities.flatMap((one) => (one.endedAtMs !== undefined && one.endedAtMs <= toMs ? [one.endedAtMs] : [])));
      return [{ phase, fromMs: atMs, toMs: lastMs, round }, { phase: 'put off', fromMs: lastMs, toMs, round }];
    }
    const pausedMs = window?.source.stopped;
    if (phase === 'memory' && pausedMs !== undefined && pausedMs > atMs && pausedMs < toMs) return [{ phase, fromMs: atMs, toMs: pausedMs, round }, { phase: 'switchover', fromMs: pausedMs, toMs, round }];
    return [{ phase, fromMs: atMs, toMs, round }];
  });
}

/** The result has all of them, if there is one. Else they are in the memo; whom people confirmed to be fenced is the answer to their update. */
function decisionsOf(run: RecordedRun, inResult: MigrationRecord['decisions'] | undefined): MigrationRecord['decisions'] {
  if (inResult && inResult.length > 0) return inResult;
  const told = [...Object.entries(run.memo).flatMap(([key, value]) => (key.startsWith('decision-') ? [value] : [])), ...run.updates.map(({ ending }) => (ending?.how === 'completed' ? ending.result : undefined))];
  const decisions = told.flatMap((one) => decisionSchema.safeParse(one).data ?? []);
  return decisions.filter(({ at, what }, index) => decisions.findIndex((one) => one.at === at && one.what === what) === index).sort((a, b) => a.at.localeCompare(b.at));
}

function tryOf({ scheduledAtMs, startedAtMs = scheduledAtMs, endedAtMs, ending }: RecordedActivity, untilMs: number): MigrationRecord['tries'][number] {
  const span = { fromMs: startedAtMs, toMs: endedAtMs ?? untilMs };
  if (!ending) return { ...span, ending: 'running', message: 'its end is not on record' };
  if (ending.how !== 'completed') return { ...span, ending: ending.how === 'cancelled' ? 'cancelled' : 'failed', message: ending.failure?.message ?? 'it did not end in time' };
  const { data } = handedOverSchema.safeParse(ending.result);
  if (data?.source === 'running') return { ...span, ending: 'given-up', message: data.message ?? '', ...(data.pausedMs !== undefined && { pausedMs: data.pausedMs }) };
  return { ...span, ending: 'completed', message: data?.message ?? 'the guest was handed over' };
}

function failureOf({ type, queue, scheduledAtMs, endedAtMs, tries, before, ending }: RecordedActivity): MigrationRecord['failures'] {
  const common = { atMs: endedAtMs ?? scheduledAtMs, host: queue, step: type, tries };
  if (ending?.how === 'failed' || ending?.how === 'timed-out') return [{ ...common, type: ending.failure?.type ?? 'TimedOut', message: ending.failure?.message ?? 'it did not end in time', overcome: false }];
  return before ? [{ ...common, type: before.type, message: before.message, overcome: ending?.how === 'completed' }] : [];
}

function leftoverOf(workflowId: string, input: unknown): MigrationRecord['leftovers'] {
  const { data } = leftoverSchema.safeParse(input);
  return data ? [{ host: data.at === 'source' ? data.ref.from : data.ref.to, step: data.do, workflowId }] : [];
}

/** Undos whose last word is a failure, and which no other workflow has taken over. */
function undone({ activities, children }: RecordedRun): MigrationRecord['leftovers'] {
  return UNDOS.flatMap((step) => {
    const last = activities.findLast(({ type }) => type === step);
    const failed = last?.ending?.how === 'failed' || last?.ending?.how === 'timed-out' ? last.ending.failure : undefined;
    const taken = children.some(({ workflowId, input }) => leftoverOf(workflowId, input).some((one) => one.step === step));
    return failed && !taken ? [{ host: last!.queue, step, why: failed.message }] : [];
  });
}
