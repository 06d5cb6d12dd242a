import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';

/** A program that was started: its pid, if it could be, and how it ended, if it does ("ended at start with exit code 1"). */
export interface Started {
  pid: number | undefined;
  ended: Promise<string>;
}

/** Starts a program that outlives us: a child in a session of its own, with its output appended to `logFile`. */
export function startHere(binary: string, args: string[], logFile: string): Started & { child: ChildProcess } {
  const log = openSync(logFile, 'a', 0o600);
  const child = spawn(binary, args, { detached: true, stdio: ['ignore', log, log], cwd: '/' });
  closeSync(log);
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`cannot be started (${error.message})`));
    child.once('exit', (code, signal) => resolve(`ended at start with ${signal ?? `exit code ${code}`}`));
  });
  return { child, pid: child.pid, ended };
}
