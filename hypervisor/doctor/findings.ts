import { setTimeout as delay } from 'node:timers/promises';

export type Severity = 'ok' | 'warning' | 'problem';

/** What was seen, and, where it is not well, what to do about it: a command, or a line of the configuration. */
export type Finding = { severity: 'ok'; saw: string } | { severity: 'warning' | 'problem'; saw: string; fix: string };

/** A finding with the name of its check; a line of `vmferry doctor --json`. */
export type Reported = Finding & { check: string };

export const ok = (saw: string): Finding => ({ severity: 'ok', saw });
export const warning = (saw: string, fix: string): Finding => ({ severity: 'warning', saw, fix });
export const problem = (saw: string, fix: string): Finding => ({ severity: 'problem', saw, fix });

/** One thing that `vmferry doctor` checks. */
export interface Check<Context> {
  name: string;
  /** What it looks at; docs/operating.md has the same words. */
  about: string;
  /** What takes longer is given up, and said. */
  deadlineMs: number;
  run: (context: Context, signal: AbortSignal) => Promise<Finding[]>;
}

/** A check of two halves: `look` gathers facts and may fail, `judge` is pure. */
export function check<Context, Facts>(name: string, about: string, deadlineMs: number, look: (context: Context, signal: AbortSignal) => Promise<Facts>, judge: (facts: Facts, context: Context) => Finding[]): Check<Context> {
  return { name, about, deadlineMs, run: async (context, signal) => judge(await look(context, signal), context) };
}

/** Runs all checks at once; gives what they found in the order of the checks. One that fails, or takes too long, is a finding too. */
export async function runChecks<Context>(checks: readonly Check<Context>[], context: Context): Promise<Reported[]> {
  const found = await Promise.all(checks.map(async (one) => (await guarded(one, context)).map((finding) => ({ check: one.name, ...finding }))));
  return found.flat();
}

async function guarded<Context>({ run, deadlineMs }: Check<Context>, context: Context): Promise<Finding[]> {
  const over = new AbortController();
  const late = delay(deadlineMs, undefined, { signal: over.signal }).then(() => [problem(`this check did not come to an end within ${deadlineMs / 1000} s`, 'look for a hanging disk, network file system or server among what it looks at')]);
  late.catch(() => undefined);
  try {
    return await Promise.race([run(context, over.signal), late]);
  } catch (error) {
    return [problem(`this cannot be checked: ${(error as Error).message}`, 'run vmferry doctor as the user of the agent, who may look at all of it')];
  } finally {
    // Whoever looks still, stops.
    over.abort();
  }
}
