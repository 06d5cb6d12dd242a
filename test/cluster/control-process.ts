import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';

const PROGRAM = join(__dirname, '../../bin/vmferry');

/** A control worker as an operator runs it: `vmferry control`, a process of its own, which nobody starts again. Ends with `end`, or when this process dies. */
export class ControlProcess {
  private readonly child: ChildProcess;
  private readonly exited: Promise<void>;

  constructor(temporalAddress: string, private readonly logFile: string) {
    const log = openSync(logFile, 'a', 0o600);
    // `setpriv` becomes the program, under the same pid.
    this.child = spawn('setpriv', ['--pdeathsig', 'TERM', process.execPath, PROGRAM, '--temporal-address', temporalAddress, 'control'], { stdio: ['ignore', 'ignore', log], cwd: '/' });
    closeSync(log);
    this.exited = new Promise((resolve) => this.child.once('exit', () => resolve()));
  }

  /** What Temporal calls it, in histories and among the pollers of a task queue. */
  get identity(): string {
    return `${this.child.pid}@${hostname()}`;
  }

  get isRunning(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  get log(): string {
    return readFileSync(this.logFile, 'utf8');
  }

  /** Resolves when it is gone. Before: SIGTERM, or whatever is given. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    if (!this.isRunning) return;
    this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill('SIGKILL'), 20_000);
    await this.exited;
    clearTimeout(timer);
  }
}
