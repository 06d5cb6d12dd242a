const NEWLINE = 0x0a;
const CARRIAGE_RETURN = 0x0d;

/** A line longer than the bound. */
export class LineTooLong extends Error {
  override readonly name = 'LineTooLong';
}

/**
 * Splits a byte stream into lines, whatever the chunks. Each byte is copied at most once, so a reply of many MB costs linear time. Lines
 * end in `\n` or QEMU's `\r\n`, and may be empty; bytes are left undecoded, since a chunk may end inside a UTF-8 character.
 */
export class LineDecoder {
  private partial: Buffer[] = [];
  private partialBytes = 0;

  constructor(private readonly maxLineBytes: number) {}

  /** Yields the lines that the chunk completes, then throws `LineTooLong` if one, or the rest, exceeds the bound. */
  *push(chunk: Buffer): Generator<Buffer, void, undefined> {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      this.append(chunk.subarray(start, end));
      start = end + 1;
      yield this.take();
    }
    if (start < chunk.length) this.append(chunk.subarray(start));
  }

  private append(bytes: Buffer): void {
    this.partialBytes += bytes.length;
    if (this.partialBytes > this.maxLineBytes) throw new LineTooLong(`a line exceeds ${this.maxLineBytes} bytes`);
    this.partial.push(bytes);
  }

  private take(): Buffer {
    const line = this.partial.length === 1 ? (this.partial[0] as Buffer) : Buffer.concat(this.partial, this.partialBytes);
    this.partial = [];
    this.partialBytes = 0;
    return line.at(-1) === CARRIAGE_RETURN ? line.subarray(0, -1) : line;
  }
}

/** QEMU's own bound for what it reads (qobject/json-streamer.c, MAX_NESTING). Whoever walks a reply walks no deeper. */
export const DEEPEST = 1_024;

/** JSON nested deeper than `DEEPEST`. */
export class TooDeep extends Error {
  override readonly name = 'TooDeep';
}

const [QUOTE, BACKSLASH] = [0x22, 0x5c];

/** Throws `TooDeep` if a line of JSON is nested deeper than `DEEPEST`; looks at nothing else. */
export function checkDepth(line: Buffer): void {
  let depth = 0;
  for (let at = 0; at < line.length; at++) {
    const byte = line[at];
    if (byte === QUOTE) {
      for (at++; at < line.length && line[at] !== QUOTE; at++) if (line[at] === BACKSLASH) at++;
    } else if (byte === 0x7b || byte === 0x5b) {
      if (++depth > DEEPEST) throw new TooDeep(`a line is nested deeper than ${DEEPEST}`);
    } else if (byte === 0x7d || byte === 0x5d) depth--;
  }
}
