import stringWidth from 'string-width';
import { coloursFor } from './output';

/** A part of a line in one style. */
export interface Span {
  text: string;
  style?: 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan';
}
export type Line = Span[];

export const plain = (text: string): Line => [{ text }];

const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' });

/** Without what would move a terminal's cursor: messages may hold what guests, programs and operators wrote. */
const printable = (text: string) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, ' ');

/** In cells of a terminal: a letter of Chinese takes two. */
export const widthOf = (line: Line): number => line.reduce((sum, { text }) => sum + stringWidth(printable(text)), 0);

/** The line as it fits into so many cells; one that is cut ends with `…`. */
export function fit(line: Line, columns: number): Line {
  const clean = line.map((span) => ({ ...span, text: printable(span.text) }));
  if (widthOf(clean) <= columns) return clean;
  const cut: Line = [];
  let left = columns - 1;
  for (const span of clean) {
    let text = '';
    for (const { segment } of graphemes.segment(span.text)) {
      const cells = stringWidth(segment);
      if (cells > left) return [...cut, { ...span, text: `${text}…` }];
      left -= cells;
      text += segment;
    }
    cut.push({ ...span, text });
  }
  return cut;
}

/** The line broken between words, into at most so many rows; all but the first are indented. What is left over is cut. */
export function wrap(line: Line, { columns, rows, indent }: { columns: number; rows: number; indent: number }): Line[] {
  const wrapped: Line[] = [[]];
  for (const { text, style } of line) {
    for (const word of printable(text).split(/(?<= )/)) {
      const last = wrapped.at(-1)!;
      const full = last.length > 0 && widthOf(last) + stringWidth(word.trimEnd()) > columns;
      const into = full && wrapped.length < rows ? [{ text: ' '.repeat(indent) }] : last;
      if (into !== last) wrapped.push(into);
      into.push({ text: word, ...(style && { style }) });
    }
  }
  return wrapped.map((row) => fit([...row.slice(0, -1), ...row.slice(-1).map((last) => ({ ...last, text: last.text.trimEnd() }))], columns));
}

/** Lines that are drawn over at each look. Never hides the cursor, so that whatever ends the program leaves a terminal as it was. */
export class Frame {
  /** The cells of each line on the screen. */
  private drawn: number[] = [];

  constructor(private readonly stream: NodeJS.WriteStream) {}

  /** What a picture may take: a full last column would break the line on some terminals, and the cursor has the last row. */
  get size(): { columns: number; rows: number } {
    return { columns: Math.max(20, (this.stream.columns || 80) - 1), rows: Math.max(3, (this.stream.rows || 24) - 1) };
  }

  draw(picture: Line[]): void {
    const { columns, rows } = this.size;
    const lines = picture.slice(0, rows).map((line) => fit(line, columns));
    const colours = coloursFor(this.stream);
    const text = lines.map((line) => line.map(({ text, style }) => (style ? colours[style](text) : text)).join(''));
    // In one piece: no terminal shows half of it.
    this.stream.write(`${this.clearing()}${text.map((line) => `${line}\n`).join('')}`);
    this.drawn = lines.map(widthOf);
  }

  /** Takes the picture away, so that what follows is not below an old one. */
  end(): void {
    const clearing = this.clearing();
    if (clearing !== '') this.stream.write(clearing);
    this.drawn = [];
  }

  /** On a terminal that became narrower meanwhile a line takes several rows. */
  private clearing(): string {
    const columns = this.stream.columns || 80;
    const height = this.drawn.reduce((sum, cells) => sum + Math.max(1, Math.ceil(cells / columns)), 0);
    return height > 0 ? `\x1b[${height}A\r\x1b[0J` : '';
  }
}
