import { ActivityFailure, ApplicationFailure, CancellationScope, condition, isCancellation, sleep, TimeoutFailure } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { HandOverPlan, HandOverResult } from '../hypervisor/handover';
import type { TakeOverResult } from '../hypervisor/takeover';
import type { destinationHost, sourceHost } from './activities';
import { allPages } from './last-pages';
import { decideOwner, type DestinationFate, type SourceFate } from './ownership';

/** How long a destination to which everything was handed over may take to load it, beyond the downtime budget; then it is destroyed, and the source runs on. */
const ARRIVAL_MS = 30_000;
/** How long the source may take to say what it did, when the destination has the guest already. */
const SOURCE_SAYS_MS = 30_000;

export type Switchover = { where: 'destination'; left: HandOverResult | undefined; arrived: TakeOverResult } | { where: 'source'; left: HandOverResult & { source: 'running' } };

/** Post-copy: how long a broken connection may last, and where it is told what is done about one. */
export interface Mending {
  recoverMs: number;
  tell: (what: string, why: string) => void;
}

/** What the destination says; `unknown` is asked again. */
type Said = { arrived?: TakeOverResult; failure?: unknown };

/**
 * Runs both halves of the switchover at once, which talk to QEMU and to each other, not to us; then says, by the table of R4, whose guest it is,
 * and makes it so. Throws an `ApplicationFailure` if it crashed on the way.
 */
export async function switchOver(source: ReturnType<typeof sourceHost>, destination: ReturnType<typeof destinationHost>, ref: MigrationRef, handOver: HandOverPlan, mending: Mending): Promise<Switchover> {
  const receiving = new CancellationScope();
  const said: Said = {};
  // A cancel of the migration is the source's to answer: the destination goes on until the source has said what happened.
  const receive = CancellationScope.nonCancellable(() => receiving.run(() => destination.switchover.receive(ref))).then((arrived) => void (said.arrived = arrived), (error: unknown) => void (said.failure = error));
  let left: HandOverResult | undefined;
  let leftOver = false;
  const leaving = source.switchover.moveMemory({ ...ref, handOver }).then((result) => (left = result), () => undefined).then(() => (leftOver = true));

  return await CancellationScope.nonCancellable(async () => {
    const switched = await whoseItIs();
    if (switched.where === 'source' || !handOver.settings.postCopy) return switched;
    await allPages(source, destination, ref, () => left?.source === 'post-copy', mending);
    if (!leftOver) await Promise.race([leaving, sleep(SOURCE_SAYS_MS, { summary: 'the last page has come; what its source says of the pause' })]);
    return { ...switched, left };
  });

  async function whoseItIs(): Promise<Switchover> {
    // The destination has the guest: what the source says does not matter any more, if it says anything.
    await condition(() => leftOver || said.arrived !== undefined);
    // The source sends pages still; that it is not asked is no loss.
    if (!leftOver && handOver.settings.postCopy) return { where: 'destination', left, arrived: said.arrived! };
    if (!leftOver) await Promise.race([leaving, sleep(SOURCE_SAYS_MS, { summary: 'the guest has arrived; whether its source says so too' })]);
    if (said.arrived && left?.source !== 'running') return { where: 'destination', left, arrived: said.arrived };

    const sourceFate = await fateOfSource();
    const unproven = left?.source === 'completed' && left.unproven;
    if (sourceFate === 'completed' && !said.failure && !unproven) await Promise.race([receive, sleep(handOver.maxDowntimeMs + ARRIVAL_MS, { summary: 'until the destination has loaded the guest' })]);
    if (sourceFate === 'gone' && !said.failure) await Promise.race([receive, sleep('10 seconds', { summary: 'whether the guest arrived before its source ended' })]);
    receiving.cancel();
    await receive;
    return await settle(sourceFate);
  }

  /** `moveMemory` says it; else the host is asked, for as long as it takes, unless the guest turns up at the destination. */
  async function fateOfSource(): Promise<SourceFate> {
    // What it can do for the guest is to send pages, if its destination has it.
    if (left) return left.source === 'post-copy' ? 'completed' : left.source;
    let fate: SourceFate | undefined;
    const asking = source.switchover.sourceState(ref).then((state) => (fate = state));
    asking.catch(() => undefined);
    await Promise.race([asking, condition(() => said.arrived !== undefined)]);
    return fate ?? 'gone';
  }

  async function settle(sourceFate: SourceFate): Promise<Switchover> {
    for (;;) {
      const { fate, arrived } = await fateOfDestination(sourceFate);
      // R2 makes this impossible; if QEMU breaks its promise nobody may decide but a person.
      if (sourceFate === 'running' && fate === 'running') throw bothRun();
      switch (decideOwner(sourceFate, fate)) {
        case 'done':
          return { where: 'destination', left, arrived: arrived! };
        case 'crashed-after-move':
          await Promise.all([destination.switchover.settleDestination(ref), source.switchover.retireSource({ ...ref, sourceDisks: 'keep', keepHours: 24 * 365 })]);
          throw ApplicationFailure.nonRetryable(`guest ${ref.guest} arrived on ${ref.to} and its QEMU ended there before it was reported: start it on ${ref.to}; the copy on ${ref.from} is out of date and must not run`, 'GuestCrashedAfterMove');
        case 'revive-source':
          if (!(await destination.switchover.destroyIncoming(ref)).destroyed) continue;
          await source.switchover.reviveSource(ref);
          throw ApplicationFailure.nonRetryable(`the destination of guest ${ref.guest} died before the guest had arrived; it runs on ${ref.from}`, 'DestinationDied');
        case 'undo': {
          const destroying = destination.undo.destroyIncoming(ref);
          const { destroyed } = sourceFate === 'running' ? await destroying.catch(unreachable) : await destroying;
          if (!destroyed && sourceFate === 'running') throw bothRun();
          if (!destroyed) continue;
          if (left?.source === 'running') return { where: 'source', left };
          if (sourceFate === 'running') return { where: 'source', left: { source: 'running', because: 'interrupted', message: 'its agent could not say how the hand-over ended', mirrorsReady: false } };
          throw ApplicationFailure.nonRetryable(`guest ${ref.guest} ended on ${ref.from} while it was moved: start it there (vmferry vm start ${ref.guest})`, 'GuestGone');
        }
      }
    }
  }

  function bothRun(): ApplicationFailure {
    return ApplicationFailure.nonRetryable(`guest ${ref.guest} runs on ${ref.from}, and ${ref.to} says that it ran there too: stop both, and find out which one is right before one is started`, 'OwnershipUnknown');
  }

  async function fateOfDestination(sourceFate: SourceFate): Promise<{ fate: DestinationFate; arrived?: TakeOverResult }> {
    if (said.arrived) return { fate: 'running', arrived: said.arrived };
    // R2: a source that runs could not hand over everything, so the destination cannot be complete, and need not be asked.
    if (sourceFate === 'running') return { fate: 'dead' };
    const { alive, marker, guest } = await destination.switchover.destinationState(ref);
    if (marker && alive) return { fate: 'running', arrived: { guest: guest ?? 'running' } };
    return { fate: marker ? 'dead-with-marker' : 'dead' };
  }
}

/** The guest runs on at the source whether or not its destination can be reached: the undo sees to that one. */
function unreachable(error: unknown): { destroyed: boolean } {
  if (isCancellation(error) || (error instanceof ActivityFailure && error.cause instanceof TimeoutFailure)) return { destroyed: true };
  throw error;
}
