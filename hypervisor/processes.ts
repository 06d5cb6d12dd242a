import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { childEnvironment } from './child-environment';
import { type Started, startHere } from './start-here';

/** A process by an identity that survives our restart: a pid alone may have been given to somebody else since. */
export interface ProcessIdentity {
  pid: number;
  /** Clock ticks after boot (field 22 of /proc/PID/stat). */
  startTime: number;
}

/** The process with this pid, or undefined if there is none (a zombie is none). */
export function identify(pid: number): ProcessIdentity | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return { pid, startTime: Number(fields[19]) };
  } catch {
    return undefined;
  }
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identify(identity.pid)?.startTime === identity.startTime;
}

/** The process that wrote this pid file, if it still runs. A stale file, or one whose pid now belongs to another program, gives undefined. */
export function processOfPidFile(pidFile: string): ProcessIdentity | undefined {
  if (!existsSync(pidFile)) return undefined;
  const pid = Number.parseInt(readFileSync(pidFile, 'utf8'), 10);
  if (!Number.isSafeInteger(pid) || pid <= 1) return undefined;
  const identity = identify(pid);
  return identity && commandLineOf(pid).includes(pidFile) ? identity : undefined;
}

export function commandLineOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
  } catch {
    return [];
  }
}

/** Resolves when the process is gone. Rejects with the signal's reason. There is no event for a process that is not our child: looks every 5 ms. */
export async function processExit(identity: ProcessIdentity, signal?: AbortSignal): Promise<void> {
  while (isAlive(identity)) await delay(5, undefined, signal ? { signal } : {});
}

/** Ends a process and waits until it is gone: SIGTERM, and after `graceMs` SIGKILL. Throws if even that does not end it (a process in uninterruptible sleep). */
export async function terminate(identity: ProcessIdentity, graceMs: number): Promise<void> {
  for (const [name, waitMs] of [['SIGTERM', graceMs], ['SIGKILL', 30_000]] as const) {
    if (waitMs === 0) continue;
    if (!isAlive(identity)) return;
    process.kill(identity.pid, name);
    const gone = await processExit(identity, AbortSignal.timeout(waitMs)).then(() => true, () => false);
    if (gone) return;
  }
  throw new Error(`process ${identity.pid} does not end, not even by SIGKILL: look for a hanging disk or network file system`);
}

/** A program that ended before it was of use; the message carries what it printed. */
export class ProcessFailed extends Error {
  override readonly name = 'ProcessFailed';
}

/**
 * Starts a program that outlives us, in a session of its own, with its output in `logFile` and that file's folder as its own, and waits until `ready` resolves.
 * Throws `ProcessFailed` with what it printed if it ends first, and what `ready` throws. `ready` gets a signal that is aborted then, and after `timeoutMs`.
 */
export async function startDetached(
  binary: string,
  args: string[],
  logFile: string,
  ready: (signal: AbortSignal) => Promise<void>,
  { timeoutMs = 30_000, start = startHere }: { timeoutMs?: number; start?: (binary: string, args: string[], logFile: string) => Started | Promise<Started> } = {},
): Promise<void> {
  mkdirSync(dirname(logFile), { recursive: true, mode: 0o700 });
  rmSync(logFile, { force: true });
  const started = await start(binary, args, logFile);
  const over = new AbortController();
  let hasEnded = false;
  const ended = started.ended.then((how): never => {
    hasEnded = true;
    over.abort();
    throw new ProcessFailed(`${binary} ${how}: ${logTail(logFile) || 'it printed nothing'}`);
  });
  ended.catch(() => undefined);
  const timer = setTimeout(() => over.abort(), timeoutMs);
  try {
    await Promise.race([ready(over.signal), ended]);
  } catch (error) {
    if (hasEnded || started.pid === undefined) return await ended;
    const tooLate = over.signal.aborted;
    const identity = identify(started.pid);
    if (identity) await terminate(identity, 0);
    throw error instanceof ProcessFailed || !tooLate ? error : new ProcessFailed(`${binary} was not ready within ${timeoutMs / 1000} s (${(error as Error).message}): ${logTail(logFile)}`);
  } finally {
    clearTimeout(timer);
  }
}

/** The last lines that a program printed, on one line, for an error message. */
export function logTail(logFile: string): string {
  return existsSync(logFile) ? readFileSync(logFile, 'utf8').trim().split('\n').slice(-4).join(' | ').slice(-800) : '';
}

const execFileAsync = promisify(execFile);

/** Runs a short program to its end and gives its stdout. Throws `ProcessFailed` with its stderr. */
export async function run(binary: string, args: string[], signal?: AbortSignal): Promise<string> {
  try {
    return (await execFileAsync(binary, args, { maxBuffer: 16 * 2 ** 20, env: childEnvironment(), ...(signal && { signal }) })).stdout;
  } catch (error) {
    signal?.throwIfAborted();
    const { stderr, message } = error as { stderr?: string; message: string };
    throw new ProcessFailed(`${binary} ${args[0]}: ${(stderr || message).trim()}`);
  }
}

/** Runs a short program that is told `input` on its stdin; gives what it printed, whatever its exit code. Killed after `timeoutMs`. Throws `ProcessFailed` if it cannot be started. */
export async function converse(binary: string, args: string[], input: string, timeoutMs: number): Promise<{ stdout: string; stderr: string }> {
  const child = spawn(binary, args, { stdio: ['pipe', 'pipe', 'pipe'], env: childEnvironment(), timeout: timeoutMs, killSignal: 'SIGKILL' });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (data: Buffer) => (stdout += data.toString()));
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()));
  child.stdin.on('error', () => undefined);
  child.stdin.end(input);
  await once(child, 'close').catch((error: Error) => {
    throw new ProcessFailed(`${binary} ${args[0]}: ${error.message}`);
  });
  return { stdout, stderr };
}
