import { EXIT, exitCodeOf, type ExitCode, Interrupted, outcomeOf } from '../exit-codes';
import { fleetHeadline, fleetNews, fleetTable, Frame, guestTable, headline, news, plural, reportText } from '../evacuation-view';
import type { Evacuation, FleetEvacuation } from '../fleet-client';
import { type MigrationClient, type MigrationView, VmferryError } from '../migration-client';
import { printJson, say } from '../output';
import { shutdownSignal } from '../../workers/shutdown';
import type { EvacuationReport, EvacuationStatus, FleetEvacuationStatus } from '../../workflows/evacuation';
import { failure } from './migrations';

/** Of so many guests the progress is asked for at each look. */
const MOST_ASKED = 20;

interface Following {
  json: boolean;
  detach: boolean;
}

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
}

interface Shown<Status, Result> {
  about: Record<string, unknown>;
  /** Drawn anew on a terminal. */
  picture(status: Status): Promise<string>;
  /** Lines elsewhere. */
  lines(before: Status | undefined, now: Status): string[];
  report(result: Result): string;
  outcome(result: Result): { outcome: string; code: ExitCode };
}

export async function followHost(client: MigrationClient, evacuation: Evacuation, how: Following): Promise<void> {
  await follow(followedHost(evacuation), shownHost(client, evacuation.host), how);
}

export async function followFleet(evacuation: FleetEvacuation, how: Following): Promise<void> {
  await follow(followedFleet(evacuation), SHOWN_FLEET, how);
}

/** Cancels it and waits for its end. */
export async function cancelHost(client: MigrationClient, evacuation: Evacuation): Promise<void> {
  await cancel(followedHost(evacuation), shownHost(client, evacuation.host));
}

export async function cancelFleet(evacuation: FleetEvacuation): Promise<void> {
  await cancel(followedFleet(evacuation), SHOWN_FLEET);
}

const followedHost = (evacuation: Evacuation): Followed<EvacuationStatus, EvacuationReport> => ({ ...following(evacuation), name: evacuation.host });
const followedFleet = (evacuation: FleetEvacuation): Followed<FleetEvacuationStatus, FleetEvacuationStatus> => ({ ...following(evacuation), name: evacuation.workflowId });

function following<Status, Result>(evacuation: Omit<Followed<Status, Result>, 'name'>): Omit<Followed<Status, Result>, 'name'> {
  const { workflowId, runId } = evacuation;
  return { workflowId, runId, watch: (signal) => evacuation.watch(signal), result: () => evacuation.result(), cancel: () => evacuation.cancel(), isRunning: () => evacuation.isRunning() };
}

function shownHost(client: MigrationClient, host: string): Shown<EvacuationStatus, EvacuationReport> {
  const codes = { planned: EXIT.done, completed: EXIT.done, partly: EXIT.failed, cancelled: EXIT.cancelled };
  return {
    about: { host },
    picture: async (status) => `${headline(status)}\n${guestTable(status, await looks(client, status))}`,
    lines: news,
    report: reportText,
    outcome: ({ outcome }) => ({ outcome, code: codes[outcome] }),
  };
}

const SHOWN_FLEET: Shown<FleetEvacuationStatus, FleetEvacuationStatus> = {
  about: {},
  picture: async (status) => `${fleetHeadline(status)}\n${fleetTable(status)}`,
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

/** Shows an evacuation until its end, says what became of it, and sets the exit code. Throws `Interrupted` at the first SIGINT or SIGTERM. */
async function follow<Status extends object, Result extends Status>(evacuation: Followed<Status, Result>, shown: Shown<Status, Result>, { json, detach }: Following): Promise<void> {
  const { name, workflowId, runId } = evacuation;
  const ids = { workflowId, runId };
  const hint = `watch it with "vmferry evacuation watch ${name}", end it with "vmferry evacuation cancel ${name}"`;
  if (detach) {
    if (json) return printJson({ ...shown.about, outcome: 'started', ...ids });
    return say(`The evacuation is under way: ${hint}.`);
  }
  const over = new AbortController();
  const interrupted = shutdownSignal().then((signal) => over.abort(new Interrupted(`Stopped watching (${signal}). The evacuation goes on: ${hint}.`)));
  interrupted.catch(() => undefined);
  const ended = evacuation.result().finally(() => over.abort());
  ended.catch(() => undefined);
  if (!json) say(`Watching ${workflowId}; Ctrl-C stops watching, "vmferry evacuation cancel ${name}" ends it.`);

  const frame = new Frame(process.stderr);
  let before: Status | undefined;
  let last = '';
  try {
    for await (const status of evacuation.watch(over.signal)) {
      const text = JSON.stringify(status);
      if (json && text !== last) printJson(status);
      if (!json && frame.isTerminal) frame.draw(await shown.picture(status));
      if (!json && !frame.isTerminal) shown.lines(before, status).forEach(say);
      before = JSON.parse(text) as Status;
      last = text;
    }
  } catch (error) {
    if (!over.signal.aborted) throw new Error(`watching failed, the evacuation goes on without it: ${(error as Error).message}`, { cause: error });
  } finally {
    frame.clear();
  }
  if (over.signal.reason instanceof Interrupted) {
    if (json) printJson({ ...shown.about, outcome: outcomeOf(EXIT.interrupted), ...ids });
    throw over.signal.reason;
  }
  // What happened since the last look is told too, so that a log has all of it.
  const rest = (result: Result) => (json || frame.isTerminal || before === undefined ? [] : shown.lines(before, result));
  await conclude(ended, shown, json, ids, rest);
}

async function conclude<Status extends object, Result extends Status>(ended: Promise<Result>, shown: Shown<Status, Result>, json: boolean, ids: { workflowId: string; runId: string }, rest: (result: Result) => string[]): Promise<void> {
  try {
    const result = await ended;
    const { outcome, code } = shown.outcome(result);
    rest(result).forEach(say);
    if (json) printJson({ ...result, outcome, ...ids });
    else say(shown.report(result));
    process.exitCode = code;
  } catch (error) {
    if (!(error instanceof VmferryError)) throw error;
    if (json) printJson({ ...shown.about, ...failure(error), ...ids });
    say(`vmferry: ${error.message}`);
    process.exitCode = exitCodeOf(error, 'migration');
  }
}

async function cancel<Status extends object, Result extends Status>(evacuation: Followed<Status, Result>, shown: Shown<Status, Result>): Promise<void> {
  const { name, workflowId } = evacuation;
  if (!(await evacuation.isRunning())) throw new VmferryError('EvacuationRefused', `${workflowId} is over already: see "vmferry evacuation show ${name}"`);
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Interrupted(`Stopped waiting (${signal}). The evacuation is being cancelled: watch it with "vmferry evacuation watch ${name}".`)));
  interrupted.catch(() => undefined);
  await evacuation.cancel();
  say(`Cancelling ${workflowId}; waiting until what moves is undone or finished …`);
  try {
    const result = await Promise.race([evacuation.result(), interrupted]);
    say(shown.report(result));
    if (shown.outcome(result).outcome !== 'cancelled') process.exitCode = EXIT.failed;
  } catch (error) {
    if (error instanceof VmferryError && error.type === 'Cancelled') return say(`The evacuation ${workflowId} was cancelled before anything was changed.`);
    throw error;
  }
}
