import { ApplicationFailure, CancellationScope, condition, isCancellation, patched, sleep } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { HandOverPlan, HandOverResult } from '../hypervisor/handover-plan';
import type { Instead } from '../hypervisor/guest-store';
import type { TakeOverResult } from '../hypervisor/takeover';
import { type destinationHost, isAway, type sourceHost } from './activities';
import { answers, FENCED, type Fences } from './fences';
import { allPages } from './last-pages';
import { decideOwner, type DestinationFate, type SourceFate } from './ownership';

/** How long a destination to which everything was handed over may take to load it, beyond the downtime budget; then it is destroyed, and the source runs on. */
const ARRIVAL_MS = 30_000;
/** How long the source may take to say what it did, when the destination has the guest already. */
const SOURCE_SAYS_MS = 30_000;
/** A source that moves memory is silent to us for as long as that takes: whether its agent is there is looked at after this, and then less and less often. */
const FIRST_LOOK_MS = 60_000;
const LONGEST_LOOK_MS = 30 * 60_000;
const HINT_MS = 5_000;

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
 * and makes it so. Throws an `ApplicationFailure` if it crashed on the way. A host that does not answer is waited for, until a person confirms that it is
 * fenced: then a destination counts as dead, and never runs what it may have; a source counts as gone.
 */
export async function switchOver(source: ReturnType<typeof sourceHost>, destination: ReturnType<typeof destinationHost>, ref: MigrationRef, handOver: HandOverPlan, fences: Fences, mending: Mending): Promise<Switchover> {
  const receiving = new CancellationScope();
  const said: Said = {};
  // A cancel of the migration is the source's to answer: the destination goes on until the source has said what happened.
  const receive = CancellationScope.nonCancellable(() => receiving.run(() => destination.switchover.receive(ref))).then((arrived) => void (said.arrived = arrived), (error: unknown) => void (said.failure = error));
  let left: HandOverResult | undefined;
  let leftOver = false;
  const sending = new CancellationScope();
  const leaving = sending.run(() => source.switchover.moveMemory({ ...ref, handOver })).then((result) => (left = result), () => undefined).then(() => (leftOver = true));

  return await CancellationScope.nonCancellable(async () => {
    const switched = await whoseItIs();
    if (switched.where === 'source' || !handOver.settings.postCopy) return switched;
    await allPages(source, destination, ref, () => left?.source === 'post-copy', fences, mending);
    // Every page is there: now it answers, and a guest that was not let run yet is.
    if (switched.arrived.unanswered) await fences.asked(ref.to, 'whether the guest runs', () => destination.switchover.destinationState(ref));
    if (!leftOver) await Promise.race([leaving, sleep(SOURCE_SAYS_MS, { summary: 'the last page has come; what its source says of the pause' })]);
    return { ...switched, left };
  });

  async function whoseItIs(): Promise<Switchover> {
    const looking = new CancellationScope();
    if (patched('look at a silent source')) looking.run(lookAtSource).catch(() => undefined);
    // The destination has the guest: what the source says does not matter any more, if it says anything.
    await condition(() => leftOver || said.arrived !== undefined || fences.has(ref.from));
    looking.cancel();
    fences.answered(ref.from);
    // The source sends pages still; that it is not asked is no loss.
    if (!leftOver && said.arrived && handOver.settings.postCopy) return { where: 'destination', left, arrived: said.arrived };
    if (fences.has(ref.from)) sending.cancel();
    else if (!leftOver) await Promise.race([leaving, sleep(SOURCE_SAYS_MS, { summary: 'the guest has arrived; whether its source says so too' })]);
    if (said.arrived && left?.source !== 'running') return { where: 'destination', left, arrived: said.arrived };

    const sourceFate = await fateOfSource();
    const unproven = left?.source === 'completed' && left.unproven;
    if (sourceFate === 'completed' && !said.failure && !unproven) {
      fences.wait(ref.to, 'whether the guest arrived');
      await Promise.race([receive, sleep(handOver.maxDowntimeMs + ARRIVAL_MS, { summary: 'until the destination has loaded the guest' }), condition(() => fences.has(ref.to))]);
      fences.answered(ref.to);
    }
    if (sourceFate === 'gone' && !said.failure) await Promise.race([receive, sleep('10 seconds', { summary: 'whether the guest arrived before its source ended' })]);
    receiving.cancel();
    await receive;
    return await settle(sourceFate);
  }

  /** Shows that the source is waited for when its agent is away, so that it can be confirmed fenced. */
  async function lookAtSource(): Promise<void> {
    const hint = () => said.failure !== undefined;
    let hinted = false;
    for (let pause = FIRST_LOOK_MS; ; pause = Math.min(pause * 2, LONGEST_LOOK_MS)) {
      // A destination that ends may have lost its source; one that lives says so within a moment.
      if (hinted) await sleep(pause, { summary: `whether ${ref.from} answers still` });
      else if (await condition(hint, pause, { summary: `then looks whether ${ref.from} still answers` })) {
        hinted = true;
        await sleep(HINT_MS, { summary: `before it looks whether ${ref.from} still answers` });
      }
      if (await answers(ref.from, ref.guest, 'glance')) fences.answered(ref.from);
      else fences.wait(ref.from, 'how the hand-over ended');
    }
  }

  /** `moveMemory` says it; else the host is asked, for as long as it takes, unless the guest turns up at the destination. */
  async function fateOfSource(): Promise<SourceFate> {
    // What it can do for the guest is to send pages, if its destination has it.
    if (left) return left.source === 'post-copy' ? 'completed' : left.source;
    const fate = await fences.asked(ref.from, 'how the hand-over ended', () => source.switchover.sourceState(ref), () => said.arrived !== undefined);
    return fate === undefined || fate === FENCED ? 'gone' : fate;
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
          // A source that is fenced meanwhile: its copy is handed over, and nobody starts it.
          await Promise.all([
            fences.asked(ref.to, 'to forget how the guest came', () => destination.switchover.settleDestination(ref)),
            fences.asked(ref.from, 'to put its old copy aside', () => source.switchover.retireSource({ ...ref, sourceDisks: 'keep', keepHours: 24 * 365 })),
          ]);
          throw ApplicationFailure.nonRetryable(`guest ${ref.guest} arrived on ${ref.to} and its QEMU ended there before it was reported: start it on ${ref.to}; the copy on ${ref.from} is out of date and must not run`, 'GuestCrashedAfterMove');
        case 'revive-source':
          if (!(await destroyed())) continue;
          if ((await fences.asked(ref.from, 'to let the guest run on', () => source.switchover.reviveSource({ ...ref, ...instead() }))) === FENCED) throw lost();
          throw ApplicationFailure.nonRetryable(fences.has(ref.to) ? `host ${ref.to} was confirmed fenced before it said whether guest ${ref.guest} had arrived; it runs on ${ref.from}, and the copy on ${ref.to} is retired when that host returns` : `the destination of guest ${ref.guest} died before the guest had arrived; it runs on ${ref.from}`, 'DestinationDied');
        case 'undo': {
          const destroying = fences.has(ref.to) ? Promise.resolve({ destroyed: true }) : destination.undo.destroyIncoming(ref);
          const { destroyed } = sourceFate === 'running' ? await destroying.catch(unreachable) : await destroying;
          if (!destroyed && sourceFate === 'running') throw bothRun();
          if (!destroyed) continue;
          if (fences.has(ref.from)) throw lost();
          if (left?.source === 'running') return { where: 'source', left };
          if (sourceFate === 'running') return { where: 'source', left: { source: 'running', because: 'interrupted', message: 'its agent could not say how the hand-over ended', mirrorsReady: false } };
          throw ApplicationFailure.nonRetryable(`guest ${ref.guest} ended on ${ref.from} while it was moved: start it there (vmferry vm start ${ref.guest})`, 'GuestGone');
        }
      }
    }
  }

  /** R5, for as long as it takes. A fenced host is as good as destroyed. */
  async function destroyed(): Promise<boolean> {
    const answer = await fences.asked(ref.to, 'to end its copy, which has not run', () => destination.switchover.destroyIncoming(ref));
    return answer === FENCED || answer!.destroyed;
  }

  function instead(): { instead?: Instead } {
    return fences.has(ref.to) ? { instead: { host: ref.to, attempt: ref.attempt } } : {};
  }

  function lost(): ApplicationFailure {
    return ApplicationFailure.nonRetryable(`guest ${ref.guest} had not arrived on ${ref.to}, and its only whole copy is on ${ref.from}, which was confirmed fenced. Nothing was thrown away: if that host returns, "vmferry repair ${ref.guest}" gives the guest back to it`, 'GuestGone');
  }

  function bothRun(): ApplicationFailure {
    return ApplicationFailure.nonRetryable(`guest ${ref.guest} runs on ${ref.from}, and ${ref.to} says that it ran there too: stop both, and find out which one is right before one is started (vmferry repair ${ref.guest} --dry-run shows what both have)`, 'OwnershipUnknown');
  }

  async function fateOfDestination(sourceFate: SourceFate): Promise<{ fate: DestinationFate; arrived?: TakeOverResult }> {
    if (said.arrived) return { fate: 'running', arrived: said.arrived };
    // R2: a source that runs could not hand over everything, so the destination cannot be complete, and need not be asked.
    if (sourceFate === 'running') return { fate: 'dead' };
    const state = await fences.asked(ref.to, 'whether the guest arrived', () => destination.switchover.destinationState(ref));
    // A marker may be written there: a person has said that nothing of it runs, nor will.
    if (state === FENCED || state === undefined) return { fate: 'dead' };
    const { alive, marker, guest, unanswered } = state;
    if (marker && alive) return { fate: 'running', arrived: { guest: guest ?? 'running', ...(unanswered && { unanswered }) } };
    return { fate: marker ? 'dead-with-marker' : 'dead' };
  }
}

/** The guest runs on at the source whether or not its destination can be reached: the undo sees to that one. */
function unreachable(error: unknown): { destroyed: boolean } {
  if (isCancellation(error) || isAway(error)) return { destroyed: true };
  throw error;
}
