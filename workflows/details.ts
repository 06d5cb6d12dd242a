import { formatBytes } from '../hypervisor/size';
import { megabytes, seconds } from './convergence';
import type { RemedyName } from './divergence';
import type { CopyProgress, DecisionRecord, HostWait, MigrationRequest, MigrationResult, MigrationStatus } from './messages';
import type { Phase } from './phases';

/** What the Temporal UI shows of a migration beside its status. */
export interface MigrationFacts {
  /** The guest does not run. */
  cold?: true;
  /** With the defaults of its source. */
  request?: MigrationRequest;
  disks?: { sizeBytes: number }[];
  memoryBytes?: number;
  /** On the workflow's clock, while disks are copied. */
  disksDeadlineAtMs?: number;
  /** It is the destination's: nothing is undone any more. */
  arrived?: true;
  /** How it ended, in a sentence. */
  end?: string;
}

/** What happens in each phase of a guest that runs, and what comes next. */
const PHASES: Record<Phase, [now: string, next: string]> = {
  preflight: ['checks both hosts; nothing is changed', 'a slot at both hosts'],
  reserve: ['waits for a slot at both hosts, and room at the destination', 'empty images at the destination'],
  prepare: ['makes empty images at the destination', 'they are opened to be written'],
  export: ['opens the images at the destination', 'the disks are copied; the guest runs on'],
  mirror: ['begins to copy the disks; the guest runs on', 'the copy catches up with the guest'],
  converge: ['copies the disks; the guest runs on', 'the memory, as soon as the rest of the disks fits into the pause'],
  memory: ['sends the memory; at its end the guest pauses once', 'the guest runs at the destination, or, if the pause would be too long, on where it is'],
  switchover: ['hands the guest over', 'the old copy is put away'],
  cleanup: ['puts away what is not needed any more', 'the end'],
};

/** The same of a guest that does not run, where it differs. */
const COLD_PHASES: Partial<Record<Phase, [now: string, next: string]>> = {
  export: ['opens the images at the destination', 'the disks are copied'],
  mirror: ['copies the disks; the guest can be started nowhere meanwhile', 'the guest belongs to the destination'],
};

/** What an operator who is asked may type, and what it does to the guest: docs/divergence.md. */
const CHOICES: Record<RemedyName, [options: string, does: string]> = {
  'lift-limits': ['', 'lifts our own bandwidth cap'],
  nudge: ['', "holds the guest's writes back for up to 0.2 s"],
  'write-blocking': ['', 'each write of the guest waits for its copy from now on'],
  throttle: [' --rate 50MB/s', "limits the guest's writes to this rate, until the move is over"],
  wait: [' --until 1h', 'changes nothing, and lets no deadline pass before then'],
  postpone: [' --until 6h', 'undoes everything and begins again then'],
  abort: ['', 'undoes everything; the guest runs on where it is'],
};

/** The UI (2.42) measures the text before it is laid out, and cuts off the last line. */
export const LAST_LINE = '\u00a0';

/** What the Temporal UI shows of a migration, Markdown: what is to be known first comes first, since the UI shows some 20 lines without scrolling. */
export function currentDetails(status: MigrationStatus, facts: MigrationFacts = {}): string {
  const { vm, from, to, verdict, message, asks, progress, warnings, waitsFor = [] } = status;
  const size = [...(facts.disks ? [plural(facts.disks.length, 'disk'), formatBytes(facts.disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0))] : []), ...(facts.memoryBytes === undefined ? [] : [`${formatBytes(facts.memoryBytes)} of memory`])];
  return [
    [`**${vm}**: ${from ?? '?'} → ${to}`, ...size].join(', '),
    ...(facts.end === undefined ? whereItIs(status, facts) : [facts.end]),
    ...waitsFor.map((wait) => waitDetails(vm, wait)),
    ...(verdict && facts.end === undefined ? [`**${verdict}**: ${message ?? ''}`] : []),
    ...(asks
      ? [table(['you may type, with `--reason …`', 'what it does'], asks.choices.map((choice) => [`\`vmferry steer ${vm} ${choice}${CHOICES[choice][0]}\``, CHOICES[choice][1]]))]
      : []),
    ...(progress && facts.end === undefined ? [progressTable(progress)] : []),
    ...decisionTable(status.decisions),
    ...warnings.map((warning) => `Warning: ${warning}`),
    LAST_LINE,
  ].join('\n\n');
}

function whereItIs({ phase, memoryTry, postponedUntil, asks }: MigrationStatus, { request, disksDeadlineAtMs, cold }: MigrationFacts): string[] {
  if (postponedUntil) return [`**Put off until ${clock(postponedUntil)}**; nothing of it is anywhere until then. Next: it begins again`];
  const [now, next] = (cold && COLD_PHASES[phase]) ?? PHASES[phase];
  const deadline = request && disksDeadlineAtMs !== undefined && phase === 'converge' ? [`Deadline of the disks: ${clock(new Date(disksDeadlineAtMs).toISOString())}, then ${request.atDeadline}`] : [];
  return [
    `Phase **${phase}**${memoryTry > 1 ? `, try ${memoryTry}` : ''}: ${now}`,
    [`Next: ${next}`, ...(request ? [`Pause: at most ${seconds(request.maxDowntimeMs)}`] : []), ...deadline].join('. '),
    ...(asks && request ? [`**You decide, until ${clock(asks.until)}**; without an answer: ${request.afterAsk}`] : request && (phase === 'mirror' || phase === 'converge' || phase === 'memory') ? [WHO_DECIDES[request.onDivergence]] : []),
  ];
}

const WHO_DECIDES = {
  auto: 'If it does not converge vmferry decides (policy `auto`); `vmferry steer` overrules it',
  ask: 'If it does not converge it asks you (policy `ask`)',
  abort: 'If it does not converge it is given up (policy `abort`)',
};

/** How a move ended well. */
export function arrivedWords({ from, to, totalMs, downtimeMs, memoryTries }: MigrationResult): string {
  return `**Done**: the guest is on **${to}**, moved from ${from} in ${seconds(totalMs)}${downtimeMs === undefined ? '' : `, paused for ${seconds(downtimeMs)}`}${memoryTries > 1 ? `, after ${memoryTries} tries to move its memory` : ''}`;
}

/** And how ill; the failure's own words say where the guest is. */
export function failedWords(outcome: string, error: unknown, { from }: MigrationStatus): string {
  return outcome === 'cancelled' ? `**Cancelled**: the guest stays on ${from ?? 'its host'}` : `**${outcome}**: ${(error as Error).message.replaceAll('\n', '\n\n')}`;
}

/** In the words of `vmferry fence`. */
export function waitDetails(vm: string, { host, why, since }: HostWait): string {
  return `**Waits for host ${host}** since ${clock(since)}: ${why}. Start its agent. Only if that machine is off, or cut from disks and network: \`vmferry fence ${host} --vm ${vm} --reason …\``;
}

function progressTable({ at, disks = [], memory }: CopyProgress): string {
  const numbers = (remaining: number, all: number, copied: number, dirtied: number) => [megabytes(remaining), megabytes(all), `${megabytes(copied)}/s`, `${megabytes(dirtied)}/s`].map((text) => text.replace(' ', '\u00a0'));
  const rows = disks.map(({ id, remainingBytes, lengthBytes, ready, copyBytesPerSecond, dirtyBytesPerSecond, etaMs }) => [id, ...numbers(remainingBytes, lengthBytes, copyBytesPerSecond, dirtyBytesPerSecond), ready ? 'ready' : etaMs === null ? 'never' : seconds(etaMs).replace(' ', '\u00a0')]);
  if (memory) rows.push(['memory', ...numbers(memory.remainingBytes, memory.totalBytes, memory.bytesPerSecond, memory.dirtyBytesPerSecond), '']);
  return `${table([`at ${at.slice(11, 19)}`, 'remain', 'of', 'copied', 'dirtied', 'done in'], rows)}\n\nThe tab *Pending Activities* has these numbers as of now`;
}

/** The last ten. */
export function decisionTable(decisions: DecisionRecord[]): string[] {
  return decisions.length === 0 ? [] : [table(['when', 'who decided', 'what', 'why'], decisions.slice(-10).map(({ at, by, what, why }) => [at.slice(11, 19), by, what, why]))];
}

/** `2026-11-24 14:38:15 UTC`. */
export function clock(iso: string): string {
  return `${iso.slice(0, 10)} ${iso.slice(11, 19)} UTC`;
}

export const plural = (count: number, what: string) => `${count} ${what}${count === 1 ? '' : 's'}`;

/** A Markdown table. */
export function table(head: string[], rows: string[][]): string {
  return [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.map(cell).join(' | ')} |`)].join('\n');
}

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
