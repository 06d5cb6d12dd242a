import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { type LaunchRequest, launchAnswerSchema } from './launch-request';
import { ProcessFailed, startDetached } from './processes';
import { GUARD, type GuardPipe, machinePrograms, type Programs } from './programs';
import type { Started } from './start-here';

/**
 * The programs of a host whose agent lives in a container of its own: what must outlive the agent, QEMUs, storage daemons and guards, is started by
 * the launcher that listens on `socketPath`. Processes are seen, and ended, as on any machine: the containers share their process ids.
 */
export function launchedPrograms(socketPath: string): Programs {
  return {
    ...machinePrograms,
    start: async (binary, args, logFile, ready) => await startDetached(binary, args, logFile, ready, { start: async (...what) => await launch(socketPath, ...what) }),
    startGuard: async (jobFile, pidFile) => await launchGuard(socketPath, jobFile, pidFile),
  };
}

async function launch(socketPath: string, binary: string, args: string[], logFile: string): Promise<Started> {
  const socket = await ask(socketPath, { binary, args, logFile });
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  const answer = async () => {
    const line = await lines.next();
    return line.done ? { ended: 'is out of sight: the launcher ended' } : launchAnswerSchema.parse(JSON.parse(line.value));
  };
  const first = await answer();
  if ('ended' in first) return { pid: undefined, ended: Promise.resolve(first.ended) };
  // Long after the start nobody waits for this any more; it must not hold a process that ends.
  socket.unref();
  const ended = answer().then((last) => ('ended' in last ? last.ended : 'was answered twice'));
  return { pid: first.pid, ended };
}

/**
 * The guard is this release's, wherever it runs: by way of this process its program is found in our files. It has read all of it when it watches.
 * Both kinds of links are left as they are, since such a path resolves to the other container's files.
 */
async function launchGuard(socketPath: string, jobFile: string, pidFile: string): Promise<GuardPipe> {
  if (!GUARD) throw new ProcessFailed('the guard program is not built: run npm run build');
  const program = `/proc/${process.pid}/root${GUARD}`;
  const socket = await ask(socketPath, { binary: process.execPath, args: ['--preserve-symlinks', '--preserve-symlinks-main', program, jobFile, pidFile] });
  const said = await Promise.race([once(socket, 'data').then(([data]) => String(data)), once(socket, 'close').then(() => 'nothing')]);
  if (said !== 'watching\n') throw new ProcessFailed(`the guard that was told ${jobFile} ended at start: it said ${said.trim()}`);
  socket.unref().resume();
  return { end: (last = '') => void socket.end(last) };
}

async function ask(socketPath: string, request: LaunchRequest): Promise<Socket> {
  const socket = createConnection(socketPath);
  try {
    await once(socket, 'connect');
  } catch (error) {
    throw new ProcessFailed(`no launcher listens on ${socketPath} (${(error as Error).message}): start the hypervisor's container, or correct launcher in the host's configuration`, { cause: error });
  }
  socket.on('error', () => undefined);
  socket.write(`${JSON.stringify(request)}\n`);
  return socket;
}
