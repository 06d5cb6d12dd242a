import { type Client, ScheduleAlreadyRunning, type ScheduleDescription, type ScheduleHandle, ScheduleNotFoundError, ScheduleOverlapPolicy } from '@temporalio/client';
import { knownHosts } from '../activities/fleet';
import type { evacuateFleet } from '../workflows/evacuate-fleet';
import { type EvacuateFleetInput, evacuateFleetSchema, fleetWorkflowId, type Signed } from '../workflows/evacuation';
import { chosenHosts } from '../workflows/evacuation-rules';
import { CONTROL_QUEUE } from '../workflows/messages';
import { evacuationStaticDetails, oneLine } from '../workflows/summaries';
import { VmferryError } from './errors';
import { check } from './fleet-client';

/** How late an evacuation may begin that was missed while Temporal was down: a window that is nearly over is not worth beginning. */
export const CATCH_UP_SECONDS = 600;
/** What Temporal allows at least. */
export const LEAST_CATCH_UP_SECONDS = 10;
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$/;

export interface ScheduleRequest {
  name: string;
  /** Five fields, as Temporal reads them: `0 2 * * SUN`. A day of the month and one of the week must both be met. */
  cron: string;
  /** IANA, such as `Europe/Berlin`. Default: UTC. */
  timeZone?: string;
  /** Each time is later by up to this, at random. */
  jitterSeconds?: number;
  /** How late one may begin that was missed while Temporal was down; at least 10. */
  catchUpSeconds?: number;
  /** What is evacuated; `windowSeconds` is needed. */
  evacuation: EvacuateFleetInput & { windowSeconds: number };
}

/** Plain JSON. Times are ISO 8601. */
export interface ScheduleSummary {
  name: string;
  cron: string;
  timeZone: string;
  paused: boolean;
  note?: string;
  nextTimes: string[];
  /** The hosts' names or the selector. */
  hosts: string;
  windowSeconds: number;
}

export interface ScheduleDetails extends ScheduleSummary {
  /** What becomes of a time that comes while the last evacuation is still under way. */
  overlap: string;
  catchUpSeconds: number;
  jitterSeconds: number;
  evacuation: EvacuateFleetInput;
  taken: number;
  skippedForOverlap: number;
  missedCatchUp: number;
  /** Evacuations that it started last, by workflow id. */
  recent: { at: string; workflowId: string }[];
  running: string[];
}

/** What a schedule says of itself in a list, where Temporal shows no input. */
interface Memo {
  cron: string;
  timeZone: string;
  hosts: string;
  windowSeconds: number;
}

/** Evacuations at set times: Temporal Schedules that start `evacuateFleet`. A part of `MigrationClient`. */
export class Schedules {
  constructor(private readonly temporal: Client) {}

  /** A schedule that was just made, paused or deleted is seen here a moment later. */
  async list(): Promise<ScheduleSummary[]> {
    const found: ScheduleSummary[] = [];
    for await (const { scheduleId, action, memo, state, info } of this.temporal.schedule.list()) {
      if (action?.workflowType === 'evacuateFleet') found.push(summary(scheduleId, memo as unknown as Memo, state, info.nextActionTimes));
    }
    return found.sort((a, b) => a.name.localeCompare(b.name));
  }

  /** Throws `VmferryError` (`EvacuationRefused`): a wrong field, hosts that are not there now, a time that never comes, a name that is taken. */
  async create(request: ScheduleRequest): Promise<ScheduleDetails> {
    const { name, cron, timeZone = 'UTC', jitterSeconds = 0, catchUpSeconds = CATCH_UP_SECONDS, evacuation } = request;
    check(evacuateFleetSchema, evacuation);
    const wrong = [
      ...(NAME.test(name) ? [] : [`name: "${name}" is no name: give up to 100 letters, digits, ".", "_" or "-"`]),
      ...(isTimeZone(timeZone) ? [] : [`timeZone: "${timeZone}" is not known: give one such as Europe/Berlin`]),
      // Temporal would take it from the expression, past the check above.
      ...(/^\s*(CRON_)?TZ=/.test(cron) ? [`cron: "${cron}" has a time zone of its own: give it as timeZone`] : []),
      ...((evacuation as EvacuateFleetInput).windowSeconds === undefined ? ['windowSeconds: say how long after its beginning it may start moves'] : []),
      ...(jitterSeconds >= 0 ? [] : [`jitterSeconds: ${jitterSeconds} is negative`]),
      ...(catchUpSeconds >= LEAST_CATCH_UP_SECONDS ? [] : [`catchUpSeconds: ${catchUpSeconds} is less than ${LEAST_CATCH_UP_SECONDS}`]),
    ];
    const fleet = (await knownHosts(this.temporal)).map(({ name, facts }) => ({ name, labels: facts?.labels ?? {} }));
    const chosen = chosenHosts(evacuation, fleet);
    if ('refused' in chosen) wrong.push(chosen.refused);
    if (wrong.length > 0) throw refused(wrong);

    const memo: Memo = { cron, timeZone, hosts: evacuation.selector || [...new Set(evacuation.hosts)].join(', '), windowSeconds: evacuation.windowSeconds };
    const handle = await this.temporal.schedule
      .create<typeof evacuateFleet>({
        scheduleId: name,
        spec: { cronExpressions: [cron], timezone: timeZone, ...(jitterSeconds > 0 && { jitter: jitterSeconds * 1000 }) },
        action: { type: 'startWorkflow', workflowType: 'evacuateFleet', workflowId: fleetWorkflowId(name), taskQueue: CONTROL_QUEUE, args: [evacuation], staticSummary: oneLine(`empties ${memo.hosts}`), staticDetails: evacuationStaticDetails(fleetWorkflowId(name), evacuation) },
        policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: catchUpSeconds * 1000 },
        memo: { ...memo },
      })
      .catch((error: unknown) => {
        if (error instanceof ScheduleAlreadyRunning) throw refused([`name: there is a schedule "${name}" already: "vmferry schedule delete ${name}" removes it`]);
        // Temporal alone knows which expressions it takes; the SDK makes a TypeError of its refusal.
        if (error instanceof TypeError) throw refused([`cron: "${cron}" cannot be used: ${error.message}. Give minute, hour, day of the month, month and day of the week, such as "0 2 * * SUN"`]);
        throw error;
      });
    const made = await handle.describe();
    if (made.info.nextActionTimes.length === 0) {
      await handle.delete();
      throw refused([`cron: "${cron}" never comes in ${timeZone}`]);
    }
    return details(made);
  }

  async show(name: string): Promise<ScheduleDetails> {
    return await this.on(name, async (handle) => details(await handle.describe()));
  }

  /** Nothing begins until it is resumed; what is under way goes on. */
  async pause(name: string, { by, reason }: Signed): Promise<void> {
    await this.on(name, (handle) => handle.pause(`paused by ${by}: ${reason}`));
  }

  async resume(name: string, { by, reason }: Signed): Promise<void> {
    await this.on(name, (handle) => handle.unpause(`resumed by ${by}: ${reason}`));
  }

  /** Begins now, also if it is paused. Throws `VmferryError` (`EvacuationRefused`) if its last evacuation is still under way. */
  async trigger(name: string): Promise<void> {
    await this.on(name, async (handle) => {
      const { running } = details(await handle.describe());
      if (running.length > 0) throw refused([`${running.join(', ')} is under way still: see "vmferry evacuation show ${running[0]!}"`]);
      await handle.trigger(ScheduleOverlapPolicy.SKIP);
    });
  }

  /** What it has begun goes on. */
  async delete(name: string): Promise<void> {
    await this.on(name, (handle) => handle.delete());
  }

  /** Throws `VmferryError` (`NotFound`) also for a schedule that is none of ours. */
  private async on<T>(name: string, work: (handle: ScheduleHandle) => Promise<T>): Promise<T> {
    const handle = this.temporal.schedule.getHandle(name);
    try {
      const { action } = await handle.describe();
      if (action.workflowType !== 'evacuateFleet') throw new ScheduleNotFoundError('it evacuates nothing', name);
      return await work(handle);
    } catch (error) {
      if (!(error instanceof ScheduleNotFoundError)) throw error;
      const names = (await this.list()).map((one) => one.name);
      throw new VmferryError('NotFound', `there is no schedule "${name}" (known are: ${names.join(', ') || 'none'})`);
    }
  }
}

function refused(reasons: string[]): VmferryError {
  return new VmferryError('EvacuationRefused', reasons.length === 1 ? `${reasons[0]!}. Nothing was changed` : `the schedule cannot be made; nothing was changed:\n- ${reasons.join('\n- ')}`, { blockers: reasons });
}

/** As IANA's database has it; the server's has the same names. */
export function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en', { timeZone: name });
    return /^[A-Z]/.test(name);
  } catch {
    return false;
  }
}

function summary(name: string, { cron, timeZone, hosts, windowSeconds }: Memo, { paused, note }: { paused: boolean; note?: string }, next: Date[]): ScheduleSummary {
  return { name, cron, timeZone, paused, ...(note && { note }), nextTimes: next.map((time) => time.toISOString()), hosts, windowSeconds };
}

function details({ scheduleId, spec, action, memo, state, info, policies }: ScheduleDescription): ScheduleDetails {
  return {
    ...summary(scheduleId, memo as unknown as Memo, state, info.nextActionTimes),
    overlap: policies.overlap ?? ScheduleOverlapPolicy.SKIP,
    catchUpSeconds: policies.catchupWindow / 1000,
    jitterSeconds: Number(spec.jitter ?? 0) / 1000,
    evacuation: action.args?.[0] as EvacuateFleetInput,
    taken: info.numActionsTaken,
    skippedForOverlap: info.numActionsSkippedOverlap,
    missedCatchUp: info.numActionsMissedCatchupWindow,
    recent: info.recentActions.map(({ takenAt, action: { workflow } }) => ({ at: takenAt.toISOString(), workflowId: workflow.workflowId })),
    running: info.runningActions.map(({ workflow }) => workflow.workflowId),
  };
}
