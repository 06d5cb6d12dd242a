import type { LoadedDataConverter } from '@temporalio/common';
import { ActivityFailure, ApplicationFailure, CancelledFailure, ChildWorkflowFailure, TimeoutFailure } from '@temporalio/common';
import { decodeArrayFromPayloads, decodeMapFromPayloads, decodeOptionalFailureToOptionalError } from '@temporalio/common/lib/internal-non-workflow';
import type { temporal } from '@temporalio/proto';

type Event = temporal.api.history.v1.IHistoryEvent;
type Payloads = temporal.api.common.v1.IPayloads | null | undefined;
type Failure = temporal.api.failure.v1.IFailure | null | undefined;

export interface RecordedFailure {
  type: string;
  message: string;
  /** What an activity left, as plain JSON. */
  details?: unknown;
}

export type Ending = { how: 'completed'; result: unknown } | { how: 'failed' | 'cancelled' | 'timed-out'; failure?: RecordedFailure };

export interface RecordedActivity {
  type: string;
  /** The task queue: a host's name, or the control workers'. */
  queue: string;
  input: unknown;
  scheduledAtMs: number;
  /** Of its last try. */
  startedAtMs?: number;
  tries: number;
  /** Why the try before the last failed. */
  before?: RecordedFailure;
  endedAtMs?: number;
  ending?: Ending;
}

export interface RecordedChild {
  workflowId: string;
  runId?: string;
  type: string;
  input: unknown;
  startedAtMs: number;
  endedAtMs?: number;
  ending?: Ending;
}

/** A workflow's history, decoded, with what belongs together in one place. In order of time. */
export interface RecordedRun {
  workflowId: string;
  runId: string;
  type: string;
  input: unknown;
  startedAtMs: number;
  /** Of the last event. */
  lastAtMs: number;
  endedAtMs?: number;
  /** `terminated`: by somebody, without any undo. */
  ending?: Ending | { how: 'terminated'; reason: string } | { how: 'continued-as-new' };
  /** The run that went on as this one. */
  continues?: string;
  activities: RecordedActivity[];
  children: RecordedChild[];
  attributes: { atMs: number; values: Record<string, unknown> }[];
  signals: { atMs: number; name: string; input: unknown }[];
  /** Accepted ones. */
  updates: { atMs: number; name: string; input: unknown; ending?: Ending }[];
  memo: Record<string, unknown>;
}

/** Decodes what Temporal has of a run. What cannot be decoded, for want of a codec, throws. */
export async function readHistory(events: Event[], workflowId: string, runId: string, converter: LoadedDataConverter): Promise<RecordedRun> {
  const first = async (payloads: Payloads): Promise<unknown> => (await decodeArrayFromPayloads(converter, payloads?.payloads))[0];
  const failed = async (failure: Failure): Promise<RecordedFailure> => said(await decodeOptionalFailureToOptionalError(converter, failure));
  const began = events[0]?.workflowExecutionStartedEventAttributes;
  if (!began) throw new Error(`the history of ${workflowId} does not begin with its start`);
  const run: RecordedRun = {
    workflowId,
    runId,
    type: began.workflowType?.name ?? '',
    input: await first(began.input),
    startedAtMs: timeOf(events[0]!),
    lastAtMs: timeOf(events.at(-1)!),
    ...(began.continuedExecutionRunId && { continues: began.continuedExecutionRunId }),
    activities: [],
    children: [],
    attributes: [],
    signals: [],
    updates: [],
    memo: {},
  };
  const activities = new Map<string, RecordedActivity>();
  const children = new Map<string, RecordedChild>();
  const updates = new Map<string, RecordedRun['updates'][number]>();
  /** Notes how an activity, or a child, that was begun by an event has ended. */
  const end = (what: { endedAtMs?: number; ending?: Ending } | undefined, event: Event, ending: Ending) => {
    if (what) Object.assign(what, { endedAtMs: timeOf(event), ending });
  };

  for (const event of events) {
    const atMs = timeOf(event);
    const {
      activityTaskScheduledEventAttributes: scheduled, activityTaskStartedEventAttributes: started, activityTaskCompletedEventAttributes: completed, activityTaskFailedEventAttributes: failure, activityTaskTimedOutEventAttributes: late, activityTaskCanceledEventAttributes: cancelled,
      startChildWorkflowExecutionInitiatedEventAttributes: initiated, childWorkflowExecutionStartedEventAttributes: childStarted, childWorkflowExecutionCompletedEventAttributes: childCompleted, childWorkflowExecutionFailedEventAttributes: childFailed, childWorkflowExecutionCanceledEventAttributes: childCancelled,
      childWorkflowExecutionTerminatedEventAttributes: childTerminated, childWorkflowExecutionTimedOutEventAttributes: childLate,
      upsertWorkflowSearchAttributesEventAttributes: attributes, workflowPropertiesModifiedEventAttributes: properties, workflowExecutionSignaledEventAttributes: signaled, workflowExecutionUpdateAcceptedEventAttributes: accepted, workflowExecutionUpdateCompletedEventAttributes: updated,
    } = event;
    if (scheduled) {
      const activity: RecordedActivity = { type: scheduled.activityType?.name ?? '', queue: scheduled.taskQueue?.name ?? '', input: await first(scheduled.input), scheduledAtMs: atMs, tries: 1 };
      activities.set(String(event.eventId), activity);
      run.activities.push(activity);
    } else if (started) {
      const activity = activities.get(String(started.scheduledEventId));
      if (activity) Object.assign(activity, { startedAtMs: atMs, tries: started.attempt ?? 1, ...(started.lastFailure && { before: await failed(started.lastFailure) }) });
    } else if (completed) end(activities.get(String(completed.scheduledEventId)), event, { how: 'completed', result: await first(completed.result) });
    else if (failure) end(activities.get(String(failure.scheduledEventId)), event, { how: 'failed', failure: await failed(failure.failure) });
    else if (late) end(activities.get(String(late.scheduledEventId)), event, { how: 'timed-out', failure: await failed(late.failure) });
    else if (cancelled) end(activities.get(String(cancelled.scheduledEventId)), event, { how: 'cancelled', failure: { type: 'Cancelled', message: 'it was cancelled', details: await first(cancelled.details) } });
    else if (initiated) children.set(String(event.eventId), { workflowId: initiated.workflowId ?? '', type: initiated.workflowType?.name ?? '', input: await first(initiated.input), startedAtMs: atMs });
    else if (childStarted) {
      const child = children.get(String(childStarted.initiatedEventId));
      if (child) run.children.push(Object.assign(child, { runId: childStarted.workflowExecution?.runId ?? '', startedAtMs: atMs }));
    } else if (childCompleted) end(children.get(String(childCompleted.initiatedEventId)), event, { how: 'completed', result: await first(childCompleted.result) });
    else if (childFailed) end(children.get(String(childFailed.initiatedEventId)), event, { how: 'failed', failure: await failed(childFailed.failure) });
    else if (childCancelled) end(children.get(String(childCancelled.initiatedEventId)), event, { how: 'cancelled' });
    else if (childTerminated) end(children.get(String(childTerminated.initiatedEventId)), event, { how: 'failed', failure: { type: 'Terminated', message: 'it was terminated: vmferry repair brings order' } });
    else if (childLate) end(children.get(String(childLate.initiatedEventId)), event, { how: 'timed-out' });
    else if (attributes) run.attributes.push({ atMs, values: Object.fromEntries(Object.entries(attributes.searchAttributes?.indexedFields ?? {}).map(([key, { data }]) => [key, plain(data)])) });
    else if (properties) Object.assign(run.memo, await decodeMapFromPayloads(converter, properties.upsertedMemo?.fields));
    else if (signaled) run.signals.push({ atMs, name: signaled.signalName ?? '', input: await first(signaled.input) });
    else if (accepted) {
      const request = accepted.acceptedRequest;
      const update = { atMs, name: request?.input?.name ?? '', input: await first(request?.input?.args) };
      updates.set(accepted.protocolInstanceId ?? '', update);
      run.updates.push(update);
    } else if (updated) {
      const update = updates.get(updated.meta?.updateId ?? '') ?? run.updates.findLast(({ ending }) => ending === undefined);
      if (update) update.ending = updated.outcome?.failure ? { how: 'failed', failure: await failed(updated.outcome.failure) } : { how: 'completed', result: await first(updated.outcome?.success) };
    } else await readEnd(event, atMs);
  }
  return run;

  async function readEnd(event: Event, atMs: number): Promise<void> {
    const { workflowExecutionCompletedEventAttributes: completed, workflowExecutionFailedEventAttributes: failure, workflowExecutionCanceledEventAttributes: cancelled, workflowExecutionTerminatedEventAttributes: terminated, workflowExecutionTimedOutEventAttributes: late, workflowExecutionContinuedAsNewEventAttributes: goesOn } = event;
    if (completed) run.ending = { how: 'completed', result: await first(completed.result) };
    else if (failure) run.ending = { how: 'failed', failure: await failed(failure.failure) };
    else if (cancelled) run.ending = { how: 'cancelled' };
    else if (terminated) run.ending = { how: 'terminated', reason: terminated.reason ?? '' };
    else if (late) run.ending = { how: 'timed-out' };
    else if (goesOn) run.ending = { how: 'continued-as-new' };
    else return;
    run.endedAtMs = atMs;
  }
}

/** Seconds are a `Long`, or a number where protobufjs finds none. */
const timeOf = ({ eventTime }: Event): number => Number(String(eventTime?.seconds ?? 0)) * 1000 + Math.round((eventTime?.nanos ?? 0) / 1e6);
/** Search attributes are plain JSON, whatever the codec. */
const plain = (data: Uint8Array | null | undefined): unknown => (data ? (JSON.parse(Buffer.from(data).toString()) as unknown) : undefined);

/** The innermost reason, in its own words. */
function said(error: Error | undefined): RecordedFailure {
  let reason = error;
  while ((reason instanceof ActivityFailure || reason instanceof ChildWorkflowFailure) && reason.cause) reason = reason.cause;
  if (reason instanceof ApplicationFailure) return { type: reason.type ?? 'Failed', message: reason.message, ...(reason.details?.[0] !== undefined && { details: reason.details[0] }) };
  if (reason instanceof TimeoutFailure) return { type: 'TimedOut', message: reason.timeoutType === 'SCHEDULE_TO_START' ? 'nobody took the task: its agent does not answer' : 'it did not end in time' };
  if (reason instanceof CancelledFailure) return { type: 'Cancelled', message: 'it was cancelled', ...(reason.details?.[0] !== undefined && { details: reason.details[0] }) };
  return { type: 'Failed', message: reason?.message ?? 'no reason was given' };
}
