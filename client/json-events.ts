import { z } from 'zod';

/**
 * What `--json` writes to stdout, a line each: events while a command runs, then exactly one `result` or `error`. Fields are only added, never renamed or
 * given another unit. docs/json.md has a table for each; test/docs holds them against each other.
 */
const bytes = z.number().describe('bytes');
const ms = z.number().describe('ms');
/** ISO 8601, UTC. */
const time = z.string();
const decision = z.object({ at: time, by: z.string(), what: z.string(), why: z.string() });
const stay = z.object({ guest: z.string(), from: z.string(), reasons: z.array(z.string()) });
const wait = z.object({ host: z.string(), why: z.string(), since: time });
const slots = z.object({ outgoing: z.number(), incoming: z.number() });
const limits = z.object({ fleet: z.number(), perSource: z.number(), perDestination: z.number() });

const migration = z.object({
  vm: z.string(),
  from: z.string().optional(),
  to: z.string(),
  phase: z.string(),
  startedAt: time,
  memoryTry: z.number(),
  disks: z
    .array(
      z.object({
        id: z.string(),
        lengthBytes: bytes,
        remainingBytes: bytes,
        ready: z.boolean(),
        bytesPerSecond: bytes,
        dirtyBytesPerSecond: bytes.optional(),
        etaMs: ms.nullable().optional(),
        predictedDrainMs: ms.optional(),
      }),
    )
    .optional(),
  memory: z.object({ totalBytes: bytes, remainingBytes: bytes, bytesPerSecond: bytes, dirtyBytesPerSecond: bytes, predictedDowntimeMs: ms.optional() }).optional(),
  verdict: z.object({ verdict: z.string(), message: z.string() }).optional(),
  decisions: z.array(decision),
  asks: z.object({ choices: z.array(z.string()), until: time }).optional(),
  postponedUntil: time.optional(),
  waitsFor: z.array(wait).optional(),
});

const evacuation = z.object({
  host: z.string(),
  phase: z.string(),
  planned: z.array(z.object({ guest: z.string(), from: z.string(), to: z.string(), cold: z.boolean(), memoryBytes: bytes, diskBytes: bytes, why: z.string() })),
  moving: z.array(z.object({ guest: z.string(), from: z.string(), to: z.string(), workflowId: z.string(), since: time })),
  moved: z.array(z.object({ guest: z.string(), to: z.string(), cold: z.boolean(), totalMs: ms, downtimeMs: ms.optional(), bytes, tries: z.number() })),
  stayed: z.array(stay),
  failures: z.array(z.object({ guest: z.string(), to: z.string(), type: z.string(), why: z.string() })),
  limits,
  windowEndsAt: time.optional(),
  stopped: z.string().optional(),
});

const fleetEvacuation = z.object({
  hosts: z.array(z.object({ host: z.string(), state: z.string(), moved: z.number(), stayed: z.number(), why: z.string().optional() })),
  paused: z.boolean(),
  waitsFor: z.string().optional(),
  cancelled: z.boolean().optional(),
});

const guest = z.object({ name: z.string(), host: z.string(), state: z.string(), memoryBytes: bytes.optional(), disks: z.number().optional(), moving: z.string().optional() });

const host = z.object({
  name: z.string(),
  address: z.string(),
  reachable: z.boolean(),
  reportedAt: time,
  cordoned: z.object({ by: z.string(), reason: z.string(), at: time }).optional(),
  labels: z.record(z.string(), z.string()),
  slots,
  moving: slots,
  totalMemoryBytes: bytes,
  freeMemoryBytes: bytes,
  roots: z.array(z.object({ name: z.string(), fileSystem: z.string(), freeBytes: bytes })),
  facts: z.object({ processor: z.string(), qemu: z.array(z.object({ path: z.string(), version: z.string(), machines: z.array(z.string()), cpuModels: z.array(z.string()) })) }).optional(),
  reservations: z.array(
    z.object({ guest: z.string(), direction: z.enum(['outgoing', 'incoming']), memoryBytes: bytes, disks: z.array(z.object({ root: z.string(), bytes })), workflowId: z.string(), runId: z.string() }),
  ),
  guests: z.array(z.object({ name: z.string(), state: z.string(), memoryBytes: bytes, migratable: z.string() })),
});

const schedule = z.object({
  name: z.string(),
  hosts: z.string(),
  cron: z.string(),
  timeZone: z.string(),
  windowSeconds: z.number(),
  paused: z.boolean(),
  note: z.string().optional(),
  nextTimes: z.array(time),
});

/** Events that a command writes before its end, by their name. */
export const EVENTS = {
  migration,
  evacuation,
  'fleet-evacuation': fleetEvacuation,
  waiting: z.object({ vm: z.string(), waitsFor: z.array(wait) }),
  guest,
  process: z.object({ host: z.string(), pid: z.number(), name: z.string().optional(), monitor: z.string().optional(), executable: z.string() }),
  host,
  leftover: z.object({ vm: z.string(), host: z.string(), step: z.string(), attempt: z.string(), since: time, workflowId: z.string() }),
  schedule,
  finding: z.object({ check: z.string(), severity: z.enum(['ok', 'warning', 'problem']), saw: z.string(), fix: z.string().optional() }),
  ready: z.object({ temporalAddress: z.string(), uiUrl: z.string(), hosts: z.array(z.object({ host: z.string(), images: z.string() })) }),
};
export type EventName = keyof typeof EVENTS;

/** Its fields are documented where they are made. */
const part = z.record(z.string(), z.unknown());
const run = { workflowId: z.string(), runId: z.string() };
const counted = z.object({ count: z.number() });
const onGuest = z.object({ vm: z.string(), host: z.string(), state: z.string().optional() });
const onHost = z.object({ host: z.string() });
const onSchedule = z.object({ schedule: z.string(), nextTimes: z.array(time).optional() });
const onEvacuation = z.object({ evacuation: z.string() });
const moved = z.object({
  vm: z.string(),
  from: z.string().optional(),
  to: z.string().optional(),
  totalMs: ms.optional(),
  downtimeMs: ms.optional(),
  memoryTries: z.number().optional(),
  disks: z.array(z.object({ id: z.string(), sizeBytes: bytes })).optional(),
  warnings: z.array(z.string()).optional(),
  decisions: z.array(decision).optional(),
  /** Moments of the hand-over, on the hosts' clocks (docs/api.md). */
  window: z.record(z.string(), z.record(z.string(), z.unknown())).optional(),
  ...run,
});
const evacuated = z.object({ ...evacuation.partial().shape, ...fleetEvacuation.omit({ hosts: true }).partial().shape, hosts: fleetEvacuation.shape.hosts.optional(), totalMs: ms.optional(), running: z.boolean().optional(), workflowId: z.string().optional(), runId: z.string().optional() });
const scheduleDetails = schedule.extend({
  overlap: z.string(),
  catchUpSeconds: z.number(),
  jitterSeconds: z.number(),
  taken: z.number(),
  skippedForOverlap: z.number(),
  missedCatchUp: z.number(),
  recent: z.array(z.object({ at: time, workflowId: z.string() })),
  running: z.array(z.string()),
  evacuation: z.record(z.string(), z.unknown()),
});

/** What the last line of a command has besides `event`, `command`, `outcome` and `exitCode`. */
export const RESULTS = {
  migrate: moved,
  watch: moved,
  cancel: moved,
  steer: z.object({ vm: z.string(), ...decision.shape }),
  fence: z.object({ vm: z.string(), ...decision.shape }),
  repair: z.object({
    vm: z.string(),
    owner: z.string().optional(),
    state: z.string().optional(),
    found: z.array(z.object({ host: z.string(), copy: z.string() })),
    done: z.array(z.object({ host: z.string(), step: z.string(), why: z.string() })),
    left: z.array(z.string()),
    decisions: z.array(decision),
  }),
  leftovers: counted,
  'vm define': onGuest,
  'vm start': onGuest,
  'vm stop': onGuest,
  'vm remove': onGuest,
  'vm list': counted,
  'vm show': guest.extend({
    pid: z.number().optional(),
    images: z.array(z.object({ id: z.string(), path: z.string(), format: z.string(), virtualSizeBytes: bytes.optional(), problem: z.string().optional() })),
    definition: z.record(z.string(), z.unknown()),
  }),
  'vm adopt': z.object({ host: z.string(), count: z.number().optional(), vm: z.string().optional(), monitor: z.string().optional(), definition: z.record(z.string(), z.unknown()).optional() }),
  'host list': counted,
  'host show': host,
  'host cordon': onHost,
  'host uncordon': onHost,
  'host set-limits': onHost.extend({ outgoing: z.number().optional(), incoming: z.number().optional() }),
  evacuate: evacuated.extend({ schedule: scheduleDetails.optional() }),
  'evacuation show': evacuated,
  'evacuation watch': evacuated,
  'evacuation cancel': evacuated,
  'evacuation approve': onEvacuation,
  'evacuation pause': onEvacuation,
  'evacuation resume': onEvacuation,
  'evacuation skip': onEvacuation.extend({ vm: z.string() }),
  'evacuation set-limits': onEvacuation.extend({ limits }),
  'evacuation bring-back': onEvacuation,
  'schedule list': counted,
  'schedule show': scheduleDetails,
  'schedule pause': onSchedule,
  'schedule resume': onSchedule,
  'schedule trigger': onSchedule,
  'schedule delete': onSchedule,
  check: z.object({
    vm: z.string(),
    from: z.string().optional(),
    to: z.string(),
    movable: z.boolean(),
    blockers: z.array(z.string()),
    warnings: z.array(z.string()),
    disks: z.array(part),
    memory: part.optional(),
    link: part.optional(),
    maxDowntimeMs: ms.optional(),
    estimate: part.optional(),
  }),
  report: z.object({ workflowId: z.string(), runId: z.string(), file: z.string().optional(), record: part.optional() }),
  doctor: z.object({ ok: z.number(), warnings: z.number(), problems: z.number() }),
  'certs init': z.object({ folders: z.array(z.object({ host: z.string(), folder: z.string(), made: z.boolean() })), findings: z.array(z.string()) }),
  dev: z.object({}),
  'codec-server': z.object({}),
  control: z.object({}),
  agent: z.object({}),
};
export type CommandName = keyof typeof RESULTS;

/** What every `result` has. */
export const resultSchema = z.object({
  event: z.literal('result'),
  command: z.string(),
  outcome: z.string(),
  exitCode: z.number(),
});

/** The last line of a command that failed, was refused, or made no sense. */
export const errorSchema = z.object({
  event: z.literal('error'),
  type: z.string(),
  message: z.string(),
  exitCode: z.number(),
  blockers: z.array(z.string()).optional(),
  vm: z.string().optional(),
  from: z.string().optional(),
  to: z.string().optional(),
  host: z.string().optional(),
  name: z.string().optional(),
  workflowId: z.string().optional(),
  runId: z.string().optional(),
});
/** What an error is about. */
export type About = Partial<Pick<z.output<typeof errorSchema>, 'vm' | 'from' | 'to' | 'host' | 'name' | 'workflowId' | 'runId'>>;
