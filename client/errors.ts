import { ActivityFailure, ApplicationFailure, CancelledFailure, TimeoutFailure, WorkflowFailedError } from '@temporalio/client';

/** A migration, an evacuation or an operation on a guest that failed or was refused. `type` is a stable string of docs/operating.md. */
export class VmferryError extends Error {
  override readonly name = 'VmferryError';
  constructor(readonly type: string, message: string, readonly details: { blockers?: string[] } = {}) {
    super(message);
  }
}

/** The innermost reason of a failed workflow, as one error with a stable type. `left` says what a cancel leaves. */
export function explain(error: unknown, what: string, left = 'the guest stays where it was'): Error {
  if (!(error instanceof WorkflowFailedError)) return error as Error;
  let cause: unknown = error.cause;
  while (cause instanceof ActivityFailure && cause.cause) cause = cause.cause;
  if (cause instanceof CancelledFailure) return new VmferryError('Cancelled', `${what} was cancelled; ${left}`);
  if (cause instanceof ApplicationFailure) return refusal(cause, 'Failed');
  if (cause instanceof TimeoutFailure) {
    return new VmferryError('TimedOut', `${what} did not come to an end in time: look at the host's agent, and at the workflow in the Temporal UI`);
  }
  return new VmferryError('Failed', `${what}: ${(cause as Error | undefined)?.message ?? error.message}`);
}

/** A workflow's own refusal, with its type and all its reasons. */
export function refusal(failure: ApplicationFailure, otherwise: string): VmferryError {
  return new VmferryError(failure.type ?? otherwise, failure.message, failure.details?.[0] ?? {});
}
