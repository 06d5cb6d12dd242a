import Table from 'cli-table3';

/** For people, on stderr: what happens. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** The result, on stdout. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** One line of JSON on stdout. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** Whether colours and lines that overwrite themselves are welcome on a stream (https://no-color.org). */
export function isFancy(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb';
}

const NONE = { top: '', 'top-mid': '', 'top-left': '', 'top-right': '', bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '', left: '', 'left-mid': '', mid: '', 'mid-mid': '', right: '', 'right-mid': '', middle: '  ' };

/** A list with aligned columns and no frame, so that `awk` can read it too. An empty cell is `-`. */
export function table(head: string[], rows: (string | number | undefined)[][]): string {
  const bold = isFancy(process.stdout) ? (text: string) => `\x1b[1m${text}\x1b[22m` : (text: string) => text;
  const drawn = new Table({ head: head.map((title) => bold(title.toUpperCase())), chars: NONE, style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 } });
  rows.forEach((row) => drawn.push(row.map((cell) => (cell === undefined || cell === '' ? '-' : String(cell)))));
  return drawn.toString().split('\n').map((line) => line.trimEnd()).join('\n');
}
