import { CommanderError } from 'commander';
import { VmferryError } from './errors';
import type { About } from './json-events';

/** What the command `vmferry` ends with. In every help text and in docs/operating.md. */
export const EXIT = { done: 0, failed: 1, usage: 2, refused: 3, cancelled: 4, problems: 5, interrupted: 130 } as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

export const EXIT_CODES_HELP = `Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (nothing was changed), 4 cancelled, 5 problems were found, 130 interrupted.`;

/** A command line that makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** The command was interrupted; the message says what goes on without it. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
}

/** What was followed ended badly: says what it was about, and fixes the exit code. */
export class FollowedFailed extends Error {
  override readonly name = 'FollowedFailed';
  readonly exitCode: ExitCode;

  constructor(override readonly cause: Error, readonly about: About) {
    super(cause.message);
    this.exitCode = exitCodeOf(cause, 'migration');
  }
}

/** A migration or an evacuation is refused before its first step; these say that it was. Any later failure undid something. */
const MIGRATION_REFUSALS = new Set(['MigrationRefused', 'EvacuationRefused', 'NoSlot', 'HostUnreachable', 'NotFound', 'SteerRefused', 'FenceRefused', 'RepairRefused']);
/** An operation on a host looks before it acts: these are what it says when it does not like what it sees. */
const HOST_REFUSALS = new Set([...MIGRATION_REFUSALS, 'GuestStateError', 'InvalidDefinition', 'PathRefused', 'ImageExists', 'QmpProtocolError', 'QmpMonitorBusy']);

export function exitCodeOf(error: unknown, during: 'migration' | 'command'): ExitCode {
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof FollowedFailed) return error.exitCode;
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (!(error instanceof VmferryError)) return EXIT.failed;
  if (error.type === 'Cancelled') return EXIT.cancelled;
  return (during === 'migration' ? MIGRATION_REFUSALS : HOST_REFUSALS).has(error.type) ? EXIT.refused : EXIT.failed;
}
