import { EXIT, type ExitCode, FollowedFailed, Interrupted } from '../exit-codes';
import { advancePace, evacuationPicture, type Pace } from '../evacuation-picture';
import { fleetHeadline, fleetNews, fleetTable, news, plural, reportText } from '../evacuation-view';
import type { About, EventName } from '../json-events';
import type { Evacuation, FleetEvacuation } from '../fleet-client';
import { type MigrationClient, type MigrationView, VmferryError } from '../migration-client';
import { isTerminal, type Output } from '../output';
import { Frame, type Line, plain } from '../terminal';
import { shutdownSignal } from '../../workers/shutdown';
import type { EvacuationReport, EvacuationStatus, FleetEvacuationStatus } from '../../workflows/evacuation';

/** Of so many guests the progress is asked for at each look. */
const MOST_ASKED = 20;

/** One evacuation, of a host or of many, as far as following it goes. */
interface Followed<Status, Result> {
  /** As `vmferry evacuation` takes it. */
  name: string;
  workflowId: string;
  runId: string;
  watch(signal: AbortSignal): AsyncGenerator<Status>;
  result(): Promise<Result>;
  cancel(): Promise<void>;
  isRunning(): Promise<boolean>;
  startedAt(): Promise<string>;
}

interface Shown<Status, Result> {
  about: About;
  event: EventName;
  /** Drawn anew on a terminal. */
  picture(status: Status, startedAt: string, size: Size): Promise<Line[]>;
  /** Lines elsewhere. */
  lines(before: Status | undefined, now: Status): string[];
  report(result: Result): string;
  outcome(result: Result): { outcome: string; code: ExitCode };
}

type Size = Frame['size'];

export async function followHost(out: Output, client: MigrationClient, evacuation: Evacuation, detach = false): Promise<void> {
  await follow(out, followedHost(evacuation), shownHost(client, evacuation.host), detach);
}

export async function followFleet(out: Output, evacuation: FleetEvacuation, detach = false): Promise<void> {
  await follow(out, followedFleet(evacuation), SHOWN_FLEET, detach);
}

/** Cancels it and waits for its end. */
export async function cancelHost(out: Output, client: MigrationClient, evacuation: Evacuation): Promise<void> {
  await cancel(out, followedHost(evacuation), shownHost(client, evacuation.host));
}

export async function cancelFleet(out: Output, evacuation: FleetEvacuation): Promise<void> {
  await cancel(out, followedFleet(evacuation), SHOWN_FLEET);
}

const followedHost = (evacuation: Evacuation): Followed<EvacuationStatus, EvacuationReport> => ({ ...following(evacuation), name: evacuation.host });
const followedFleet = (evacuation: FleetEvacuation): Followed<FleetEvacuationStatus, FleetEvacuationStatus> => ({ ...following(evacuation), name: evacuation.workflowId });

function following<Status, Result>(evacuation: Omit<Followed<Status, Result>, 'name'>): Omit<Followed<Status, Result>, 'name'> {
  const { workflowId, runId } = evacuation;
  return { workflowId, runId, watch: (signal) => evacuation.watch(signal), result: () => evacuation.result(), cancel: () => evacuation.cancel(), isRunning: () => evacuation.isRunning(), startedAt: () => evacuation.startedAt() };
}

function shownHost(client: MigrationClient, host: string): Shown<EvacuationStatus, EvacuationReport> {
  const codes = { planned: EXIT.done, completed: EXIT.done, partly: EXIT.failed, cancelled: EXIT.cancelled };
  let pace: Pace | undefined;
  return {
    about: { host },
    event: 'evacuation',
    picture: async (status, startedAt, size) => {
      const views = await looks(client, status);
      pace = advancePace(pace, status, views, { startedAt, nowMs: Date.now() });
      return evacuationPicture(status, views, pace, { ...size, nowMs: Date.now() });
    },
    lines: news,
    report: reportText,
    outcome: ({ outcome }) => ({ outcome, code: codes[outcome] }),
  };
}

const SHOWN_FLEET: Shown<FleetEvacuationStatus, FleetEvacuationStatus> = {
  about: {},
  event: 'fleet-evacuation',
  picture: async (status) => [plain(fleetHeadline(status)), ...fleetTable(status).split('\n').map(plain)],
  lines: fleetNews,
  report: fleetReport,
  outcome: (status) => {
    if (status.cancelled) return { outcome: 'cancelled', code: EXIT.cancelled };
    return status.hosts.every(({ state, stayed }) => state === 'done' && stayed === 0) ? { outcome: 'completed', code: EXIT.done } : { outcome: 'partly', code: EXIT.failed };
  },
};

function fleetReport(status: FleetEvacuationStatus): string {
  const { hosts } = status;
  const empty = hosts.filter(({ state, stayed }) => state === 'done' && stayed === 0);
  const moved = hosts.reduce((sum, one) => sum + one.moved, 0);
  return `${fleetTable(status)}\n${empty.length} of ${plural(hosts.length, 'host')} empty, ${plural(moved, 'guest')} moved. Hosts that were begun take no guests until "vmferry host uncordon".`;
}

/** How far the guests are that move now. */
async function looks(client: MigrationClient, { moving }: EvacuationStatus): Promise<MigrationView[]> {
  const views = await Promise.all(moving.slice(0, MOST_ASKED).map(async ({ guest }) => (await client.migration(guest)).look().catch(() => undefined)));
  return views.filter((view) => view !== undefined);
}

/** Shows an evacuation until its end, and says what became of it. Throws `Interrupted` at the first SIGINT or SIGTERM, and `FollowedFailed`. */
async function follow<Status extends object, Result extends Status>(out: Output, evacuation: Followed<Status, Result>, shown: Shown<Status, Result>, detach: boolean): Promise<void> {
  const { name, workflowId, runId } = evacuation;
  const about = { ...shown.about, workflowId, runId };
  const hint = `watch it with "vmferry evacuation watch ${name}", end it with "vmferry evacuation cancel ${name}"`;
  if (detach) return out.result({ ...about, outcome: 'started' }, `The evacuation is under way: ${hint}.`);
  const over = new AbortController();
  const interrupted = shutdownSignal().then((signal) => over.abort(new Interrupted(`Stopped watching (${signal}). The evacuation goes on: ${hint}.`)));
  interrupted.catch(() => undefined);
  const ended = evacuation.result().finally(() => over.abort());
  ended.catch(() => undefined);
  out.say(`Watching ${workflowId}; Ctrl-C stops watching, "vmferry evacuation cancel ${name}" ends it.`);

  const frame = out.talks && isTerminal(process.stderr) ? new Frame(process.stderr) : undefined;
  let before: Status | undefined;
  let last = '';
  try {
    const startedAt = await evacuation.startedAt();
    for await (const status of evacuation.watch(over.signal)) {
      const text = JSON.stringify(status);
      if (text !== last) out.event(shown.event, status as never);
      if (frame) frame.draw(await shown.picture(status, startedAt, frame.size));
      else shown.lines(before, status).forEach((line) => out.say(line));
      before = JSON.parse(text) as Status;
      last = text;
    }
  } catch (error) {
    if (!over.signal.aborted) throw new Error(`watching failed, the evacuation goes on without it: ${(error as Error).message}`, { cause: error });
  } finally {
    frame?.end();
  }
  if (over.signal.reason instanceof Interrupted) throw new FollowedFailed(over.signal.reason, about);
  const result = await ended.catch((error: Error) => {
    throw new FollowedFailed(error, about);
  });
  // What happened since the last look is told too, so that a log has all of it.
  if (!frame && before !== undefined) shown.lines(before, result).forEach((line) => out.say(line));
  const { outcome, code } = shown.outcome(result);
  out.result({ ...result, outcome, workflowId, runId }, shown.report(result), code);
}

async function cancel<Status extends object, Result extends Status>(out: Output, evacuation: Followed<Status, Result>, shown: Shown<Status, Result>): Promise<void> {
  const { name, workflowId, runId } = evacuation;
  if (!(await evacuation.isRunning())) throw new VmferryError('EvacuationRefused', `${workflowId} is over already: see "vmferry evacuation show ${name}"`);
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Interrupted(`Stopped waiting (${signal}). The evacuation is being cancelled: watch it with "vmferry evacuation watch ${name}".`)));
  interrupted.catch(() => undefined);
  await evacuation.cancel();
  out.say(`Cancelling ${workflowId}; waiting until what moves is undone or finished …`);
  try {
    const result = await Promise.race([evacuation.result(), interrupted]);
    const { outcome } = shown.outcome(result);
    out.result({ ...result, outcome, workflowId, runId }, shown.report(result), outcome === 'cancelled' ? EXIT.done : EXIT.failed);
  } catch (error) {
    if (!(error instanceof VmferryError && error.type === 'Cancelled')) throw error;
    out.result({ ...shown.about, outcome: 'cancelled', workflowId, runId }, `The evacuation ${workflowId} was cancelled before anything was changed.`);
  }
}
