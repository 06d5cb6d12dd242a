import type { z } from 'zod';
import { errorSchema, EVENTS, type EventName, RESULTS, resultSchema, type CommandName } from '../../client/json-events';

export type JsonLine = Record<string, unknown> & { event: string };

/** The lines of `--json`, checked: each as its schema says with nothing more, and the last one, no other, a result or an error. */
export function jsonLines(out: string): JsonLine[] {
  const lines = out.trimEnd().split('\n').map((line) => JSON.parse(line) as JsonLine);
  const ends = lines.map(({ event }) => event === 'result' || event === 'error');
  expect(ends).toEqual([...ends.slice(1).map(() => false), true]);
  for (const line of lines) expect({ line, parsed: schemaOf(line).parse(line) }).toEqual({ line, parsed: line });
  return lines;
}

function schemaOf({ event, command }: JsonLine): z.ZodType {
  if (event === 'error') return errorSchema;
  if (event !== 'result') return resultSchema.omit({ command: true, outcome: true, exitCode: true, event: true }).extend({ event: resultSchema.shape.command, ...EVENTS[event as EventName].shape });
  return resultSchema.extend(RESULTS[command as CommandName].shape);
}
