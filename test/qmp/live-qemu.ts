import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The socket's file is there a moment before anyone listens on it, and a client that comes before the monitor does is sent away: the proof is a greeting. */
async function greets(path: string, child: ChildProcess): Promise<void> {
  while (child.exitCode === null && child.signalCode === null) {
    const socket = connect(path);
    const greeted = await Promise.race([once(socket, 'data').then(() => true), once(socket, 'close').then(() => false)]).catch(() => false);
    socket.destroy();
    if (greeted) return;
    await delay(5);
  }
}

/** A process of the test that makes a socket at `path`; ended by its own handle. */
export class LiveProcess {
  private constructor(readonly child: ChildProcess) {}

  static async start(binary: string, args: string[], path: string): Promise<LiveProcess> {
    const child = spawn(binary, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    const failed = once(child, 'exit').then(([code]) => Promise.reject(new Error(`${binary} ended with ${code}`)));
    failed.catch(() => undefined);
    await Promise.race([greets(path, child), failed]);
    return new LiveProcess(child);
  }

  /** A guest that never runs, with a monitor at each path. */
  static async qemu(paths: [string, ...string[]], binary = 'qemu-system-x86_64'): Promise<LiveProcess> {
    const monitors = paths.flatMap((socket) => ['-qmp', `unix:${socket},server=on,wait=off`]);
    return LiveProcess.start(binary, ['-machine', 'none', '-nodefaults', '-display', 'none', '-S', ...monitors], paths.at(-1)!);
  }

  static async storageDaemon(path: string, binary = 'qemu-storage-daemon'): Promise<LiveProcess> {
    return LiveProcess.start(binary, ['--chardev', `socket,id=qmp,path=${path},server=on,wait=off`, '--monitor', 'chardev=qmp'], path);
  }

  async end(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await ended;
  }
}
