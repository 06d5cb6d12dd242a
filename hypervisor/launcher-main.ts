import { type ChildProcess, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { childEnvironment, GUARDS_TOO } from './child-environment';
import { type LaunchAnswer, type LaunchRequest, launchRequestSchema } from './launch-request';
import { startHere } from './start-here';

/**
 * Starts QEMUs for an agent that lives in a container of its own: what a container's processes start ends with it, and a guest must not. Runs in
 * the container that stands for the hypervisor, whose network and process ids the agent shares; see docs/deployment.md. Usage: launcher-main.js SOCKET.
 * Whoever may connect can run any program as this user. Kept free of everything that an upgrade of vmferry changes: it is not restarted then.
 */
const [socketPath] = process.argv.slice(2) as [string];
/** Longest request in bytes; a command line has a few thousand. */
const MAX_REQUEST = 2 ** 20;
/** How long guests get to flush their disks when the container is stopped; Docker kills after 10 s. */
const FLUSH_MS = 8_000;
const children = new Set<ChildProcess>();

function serve(socket: Socket): void {
  socket.on('error', () => socket.destroy());
  let text = '';
  const onData = (data: Buffer) => {
    text += data.toString();
    if (text.length > MAX_REQUEST) return void socket.destroy();
    if (!text.includes('\n')) return;
    socket.off('data', onData).pause();
    try {
      answer(socket, launchRequestSchema.parse(JSON.parse(text)));
    } catch (error) {
      say(socket, { ended: `cannot be started (the launcher says: ${(error as Error).message})` });
      socket.end();
    }
  };
  socket.on('data', onData);
}

function answer(socket: Socket, { binary, args, logFile }: LaunchRequest): void {
  if (logFile === undefined) {
    keep(spawn(binary, args, { detached: true, stdio: [socket, socket, 'ignore'], cwd: '/', env: childEnvironment(GUARDS_TOO) }));
    // It is the program's now: its end must be the end of the program, or of who asked.
    socket.destroy();
    return;
  }
  const { child, ended } = startHere(binary, args, logFile);
  keep(child);
  if (child.pid !== undefined) say(socket, { pid: child.pid });
  void ended.then((how) => {
    say(socket, { ended: how });
    socket.end();
  });
  socket.resume();
}

function keep(child: ChildProcess): ChildProcess {
  children.add(child);
  child.once('exit', () => children.delete(child)).once('error', () => children.delete(child));
  return child;
}

const say = (socket: Socket, message: LaunchAnswer) => socket.writable && socket.write(`${JSON.stringify(message)}\n`);

/** The machine is switched off: QEMU flushes its guests' disks on SIGTERM. */
async function switchOff(): Promise<void> {
  server.close();
  const exits = [...children].map((child) => new Promise((resolve) => child.once('exit', resolve)));
  for (const child of children) child.kill('SIGTERM');
  await Promise.race([Promise.all(exits), new Promise((resolve) => setTimeout(resolve, FLUSH_MS))]);
  process.exit(0);
}

// One that was killed leaves its socket; two at once cannot be, since one container runs one.
rmSync(socketPath, { force: true });
const umask = process.umask(0o177);
const server = createServer(serve).listen(socketPath, () => {
  process.umask(umask);
  process.stderr.write(`launcher listens on ${socketPath}\n`);
});
process.once('SIGTERM', () => void switchOff());
