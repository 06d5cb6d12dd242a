import { rm } from 'node:fs/promises';
import { readJson, writeDurably } from './durable';
import type { HandOverPlan } from './handover-plan';
import type { Host } from './host';
import type { HostConfig } from './host-config';
import type { GuardPipe } from './programs';

/** What a guard needs to know; beside the guest's sockets, for a restarted agent to find. */
export type GuardJob = { config: HostConfig; guest: string; startedAt: string } & (
    | { role: 'source'; plan: HandOverPlan }
    | { role: 'destination'; attempt: string }
    /** A remedy holds the guest, or its writes, for a moment. */
    | { role: 'remedy' }
  );

const JOB_FILE = 'guard.json';
const PID_FILE = 'guard.pid';
/** How long a guard that is asked to go may take: it may be in the midst of letting the guest run. */
const GO_MS = 3_000;

/**
 * R9: a small process that watches the one who runs a guest's window, and finishes it if that process dies: at the source it lets the guest run
 * on, at the destination it goes forward. It is started before the memory moves, and does nothing as long as the pipe to it is open.
 */
export class Guard {
  private constructor(private readonly host: Host, private readonly guest: string, private readonly pipe: GuardPipe) {}

  /** Resolves when the guard watches. Throws if it cannot be started: without one no memory is moved. */
  static async start(host: Host, job: GuardJob): Promise<Guard> {
    await stopGuard(host, job.guest);
    await writeDurably(host.runFile(job.guest, JOB_FILE), JSON.stringify(job));
    return new Guard(host, job.guest, await host.programs.startGuard(host.runFile(job.guest, JOB_FILE), host.runFile(job.guest, PID_FILE)));
  }

  /** The window is over, or was never opened: the guard goes. */
  async over(): Promise<void> {
    this.pipe.end('over\n');
    await stopGuard(this.host, this.guest);
  }

  /** This process stops: from now on the guard acts. */
  leave(): void {
    this.pipe.end();
  }
}

/** What a guard of this guest was told, if one was started and its window has not been said to be over. */
export function guardJob(host: Host, guest: string): GuardJob | undefined {
  return readJson<GuardJob>(host.runFile(guest, JOB_FILE));
}

/** Lets a guard of this guest go, wherever it came from, and waits until it is gone: then nobody else works on the guest's window. */
export async function stopGuard(host: Host, guest: string): Promise<void> {
  const process = host.programs.ofPidFile(host.runFile(guest, PID_FILE));
  if (process) await host.programs.terminate(process, GO_MS);
  for (const file of [JOB_FILE, PID_FILE]) await rm(host.runFile(guest, file), { force: true });
}
