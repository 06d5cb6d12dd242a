import { allHandlersFinished, ApplicationFailure, CancellationScope, condition, isCancellation, setCurrentDetails, setHandler, sleep, upsertSearchAttributes } from '@temporalio/workflow';
import { anyHost, control, destinationHost, isAway, sourceHost } from './activities';
import { cell, waitDetails } from './details';
import { Fences } from './fences';
import { allPages } from './last-pages';
import { leaveForLater, type UndoneThere } from './finish-cleanup';
import { repairGuestSchema, type RepairGuestInput, type RepairResult, type RepairStatus, repairStatusQuery, SEARCH_ATTRIBUTES } from './messages';
import { decideRepair, describeCopy, keyOf, type Known, type Look, type RepairDecision, type RepairStep } from './repair';
import { innermost } from './steering';

/** How long a destination may take to load what was handed over. */
const ARRIVAL_MS = 30_000;
/** For how long a broken post-copy is tried to be mended. */
const RECOVER_MS = 60_000;
/** Hosts are looked at one beside the other, and a guest may move between two looks: what makes no sense is looked at again. */
const LOOK_AGAIN_MS = 3_000;
const UNCLEAR_LOOKS = 3;
/** Each round does something, and a repair takes five at most. */
const MOST_ROUNDS = 20;

/**
 * Brings order after a migration that was terminated: looks at what every host has of the guest, lets `decideRepair` say what to do next, does it,
 * and looks again, until one copy is the guest and nothing else is anywhere. A host that may run the guest and does not answer is waited for, or
 * for a person who confirms that it is fenced. A second run finds nothing to repair.
 */
export async function repairGuest(raw: RepairGuestInput): Promise<RepairResult> {
  const parsed = repairGuestSchema.safeParse(raw);
  if (!parsed.success) throw ApplicationFailure.nonRetryable(parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'input'}: ${message}`).join('; '), 'RepairRefused');
  const { vm, dryRun } = parsed.data;
  const status: RepairStatus = { vm, found: [], done: [], decisions: [], waitsFor: [] };
  setHandler(repairStatusQuery, () => status);
  const show = () => setCurrentDetails(repairDetails(status));
  const fences = new Fences(vm, status.decisions, (waits) => {
    status.waitsFor = waits;
    show();
  });
  upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.guest, value: vm }]);
  const result = await new Repair(vm, dryRun, status, fences, show).run();
  await CancellationScope.nonCancellable(() => condition(allHandlersFinished));
  return result;
}

class Repair {
  private readonly rested: string[] = [];
  private readonly awaited: string[] = [];
  private readonly lastSaid = new Map<string, string | undefined>();
  private away = new Set<string>();

  constructor(private readonly guest: string, private readonly dryRun: boolean, private readonly status: RepairStatus, private readonly fences: Fences, private readonly show: () => void) {}

  async run(): Promise<RepairResult> {
    const { status } = this;
    for (const { name, lastSaid } of await control.hostsForRepair({ guest: this.guest })) this.lastSaid.set(name, lastSaid);
    let unclear = 0;
    for (let rounds = 0; rounds < MOST_ROUNDS; ) {
      const known = await this.look();
      if (status.found.length === 0) status.found = foundIn(known);
      this.show();
      const decision = decideRepair(known);
      unclear = decision.kind === 'unclear' ? unclear + 1 : 0;
      switch (decision.kind) {
        case 'settled':
          return this.result(status.done.length > 0 ? 'repaired' : 'nothing to repair', decision);
        case 'unclear':
          if (unclear >= UNCLEAR_LOOKS || decision.type !== 'OwnershipUnknown') throw ApplicationFailure.nonRetryable(`${decision.why}.\n${status.found.map(({ host, copy }) => `- ${host}: ${copy}`).join('\n')}`, decision.type);
          await sleep(LOOK_AGAIN_MS);
          break;
        case 'wait':
          if (this.dryRun) return { ...this.result('planned', {}), done: decision.hosts.map((host) => ({ host, step: 'wait', why: decision.why })) };
          await this.wait(decision);
          break;
        case 'act':
          if (this.dryRun) return { ...this.result('planned', decision), done: decision.steps.map(({ host, do: step, why }) => ({ host, step, why })) };
          rounds++;
          for (const step of decision.steps) if (!(await this.tryTo(step, known))) break;
      }
    }
    throw ApplicationFailure.nonRetryable(`the repair of guest ${this.guest} does not come to an end: what is done is not what is seen afterwards. Last was done: ${status.done.slice(-3).map(({ host, step }) => `${step} on ${host}`).join(', ')}`, 'OwnershipUnknown');
  }

  /** Asks every host that is known, all at once; one that does not answer within 10 s, or 2 s if it was away before, is away. */
  private async look(): Promise<Known> {
    const names = [...this.lastSaid.keys()].sort();
    const looks = await Promise.all(
      names.map(async (host): Promise<[string, Look]> => {
        const lastSaid = this.lastSaid.get(host);
        const copy = await anyHost(host)[this.away.has(host) ? 'glance' : 'look'].inspectCopy({ guest: this.guest }).catch((error: unknown) => {
          if (isAway(error)) return undefined;
          throw error;
        });
        return [host, copy ? { answers: true, copy } : { answers: false, ...(lastSaid !== undefined && { lastSaid }) }];
      }),
    );
    this.away = new Set(looks.filter(([, { answers }]) => !answers).map(([host]) => host));
    return { guest: this.guest, hosts: Object.fromEntries(looks), fenced: this.fences.hosts, rested: this.rested, awaited: this.awaited };
  }

  /** Until one of these hosts is back, or was confirmed fenced. Costs no event while nothing happens. */
  private async wait({ hosts, why }: RepairDecision & { kind: 'wait' }): Promise<void> {
    const asking = new CancellationScope();
    const before = this.fences.hosts.length;
    for (const host of hosts) {
      this.fences.wait(host, why);
      // One that no agent was ever heard of is asked too from now on.
      this.lastSaid.set(host, this.lastSaid.get(host));
    }
    const back = asking.run(() => Promise.race(hosts.map((host) => anyHost(host).atLast.inspectCopy({ guest: this.guest }))));
    back.catch(() => undefined);
    try {
      await Promise.race([back, condition(() => this.fences.hosts.length > before)]);
    } finally {
      asking.cancel();
      hosts.forEach((host) => this.fences.answered(host));
    }
  }

  /** False if the host has gone, or what it sees is not what was seen: then it is looked at anew. */
  private async tryTo(step: RepairStep, known: Known): Promise<boolean> {
    const { host, why } = step;
    try {
      const away = !(Object.hasOwn(known.hosts, host) && known.hosts[host]!.answers);
      await (away ? leaveForLater({ ref: step.ref, ...leftoverOf(step) }) : this.do(step));
      this.status.done.push({ host, step: away ? `${step.do}, when it returns` : step.do, why });
      this.show();
      return true;
    } catch (error) {
      if (isCancellation(error)) throw error;
      const type = innermost(error).type ?? '';
      // It is the guest all the same, and may be started.
      if (type === 'PostCopyLost' && step.do === 'reviveSource') {
        this.status.done.push({ host, step: step.do, why: innermost(error).message });
        return true;
      }
      if (!isAway(error) && !['OwnershipUnknown', 'GuestStateError', 'GuestGone', 'DestinationDied'].includes(type)) throw error;
      return false;
    }
  }

  private async do(step: RepairStep): Promise<void> {
    const { host, ref } = step;
    const on = anyHost(host).step;
    switch (step.do) {
      case 'sourceState':
        await on.sourceState(ref);
        this.rested.push(keyOf(ref));
        return;
      case 'receive':
        this.awaited.push(keyOf(ref));
        return await this.receive(step);
      case 'bringPages':
        return await this.bringPages(step);
      case 'destroyIncoming':
        await on.destroyIncoming(ref);
        return;
      case 'reviveSource':
        return await on.reviveSource({ ...ref, ...(step.instead && { instead: step.instead }) });
      case 'removeMirrors':
        return await on.removeMirrors({ ...ref, destinationDestroyed: step.destinationDestroyed, ...(step.instead && { instead: step.instead }) });
      case 'discardDestination':
        return await on.discardDestination(ref);
      case 'settleDestination':
        // One that has its marker, and whose agent died before it let the guest run.
        await on.destinationState(ref);
        return await on.settleDestination(ref);
      case 'retireSource':
        return await on.retireSource({ ...ref, sourceDisks: 'keep', keepHours: step.keepHours });
      case 'retireFenced':
        return await on.retireFenced(ref);
      case 'tidyCopy':
        return await on.tidyCopy({ guest: ref.guest });
    }
  }

  /** Lets a destination load what was handed over, if somebody still does not. */
  private async receive({ host, ref }: RepairStep): Promise<void> {
    const receiving = new CancellationScope();
    const arrival = receiving.run(() => anyHost(host).step.receive(ref)).catch(() => undefined);
    await Promise.race([arrival, sleep(ARRIVAL_MS, { summary: 'until the destination has loaded the guest' })]);
    receiving.cancel();
    await arrival;
  }

  /** Throws `PostCopyLost` if the rest of the memory cannot be had. */
  private async bringPages({ ref }: RepairStep): Promise<void> {
    const tell = (what: string, why: string) => void this.status.decisions.push({ at: new Date().toISOString(), by: 'policy', what, why });
    await allPages(sourceHost(ref.from), destinationHost(ref.to), ref, () => false, this.fences, { recoverMs: RECOVER_MS, tell });
  }

  private result(outcome: RepairResult['outcome'], { owner, state, left = [] }: { owner?: string; state?: string; left?: string[] }): RepairResult {
    const { found, done, decisions } = this.status;
    return { vm: this.guest, outcome, ...(owner !== undefined && { owner }), ...(state !== undefined && { state }), found, done, left, decisions };
  }
}

function foundIn({ hosts }: Known): RepairResult['found'] {
  return Object.entries(hosts).sort(([a], [b]) => (a < b ? -1 : 1)).map(([host, look]) => ({ host, copy: look.answers ? describeCopy(look.copy) : `does not answer${look.lastSaid === undefined ? '' : `; said last: ${look.lastSaid}`}` })).filter(({ copy }) => copy !== 'nothing');
}

/** What a host that is away can do when it returns. */
function leftoverOf(step: RepairStep): UndoneThere {
  switch (step.do) {
    case 'discardDestination':
    case 'settleDestination':
    case 'retireFenced':
      return { at: 'destination', do: step.do };
    case 'retireSource':
      return { at: 'source', do: 'retireSource', sourceDisks: 'keep', keepHours: step.keepHours };
    default:
      throw ApplicationFailure.nonRetryable(`${step.do} cannot be left to ${step.host}, which is away`, 'OwnershipUnknown');
  }
}

/** What the Temporal UI shows of a repair, Markdown. */
function repairDetails({ vm, found, done, decisions, waitsFor }: RepairStatus): string {
  const table = (head: string[], rows: string[][]) => [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.map(cell).join(' | ')} |`)].join('\n');
  return [
    `Repair of **${vm}**`,
    ...waitsFor.map((wait) => waitDetails(vm, wait)),
    ...(found.length > 0 ? [table(['host', 'found'], found.map(({ host, copy }) => [host, copy]))] : []),
    ...(done.length > 0 ? [table(['host', 'done', 'why'], done.map(({ host, step, why }) => [host, step, why]))] : []),
    ...decisions.map(({ at, by, what, why }) => `${at.slice(11, 19)} ${by}: ${what} (${why})`),
  ].join('\n\n');
}
