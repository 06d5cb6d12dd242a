import type { MigrationView } from './migration-client';
import { advance, migrationPicture, type Shown } from './migration-picture';
import { isTerminal } from './output';
import { progressLine } from './progress';
import { Frame } from './terminal';

/** In a log, a line this often is enough within one phase. */
const LOG_EVERY_MS = 5_000;

/** Shows how a migration goes: a picture that is drawn anew on a terminal, anywhere else a line when there is something new. */
export class MigrationDisplay {
  private readonly frame: Frame | undefined;
  private shown: Shown | undefined;
  private last = { line: '', phase: '', atMs: -Infinity };

  constructor(private readonly stream: NodeJS.WriteStream, private readonly now: () => number = Date.now) {
    this.frame = isTerminal(stream) ? new Frame(stream) : undefined;
  }

  show(view: MigrationView): void {
    const atMs = this.now();
    if (this.frame) {
      this.shown = advance(this.shown, view);
      return this.frame.draw(migrationPicture(view, this.shown, { ...this.frame.size, nowMs: atMs }));
    }
    const line = progressLine(view);
    if (line === this.last.line || (view.phase === this.last.phase && atMs - this.last.atMs < LOG_EVERY_MS)) return;
    this.last = { line, phase: view.phase, atMs };
    this.stream.write(`${line}\n`);
  }

  /** Takes the picture away: what follows says how it ended. */
  end(): void {
    this.frame?.end();
  }
}
