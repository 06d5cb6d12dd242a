import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { childEnvironment, GUARDS_TOO } from './child-environment';
import { commandLineOf, converse, isAlive, processExit, ProcessFailed, type ProcessIdentity, processOfPidFile, run, startDetached, terminate } from './processes';

/** The end of a guard's pipe that we hold: what is said, and that it ends, is all that a guard acts on. */
export interface GuardPipe {
  end(said?: string): void;
}

/**
 * What a host does with programs: QEMU, qemu-storage-daemon, qemu-img and our own guards. A test gives a host whose programs are simulated;
 * everything above this, QMP included, is then the same code.
 */
export interface Programs {
  /** Starts a program that outlives us; see `startDetached`. */
  start(binary: string, args: string[], logFile: string, ready: (signal: AbortSignal) => Promise<void>): Promise<void>;
  /** Runs a short program to its end and gives its stdout. Throws `ProcessFailed` with its stderr. */
  run(binary: string, args: string[], signal?: AbortSignal): Promise<string>;
  /** Runs a short program that is told `input` on its stdin; gives what it printed, whatever its exit code. Killed after `timeoutMs`. */
  converse(binary: string, args: string[], input: string, timeoutMs: number): Promise<{ stdout: string; stderr: string }>;
  /** The process that wrote this pid file, if it still runs. */
  ofPidFile(pidFile: string): ProcessIdentity | undefined;
  isAlive(identity: ProcessIdentity): boolean;
  commandLine(pid: number): string[];
  /** Resolves when the process is gone. Rejects with the signal's reason. */
  exit(identity: ProcessIdentity, signal?: AbortSignal): Promise<void>;
  /** Ends a process and waits until it is gone: asks it, and after `graceMs` kills it. */
  terminate(identity: ProcessIdentity, graceMs: number): Promise<void>;
  /** Starts a guard with this job (`guard-main.ts`); resolves when it watches. Throws `ProcessFailed` if it cannot be started. */
  startGuard(jobFile: string, pidFile: string): Promise<GuardPipe>;
}

/** Where the guard's program is: beside this file's compiled form, or, when this is run from source, where the build puts it. */
export const GUARD = [join(__dirname, 'guard-main.js'), join(__dirname, '../dist/hypervisor/guard-main.js')].find((path) => existsSync(path));

async function startGuard(jobFile: string, pidFile: string): Promise<GuardPipe> {
  if (!GUARD) throw new ProcessFailed('the guard program is not built: run npm run build');
  const child = spawn(process.execPath, [GUARD, jobFile, pidFile], { detached: true, stdio: ['pipe', 'pipe', 'ignore'], cwd: '/', env: childEnvironment(GUARDS_TOO) });
  child.stdin.on('error', () => undefined);
  const watches = once(child.stdout, 'data');
  const ended = once(child, 'exit').then(([code]) => Promise.reject(new ProcessFailed(`the guard that was told ${jobFile} ended at start with exit code ${code}`)));
  ended.catch(() => undefined);
  await Promise.race([watches, ended]);
  child.unref();
  child.stdout.destroy();
  return child.stdin;
}

/** The processes of this machine. */
export const machinePrograms: Programs = { start: startDetached, run, converse, ofPidFile: processOfPidFile, isAlive, commandLine: commandLineOf, exit: processExit, terminate, startGuard };
