import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { childEnvironment } from './child-environment';

/** A program that was started: its pid, if it could be, and how it ended, if it does ("ended at start with exit code 1"). */
export interface Started {
  pid: number | undefined;
  ended: Promise<string>;
}

/** Of what a QEMU makes, such as its sockets: nobody else may read or write it. */
const CHILD_UMASK = 0o177;

/** Starts a program that outlives us: a child in a session of its own, with its output appended to `logFile`, and that file's folder as its own. */
export function startHere(binary: string, args: string[], logFile: string): Started & { child: ChildProcess } {
  const log = openSync(logFile, 'a', 0o600);
  // A child has its parent's mask, and is made before `spawn` returns.
  const before = process.umask(CHILD_UMASK);
  // Its own folder: a relative name that some option hides would be found there, and nowhere else.
  const child = spawn(binary, args, { detached: true, stdio: ['ignore', log, log], cwd: dirname(logFile), env: childEnvironment() });
  process.umask(before);
  closeSync(log);
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`cannot be started (${error.message})`));
    child.once('exit', (code, signal) => resolve(`ended at start with ${signal ?? `exit code ${code}`}`));
  });
  return { child, pid: child.pid, ended };
}
