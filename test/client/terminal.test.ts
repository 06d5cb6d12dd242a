import fc from 'fast-check';
import { MigrationDisplay } from '../../client/migration-display';
import type { MigrationView } from '../../client';
import { fit, Frame, type Line, plain, widthOf, wrap } from '../../client/terminal';

const textOf = (line: Line) => line.map(({ text }) => text).join('');

describe('a line', () => {
  test('that is too long ends with …, and letters that take two cells count as two', () => {
    expect(textOf(fit(plain('12345678'), 6))).toBe('12345…');
    expect(textOf(fit(plain('移動するゲスト'), 6))).toBe('移動…');
    expect(fit([{ text: 'abc', style: 'bold' }, { text: 'def' }], 5)).toEqual([{ text: 'abc', style: 'bold' }, { text: 'd…' }]);
  });

  test('cannot move the cursor, set colours or break, whatever it holds', () => {
    expect(textOf(fit(plain('a\x1b[2Jb\r\nc\u202Ed\x9b1mé'), 80))).toBe('a [2Jb c d 1mé');
  });

  test('is broken between words, and keeps its styles; what is left over is cut', () => {
    const broken = wrap([{ text: 'hovers: ', style: 'yellow' }, { text: 'the guest writes faster than the link' }], { columns: 12, rows: 3, indent: 2 });
    expect(broken.map(textOf).map((text) => text.trimEnd())).toEqual(['hovers: the', '  guest', '  writes fa…']);
    expect(broken[0]![0]).toEqual({ text: 'hovers: ', style: 'yellow' });
  });

  test('of any text never takes more cells than there are', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'grapheme' }), { maxLength: 4 }), fc.integer({ min: 1, max: 60 }), (texts, columns) => {
        const line = fit(texts.map((text) => ({ text })), columns);
        expect(widthOf(line)).toBeLessThanOrEqual(columns);
        expect(textOf(line)).not.toMatch(/\p{Cc}/u);
      }),
    );
  });
});

/** A terminal as far as a frame uses it: what is on its screen. */
class Screen {
  rows: string[] = [''];
  written = '';
  readonly stream: NodeJS.WriteStream;

  constructor(columns = 80, rows = 24, isTTY = true) {
    this.stream = { write: (text: string) => this.write(text), isTTY, columns, rows } as unknown as NodeJS.WriteStream;
  }

  private write(text: string): boolean {
    this.written += text;
    for (const [part, up] of text.matchAll(/\x1b\[(\d+)A|\r\x1b\[0J|\x1b\[[\d;]*m|\n|[^\x1b\n\r]+/g)) {
      if (up !== undefined) this.rows.splice(Math.max(0, this.rows.length - 1 - Number(up)), Infinity, '');
      else if (part === '\n') this.rows.push('');
      else if (!part.startsWith('\r') && !part.startsWith('\x1b')) this.rows[this.rows.length - 1] += part;
    }
    return true;
  }
}

describe('a picture', () => {
  test('is drawn over the one before, and taken away at the end: what was above stays', () => {
    const screen = new Screen();
    screen.stream.write('$ vmferry watch web\n');
    const frame = new Frame(screen.stream);
    frame.draw([plain('one'), plain('two'), plain('three')]);
    frame.draw([plain('four')]);
    expect(screen.rows).toEqual(['$ vmferry watch web', 'four', '']);
    frame.end();
    frame.end();
    expect(screen.rows).toEqual(['$ vmferry watch web', '']);
  });

  test('never hides the cursor, so that nothing that ends the program has to bring it back', () => {
    const screen = new Screen();
    const frame = new Frame(screen.stream);
    frame.draw([plain('one')]);
    frame.draw([plain('two')]);
    expect(screen.written).not.toMatch(/\x1b\[\?/);
  });

  test('is cut to the terminal, also when that is tiny, or says no size', () => {
    const screen = new Screen(40, 5);
    new Frame(screen.stream).draw(Array.from({ length: 9 }, () => plain('x'.repeat(90))));
    expect(screen.rows).toEqual([...Array.from({ length: 4 }, () => `${'x'.repeat(38)}…`), '']);
    expect(new Frame({ isTTY: true, columns: 0, rows: 0 } as NodeJS.WriteStream).size).toEqual({ columns: 79, rows: 23 });
  });

  test('on a terminal that became narrower clears the rows that its lines take now', () => {
    const screen = new Screen(80);
    const frame = new Frame(screen.stream);
    frame.draw([plain('x'.repeat(60)), plain('y')]);
    Object.assign(screen.stream, { columns: 40 });
    frame.draw([plain('z')]);
    expect(screen.written).toContain('\x1b[3A\r\x1b[0J');
  });
});

describe('a migration is shown', () => {
  const view = (phase: string, remainingBytes: number): MigrationView => ({ vm: 'web', from: 'a', to: 'b', phase, startedAt: '2026-11-24T12:00:00Z', memoryTry: 0, decisions: [], disks: [{ id: 'd', lengthBytes: 100, remainingBytes, ready: false, bytesPerSecond: 0 }] });
  const shown = (screen: Screen) => {
    let now = 0;
    const display = new MigrationDisplay(screen.stream, () => now);
    for (const [phase, left, ms] of [['mirror', 90, 0], ['mirror', 80, 1_000], ['mirror', 70, 6_000], ['converge', 60, 6_500]] as const) {
      now = ms;
      display.show(view(phase, left));
    }
    display.end();
    return screen.written;
  };
  afterEach(() => {
    delete process.env['NO_COLOR'];
    process.env['TERM'] = term;
  });
  const term = process.env['TERM'] ?? '';

  test.each([['no terminal', false, 'xterm'], ['a dumb one', true, 'dumb']])('on %s as lines of a log, one a phase and every 5 s, without colours and cursor movement', (_what, isTTY, name) => {
    process.env['TERM'] = name;
    expect(shown(new Screen(80, 24, isTTY))).toBe('web a → b: mirror · d 10 % of 100 B\nweb a → b: mirror · d 30 % of 100 B\nweb a → b: converge · d 40 % of 100 B\n');
  });

  test('on a terminal as a picture with colours; with NO_COLOR the same without them', () => {
    process.env['TERM'] = 'xterm';
    const coloured = shown(new Screen());
    expect(coloured).toContain('\x1b[36m█');
    process.env['NO_COLOR'] = '1';
    const bare = shown(new Screen());
    expect(bare).toContain('█');
    expect(bare.replace(/\x1b\[\d+A\r\x1b\[0J/g, '')).not.toContain('\x1b');
    expect(coloured.replace(/\x1b\[[\d;]*m/g, '')).toBe(bare);
  });
});
