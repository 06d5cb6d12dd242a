import Table from 'cli-table3';
import type { Command } from 'commander';
import { createColors } from 'picocolors';
import type { z } from 'zod';
import { EXIT, type ExitCode } from './exit-codes';
import { type CommandName, errorSchema, EVENTS, type EventName, RESULTS, resultSchema } from './json-events';

/** Every command takes them. */
export interface OutputOptions {
  json?: boolean;
  quiet?: boolean;
}

/** What a command says: its result on stdout, all else on stderr. With `--json` only lines of JSON on stdout; with `--quiet` only the result, and errors. */
export class Output {
  constructor(readonly command: CommandName, private readonly options: OutputOptions) {}

  static of(command: Command): Output {
    return new Output(nameOf(command), command.opts<OutputOptions>());
  }

  /** Lines of JSON, in place of words. */
  get json(): boolean {
    return this.options.json ?? false;
  }

  /** Somebody wants to read what goes on. */
  get talks(): boolean {
    return !this.json && !this.options.quiet;
  }

  /** What goes on, or what to do next. */
  say(text: string): void {
    if (this.talks) process.stderr.write(`${text}\n`);
  }

  /** With `--json`: a line on the way. */
  event<Name extends EventName>(event: Name, fields: z.input<(typeof EVENTS)[Name]>): void {
    if (this.json) printJson({ event, ...known(EVENTS[event], fields) });
  }

  /** A part of the result that people read before its end. */
  text(text: string): void {
    if (!this.json) print(text);
  }

  /** The result of a list, whose items were events: a table, or what to do when it is empty. */
  list(items: unknown[], empty: string, text: () => string): void {
    this.result({ count: items.length }, items.length === 0 ? undefined : text());
    if (items.length === 0) this.say(empty);
  }

  /** The one result, at the end: its fields with `--json`, else the text. Sets the exit code. */
  result(fields: z.input<(typeof RESULTS)[CommandName]> & { outcome?: string }, text: string | undefined, exitCode: ExitCode = EXIT.done): void {
    const { command } = this;
    if (this.json) printJson({ ...resultSchema.parse({ event: 'result', command, outcome: fields.outcome ?? 'completed', exitCode }), ...known(RESULTS[command], fields) });
    else if (text !== undefined) print(text);
    if (exitCode !== EXIT.done) process.exitCode = exitCode;
  }
}

/** The last line of a command that ended otherwise. */
export function printJsonError(error: Omit<z.input<typeof errorSchema>, 'event'>): void {
  printJson(errorSchema.parse({ event: 'error', ...error }));
}

/** Without what the schema does not name. An agent of another version may send less than it asks for: better that than nothing. */
function known(schema: z.ZodType, fields: unknown): object {
  const parsed = schema.safeParse(fields);
  return (parsed.success ? parsed.data : fields) as object;
}

/** `vm list`. */
function nameOf(command: Command): CommandName {
  const names: string[] = [];
  for (let at: Command | null = command; at?.parent; at = at.parent) names.unshift(at.name());
  return names.join(' ') as CommandName;
}

/** On stderr, whatever the options. */
export function complain(text: string): void {
  process.stderr.write(`${text}\n`);
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** A stream on which lines can be drawn over. */
export function isTerminal(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY && process.env['TERM'] !== 'dumb';
}

/** Colours for a stream, or none (https://no-color.org). */
export function coloursFor(stream: NodeJS.WriteStream) {
  return createColors(isTerminal(stream) && !process.env['NO_COLOR']);
}

const NONE = { top: '', 'top-mid': '', 'top-left': '', 'top-right': '', bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '', left: '', 'left-mid': '', mid: '', 'mid-mid': '', right: '', 'right-mid': '', middle: '  ' };

/** A list with aligned columns and no frame, so that `awk` can read it too. An empty cell is `-`. */
export function table(head: string[], rows: (string | number | undefined)[][]): string {
  const { bold } = coloursFor(process.stdout);
  const drawn = new Table({ head: head.map((title) => bold(title.toUpperCase())), chars: NONE, style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 } });
  rows.forEach((row) => drawn.push(row.map((cell) => (cell === undefined || cell === '' ? '-' : String(cell)))));
  return drawn.toString().split('\n').map((line) => line.trimEnd()).join('\n');
}
