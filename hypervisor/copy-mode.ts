import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import type { SourceAttempt } from './guest-store';
import { liftThrottle, sourceRecord, throttleGuest } from './guest-throttle';
import type { Host } from './host';
import { assertMirroring, ensureMirrors, finishMirrors, MirrorFailed, mirrorNames, mirrorStates, type MirrorTarget, yankDisks } from './mirrors';

/** A remedy could not be applied now; nothing has changed. */
export class RemedyFailed extends Error {
  override readonly name = 'RemedyFailed';
}

export interface SwitchOptions {
  attempt: string;
  targets: MirrorTarget[];
  by: 'block-job-change' | 're-arm';
  /** What the link carries. */
  throughputBytesPerSecond: number;
  /** The longest pause of the guest. */
  maxPauseMs: number;
  signal: AbortSignal;
}

/** The guest's writes are held to this part of the link while the mirrors catch up for the switch: hard, so that it is over soon. */
const THROTTLE_TO = 0.05;
/** The guest is stopped when what remains can be drained in this part of the longest pause: draining, ending and making anew takes the rest. */
const DRAIN_PART = 0.3;
/** How long the mirrors may take to catch up with a throttled guest, beyond what the link needs for what remains. */
const CATCH_UP_MS = 30_000;

/**
 * Makes a guest's mirrors write-blocking while it runs, so that they cannot fall behind any more: the guest then writes as fast as the link
 * carries. QEMU ≥ 8.2 has a command for it. On older ones the guest's writes are throttled until the mirrors have caught up; in a pause of some
 * 30 ms they are finished and made anew with `sync: none`, which is sound as nothing is written in between (facts/qemu.md §2). Idempotent.
 */
export async function makeWriteBlocking(host: Host, guest: string, options: SwitchOptions): Promise<{ pausedMs: number }> {
  const { attempt, targets, by, signal } = options;
  const qmp = await host.monitor(guest).connection();
  await endPause(host, guest, qmp);
  if (sourceRecord(host, guest).writeBlocking) return { pausedMs: 0 };
  if (by === 'block-job-change') {
    for (const index of targets.keys()) await qmp.execute('block-job-change', { id: mirrorNames(attempt, index).job, type: 'mirror', 'copy-mode': 'write-blocking' });
    await host.store.patchAttempt<SourceAttempt>(guest, { writeBlocking: true });
    return { pausedMs: 0 };
  }
  const throttled = sourceRecord(host, guest).throttledFrom !== undefined;
  try {
    if (!throttled) await throttleGuest(host, guest, targets.map(({ device }) => device), options.throughputBytesPerSecond * THROTTLE_TO);
    await catchUp(qmp, options);
    signal.throwIfAborted();
    return { pausedMs: await switchInPause(host, guest, qmp, options) };
  } finally {
    // One that was in force before stays: somebody else decided it.
    if (!throttled) await liftThrottle(host, guest);
  }
}

async function catchUp(qmp: QmpConnection, { attempt, targets, throughputBytesPerSecond, maxPauseMs, signal }: SwitchOptions): Promise<void> {
  const remaining = async () => {
    const states = await mirrorStates(qmp, targets, attempt);
    assertMirroring(states);
    return { ready: states.every((state) => state.ready), bytes: states.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0) };
  };
  const enough = (throughputBytesPerSecond * maxPauseMs * DRAIN_PART) / 1000;
  const begun = await remaining();
  const deadline = performance.now() + CATCH_UP_MS + (begun.bytes / Math.max(1, throughputBytesPerSecond * (1 - THROTTLE_TO))) * 1000;
  for (let now = begun; !(now.ready && now.bytes <= enough); now = await remaining()) {
    if (performance.now() > deadline) throw new RemedyFailed(`with the guest's writes held back, ${now.bytes} bytes still remain${now.ready ? '' : ' and the mirrors are not ready'}: they were not made write-blocking`);
    await delay(20, undefined, { signal });
  }
}

/** The pause itself. Given up before the mirrors are ended it costs nothing; after that they are made anew, or the copy begins again. */
async function switchInPause(host: Host, guest: string, qmp: QmpConnection, { attempt, targets, maxPauseMs }: SwitchOptions): Promise<number> {
  if (!(await qmp.execute('query-status')).running) throw new RemedyFailed('the guest does not run');
  await host.store.patchAttempt<SourceAttempt>(guest, { pausedToSwitch: true });
  const began = performance.now();
  const over = AbortSignal.timeout(maxPauseMs);
  // QMP is silent while `stop` drains: a link that dies just now is cut, out of band.
  const cut = setTimeout(() => void yankDisks(qmp).catch(() => undefined), maxPauseMs);
  try {
    await qmp.execute('stop', undefined, { timeoutMs: 60_000 });
    for (;;) {
      const states = await mirrorStates(qmp, targets, attempt);
      assertMirroring(states);
      if (states.every(({ remainingBytes }) => remainingBytes === 0)) break;
      if (over.aborted) throw new RemedyFailed(`the mirrors could not be finished within ${maxPauseMs} ms: they were not made write-blocking`);
      await delay(2);
    }
    await finishMirrors(qmp, targets, attempt, over)
      .then(() => ensureMirrors(qmp, targets, attempt, { sync: 'none', copyMode: 'write-blocking', channel: host.outgoingChannel(guest, sourceRecord(host, guest).to), signal: over }))
      .catch((error: Error) => {
        throw error.name === 'TimeoutError' ? new MirrorFailed(`the mirrors could not be made anew within ${maxPauseMs} ms: the copy begins again`) : error;
      });
    await host.store.patchAttempt<SourceAttempt>(guest, { writeBlocking: true });
  } finally {
    clearTimeout(cut);
    await endPause(host, guest, qmp);
  }
  return Math.round(performance.now() - began);
}

/** Lets a guest run that was paused to switch its mirrors, whoever did it. */
export async function endPause(host: Host, guest: string, qmp: QmpConnection): Promise<void> {
  const record = host.store.attempt(guest);
  if (record?.role !== 'source' || !record.pausedToSwitch) return;
  if ((await qmp.execute('query-status')).status === 'paused') await qmp.execute('cont');
  await host.store.patchAttempt<SourceAttempt>(guest, { pausedToSwitch: undefined });
}

/** Ends what a remedy does to a guest for a moment, when the one who did it has died: the guest runs, and writes as it may. */
export async function endRemedy(host: Host, guest: string): Promise<void> {
  await endPause(host, guest, await host.monitor(guest).connection());
  await liftThrottle(host, guest);
}
