import { ApplicationFailure } from '@temporalio/workflow';
import type { z } from 'zod';

/** Checks what a workflow was started with. A wrong field fails it with one message that names each, its value and what it should be. */
export function parseInput<S extends z.ZodType>(schema: S, raw: unknown, type: 'MigrationRefused' | 'EvacuationRefused'): z.output<S> {
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const given = (path: PropertyKey[]) => path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], raw);
  throw ApplicationFailure.nonRetryable(parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'input'}: ${message} (got ${JSON.stringify(given(path)) ?? 'nothing'})`).join('; '), type);
}
