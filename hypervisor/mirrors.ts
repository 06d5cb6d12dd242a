import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed } from '../qmp/errors';
import type { QmpMonitor } from '../qmp/monitor';
import { addCredentials, type Channel, removeCredentials, TlsRefused } from './credentials';
import { MirrorFailed } from './mirror-failed';
import { nbdAnswers } from './nbd-probe';
import { OURS } from './ours';

/** One disk to be copied from a running QEMU to an NBD export. */
export interface MirrorTarget {
  id: string;
  /** What `blockdev-mirror` calls the source: a device or a root node. */
  device: string;
  sizeBytes: number;
  host: string;
  port: number;
  exportName: string;
}

/** A mirror as `query-block-jobs` and `query-jobs` show it. */
export interface MirrorState {
  id: string;
  job: string;
  /** Latched: says that the mirror *once* caught up (R1). */
  ready: boolean;
  /** Its work is over: with `error` it failed, without it may still be incomplete: see `finishMirrors`. */
  concluded: boolean;
  error?: string;
  /** Other than `ok`: QEMU has stopped it since its target could not be written. */
  ioStatus?: 'ok' | 'failed' | 'nospace';
  /** QEMU ≥ 8.2. */
  activelySynced?: boolean;
  offsetBytes: number;
  lengthBytes: number;
  remainingBytes: number;
}

export { MirrorFailed };

/** QEMU allows 31 characters in a node name. */
export function mirrorNames(attempt: string, index: number) {
  return { job: `${OURS}job-${attempt}-${index}`, node: `${OURS}nbd-${attempt}-${index}`, filter: `${OURS}top-${attempt}-${index}` };
}

/** How long the export may take to greet us before QEMU is told to connect. */
const ANSWER_MS = 10_000;
/**
 * QEMU connects with its main loop held, and with it the guest: measured 3 s of silence for a link that was cut for 2 s just then, with 10 s allowed. So it
 * gets little time, and is told again.
 */
const CONNECT_SECONDS = 1;
const MOST_CONNECTS = 5;
const CONNECT_PAUSE_MS = 2_000;
/**
 * None. A longer one would hide short cuts from the job, but QEMU drains the mirrors when it stops the guest, with QMP silent, and waits for all of it:
 * with 10 s a storage daemon that died then cost the guest a pause of 10.1 s, and left a filter that blocked its next move; with 0 it cost 0.5 s and
 * left nothing (docs/reliability.md). A mirror that loses its connection is stopped by QEMU instead, and goes on when `StoppedMirrors` lets it.
 */
const RECONNECT_SECONDS = 0;

const DEADLINE = { timeoutMs: 60_000 };

/**
 * What a mirror may have in flight. All of it is drained when QEMU stops the guest, with QMP silent and the guest paused: with the default of
 * 16 MiB on a 10 MB/s link that took 1.1 s a disk (facts/qemu.md §4). With 8 MiB a copy to an NBD server of QEMU 7.2 can be three times as fast (docs/performance.md), and
 * a pause on a slow link broke its budget (R3).
 */
export const BUFFER_BYTES = 2 * 2 ** 20;
/** While QEMU connects, its main loop is held, and the guest with it: 90 ms with an NBD server of 7.2. Between two disks the guest gets some air; a paused one needs none. */
const BREATH_MS = 50;

/** `background` copies what the guest wrote some time later; with `write-blocking` each of its writes waits for the copy. */
export type CopyMode = 'background' | 'write-blocking';

export interface MirrorOptions {
  sync: 'full' | 'none';
  copyMode: CopyMode;
  /** Undefined: plain text. */
  channel: Channel | undefined;
  signal?: AbortSignal;
}

/**
 * Ensures the NBD node of each target and a mirror onto it. `sync: 'none'` re-arms a mirror that has just ended while the guest is
 * paused: it copies only what is written from now on, and is sound because nothing was written in between (facts/qemu.md §2).
 */
export async function ensureMirrors(qmp: QmpMonitor | QmpConnection, targets: MirrorTarget[], attempt: string, { sync, copyMode, channel, signal }: MirrorOptions): Promise<void> {
  const jobs = new Set((await qmp.execute('query-jobs')).map(({ id }) => id));
  const all = await qmp.execute('query-named-block-nodes', { flat: true });
  const nodes = new Set(all.map((node) => node['node-name']));
  await addCredentials(qmp, channel);
  let connecting: Promise<unknown> = Promise.resolve();
  // All of them: who removes what a failure leaves must not meet one that is still being connected.
  const ended = await Promise.allSettled(
    targets.map(async (target, index) => {
      const { job, node, filter } = mirrorNames(attempt, index);
      if (jobs.has(job)) return;
      if (!nodes.has(node)) {
        const connected = connecting.then(async () => await connect(qmp, target, node, channel, signal));
        connecting = connected.then(async () => sync === 'full' && (await delay(BREATH_MS)));
        connecting.catch(() => undefined);
        await connected;
      }
      // Not one that is sent after the guest runs on: with `sync: 'none'` it would miss what was written in between.
      signal?.throwIfAborted();
      await qmp.execute(
        'blockdev-mirror',
        // A job that is stopped by an error of its target keeps its bitmap: what could not be written is dirty still, and nothing else is copied again.
        { 'job-id': job, device: target.device, target: node, sync, 'copy-mode': copyMode, 'buf-size': BUFFER_BYTES, 'filter-node-name': filter, 'auto-dismiss': false, 'on-source-error': 'report', 'on-target-error': 'stop' },
        DEADLINE,
      );
    }),
  );
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
}

/** What QEMU says when it, or the storage daemon, does not take the other's certificate or key: to try again is in vain. */
const TLS_WORDS = /certificate|TLS|x509|hostname/i;

/** Adds the NBD node of a target. Throws `MirrorFailed` if its export cannot be connected to, `TlsRefused` if either end does not trust the other. */
async function connect(qmp: QmpMonitor | QmpConnection, target: MirrorTarget, node: string, channel: Channel | undefined, signal?: AbortSignal): Promise<void> {
  const { host, port, exportName, id } = target;
  for (let tries = 1; ; tries++) {
    await nbdAnswers(host, port, ANSWER_MS, signal);
    try {
      // An address, not a URI: no brackets around IPv6.
      const server = { type: 'inet', host, port: String(port) };
      await qmp.execute('blockdev-add', { driver: 'nbd', 'node-name': node, server, export: exportName, 'open-timeout': CONNECT_SECONDS, 'reconnect-delay': RECONNECT_SECONDS, discard: 'unmap', 'detect-zeroes': 'unmap', ...(channel && { 'tls-creds': channel.creds, 'tls-hostname': channel.hostname }) }, DEADLINE);
      return;
    } catch (error) {
      if (!(error instanceof QmpCommandFailed) || /Duplicate nodes/.test(error.desc)) throw error;
      if (channel && TLS_WORDS.test(error.desc)) throw new TlsRefused(`disk ${id} cannot be sent to ${channel.hostname}, on ${host} port ${port}: ${error.desc}: one end does not trust the other, see both hosts' TLS files`);
      if (tries === MOST_CONNECTS) throw new MirrorFailed(`no NBD server answers QEMU on ${host} port ${port} (disk ${id}, ${tries} tries, the last: ${error.desc}): the destination's storage daemon hangs, or the link is dead`);
      await delay(CONNECT_PAUSE_MS, undefined, signal ? { signal } : {});
    }
  }
}

/** The state of each target's mirror. Throws `MirrorFailed` if one is not there at all. */
export async function mirrorStates(qmp: QmpMonitor | QmpConnection, targets: MirrorTarget[], attempt: string): Promise<MirrorState[]> {
  const [blockJobs, jobs] = await Promise.all([qmp.execute('query-block-jobs'), qmp.execute('query-jobs')]);
  return targets.map(({ id }, index) => {
    const { job } = mirrorNames(attempt, index);
    const state = jobs.find((one) => one.id === job);
    const block = blockJobs.find((one) => one.device === job);
    if (!state) throw new MirrorFailed(`the mirror of disk ${id} is gone: somebody dismissed its job ${job}`);
    const offsetBytes = state['current-progress'];
    const lengthBytes = state['total-progress'];
    return {
      id,
      job,
      ready: block?.ready ?? false,
      concluded: state.status === 'concluded',
      ...(state.error !== undefined && { error: state.error }),
      ...(block && { ioStatus: block['io-status'] as 'ok' }),
      ...(block?.['actively-synced'] !== undefined && { activelySynced: block['actively-synced'] }),
      offsetBytes,
      lengthBytes,
      remainingBytes: lengthBytes - offsetBytes,
    };
  });
}

/** Throws `MirrorFailed` if a mirror has ended, or was stopped by an error, that should still run. */
export function assertMirroring(states: MirrorState[]): void {
  assertNotEnded(states);
  const stopped = states.filter(isStopped);
  if (stopped.length > 0) throw new MirrorFailed(stopped.map((state) => `the mirror of disk ${state.id} stands still: its target could not be written (${state.ioStatus})`).join('; '));
}

export const isStopped = ({ ioStatus = 'ok', concluded }: MirrorState): boolean => !concluded && ioStatus !== 'ok';

/** Throws `MirrorFailed` with QEMU's reason if a mirror has ended that should still run. */
export function assertNotEnded(states: MirrorState[]): void {
  const ended = states.filter((state) => state.concluded);
  if (ended.length > 0) throw new MirrorFailed(ended.map((state) => `the mirror of disk ${state.id} ended: ${state.error ?? 'without an error, though nobody asked for it'}`).join('; '));
}

/**
 * The proof of R1, for a paused guest with READY mirrors: cancels each gracefully (which drains it), waits for its end, checks that it
 * ended without error and with offset = length, dismisses the job and removes the NBD node. On return no mirror exists.
 * A later call with the same `proven` goes on from whatever an earlier one did; a job that is not there, and not in `proven`, was ended by
 * somebody else, and proves nothing. Throws `MirrorFailed` otherwise, and the signal's reason when it is aborted.
 */
export async function finishMirrors(qmp: QmpConnection, targets: MirrorTarget[], attempt: string, signal: AbortSignal, proven = new Set<string>()): Promise<void> {
  const events = qmp.listen('JOB_STATUS_CHANGE', 'BLOCK_JOB_ERROR');
  try {
    const all = targets.map((target, index) => ({ target, ...mirrorNames(attempt, index) }));
    const jobs = await qmp.execute('query-jobs');
    const waiting = new Set(all.map(({ job }) => job).filter((job) => jobs.some((one) => one.id === job)));
    const unproven = all.find(({ job }) => !waiting.has(job) && !proven.has(job));
    if (unproven) throw new MirrorFailed(`the mirror of disk ${unproven.target.id} is gone, and nobody saw it end well`);
    const concluded = new Set(jobs.filter((job) => job.status === 'concluded').map(({ id }) => id));
    // Never force: a forced cancel does not drain, and what it had not copied is lost (facts/qemu.md §1.6).
    await Promise.all([...waiting].filter((job) => !concluded.has(job)).map((device) => qmp.execute('block-job-cancel', { device }, { signal }).catch(ignoreDeviceNotActive)));
    while ([...waiting].some((job) => !concluded.has(job))) {
      const event = await events.next({ signal });
      if (event.event === 'JOB_STATUS_CHANGE') {
        if (event.data.status === 'concluded') concluded.add(event.data.id);
      } else if (waiting.has(event.data.device)) {
        throw new MirrorFailed(`the mirror of disk ${all.find(({ job }) => job === event.data.device)!.target.id} met an error of ${event.data.operation} while it was finished`);
      }
    }
    if (waiting.size > 0) {
      for (const state of await qmp.execute('query-jobs')) {
        const mirror = all.find(({ job }) => job === state.id);
        if (!mirror) continue;
        const [offset, length] = [state['current-progress'], state['total-progress']];
        if (state.error !== undefined || offset !== length) {
          throw new MirrorFailed(`the mirror of disk ${mirror.target.id} ended ${state.error !== undefined ? `with "${state.error}"` : 'early'} at ${offset} of ${length} bytes`);
        }
        proven.add(mirror.job);
      }
    }
    await Promise.all([...waiting].map((id) => qmp.execute('job-dismiss', { id }, { signal })));
    const nodes = new Set((await qmp.execute('query-named-block-nodes', { flat: true })).map((node) => node['node-name']));
    await Promise.all(all.filter(({ node }) => nodes.has(node)).map(({ node }) => qmp.execute('blockdev-del', { 'node-name': node }, { signal })));
  } finally {
    events.close();
  }
}

/** Throws if any mirror exists, whoever made it: the last look before `migrate-continue` (R1). */
export async function assertNoMirrors(qmp: QmpConnection): Promise<void> {
  const jobs = (await qmp.execute('query-jobs')).filter((job) => job.type === 'mirror');
  if (jobs.length > 0) throw new MirrorFailed(`mirrors still exist: ${jobs.map(({ id, status }) => `${id} (${status})`).join(', ')}`);
}

/**
 * Ends every mirror of ours, finished or not, and removes its nodes and our TLS credentials; what it copied is not used. With a `silent` peer its connections
 * are yanked first, out of band, since everything else would wait for it (R7). `keep` is the attempt whose things stay. Idempotent.
 */
export async function clearMirrors(monitor: QmpMonitor, options: { silent: boolean; keep?: string }): Promise<void> {
  const qmp = await monitor.connection();
  const ours = (name: string | undefined): name is string => name !== undefined && name.startsWith(OURS) && !(options.keep && name.includes(`-${options.keep}-`));
  let yanked = options.silent && (await yankDisks(qmp, ours));
  const events = qmp.listen('JOB_STATUS_CHANGE');
  try {
    const jobs = (await qmp.execute('query-jobs')).filter(({ id }) => ours(id));
    const running = new Set(jobs.filter(({ status }) => status !== 'concluded').map(({ id }) => id));
    await Promise.all([...running].map((device) => qmp.execute('block-job-cancel', { device, force: true }).catch(ignoreDeviceNotActive)));
    while (running.size > 0) {
      const event = await events.next({ timeoutMs: 15_000 }).catch(async (error: unknown) => {
        // A forced cancel waits for requests in flight: a peer that does not answer them is cut off.
        if (yanked || !(await yankDisks(qmp, ours))) throw error;
        yanked = true;
        return undefined;
      });
      if (event?.data.status === 'concluded') running.delete(event.data.id);
    }
    await Promise.all(jobs.map(({ id }) => qmp.execute('job-dismiss', { id }).catch(ignoreDeviceNotActive)));
  } finally {
    events.close();
  }
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  await Promise.all(nodes.map((node) => node['node-name']).filter((name) => ours(name) && name.startsWith(`${OURS}nbd-`)).map((node) => qmp.execute('blockdev-del', { 'node-name': node as string }, DEADLINE)));
  await removeCredentials(qmp);
}

/** Cuts our NBD connections. Over TCP whoever waits for them fails at once. False if there was none. */
export async function yankDisks(qmp: QmpConnection, ours = (name: string | undefined): boolean => name?.startsWith(OURS) ?? false): Promise<boolean> {
  const instances = (await qmp.executeOob('query-yank')).filter((one) => one.type === 'block-node' && ours(one['node-name']));
  if (instances.length > 0) await qmp.executeOob('yank', { instances });
  return instances.length > 0;
}

function ignoreDeviceNotActive(error: unknown): void {
  if (!(error instanceof QmpCommandFailed && (error.errorClass === 'DeviceNotActive' || /not found/i.test(error.desc)))) throw error;
}
