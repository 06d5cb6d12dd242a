import { isCancellation, metricMeter, TemporalFailure, TimeoutFailure } from '@temporalio/workflow';
import { type Labels, type NamesOf, record } from './metric-table';
import { innermost } from './steering';

/** Counts, or records, what has just happened. Nothing while history is replayed; a workflow task that fails and is done again may count twice. */
export function measure<Name extends NamesOf<{ origin: 'workflow' }>>(name: Name, labels: Labels<Name>, value = 1): void {
  record(metricMeter, name, value, labels);
}

/** Failures of a move that had changed nothing. */
const REFUSED = ['MigrationRefused', 'HostUnreachable', 'NoSlot', 'ImageExists'];

/** Counts how a migration ends. */
export async function counted<T>(kind: 'live' | 'cold', move: () => Promise<T>): Promise<T> {
  const startedAtMs = Date.now();
  try {
    const result = await move();
    measure('vmferry_migrations_total', { kind, outcome: 'completed', type: '' });
    measure('vmferry_migration_duration_seconds', { kind }, (Date.now() - startedAtMs) / 1000);
    return result;
  } catch (error) {
    // Anything else is a bug of ours: the workflow task is tried again and again, and nothing has ended.
    if (error instanceof TemporalFailure) measure('vmferry_migrations_total', { kind, ...outcomeOf(error) });
    throw error;
  }
}

function outcomeOf(error: TemporalFailure): { outcome: string; type: string } {
  if (isCancellation(error)) return { outcome: 'cancelled', type: '' };
  const reason = innermost(error);
  const type = reason instanceof TimeoutFailure ? 'TimedOut' : (reason.type ?? 'Failed');
  return { outcome: REFUSED.includes(type) ? 'refused' : 'failed', type };
}
