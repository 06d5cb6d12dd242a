import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { GuardJob } from '../../hypervisor/guard';
import { finishWindow } from '../../hypervisor/guard-work';
import { Host } from '../../hypervisor/host';
import { ProcessFailed, type ProcessIdentity } from '../../hypervisor/processes';
import type { GuardPipe, Programs } from '../../hypervisor/programs';
import type { SimulatedHost } from './hypervisor';
import { SimulatedProcess } from './program';
import { SimulatedQemu } from './qemu';
import { Refused } from './qmp-server';
import { SimulatedStorageDaemon } from './storage-daemon';

const MACHINES = ['pc-q35-7.2', 'pc-q35-7.1', 'pc-i440fx-7.2', 'q35', 'none'];
const MODELS = ['qemu64', 'max', 'Skylake-Server'];
/** What a real `ready` costs at least is a look every 5 ms; one that takes longer than this is a fault. */
const READY_MS = 30_000;

/** A guard in this process: it does what the real program does, by the same code, when its pipe ends without a word. */
class SimulatedGuard extends SimulatedProcess implements GuardPipe {
  private readonly leave = new AbortController();

  constructor(host: SimulatedHost, private readonly job: GuardJob, pidFile: string) {
    super(host, [pidFile], pidFile);
  }

  end(said = ''): void {
    if (said !== '' || !this.alive) return this.kill(0);
    const host = new Host(this.job.config, this.host.programs);
    finishWindow(host, this.job, this.leave.signal)
      .catch(() => undefined)
      .finally(() => {
        host.close();
        this.kill(0);
      });
  }

  protected ended(): void {
    this.leave.abort(new Error('somebody else goes on'));
  }
}

/** The programs of one simulated host. */
export class SimulatedPrograms implements Programs {
  private readonly byPidFile = new Map<string, SimulatedProcess>();

  constructor(private readonly host: SimulatedHost) {}

  async start(binary: string, args: string[], logFile: string, ready: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const words = args.map((word) => word.replace(/^--/, '-'));
    const pidFile = words[words.indexOf('-pidfile') + 1]!;
    const fail = (why: string) => new ProcessFailed(`${binary} ended at start with exit code 1: ${why}`);
    if (this.ofPidFile(pidFile)) throw fail(`cannot create PID file: Cannot lock pid file: Resource temporarily unavailable`);
    let program: SimulatedQemu | SimulatedStorageDaemon;
    try {
      program = basename(binary).startsWith('qemu-system') ? new SimulatedQemu(this.host, words, pidFile) : new SimulatedStorageDaemon(this.host, words, pidFile);
    } catch (error) {
      throw error instanceof Refused ? fail(error.desc) : error;
    }
    writeFileSync(logFile, '', { mode: 0o600 });
    await program.listen(program.sockets);
    this.add(program);
    const over = AbortSignal.timeout(READY_MS);
    try {
      await ready(over);
    } catch (error) {
      program.kill();
      throw error;
    }
  }

  async run(binary: string, args: string[]): Promise<string> {
    const [verb] = args;
    const program = basename(binary);
    if (program.startsWith('qemu-system') && verb === '--version') return 'QEMU emulator version 7.2.22 (simulated)\n';
    if (program.startsWith('qemu-system') && args[1] === 'help') return verb === '-machine' ? `Supported machines are:\n${MACHINES.map((name) => `${name} a machine`).join('\n')}\n` : `Available CPUs:\n${MODELS.map((name) => `x86 ${name}  a model`).join('\n')}\n`;
    if (program === 'qemu-img' && verb === 'info') {
      const path = args.at(-1)!;
      return JSON.stringify({ 'virtual-size': this.host.world.images.virtualSize(path), filename: path, format: args[args.indexOf('-f') + 1] });
    }
    if (program === 'qemu-img' && verb === 'create') {
      writeFileSync(args.at(-2)!, `simulated ${args.at(-1)!}`);
      return '';
    }
    throw new ProcessFailed(`${binary} ${verb}: not simulated`);
  }

  converse(binary: string): Promise<never> {
    return Promise.reject(new ProcessFailed(`${binary} on stdin: not simulated`));
  }

  ofPidFile(pidFile: string): ProcessIdentity | undefined {
    const process = this.byPidFile.get(pidFile);
    return process?.alive ? { pid: process.pid, startTime: process.startTime } : undefined;
  }

  isAlive({ pid }: ProcessIdentity): boolean {
    return this.host.processes.get(pid)?.alive ?? false;
  }

  commandLine(pid: number): string[] {
    return this.host.processes.get(pid)?.argv ?? [];
  }

  async exit(identity: ProcessIdentity, signal?: AbortSignal): Promise<void> {
    while (this.isAlive(identity)) await delay(5, undefined, signal ? { signal } : {});
    this.forget(identity.pid);
  }

  async terminate(identity: ProcessIdentity, graceMs: number): Promise<void> {
    const process = this.host.processes.get(identity.pid);
    if (graceMs > 0) process?.terminate();
    else process?.kill();
    this.forget(identity.pid);
  }

  async startGuard(jobFile: string, pidFile: string): Promise<GuardPipe> {
    const guard = new SimulatedGuard(this.host, JSON.parse(readFileSync(jobFile, 'utf8')) as GuardJob, pidFile);
    this.add(guard);
    return guard;
  }

  private add(process: SimulatedProcess): void {
    this.host.processes.set(process.pid, process);
    if (!process.pidFile) return;
    this.byPidFile.set(process.pidFile, process);
    writeFileSync(process.pidFile, String(process.pid), { mode: 0o600 });
  }

  /** A process that has ended is nothing that anybody asks about again. */
  private forget(pid: number): void {
    const process = this.host.processes.get(pid);
    if (!process || process.alive) return;
    this.host.processes.delete(pid);
    if (process.pidFile && this.byPidFile.get(process.pidFile) === process) {
      this.byPidFile.delete(process.pidFile);
      rmSync(process.pidFile, { force: true });
    }
  }
}
