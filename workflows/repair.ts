import type { MigrationRef } from '../activities/context';
import type { CopyReport } from '../hypervisor/copy-report';
import type { Instead } from '../hypervisor/guest-store';
import { decideOwner, type SourceFate } from './ownership';

/** What a host says of the guest, or that it says nothing; then what it had said last. */
export type Look = { answers: true; copy: CopyReport } | { answers: false; lastSaid?: string };

/** All that a repair goes by. */
export interface Known {
  guest: string;
  hosts: Record<string, Look>;
  /** Confirmed fenced. One that answers all the same is believed instead. */
  fenced: readonly string[];
  /** Attempts whose source was brought to rest by this repair: its migration has ended, one way or the other. */
  rested: readonly string[];
  /** Attempts whose destination was given the time to load what was handed over. */
  awaited: readonly string[];
}

/** One thing to do on one host, by an activity that is idempotent and looks again before it acts. One on a host that is away is done when it returns. */
export type RepairStep = { host: string; ref: MigrationRef; why: string } & (
  | { do: 'sourceState' | 'receive' | 'bringPages' | 'destroyIncoming' | 'discardDestination' | 'settleDestination' | 'retireFenced' | 'tidyCopy' }
  | { do: 'reviveSource'; instead?: Instead }
  | { do: 'removeMirrors'; destinationDestroyed: boolean; instead?: Instead }
  | { do: 'retireSource'; keepHours: number }
);

export type RepairDecision =
  /** Do these, in this order, and look again. `owner` as soon as it is known. */
  | { kind: 'act'; steps: RepairStep[]; owner?: string }
  /** Only these hosts can say how it goes on, or a person who knows that they are off. */
  | { kind: 'wait'; hosts: string[]; why: string }
  /** One copy is the guest, and nothing of a migration is anywhere; but what is in `left`, which nobody may throw away by itself. */
  | { kind: 'settled'; owner: string; state: string; left: string[]; why: string }
  /** Nothing may be done by itself. */
  | { kind: 'unclear'; type: 'OwnershipUnknown' | 'HostUnreachable' | 'NotFound' | 'GuestGone'; why: string };

/** How long the images of a copy are kept that is out of date: the default of a migration, and more if the guest does not run where it went. */
const KEEP_HOURS = 24;
const KEEP_LONG_HOURS = 24 * 365;

/**
 * What to do next for a guest whose migration was terminated. Pure and deterministic. It makes a copy startable only if no other could run:
 * each host that may have one answers, or was confirmed fenced. It throws a copy away only if another is the guest.
 */
export function decideRepair(known: Known): RepairDecision {
  const owners = hostsWhere(known, (copy) => copy.ownership?.state === 'owner');
  const replaced = owners.filter((host) => owners.some((other) => replaces(known, other, host)));
  const left = owners.filter((host) => !replaced.includes(host));
  if (left.length > 1 || (owners.length > 0 && left.length === 0)) return unclear(`${owners.join(' and ')} each say that their copy of guest ${known.guest} is the guest: stop all but the right one, find out which has the newest data, and remove the others (vmferry vm remove)`);
  return left.length === 1 ? withOwner(known, left[0]!, replaced) : withoutOwner(known);
}

/** One copy is startable, so no other is (R10): whatever else is there is of an attempt that failed, or out of date. */
function withOwner(known: Known, owner: string, replaced: string[]): RepairDecision {
  const { guest } = known;
  const own = copyOn(known, owner)!;
  const act = (...steps: RepairStep[]): RepairDecision => ({ kind: 'act', steps, owner });
  const runs = hostsWhere(known, (copy, host) => host !== owner && !replaced.includes(host) && copy.qemu?.answers === true && copy.qemu.running);
  if (runs.length > 0) return unclear(`guest ${guest} is ${owner}'s, and a copy that is not the guest runs on ${runs.join(' and ')} too: stop that one before anything else`);

  if (own.attempt?.role === 'source') {
    const ref = { guest, attempt: own.attempt.attempt, from: owner, to: own.attempt.peer };
    if (own.qemu?.answers === false) return unclear(`the QEMU of guest ${guest} on ${owner} does not answer (${own.qemu.problem}): free its monitor, or end it`);
    if (own.qemu && !known.rested.includes(keyOf(ref))) return act({ do: 'sourceState', host: owner, ref, why: 'no migration of it may be under way while this looks' });
    const there = copyOn(known, ref.to);
    // R5, though the guest is the source's: a destination that is gone cannot come to life.
    if (there && isArriving(there, ref.attempt) && there.qemu) return act({ do: 'destroyIncoming', host: ref.to, ref, why: `the guest stays on ${owner}, and has not run here` });
    return act(
      // What is known of a host that is away is known only until the record goes.
      ...(isAway(known, ref.to) ? [{ do: 'discardDestination' as const, host: ref.to, ref, why: `attempt ${ref.attempt} is over, and the guest stays on ${owner}` }] : []),
      { do: 'removeMirrors', host: owner, ref, destinationDestroyed: false, why: `attempt ${ref.attempt} to move it to ${ref.to} is over: its jobs, nodes and limits go, the guest stays` },
    );
  }

  const steps: RepairStep[] = [];
  const notes: string[] = [];
  const keepHours = own.qemu ? KEEP_HOURS : KEEP_LONG_HOURS;
  if (own.attempt) {
    const ref = { guest, attempt: own.attempt.attempt, from: own.attempt.peer, to: owner };
    if (lacksPages(known, own, ref.from)) {
      if (isSilent(known, ref.from)) return { kind: 'wait', hosts: [ref.from], why: `guest ${guest} runs on ${owner} and may lack pages of its memory that only ${ref.from} has (post-copy)` };
      return act({ do: 'bringPages', host: owner, ref, why: `it runs here without all of its memory: ${ref.from} sends the rest, or it is lost as a running one` });
    }
    if (isAway(known, ref.from)) steps.push({ do: 'retireSource', host: ref.from, ref, keepHours, why: `the guest arrived on ${owner}: the copy that it left is out of date` });
    steps.push({ do: 'settleDestination', host: owner, ref, why: 'the guest arrived here, and nobody has said so' });
  } else if (own.guard || own.storageDaemon || (own.qemu?.answers && own.qemu.ours.length > 0)) {
    steps.push({ do: 'tidyCopy', host: owner, ref: { guest, attempt: own.ownership?.state === 'owner' ? (own.ownership.attempt ?? '') : '', from: owner, to: owner }, why: 'it has things of a migration that is over' });
  }
  for (const host of Object.keys(known.hosts).sort()) {
    const copy = copyOn(known, host);
    if (host === owner || !copy) continue;
    const step = stepForOther(known, owner, host, copy, keepHours);
    if (typeof step === 'string') notes.push(`${host}: ${step}`);
    else if (step) steps.push(step);
  }
  return steps.length > 0 ? act(...steps) : { kind: 'settled', owner, state: !own.qemu ? 'stopped' : own.qemu.answers ? own.qemu.runState : 'its monitor does not answer', left: notes, why: `its copy on ${owner} is the guest: ${describeCopy(own)}` };
}

/** What becomes of a copy that is not the guest; words, if it is left alone. */
function stepForOther(known: Known, owner: string, host: string, copy: CopyReport, keepHours: number): RepairStep | string | undefined {
  const { guest } = known;
  const { ownership, attempt } = copy;
  if (ownership?.state === 'owner') {
    const ref = { guest, attempt: ownership.attempt!, from: owner, to: host };
    return { do: 'retireFenced', host, ref, why: `${host} was confirmed fenced, and the guest was given back to ${owner} instead` };
  }
  if (ownership?.state === 'handed-over') {
    if (!isPassedOnTo(known, host, owner)) return `its copy was handed over to ${ownership.to} by attempt ${ownership.attempt}, and nothing says that the guest on ${owner} came from it: left alone`;
    // The guest runs there without all of its memory: it would die with this QEMU.
    if (sendsPages(copy) && copyOn(known, owner)!.qemu) return `its QEMU has pages of the memory of guest ${guest} still that ${owner} has not got (post-copy): left alone; repair again when its migration is completed`;
    return { do: 'retireSource', host, ref: { guest, attempt: ownership.attempt, from: host, to: ownership.to }, keepHours, why: `the guest is ${owner}'s: this copy was handed over, and is out of date` };
  }
  const arriving = arrivalOf(copy);
  if (arriving) {
    const from = known.hosts[arriving.from];
    const there = copyOn(known, arriving.from);
    const handedOverHere = there?.ownership?.state === 'handed-over' && there.ownership.attempt === arriving.attempt;
    // Its source may have handed everything over, to a host whose copy is not the one that we take for the guest.
    if (arriving.from !== owner && (!from?.answers || handedOverHere)) return `a copy is on its way from ${arriving.from} by attempt ${arriving.attempt}, though ${owner} has the guest: left alone`;
    return { do: 'discardDestination', host, ref: { guest, attempt: arriving.attempt, from: arriving.from, to: host }, why: `the guest is ${owner}'s, and this copy never ran` };
  }
  return attempt || copy.qemu ? 'something of the guest is there that no migration leaves: left alone' : undefined;
}

/** No copy that answers is startable: the guest was handed over, and has not arrived where we can see it. */
function withoutOwner(known: Known): RepairDecision {
  const { guest } = known;
  const runs = hostsWhere(known, (copy) => copy.qemu?.answers === true && copy.qemu.running && copy.ownership?.state !== 'handed-over');
  if (runs.length > 0) return unclear(`a copy of guest ${guest} runs on ${runs.join(' and ')} that may not: nothing is done before it was looked at`);
  const handedOver = hostsWhere(known, (copy) => copy.ownership?.state === 'handed-over');
  // The last of a chain: the others are out of date.
  const tips = handedOver.filter((host) => !handedOver.includes(peerOf(known, host)));
  if (tips.length === 1) return lastHandedOver(known, tips[0]!);
  if (handedOver.length > 0) {
    const away = [...new Set(tips.map((host) => peerOf(known, host)))].filter((host) => isSilent(known, host));
    if (away.length > 0) return { kind: 'wait', hosts: away.sort(), why: `guest ${guest} was handed over more than once, and only ${away.join(' and ')} can say which copy is the last` };
    return unclear(`guest ${guest} was handed over by ${handedOver.join(' and ')}, and nobody can say which was the last`);
  }
  return onlyArriving(known);
}

/** `source` handed the guest over, and is the last that is known to have had it. */
function lastHandedOver(known: Known, source: string): RepairDecision {
  const { guest } = known;
  const here = copyOn(known, source)!;
  const runs = hostsWhere(known, (copy, host) => host !== source && copy.qemu?.answers === true && copy.qemu.running);
  if (runs.length > 0) return unclear(`a copy of guest ${guest} that is out of date runs on ${runs.join(' and ')}: stop that one before anything else`);
  const { attempt, to } = here.ownership as { attempt: string; to: string };
  const ref = { guest, attempt, from: source, to };
  const act = (...steps: RepairStep[]): RepairDecision => ({ kind: 'act', steps });
  if (here.qemu?.answers === false) return unclear(`the QEMU of guest ${guest} on ${source} does not answer (${here.qemu.problem}): free its monitor, or end it`);
  if (here.qemu && !known.rested.includes(keyOf(ref))) return act({ do: 'sourceState', host: source, ref, why: 'only its QEMU can say whether everything was handed over' });
  const fate: SourceFate | undefined = !here.qemu ? 'gone' : here.qemu.outgoing === 'completed' || sendsPages(here) ? 'completed' : undefined;
  if (!fate) return unclear(`the copy of guest ${guest} on ${source} is marked as handed over, and its QEMU says neither that it was nor that it was not (${describeCopy(here)}): look again`);

  const there = copyOn(known, to);
  const away = isAway(known, to);
  if (there && isArriving(there, attempt)) {
    if (there.qemu?.answers && !known.awaited.includes(keyOf(ref))) return act({ do: 'receive', host: to, ref, why: 'everything was handed over to it: it may load that, and run' });
    // It has not arrived, and nobody else can have had it since.
    if (there.qemu) {
      return act({ do: 'destroyIncoming', host: to, ref, why: `it did not load what was handed over: before ${source} runs it again, this copy must be gone (R5)` });
    }
    return act(...giveBack(ref, fate, undefined));
  }
  if (!away) {
    const elsewhere = hostsThatMayHaveIt(known, [source, to]);
    if (elsewhere.silent.length > 0) return { kind: 'wait', hosts: elsewhere.silent, why: `guest ${guest} was handed over to ${to}, which has nothing of it any more; ${elsewhere.silent.join(' and ')} had said to have it` };
    return unclear(`guest ${guest} was handed over by ${source} to ${to}, which has nothing of it any more, and no other host has it: nobody can say whether it ran there since. Nothing was thrown away`);
  }
  if (!known.fenced.includes(to)) return { kind: 'wait', hosts: [to], why: `guest ${guest} was handed over to it by ${source}: only it can say whether the guest ran there` };
  // A person has said that nothing of it runs there. It may have been passed on from there before.
  const elsewhere = hostsThatMayHaveIt(known, [source, to]);
  if (elsewhere.silent.length > 0) return { kind: 'wait', hosts: elsewhere.silent, why: `${to} is fenced, and ${elsewhere.silent.join(' and ')} had said to have guest ${guest}` };
  if (elsewhere.fenced.length > 0) return unclear(`guest ${guest} may have run on ${elsewhere.fenced.join(' and ')} after ${source} had handed it over: the copy on ${source} may be old, and is not started by itself`);
  return act(...giveBack(ref, fate, { host: to, attempt }), { do: 'retireFenced', host: to, ref, why: `it was confirmed fenced: its copy must not run when it returns, since ${source} runs the guest` });
}

/** The destination is proven dead, or fenced: the source gets the guest back. */
function giveBack(ref: MigrationRef, fate: SourceFate, instead: Instead | undefined): RepairStep[] {
  const because = instead ? `${instead.host} was confirmed fenced` : `the copy on ${ref.to} is dead and never ran`;
  const common = { host: ref.from, ref, ...(instead && { instead }) };
  return [
    ...(decideOwner(fate, 'dead') === 'revive-source' ? [{ ...common, do: 'reviveSource' as const, why: `${because}: this copy has everything, and runs on` }] : []),
    { ...common, do: 'removeMirrors', destinationDestroyed: true, why: fate === 'gone' ? `${because}: this copy is the guest again, to be started here` : 'the attempt is over' },
  ];
}

/** No host that answers ever had the guest: it was on its way there. */
function onlyArriving(known: Known): RepairDecision {
  const { guest } = known;
  const arriving = Object.keys(known.hosts).sort().flatMap((host) => {
    const copy = copyOn(known, host);
    const arrival = copy && arrivalOf(copy);
    return copy && arrival ? [{ host, copy, ref: { guest, attempt: arrival.attempt, from: arrival.from, to: host } }] : [];
  });
  const waiting = arriving.find(({ copy, ref }) => copy.qemu?.answers && !known.awaited.includes(keyOf(ref)));
  if (waiting) return { kind: 'act', steps: [{ do: 'receive', host: waiting.host, ref: waiting.ref, why: 'it may have everything already: then the guest is here' }] };
  const sources = [...new Set(arriving.map(({ ref }) => ref.from))].sort();
  const silent = sources.filter((host) => isSilent(known, host));
  if (silent.length > 0) return { kind: 'wait', hosts: silent, why: `guest ${guest} was on its way from ${silent.join(' and ')}, and has not arrived: it is there, if anywhere` };
  if (sources.some((host) => known.fenced.includes(host) && isAway(known, host))) return { kind: 'unclear', type: 'GuestGone', why: `guest ${guest} had not arrived on ${arriving.map(({ host }) => host).join(' or ')}, and its only whole copy is on ${sources.join(' or ')}, which was confirmed fenced. Nothing was thrown away: repair again if that host returns` };
  if (arriving.length > 0) return unclear(`guest ${guest} was on its way from ${sources.join(' and ')} to ${arriving.map(({ host }) => host).join(' and ')}, and is not there any more: what arrived is incomplete, and left alone`);
  const elsewhere = hostsThatMayHaveIt(known, []);
  const away = [...elsewhere.silent, ...elsewhere.fenced].sort();
  if (away.length > 0) return { kind: 'unclear', type: 'HostUnreachable', why: `guest ${guest} is on ${away.join(' or ')}, by what was said last, and no agent answers there: start it. Nothing was changed` };
  return { kind: 'unclear', type: 'NotFound', why: `no host has a guest "${guest}" (asked were: ${Object.keys(known.hosts).sort().join(', ') || 'none; start an agent'})` };
}

/** Names an attempt at its source, for what was done about it already. */
export function keyOf({ attempt, from }: MigrationRef): string {
  return `${attempt} ${from}`;
}

/** A copy in words, for people. */
export function describeCopy({ defined, ownership, attempt, qemu, storageDaemon, guard, kept }: CopyReport): string {
  const whose = !ownership ? (defined ? 'nobody has said whose it is' : undefined) : ownership.state === 'owner' ? 'is the guest' : ownership.state === 'incoming' ? `on its way from ${ownership.from} (attempt ${ownership.attempt})` : `handed over to ${ownership.to} (attempt ${ownership.attempt})`;
  const process = !qemu ? (defined ? 'not running' : undefined) : !qemu.answers ? `QEMU does not answer: ${qemu.problem}` : `QEMU is ${qemu.runState}${qemu.outgoing === 'none' ? '' : `, its migration ${qemu.outgoing}`}${qemu.ours.length > 0 ? `, with ${qemu.ours.join(', ')}` : ''}`;
  const record = attempt && `attempt ${attempt.attempt} ${attempt.role === 'source' ? `to ${attempt.peer}` : `from ${attempt.peer}`} on record`;
  const images = kept.length > 0 && `kept images of attempt ${kept.map((one) => one.attempt).join(', ')}`;
  return [whose, process, record, storageDaemon && 'a storage daemon', guard && 'a guard', images].filter(Boolean).join('; ') || 'nothing';
}

/** What is there of a guest; undefined too if the host does not answer. */
function copyOn({ hosts }: Known, host: string): CopyReport | undefined {
  const look = Object.hasOwn(hosts, host) ? hosts[host] : undefined;
  if (!look?.answers) return undefined;
  const { defined, ownership, attempt, qemu } = look.copy;
  // Without a definition nothing can be started: what a crash left of a copy that was being forgotten.
  return defined || attempt || qemu || ownership?.state === 'incoming' ? look.copy : undefined;
}

function hostsWhere(known: Known, is: (copy: CopyReport, host: string) => boolean): string[] {
  return Object.keys(known.hosts).sort().filter((host) => {
    const copy = copyOn(known, host);
    return copy !== undefined && is(copy, host);
  });
}

/** Whether its QEMU is one end of a post-copy that is under way: `query-migrate` says the same at both. */
function sendsPages({ qemu }: CopyReport): boolean {
  return qemu?.answers === true && (qemu.outgoing === 'post-copy' || qemu.outgoing === 'post-copy-paused');
}

/** Whether the guest runs here, come by post-copy, and memory of it is missing. A QEMU that waits for a page may not answer: then it may be so. */
function lacksPages(known: Known, own: CopyReport, from: string): boolean {
  if (own.qemu?.answers) return sendsPages(own);
  const there = copyOn(known, from);
  return own.qemu !== undefined && (there ? sendsPages(there) : isAway(known, from));
}

/** Hosts that nobody knows count as away: they have no agent. */
function isAway({ hosts }: Known, host: string): boolean {
  return !(Object.hasOwn(hosts, host) && hosts[host]!.answers);
}

function isSilent(known: Known, host: string): boolean {
  return isAway(known, host) && !known.fenced.includes(host);
}

/** Hosts that are away, and that had said to have the guest themselves. */
function hostsThatMayHaveIt(known: Known, but: string[]): { silent: string[]; fenced: string[] } {
  const away = Object.keys(known.hosts).sort().filter((host) => {
    const look = known.hosts[host]!;
    return !but.includes(host) && !look.answers && look.lastSaid !== undefined && !/^(arriving|handed over)/.test(look.lastSaid);
  });
  return { silent: away.filter((host) => isSilent(known, host)), fenced: away.filter((host) => !isSilent(known, host)) };
}

/** Whether the owner was given the guest in place of what `host` has. */
function replaces(known: Known, owner: string, host: string): boolean {
  const mine = copyOn(known, owner)?.ownership;
  const other = copyOn(known, host)?.ownership;
  return mine?.state === 'owner' && other?.state === 'owner' && other.attempt !== undefined && mine.instead?.host === host && mine.instead.attempt === other.attempt;
}

function arrivalOf({ ownership, attempt }: CopyReport): { attempt: string; from: string } | undefined {
  if (ownership?.state === 'incoming') return { attempt: ownership.attempt, from: ownership.from };
  return !ownership && attempt?.role === 'destination' ? { attempt: attempt.attempt, from: attempt.peer } : undefined;
}

function isArriving(copy: CopyReport, attempt: string): boolean {
  return arrivalOf(copy)?.attempt === attempt;
}

function peerOf(known: Known, host: string): string {
  return (copyOn(known, host)!.ownership as { to: string }).to;
}

/** Whether a copy that was handed over led to the owner's: through others that are there still, or to a guest that came by a migration. */
function isPassedOnTo(known: Known, host: string, owner: string): boolean {
  const own = copyOn(known, owner)!.ownership;
  if (own?.state === 'owner' && own.attempt !== undefined) return true;
  const seen = new Set<string>();
  for (let at = host; !seen.has(at); ) {
    seen.add(at);
    const ownership = copyOn(known, at)?.ownership;
    if (ownership?.state !== 'handed-over') return at === owner;
    at = ownership.to;
  }
  return false;
}

function unclear(why: string): RepairDecision {
  return { kind: 'unclear', type: 'OwnershipUnknown', why };
}
