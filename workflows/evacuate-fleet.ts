import { ApplicationFailure, allHandlersFinished, CancellationScope, ChildWorkflowCancellationType, ChildWorkflowFailure, condition, continueAsNew, setCurrentDetails, setHandler, sleep, startChild, workflowInfo } from '@temporalio/workflow';
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { control } from './activities';
import { evacuateHost } from './evacuate-host';
import { fleetEvacuationDetails } from './evacuation-details';
import { chosenHosts } from './evacuation-rules';
import { type EvacuateFleetInput, type EvacuateHostInput, evacuateFleetSchema, type EvacuationReport, evacuationWorkflowId, type FleetEvacuationStatus, fleetEvacuationQuery, fleetVerdictUpdate, pauseUpdate } from './evacuation';
import type { HostCapacity } from './fleet';
import { parseInput } from './input';
import { recordOutcome } from './last-word';
import { SEARCH_ATTRIBUTES } from './messages';
import { innermost } from './steering';
import { evacuationStaticDetails, oneLine } from './summaries';

/** How often the free capacity is looked at while it is too little to go on. */
const LOOK = '1 minute';
const LONGEST_SECONDS = 365 * 24 * 3600;

/** What outlives `continueAsNew`. */
interface Carried {
  status: FleetEvacuationStatus;
  windowEndsAtMs?: number;
}

/**
 * Empties many hosts in waves: never more than `hostsAtOnce`, and never so many that the others have less than `minFreeMemory` of their memory free. Each host
 * is an `evacuateHost` of its own. It may be paused, cancelled and started again at any time: hosts that are empty are done at once.
 */
export async function evacuateFleet(raw: EvacuateFleetInput, carried?: Carried): Promise<FleetEvacuationStatus> {
  const input = parseInput(evacuateFleetSchema, raw, 'EvacuationRefused');
  const status: FleetEvacuationStatus = carried?.status ?? { hosts: [], paused: false };
  const windowEndsAtMs = carried?.windowEndsAtMs ?? (input.windowSeconds === undefined ? undefined : Date.now() + input.windowSeconds * 1000);
  let cancelled = false;
  let verdict: 'accepted' | ApplicationFailure | undefined = carried && 'accepted';
  const show = (outcome?: string) => setCurrentDetails(fleetEvacuationDetails(status, workflowInfo().workflowId, outcome));
  setHandler(fleetEvacuationQuery, () => status);
  setHandler(fleetVerdictUpdate, async () => {
    await condition(() => verdict !== undefined);
    if (verdict instanceof ApplicationFailure) throw verdict;
    return status;
  });
  setHandler(pauseUpdate, ({ paused, by, reason }) => {
    status.paused = paused;
    (status.decisions ??= []).push({ at: new Date().toISOString(), by, what: paused ? 'paused' : 'resumed', why: reason });
    show();
  });
  void CancellationScope.current().cancelRequested.catch(() => {
    cancelled = true;
  });
  if (!carried) {
    const chosen = chosenHosts(input, await control.capacities());
    if ('refused' in chosen) {
      verdict = ApplicationFailure.nonRetryable(`${chosen.refused}. Nothing was changed`, 'EvacuationRefused', { blockers: [chosen.refused] });
      await condition(allHandlersFinished);
      recordOutcome('EvacuationRefused');
      throw verdict;
    }
    status.hosts = chosen.hosts.map((host) => ({ host, state: 'waiting', moved: 0, stayed: 0 }));
    verdict = 'accepted';
  }
  const waiting = () => status.hosts.filter(({ state }) => state === 'waiting');
  const leftSeconds = () => (windowEndsAtMs === undefined ? undefined : (windowEndsAtMs - Date.now()) / 1000);
  const isOver = () => cancelled || (leftSeconds() ?? 1) <= 0;

  while (waiting().length > 0 && !isOver()) {
    show();
    if (status.paused) {
      const left = leftSeconds();
      await CancellationScope.nonCancellable(() => condition(() => !status.paused || cancelled, (left ?? LONGEST_SECONDS) * 1000, { summary: left === undefined ? 'paused, until somebody resumes it' : 'paused; the window ends then' }));
      continue;
    }
    const fleet = await control.capacities();
    const next = waiting().slice(0, input.hostsAtOnce);
    // A smaller wave may fit where a larger one does not.
    const waves = next.map((_, index) => next.slice(0, next.length - index));
    const tooFull = (wave: typeof next) => whyTooFull(wave.map(({ host }) => host), fleet, input.minFreeMemory);
    const wave = waves.find((one) => tooFull(one) === undefined);
    if (!wave) {
      const why = tooFull(next.slice(0, 1))!;
      status.waitsFor = why;
      show();
      await sleep(LOOK, { summary: oneLine(`looks again: ${why}`) }).catch(() => undefined);
      continue;
    }
    delete status.waitsFor;
    await Promise.all(wave.map((one) => empty(one, fleet.find(({ name }) => name === one.host)?.guests ?? [], wave.length)));
    if (workflowInfo().continueAsNewSuggested && waiting().length > 0 && !isOver()) {
      await condition(allHandlersFinished);
      await continueAsNew<typeof evacuateFleet>(raw, { status, ...(windowEndsAtMs !== undefined && { windowEndsAtMs }) });
    }
  }
  delete status.waitsFor;
  if (cancelled) status.cancelled = true;
  for (const one of waiting()) one.why = cancelled ? 'it was cancelled' : 'the window ended';
  await CancellationScope.nonCancellable(() => condition(allHandlersFinished));
  const outcome = cancelled ? 'cancelled' : status.hosts.every(({ state }) => state === 'done') ? 'completed' : 'partly';
  show(outcome);
  recordOutcome(outcome);
  return status;

  async function empty(one: FleetEvacuationStatus['hosts'][number], guests: string[], together: number): Promise<void> {
    const { destinations, approved, skip, stopped, limits, maxFailures, tries, atWindowEnd, atCancel } = input;
    const { host } = one;
    one.state = 'emptying';
    show();
    try {
      const left = leftSeconds();
      const asked: EvacuateHostInput = { host, destinations, approved: approved.filter((guest) => guests.includes(guest)), skip: skip.filter((guest) => guests.includes(guest)), stopped, maxFailures, tries, atWindowEnd, atCancel, ...(raw.migration && { migration: raw.migration }), limits: { ...limits, fleet: Math.max(1, Math.floor(limits.fleet / together)) }, ...(left !== undefined && { windowSeconds: Math.max(1, left) }) };
      const child = await startChild(evacuateHost, {
        workflowId: evacuationWorkflowId(host),
        cancellationType: ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
        staticSummary: oneLine(`empties ${host}, of ${workflowInfo().workflowId}`),
        typedSearchAttributes: [{ key: SEARCH_ATTRIBUTES.source, value: host }, { key: SEARCH_ATTRIBUTES.evacuation, value: host }],
        staticDetails: evacuationStaticDetails(host, asked),
        args: [asked],
      });
      const report: EvacuationReport = await child.result();
      one.state = 'done';
      one.moved = report.moved.length;
      one.stayed = report.stayed.length;
      if (report.stopped ?? report.stayed[0]) one.why = report.stopped ?? `${report.stayed[0]!.guest}: ${report.stayed[0]!.reasons.join('; ')}`;
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError || error instanceof ChildWorkflowFailure)) throw error;
      one.state = 'failed';
      one.why = error instanceof ChildWorkflowFailure ? innermost(error.cause).message : `it is being emptied already (${evacuationWorkflowId(host)})`;
    }
    show();
  }
}

/** Why these hosts cannot be emptied now without the others becoming too full; undefined if they can. */
export function whyTooFull(wave: string[], fleet: HostCapacity[], minFreeMemory: number): string | undefined {
  const takers = fleet.filter(({ name, reachable, cordoned }) => reachable && !cordoned && !wave.includes(name));
  const total = takers.reduce((sum, { totalMemoryBytes }) => sum + totalMemoryBytes, 0);
  const free = takers.reduce((sum, { freeMemoryBytes }) => sum + freeMemoryBytes, 0);
  const coming = fleet.filter(({ name }) => wave.includes(name)).reduce((sum, { guestMemoryBytes }) => sum + guestMemoryBytes, 0);
  const share = total === 0 ? 0 : (free - coming) / total;
  return share >= minFreeMemory ? undefined : `the hosts that take guests would have ${Math.round(share * 100)} % of their memory free, less than ${Math.round(minFreeMemory * 100)} % (minFreeMemory)`;
}

