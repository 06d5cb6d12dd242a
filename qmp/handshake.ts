import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { arm, type Deadline } from './deadline';
import { QmpDisconnected, QmpError, QmpMonitorBusy, QmpProtocolError } from './errors';
import { findMonitorHolder } from './monitor-holder';

/** What QEMU says first. */
export interface QmpGreeting {
  version: { qemu: { major: number; minor: number; micro: number }; package: string };
  /** What `qmp_capabilities` can enable: `oob`, or nothing. */
  capabilities: string[];
}

/** `sun_path`, less its final NUL. Longer paths are cut by the kernel's interface, and would reach another socket. */
const LONGEST_SOCKET_PATH = 107;
const LONGEST_GREETING = 65_536;

/** There is no event for a place in QEMU's queue of waiting clients. */
const RETRY_MS = 10;

class NoGreeting extends Error {}

class QueueFull extends NoGreeting {}

/**
 * Connects and reads the greeting; the socket is left paused, with whatever followed the greeting unread. Throws `QmpDisconnected` if
 * nothing listens there, `QmpMonitorBusy` if no greeting comes, `QmpProtocolError` if it is not one, or the signal's reason.
 */
export async function openMonitor(path: string, deadline: Deadline): Promise<{ socket: Socket; greeting: QmpGreeting }> {
  if (Buffer.byteLength(path) > LONGEST_SOCKET_PATH) throw new QmpError(path, `the QMP monitor's path ${path} is longer than ${LONGEST_SOCKET_PATH} bytes: use a shorter folder`);
  const { timeoutMs = Infinity, signal } = deadline;
  const end = performance.now() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    const leftMs = Math.max(1, Math.ceil(end - performance.now()));
    try {
      return await greet(path, { timeoutMs: leftMs, signal });
    } catch (error) {
      if (!(error instanceof NoGreeting)) throw error;
      if (!(error instanceof QueueFull) || leftMs <= RETRY_MS) throw new QmpMonitorBusy(path, await findMonitorHolder(path), { cause: error });
      await delay(RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  }
}

async function greet(path: string, deadline: Deadline): Promise<{ socket: Socket; greeting: QmpGreeting }> {
  const socket = connect({ path });
  // Whoever uses the socket learns of an error by its 'close'; without any listener it would end the process.
  let cause: NodeJS.ErrnoException | undefined;
  socket.on('error', (error) => (cause = error));
  try {
    const line = await firstLine(path, socket, deadline, () => cause);
    return { socket, greeting: parseGreeting(path, line) };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function firstLine(path: string, socket: Socket, deadline: Deadline, cause: () => NodeJS.ErrnoException | undefined): Promise<string> {
  return new Promise((resolve, reject) => {
    let received: Buffer = Buffer.alloc(0);
    const settle = (act: () => void) => {
      disarm();
      socket.off('data', onData).off('close', onClose);
      act();
    };
    const onData = (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      const end = received.indexOf('\n');
      if (end === -1 && received.length <= LONGEST_GREETING) return;
      settle(() => {
        if (end === -1 || end > LONGEST_GREETING) return reject(new QmpProtocolError(path, `its first line exceeds ${LONGEST_GREETING} bytes`));
        socket.pause();
        if (end + 1 < received.length) socket.unshift(received.subarray(end + 1));
        resolve(received.toString('utf8', 0, end));
      });
    };
    const onClose = () => settle(() => reject(whyClosed(path, cause())));
    const disarm = arm(
      deadline,
      () => settle(() => reject(received.length > 0 ? new QmpProtocolError(path, 'its first line never ended') : new NoGreeting('no greeting in time'))),
      (reason) => settle(() => reject(reason)),
    );
    socket.on('data', onData).on('close', onClose);
  });
}

function whyClosed(path: string, cause: NodeJS.ErrnoException | undefined): Error {
  switch (cause?.code) {
    case undefined:
      return new QmpDisconnected(path, 'it closed the connection before it greeted; see whether QEMU is ending');
    case 'ENOENT':
      return new QmpDisconnected(path, 'there is no such socket; see whether QEMU runs and was started with it', { cause });
    case 'ECONNREFUSED':
      return new QmpDisconnected(path, 'nothing listens on the socket; QEMU has ended and left it behind', { cause });
    case 'EACCES':
    case 'EPERM':
      return new QmpDisconnected(path, 'access is denied; run as the user who owns the socket', { cause });
    case 'EAGAIN':
      // QEMU listens with a backlog of 1: one client is served, two wait. Those who gave up stay in the queue until the client goes.
      return new QueueFull('the queue of waiting clients is full', { cause });
    default:
      return new QmpDisconnected(path, `${cause?.message}; see whether QEMU runs`, { cause });
  }
}

function parseGreeting(path: string, line: string): QmpGreeting {
  try {
    const { version, capabilities } = (JSON.parse(line) as { QMP: QmpGreeting }).QMP;
    if (Number.isInteger(version.qemu.major) && Array.isArray(capabilities)) return { version, capabilities };
  } catch {
    // Falls through: whatever it is, it is no greeting.
  }
  throw new QmpProtocolError(path, `its first line is no QMP greeting but ${JSON.stringify(line.slice(0, 80))}`);
}
