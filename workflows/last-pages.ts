import { ApplicationFailure, condition, isCancellation, sleep } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { PagesState } from '../hypervisor/post-copy';
import type { destinationHost, sourceHost } from './activities';
import { FENCED, type Fences } from './fences';
import { leaveForLater } from './finish-cleanup';
import type { Mending } from './switch-over';

/** Between two tries to mend a connection. */
const AGAIN_MS = 1_000;
/** The source's copy is out of date, and its images are the last of its kind. */
const KEEP_HOURS = 24 * 365;

/**
 * A guest that came by post-copy runs at the destination, and its source must stay until its last page was sent. A connection that breaks is mended: the
 * destination listens anew, the source goes on. When that cannot be had for `recoverMs`, or the source's QEMU has ended, the guest is lost as a running one:
 * throws `PostCopyLost`. Its disks are whole at the destination, and newer than those of the source from the moment when it ran there. A destination that is
 * confirmed fenced took these with it: then the source's copy may be started, from its disks as they were when the guest left.
 */
export async function allPages(source: ReturnType<typeof sourceHost>, destination: ReturnType<typeof destinationHost>, ref: MigrationRef, sourceBroke: () => boolean, fences: Fences, { recoverMs, tell }: Mending): Promise<void> {
  let brokenAtMs: number | undefined;
  let told = false;
  let sourceSaysSo = true;
  for (;;) {
    const said: { pages?: PagesState } = {};
    const waiting = destination.switchover.awaitPages(ref).then((pages) => void (said.pages = pages));
    waiting.catch(() => undefined);
    // The end that sends notices a broken connection that the other does not.
    await Promise.race([waiting, condition(() => said.pages !== undefined || (sourceSaysSo && sourceBroke()))]);
    sourceSaysSo = false;
    if (said.pages === 'completed') {
      if (told) tell('post-copy', 'the last page has come');
      return;
    }
    if (said.pages === 'gone') throw await lost(`its QEMU on ${ref.to} ended before the last page of its memory had come`);
    told = true;
    if (brokenAtMs === undefined) tell('mends post-copy', `the connection broke before the last page of the memory had come; for ${recoverMs / 1000} s it is tried to go on`);
    brokenAtMs ??= Date.now();
    const how = await mend();
    if (how === 'gone') throw await lost(`its QEMU on ${ref.from} ended before the last page of its memory was sent`);
    if (how === 'broken') {
      if (Date.now() - brokenAtMs > recoverMs) throw await lost(`the link between ${ref.from} and ${ref.to} was broken for ${recoverMs / 1000} s before the last page of its memory had come`);
      await sleep(AGAIN_MS);
    } else if (how === 'under-way') brokenAtMs = undefined;
    await waitingEnded();

    async function waitingEnded(): Promise<void> {
      if (said.pages === undefined) await Promise.race([waiting.catch(() => undefined), sleep(AGAIN_MS)]);
    }
  }

  async function mend(): Promise<'completed' | 'under-way' | 'broken' | 'gone'> {
    try {
      return await source.look.resumePages({ ...ref, ...(await destination.look.listenForPages(ref)) });
    } catch (error) {
      if (isCancellation(error)) throw error;
      return 'broken';
    }
  }

  async function lost(why: string): Promise<Error> {
    if ((await fences.asked(ref.to, 'to end its copy, which lacks pages of its memory', () => destination.switchover.endWithoutPages(ref))) === FENCED) return await takenBack();
    const retired = { ref, at: 'source', do: 'retireSource', sourceDisks: 'keep', keepHours: KEEP_HOURS } as const;
    // A host that is away keeps a copy that it may not start.
    await Promise.all([destination.switchover.settleDestination(ref), source.undo.retireSource({ ...ref, ...retired }).catch(() => leaveForLater(retired))]);
    return failure(`guest ${ref.guest} is lost as a running one: ${why}. Its disks are whole on ${ref.to}: start it there (vmferry vm start ${ref.guest}); the copy on ${ref.from} is out of date and must not run`);
  }

  async function takenBack(): Promise<Error> {
    const back = await fences.asked(ref.from, 'to have the guest back', () => source.switchover.reviveSource({ ...ref, instead: { host: ref.to, attempt: ref.attempt } })).catch((error: Error) => error);
    if (back instanceof Error) return back;
    return failure(`guest ${ref.guest} is lost as a running one: ${ref.to}, where it ran, was confirmed fenced${back === FENCED ? `, and so was ${ref.from}` : `. Its disks on ${ref.from} are as they were when it left: start it there (vmferry vm start ${ref.guest})`}`);
  }
}

function failure(message: string): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, 'PostCopyLost');
}
