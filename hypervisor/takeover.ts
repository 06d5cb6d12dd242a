import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed, QmpDisconnected, QmpTimeout } from '../qmp/errors';
import { eventTimeMs, type QmpEventQueue } from '../qmp/event-queue';
import { activateImages } from './activate';
import { folderSeenBy, incomingChannel } from './credentials';
import { stopGuard } from './guard';
import type { DestinationAttempt } from './guest-store';
import { GuestStateError, type Host } from './host';
import { ensureQemu, killQemu, qemuLastWords } from './launch';
import type { LeaseServer } from './lease';
import { listenForMigration } from './migration';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';
import { releaseImages, storageDaemonProcess } from './storage-daemon';

/** Moments at the destination, in milliseconds since the epoch by that host's clock. */
export interface DestinationWindow {
  completed: number;
  /** Its images are no longer exported: only since then may QEMU lock them. */
  exportsRemoved?: number;
  /** The marker is written. */
  released: number;
  resumed: number;
}

export interface TakeOverResult {
  /** `paused`: the guest was paused when it left, and arrives so. */
  guest: 'running' | 'paused';
  window?: DestinationWindow;
  /** Post-copy: QEMU waits for a page, and has not said that the guest runs. `destinationState` sees to that once pages have come. */
  unanswered?: true;
}

/** The incoming QEMU ended before the guest had arrived; `marker` says whether it may have run. */
export class DestinationDied extends Error {
  override readonly name = 'DestinationDied';
}

/** How often a destination looks whether the source has given its word, in a post-copy. */
const WORD_LOOK_MS = 5;
/**
 * A guard hears no source. It goes on without its word (R9): QEMU 7.2 never runs a source whose post-copy has begun; a newer one does if its stream breaks in the
 * very moment of the switch.
 */
const UNHEARD_MS = 150;
const LOCKS_MS = 5_000;
/** A main loop that waits for a page of its guest answers when that has come; without its source it never does. */
const PAGE_MS = 5_000;

/** Starts a QEMU that waits for the guest's memory, or finds it, and gives the port where it listens. */
export async function openIncoming(host: Host, guest: string, attempt: string, capabilities: Record<string, boolean> = {}): Promise<number> {
  const record = destinationAttempt(host, guest, attempt);
  if (host.process(guest)) {
    if (record.migrationPort !== undefined) return record.migrationPort;
    // An agent died between `migrate-incoming` and our note of its port; QEMU takes that command only once.
    await killQemu(host, guest);
  }
  for (const port of portsInOrder(host.config.ports)) {
    const qmp = await (await ensureQemu(host, host.definition(guest), true)).connection();
    try {
      await listenForMigration(qmp, host.config.address, port, incomingChannel(host.config, record.from, folderSeenBy(host.config, host.process(guest)!)), capabilities);
    } catch (error) {
      if (!isAddressInUse(error)) throw error;
      // QEMU 10 takes no second `migrate-incoming`, not even after one that failed ("Illegal migration incoming state: setup").
      await killQemu(host, guest);
      continue;
    }
    await host.store.patchAttempt<DestinationAttempt>(guest, { migrationPort: port, postCopy: capabilities['postcopy-ram'] ? true : undefined, handedOver: undefined });
    return port;
  }
  throw noFreePort(host.config);
}

/**
 * Ends the incoming QEMU of an attempt that has not brought the guest here. Returns false, and ends nothing, if the marker says that it may have
 * run: then it is the guest. The caller has seen to it that nobody in this process works on the guest; a guard is ended first, so that
 * no marker can be written while this looks for one.
 */
export async function destroyIncoming(host: Host, guest: string, attempt: string): Promise<boolean> {
  const record = host.store.attempt(guest);
  if (record?.role !== 'destination' || record.attempt !== attempt) return host.store.ownership(guest)?.state !== 'owner';
  await stopGuard(host, guest);
  if (host.store.ownership(guest)?.state === 'owner') return false;
  await killQemu(host, guest);
  await host.store.patchAttempt<DestinationAttempt>(guest, { migrationPort: undefined, run: undefined, postCopy: undefined, handedOver: undefined });
  return true;
}

/**
 * The destination's half of the switchover: waits for the whole guest, takes its images from the storage daemon, writes the marker
 * "about to run", and runs it. Acts on QMP events at once. Can be killed at any point and called again (R6). Throws `DestinationDied` if
 * QEMU ends before, and the signal's reason when aborted.
 */
export async function takeOver(host: Host, lease: LeaseServer | undefined, guest: string, attempt: string, signal: AbortSignal): Promise<TakeOverResult> {
  const marked = isMarked(host, guest, attempt);
  if (!host.process(guest)) throw new DestinationDied(`the QEMU of guest ${guest} on ${host.name} is not running${lastWords(host, guest)}`);
  const qmp = await host.monitor(guest).connection({ signal });
  if (marked) return await runMarked(host, guest, attempt, qmp);
  const daemon = storageDaemonProcess(host, guest);
  const release = lease?.hold(attempt, {
    from: destinationAttempt(host, guest, attempt).from,
    ended: qmp.closed,
    probe: async () => {
      if (daemon && !host.programs.isAlive(daemon)) throw new Error(`the storage daemon of guest ${guest} on ${host.name} has ended`);
      await qmp.execute('query-status', undefined, { timeoutMs: 60_000, signal });
    },
    arm: async (run, handedOver) => {
      destinationAttempt(host, guest, attempt);
      await host.store.patchAttempt<DestinationAttempt>(guest, { run, ...(handedOver && { handedOver }) });
    },
  });
  try {
    const result = await whenComplete(host, guest, attempt, qmp, lease !== undefined, signal);
    release?.();
    return result;
  } catch (error) {
    if (error instanceof DestinationDied || (error instanceof QmpDisconnected && !(await stillRuns(host, guest)))) {
      const died = error instanceof DestinationDied ? error : new DestinationDied(`the QEMU of guest ${guest} on ${host.name} ended before the guest had arrived${lastWords(host, guest)}`);
      release?.(died.message);
      throw died;
    }
    release?.();
    throw error;
  }
}

/** A process that has closed its monitor may need a moment to be gone. */
async function stillRuns(host: Host, guest: string): Promise<boolean> {
  const process = host.process(guest);
  return process !== undefined && !(await host.programs.exit(process, AbortSignal.timeout(500)).then(() => true, () => false));
}

async function whenComplete(host: Host, guest: string, attempt: string, qmp: QmpConnection, hearsSource: boolean, signal: AbortSignal): Promise<TakeOverResult> {
  const events = qmp.listen('MIGRATION', 'RESUME');
  try {
    let { status } = await qmp.execute('query-migrate');
    let completed = Date.now();
    const { postCopy } = destinationAttempt(host, guest, attempt);
    let unheardMs = 0;
    // A post-copy try that ended as a pre-copy is not taken over: its source may have failed, and run (R2). The source gives its word for no other.
    for (;;) {
      if (!postCopy && status === 'completed') break;
      const loaded = postCopy && (status === 'completed' || status?.startsWith('postcopy'));
      if (loaded && (destinationAttempt(host, guest, attempt).handedOver || (!hearsSource && status !== 'completed' && unheardMs > UNHEARD_MS))) break;
      if (status === 'failed') throw new DestinationDied(`the QEMU of guest ${guest} on ${host.name} could not load the guest${lastWords(host, guest)}`);
      // The last page may come before the source's word.
      const waits = loaded ? { timeoutMs: WORD_LOOK_MS } : {};
      const event = await events.next({ signal, ...waits }).catch((error: unknown) => {
        if (!(error instanceof QmpTimeout)) throw error;
        unheardMs += WORD_LOOK_MS;
      });
      if (event?.event !== 'MIGRATION') continue;
      status = event.data.status;
      if (status === 'completed' || status === 'postcopy-active') completed = eventTimeMs(event);
    }
    if (destinationAttempt(host, guest, attempt).run === undefined) throw new GuestStateError(`guest ${guest} arrived on ${host.name}, but its source never said whether to run it`);
    // A guest whose images are exported cannot lock them. The marker (R10) comes last: whoever dies before it can still be replaced by the source.
    await releaseImages(host, guest);
    const exportsRemoved = Date.now();
    // The last sign of life before it.
    await qmp.execute('query-status');
    await markAboutToRun(host, guest, attempt);
    const released = Date.now();
    const ran = await runMarked(host, guest, attempt, qmp);
    return { ...ran, window: { completed, exportsRemoved, released, resumed: ran.guest === 'running' ? await resumeTime(events) : released } };
  } finally {
    events.close();
  }
}

/** Whether this attempt has brought the guest here: the marker "about to run" is written. */
export function isMarked(host: Host, guest: string, attempt: string): boolean {
  const ownership = host.store.ownership(guest);
  return ownership?.state === 'owner' && ownership.attempt === attempt;
}

/**
 * Lets a guest run whose marker is written, wherever an earlier call ended. A guest that its operator paused here since then stays paused: only
 * QEMU's own state after an incoming migration, with the attempt still on record, is ours to end.
 */
async function runMarked(host: Host, guest: string, attempt: string, qmp: QmpConnection): Promise<TakeOverResult> {
  const { run, postCopy } = destinationAttempt(host, guest, attempt);
  const patience = postCopy && { timeoutMs: PAGE_MS };
  try {
    const { running } = await qmp.execute('query-status', undefined, patience);
    if (run && !running) await letRun(qmp, patience);
  } catch (error) {
    if (!postCopy || !(error instanceof QmpTimeout)) throw error;
    return { guest: run ? 'running' : 'paused', unanswered: true };
  }
  if (run) return { guest: 'running' };
  await activateImages(qmp, host.runFile(guest, 'activate.sock'));
  return { guest: 'paused' };
}

/** A storage daemon that was killed may hold its locks for a moment longer than its process is seen: `cont` then fails, and is repeated. */
async function letRun(qmp: QmpConnection, patience: { timeoutMs: number } | undefined): Promise<void> {
  for (const end = performance.now() + LOCKS_MS; ; await delay(5)) {
    try {
      await qmp.execute('cont', undefined, patience);
      return;
    } catch (error) {
      if (!(error instanceof QmpCommandFailed && /Failed to get .* lock/.test(error.desc)) || performance.now() > end) throw error;
    }
  }
}

/** `guest`: only of a copy that lives and is marked. */
export type DestinationState = { alive: boolean; marker: boolean } & Partial<TakeOverResult>;

/** What this host knows of a guest that was on its way here, for the ownership table. One whose marker is written, and that is not running yet, is let run. */
export async function destinationState(host: Host, guest: string, attempt: string): Promise<DestinationState> {
  const alive = host.process(guest) !== undefined;
  const marker = isMarked(host, guest, attempt);
  if (!alive || !marker || host.store.attempt(guest)?.role !== 'destination') return { alive, marker };
  return { alive, marker, ...(await runMarked(host, guest, attempt, await host.monitor(guest).connection())) };
}

/** The marker of R10: from here on this host's copy may be started, and the source's never again without an operator. */
async function markAboutToRun(host: Host, guest: string, attempt: string): Promise<void> {
  const now = host.store.ownership(guest);
  if (now?.state === 'owner') return;
  await host.store.setOwnership(guest, { state: 'owner', since: new Date().toISOString(), attempt });
}

async function resumeTime(events: QmpEventQueue<'MIGRATION' | 'RESUME'>): Promise<number> {
  for (let event = events.tryNext(); event; event = events.tryNext()) if (event.event === 'RESUME') return eventTimeMs(event);
  return Date.now();
}

/** The record of this attempt on this host. Throws if it is gone: the attempt was undone meanwhile. */
export function destinationAttempt(host: Host, guest: string, attempt: string): DestinationAttempt {
  const record = host.store.attempt(guest);
  if (record?.role !== 'destination' || record.attempt !== attempt) throw new GuestStateError(`attempt ${attempt} to bring guest ${guest} to ${host.name} was undone`);
  return record;
}

function lastWords(host: Host, guest: string): string {
  const words = qemuLastWords(host, guest);
  return words ? `; it printed: ${words}` : '';
}
