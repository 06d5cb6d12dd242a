import { ActivityFailure, type ApplicationFailure } from '@temporalio/workflow';
import type { Steer } from './steer';

/** The migration is put off: everything is undone, and it begins again then. */
export class Postponed extends Error {
  constructor(readonly untilMs: number, readonly why: string, readonly most: number) {
    super(why);
  }
}

/** What outlives a round of a migration that is put off: an operator's wish to end it. */
export interface Steering {
  ending?: ApplicationFailure;
}

/** A steer in words. */
export function whatOf(steer: Steer): string {
  const rest = Object.entries(steer).filter(([key]) => !['do', 'author', 'reason'].includes(key)).map(([key, value]) => `${key} ${String(value)}`);
  return [steer.do, ...rest].join(', ');
}

/** The activity's own reason. */
export function innermost(error: unknown): { type?: string | null | undefined; message: string } {
  let reason = error as Error & { cause?: unknown; type?: string };
  while (reason instanceof ActivityFailure && reason.cause) reason = reason.cause;
  return reason;
}
