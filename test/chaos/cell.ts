import { setTimeout as delay } from 'node:timers/promises';
import { type Migration, VmferryError } from '../../client/migration-client';
import { type Fault, Void } from './faults';
import { judgeGuest, judgeLeftovers, judgeOwner, type Outcome, running, startAgain } from './judge';
import { INPUT } from '../support/never-converging';
import { GUEST, type HostName, HOSTS, POST_COPY, type Stage } from './stage';
import type { Step } from './steps';

/** What the longest pause of the guest may cost in each of these migrations. */
export const MAX_DOWNTIME_MS = 1_000;
/** Beyond the budget, of R9. */
export const R9_MS = 200;
/** How long a migration may take to come to its end, whatever is done to it; the longest waits of ours are a minute. */
const END_MS = 150_000;

export interface Verdict {
  step: string;
  fault: string;
  /** `void`: there was nothing to do the fault to. */
  result: 'ok' | 'failed' | 'void';
  /** How the migration ended, in one word; with `void` why. */
  end: string;
  problems: string[];
  /** The guest's longest silence, without the time that the harness held its agents. */
  gapMs?: number;
  ms: number;
}

/** One cell of the matrix: a migration, one fault at one step, a look at what came of it, and one more migration of the same guest. */
export async function runCell(stage: Stage, step: Step, fault: Fault): Promise<Verdict> {
  const beganAt = performance.now();
  const verdict = (result: Verdict['result'], end: string, problems: string[], gapMs?: number): Verdict => ({ step: step.name, fault: fault.name, result, end, problems, ...(gapMs !== undefined && { gapMs: Math.round(gapMs) }), ms: Math.round(performance.now() - beganAt) });
  const [source] = await running(stage);
  if (!source) return verdict('failed', '-', ['the guest does not run before anything was done']);
  const destination = other(source);
  const { guest } = stage;
  const since = (await guest.nextTick()).hostMs;
  const over = new AbortController();
  const atStep = stage.moments.at(step, { source, destination }, over.signal);
  const migration = await patiently(() => begin(stage, destination));
  const ended = outcomeOf(migration).finally(() => over.abort());
  ended.catch(() => undefined);

  const reached = await atStep;
  if (!reached) return verdict('failed', short(await ended), ['the step was never reached']);
  let afterwards;
  try {
    afterwards = await fault.apply({ stage, source, destination, migration, over: over.signal });
  } catch (error) {
    reached.go();
    if (!(error instanceof Void)) throw error;
    await ended;
    return verdict('void', error.message, []);
  }
  reached.go();
  const heldMs = Date.now() - reached.atMs;
  const after = afterwards?.().catch((error: unknown) => problems.push(`the fault could not be ended: ${(error as Error).message}`));
  const problems: string[] = [];
  const outcome = fault.terminates ? 'terminated' : await withDeadline(ended);
  if (outcome === undefined) {
    over.abort();
    await after;
    return verdict('failed', 'never ended', [`the migration did not end within ${END_MS / 1000} s`]);
  }
  over.abort();
  await after;
  const gapMs = guest.longestGapMs(since) - heldMs;

  const found = await judgeOwner(stage, { source, destination }, outcome, fault);
  problems.push(...found.problems);
  let home = found.home;
  if (home === undefined) {
    const started = await startAgain(stage);
    problems.push(...started.problems);
    home = started.home;
  }
  // Of a guest that was lost after it had moved, the old images are kept on purpose: whoever looked deletes them.
  if (outcome !== 'terminated' && 'failed' in outcome && ['GuestCrashedAfterMove', 'PostCopyLost'].includes(outcome.failed.type)) stage.deleteKept(source);
  // One that has just booted must write before it can tell anything.
  if (fault.autostarts) await stage.hasWritten();
  const end = outcome === 'terminated' ? 'terminated' : short(outcome);
  if (home === undefined) return verdict('failed', end, problems);
  problems.push(...(await judgeGuest(stage)));
  // What a terminated migration left is removed by the guest's next one.
  if (!fault.terminates) problems.push(...(await judgeLeftovers(stage, home)));
  problems.push(...(await moveAgain(stage, home)));
  if (fault.ours && step.paused && !fault.name.includes('both') && gapMs > MAX_DOWNTIME_MS + R9_MS + 1_000) problems.push(`R9: the guest was silent for ${Math.round(gapMs)} ms`);
  problems.push(...stage.unexpectedEnds.splice(0));
  return verdict(problems.length > 0 ? 'failed' : 'ok', end + (found.home === undefined ? ', lost and started again' : ''), problems, found.home === undefined ? undefined : gapMs);
}

async function begin(stage: Stage, to: HostName): Promise<Migration> {
  // By post-copy the second try must send all of the memory once before its deadline.
  const byPostCopy = POST_COPY && { ...INPUT, maxDowntimeMs: MAX_DOWNTIME_MS, memoryDeadlineSeconds: 10, postCopy: true };
  return await stage.client.migrate({ vm: GUEST, to, sourceDisks: 'wipe', maxDowntimeMs: MAX_DOWNTIME_MS, stallSeconds: 20, disksDeadlineSeconds: 60, memoryDeadlineSeconds: 30, ...byPostCopy });
}

/** The guest moves once more, at once, and everything is as it must be. */
async function moveAgain(stage: Stage, home: HostName): Promise<string[]> {
  const to = other(home);
  const outcome = await withDeadline(outcomeOf(await patiently(() => begin(stage, to))));
  if (outcome === undefined) return ['the next migration does not end'];
  if ('failed' in outcome) return [`the guest does not move again: ${outcome.failed.type}: ${outcome.failed.message}`];
  const { problems } = await judgeOwner(stage, { source: home, destination: to }, outcome);
  // Put aside by this migration, as the one before it was terminated and could not say what becomes of them.
  HOSTS.forEach((host) => stage.deleteKept(host));
  return [...problems, ...(await judgeGuest(stage)), ...(await judgeLeftovers(stage, to))].map((problem) => `after the next migration: ${problem}`);
}

const other = (host: HostName): HostName => HOSTS.find((one) => one !== host)!;

/** The end of a migration, also when Temporal is away for a moment. */
async function outcomeOf(migration: Migration): Promise<Outcome> {
  try {
    return { completed: await patiently(() => migration.result()) };
  } catch (error) {
    if (error instanceof VmferryError) return { failed: error };
    throw error;
  }
}

/** Repeats what fails because Temporal does not answer. */
async function patiently<T>(work: () => Promise<T>): Promise<T> {
  for (const end = performance.now() + END_MS; ; await delay(200)) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof VmferryError || performance.now() > end) throw error;
    }
  }
}

async function withDeadline<T>(work: Promise<T>): Promise<T | undefined> {
  const late = new AbortController();
  try {
    return await Promise.race([work, delay(END_MS, undefined, { signal: late.signal })]);
  } finally {
    late.abort();
  }
}

function short(outcome: Outcome): string {
  return 'completed' in outcome ? (outcome.completed.memoryTries > 1 ? `completed, ${outcome.completed.memoryTries} tries` : 'completed') : outcome.failed.type;
}
