import type { SearchAttributeUpdatePair } from '@temporalio/common';
import { ApplicationFailure, isCancellation, patched, TimeoutFailure, upsertSearchAttributes } from '@temporalio/workflow';
import { ERRORS } from '../activities/errors';
import { SEARCH_ATTRIBUTES } from './messages';
import { innermost } from './steering';

/** For these what to do hangs on the type alone, and is said first. The messages of others say it themselves, in their first line. */
const ADVISED = ['MirrorFailed', 'CopyStalled', 'DisksNotConverging', 'DowntimeBudgetExceeded', 'MemoryNotConverging', 'DestinationDied'] as const;

/**
 * The error that ends a workflow, for whoever reads its first line: the reason itself, where Temporal's own chain begins with "Activity task failed", and what to do
 * before what happened. `left` is how it leaves things, such as `guest db-7 stays on host-a, running`. A cancel stays one.
 */
export function lastWord(error: unknown, left: string): unknown {
  if (isCancellation(error)) return error;
  const last = innermost(error);
  // Tried again and again until its time was over: what each try said.
  const reason = last instanceof TimeoutFailure && last.cause instanceof ApplicationFailure ? last.cause : last;
  const cause = error instanceof Error && reason !== error ? error : undefined;
  if (reason instanceof TimeoutFailure) return ApplicationFailure.create({ type: 'TimedOut', nonRetryable: true, message: `${left}: look whether the agents of its hosts run, then do it again\na step did not end in time (${reason.message})`, ...(cause && { cause }) });
  if (!(reason instanceof ApplicationFailure)) return error;
  const advised = ADVISED.find((type) => type === reason.type);
  const advice = advised && ERRORS[advised].advice;
  const message = advice ? `${left}: ${advice}\n${reason.message.replace(`${left}: `, '').replace(` — ${advice}`, '')}` : reason.message;
  const failure = ApplicationFailure.create({ message, ...(reason.type && { type: reason.type }), nonRetryable: true, details: reason.details ?? [], ...(cause && { cause }) });
  // Where in our code it was thrown is of use to nobody, and the UI shows it beside the message; that of the activity stays with the cause.
  failure.stack = '';
  return failure;
}

/** What happened, in one line, of a failure as `lastWord` makes it: without the advice, which is known to whoever lists many. */
export function whatHappened({ type, message }: { type?: string | null | undefined; message: string }): string {
  const lines = message.split('\n');
  return (lines.length > 1 && ADVISED.some((one) => one === type) ? lines.slice(1) : lines).join(' ');
}

/** The search attribute `VmferryOutcome`, and others that a workflow which failed early has not set yet. */
export function recordOutcome(outcome: string, others: SearchAttributeUpdatePair[] = []): void {
  if (patched('outcome')) upsertSearchAttributes([...others, { key: SEARCH_ATTRIBUTES.outcome, value: outcome }]);
}

/** For `VmferryOutcome`: the type of what ended a workflow. */
export function outcomeOf(error: unknown): string {
  if (isCancellation(error)) return 'cancelled';
  return (error as Partial<ApplicationFailure>).type ?? 'Failed';
}
