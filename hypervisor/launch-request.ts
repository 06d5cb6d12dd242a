import { z } from 'zod';

/**
 * What an agent asks a launcher (launcher-main.ts): one line of JSON on a connection of its own. With `logFile` the program's output goes there and
 * the answers are `LaunchAnswer`s, one a line; without, the connection becomes its standard input and output, and it ending says all.
 */
export const launchRequestSchema = z.strictObject({
  binary: z.string().startsWith('/'),
  args: z.array(z.string()),
  logFile: z.string().startsWith('/').optional(),
});

export type LaunchRequest = z.output<typeof launchRequestSchema>;

/** `ended` is how: "cannot be started (…)", "ended at start with exit code 1". */
export const launchAnswerSchema = z.union([z.strictObject({ pid: z.int() }), z.strictObject({ ended: z.string() })]);

export type LaunchAnswer = z.output<typeof launchAnswerSchema>;
