import { formatBytes } from '../hypervisor/size';
import { PHASES } from '../workflows/phases';
import type { DecisionRecord } from '../workflows/messages';
import type { MigrationView } from './migration-client';
import { WAIT_SHOWN_MS } from './progress';
import { formatDuration } from './quantities';
import { type Line, plain, type Span, wrap } from './terminal';

/** How far one thing is that is copied: a disk, or the memory. Within one try it never goes back. */
interface Copied {
  /** Counts from 1. */
  try: number;
  /** Shown so far, 0 to 1. */
  share: number;
  /** All that this try has copied, also what it copied again. */
  copiedBytes: number;
  totalBytes: number;
  remainingBytes: number;
}

/** What was shown of a migration, and what the next picture must not fall behind. */
export interface Shown {
  disks: Record<string, Copied>;
  memory?: Copied;
}

export interface Room {
  columns: number;
  rows: number;
  nowMs: number;
}

type Disk = NonNullable<MigrationView['disks']>[number];
type Memory = NonNullable<MigrationView['memory']>;

/** Until it is done. */
const ALMOST = 0.99;
/** Of an estimate and of a rate, so that bars keep their length while numbers come and go. */
const LEAST_CELLS = [10, 10];
const LONGEST_BAR = 30;
const SHORTEST_BAR = 6;
/** Of a name, on a terminal that is narrow, and on one that is not. */
const LONGEST_NAMES = [14, 26] as const;
const NARROW = 70;
const MOST_ROWS_OF_A_NOTE = 3;
const LEAST_NOTES = 4;
/** Longer estimates say nothing. */
const LONGEST_ESTIMATE_MS = 24 * 3_600_000;

const after = (view: MigrationView, phase: (typeof PHASES)[number]) => PHASES.indexOf(view.phase as never) >= PHASES.indexOf(phase);

/** What is shown once this view is. Pure. */
export function advance(before: Shown | undefined, view: MigrationView): Shown {
  const disks: Shown['disks'] = { ...before?.disks };
  for (const disk of view.disks ?? []) {
    if (isKnown(disk.lengthBytes, disk.remainingBytes)) disks[disk.id] = diskCopied(disks[disk.id], disk);
  }
  // The memory moves only when all were ready.
  if (after(view, 'memory') && view.disks === undefined) for (const [id, disk] of Object.entries(disks)) disks[id] = { ...disk, share: 1 };
  const memory = view.memory && isKnown(view.memory.totalBytes, view.memory.remainingBytes) ? memoryCopied(before?.memory, view.memory, Math.max(1, view.memoryTry)) : before?.memory;
  return { disks, ...(memory && { memory }) };
}

const isKnown = (total: number, remaining: number) => Number.isFinite(total) && total > 0 && Number.isFinite(remaining) && remaining >= 0;

/** A mirror that is made anew has copied less than the one before. One that is only re-armed is as good as ready: it copies nothing again. */
function diskCopied(before: Copied | undefined, { lengthBytes, remainingBytes, ready }: Disk): Copied {
  const copiedBytes = Math.max(0, lengthBytes - remainingBytes);
  const anew = before !== undefined && !ready && copiedBytes < before.copiedBytes && lengthBytes >= before.totalBytes / 2;
  const share = ready ? 1 : Math.min(ALMOST, copiedBytes / lengthBytes);
  const same = anew ? undefined : before;
  return { try: (before?.try ?? 1) + (anew ? 1 : 0), share: Math.max(same?.share ?? 0, share), copiedBytes: Math.max(same?.copiedBytes ?? 0, copiedBytes), totalBytes: Math.max(same?.totalBytes ?? 0, lengthBytes), remainingBytes };
}

/** Remaining memory is a saw: it jumps up whenever QEMU looks at what the guest has dirtied. */
function memoryCopied(before: Copied | undefined, { totalBytes, remainingBytes }: Memory, tries: number): Copied {
  const copiedBytes = Math.max(0, totalBytes - remainingBytes);
  const same = before?.try === tries ? before : undefined;
  return { try: tries, share: Math.max(same?.share ?? 0, Math.min(ALMOST, copiedBytes / totalBytes)), copiedBytes, totalBytes, remainingBytes };
}

/** What a terminal shows of a migration. Pure. `shown` is what `advance` gave for this view. */
export function migrationPicture(view: MigrationView, shown: Shown, { columns, rows, nowMs }: Room): Line[] {
  const top = header(view, Math.max(0, nowMs - Date.parse(view.startedAt)), columns);
  const copies = after(view, 'mirror') && view.postponedUntil === undefined ? rowsOf(view, shown, columns) : [];
  // What is copied comes first, unless there is a page of it.
  const below = notes(view, nowMs).flatMap((line) => wrap(line, { columns, rows: MOST_ROWS_OF_A_NOTE, indent: 2 })).slice(0, Math.max(LEAST_NOTES, rows - top.length - copies.length));
  const room = Math.max(1, rows - top.length - below.length);
  const folded = copies.length > room ? [...copies.slice(0, room - 1), plain(`… ${copies.length - room + 1} more`)] : copies;
  return [...top, ...folded, ...below].slice(0, rows);
}

function header({ vm, from, to, phase, memoryTry, postponedUntil }: MigrationView, elapsedMs: number, columns: number): Line[] {
  const what: Line = [{ text: vm, style: 'bold' }, { text: `  ${from ?? '?'} → ${to}` }];
  const state: Line = [{ text: postponedUntil ? 'put off' : phase, style: 'cyan' }, { text: `${memoryTry > 1 ? `, try ${memoryTry}` : ''}  ${clock(elapsedMs)}` }];
  const cells = [...what, ...state].reduce((sum, { text }) => sum + text.length, 0);
  return cells + 3 <= columns ? [[...what, { text: '   ' }, ...state]] : [what, state];
}

/** `0:07`, `1:02:33`. */
function clock(ms: number): string {
  const seconds = Number.isFinite(ms) ? Math.floor(ms / 1000) : 0;
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
const two = (number: number) => String(number).padStart(2, '0');

/** A bar with what is said beside it, most important first; or, of one that does not converge, only words. */
interface Row {
  name: string;
  share?: number;
  done?: boolean;
  cells: string[];
  lag?: string;
}

function rowsOf(view: MigrationView, shown: Shown, columns: number): Line[] {
  const rows = [...Object.entries(shown.disks).map(([id, copied]) => diskRow(view, id, copied)), memoryRow(view, shown.memory)];
  const nameCells = Math.min(LONGEST_NAMES[columns < NARROW ? 0 : 1], Math.max(...rows.map(({ name }) => name.length)));
  const bars = rows.filter(({ share }) => share !== undefined);
  // As many columns as fit beside the shortest bar, the same for all rows.
  const widths: number[] = [];
  for (let column = 0; column < Math.max(0, ...bars.map(({ cells }) => cells.length)); column++) {
    const width = Math.max(LEAST_CELLS[column] ?? 0, ...bars.map(({ cells }) => (cells[column] ?? '').length));
    if (nameCells + 2 + SHORTEST_BAR + 6 + [...widths, width].reduce((sum, one) => sum + one + 2, 0) > columns) break;
    widths.push(width);
  }
  const barCells = Math.max(SHORTEST_BAR, Math.min(LONGEST_BAR, columns - nameCells - 2 - 6 - widths.reduce((sum, one) => sum + one + 2, 0)));
  return rows.flatMap(({ name, share, done, cells, lag }): Line[] => {
    const label: Span = { text: `${abridged(name, nameCells).padEnd(nameCells)}  ` };
    if (lag !== undefined) return wrap([label, { text: lag, style: 'yellow' }], { columns, rows: MOST_ROWS_OF_A_NOTE, indent: nameCells + 2 });
    if (share === undefined) return [[label, { text: cells.join('  '), style: 'dim' }]];
    const full = Math.round(share * barCells);
    const percent = `${Math.floor(share * 100)} %`.padStart(6);
    return [[label, { text: '█'.repeat(full), style: done ? 'green' : 'cyan' }, { text: '░'.repeat(barCells - full), style: 'dim' }, { text: percent }, { text: widths.map((width, column) => `  ${(cells[column] ?? '').padEnd(width)}`).join('').trimEnd() }]];
  });
}

function diskRow(view: MigrationView, id: string, copied: Copied): Row {
  const name = nameOf(id, copied.try);
  const now = view.disks?.find((disk) => disk.id === id);
  const { share } = copied;
  if (now && lags(view, now)) return { name, cells: [], lag: lagOf(view, now) };
  const behind = now?.ready && copied.remainingBytes > 0 ? `${amount(copied.remainingBytes)} behind` : undefined;
  return { name, share, done: share === 1, cells: share === 1 ? [behind ?? 'in step', rate(now?.bytesPerSecond)] : [eta(now?.etaMs), rate(now?.bytesPerSecond), `${formatBytes(copied.totalBytes - Math.min(copied.totalBytes, copied.remainingBytes))} of ${formatBytes(copied.totalBytes)}`] };
}

/** What begins anew says so. */
const nameOf = (id: string, tries: number) => (tries > 1 ? `${id} (try ${tries})` : id);

/** Names differ at their ends. */
function abridged(name: string, most: number): string {
  if (name.length <= most) return name;
  const end = Math.ceil(most / 2);
  return `${name.slice(0, most - end - 1)}…${name.slice(-end)}`;
}

/** The copy as a whole is in trouble, and this disk is why, or part of it. */
function lags({ verdict, memory }: MigrationView, { id, etaMs }: Disk): boolean {
  if (memory || !verdict || verdict.verdict === 'converging') return false;
  return etaMs === null || verdict.message.includes(`disk ${id} `) || verdict.message.includes(`disk ${id}:`);
}

function lagOf({ verdict, decisions }: MigrationView, { remainingBytes, dirtyBytesPerSecond, bytesPerSecond }: Disk): string {
  const growth = dirtyBytesPerSecond === undefined ? undefined : dirtyBytesPerSecond - bytesPerSecond;
  return [verdict!.verdict, `${amount(remainingBytes)} behind`, ...(growth !== undefined && Number.isFinite(growth) ? [growth > 0 ? `growing by ${amount(growth)}/s` : `shrinking by ${amount(-growth)}/s`] : []), `remedy: ${remedyInForce(decisions) ?? 'none yet'}`].join(' · ');
}

function memoryRow(view: MigrationView, copied: Copied | undefined): Row {
  if (!after(view, 'memory')) return { name: 'memory', cells: ['waits for the disks'] };
  if (!copied) return { name: 'memory', cells: ['starts'] };
  const name = nameOf('memory', copied.try);
  const { memory: now, verdict } = view;
  if (now && view.phase === 'memory' && verdict && verdict.verdict !== 'converging') {
    return { name, cells: [], lag: `${verdict.verdict} · ${amount(now.remainingBytes)} left · ${amount(now.dirtyBytesPerSecond)}/s dirtied, ${amount(now.bytesPerSecond)}/s sent` };
  }
  const done = view.phase === 'cleanup';
  const left = now && now.bytesPerSecond > now.dirtyBytesPerSecond ? (now.remainingBytes / (now.bytesPerSecond - now.dirtyBytesPerSecond)) * 1000 : undefined;
  return { name, share: done ? 1 : copied.share, done, cells: done ? ['moved'] : [eta(left), rate(now?.bytesPerSecond), `${formatBytes(Math.min(copied.totalBytes, copied.remainingBytes))} left`] };
}

const amount = (bytes: number) => formatBytes(Number.isFinite(bytes) ? Math.max(0, Math.round(bytes)) : 0);
const rate = (bytesPerSecond: number | undefined) => (bytesPerSecond !== undefined && Number.isFinite(bytesPerSecond) && bytesPerSecond >= 1 ? `${amount(bytesPerSecond)}/s` : '');

function eta(ms: number | null | undefined): string {
  return ms === undefined || ms === null || !Number.isFinite(ms) || ms < 0 || ms > LONGEST_ESTIMATE_MS ? '' : `ETA ${formatDuration(ms < 1000 ? ms : Math.round(ms / 1000) * 1000)}`;
}

/** How long the guest would pause, were it moved now: until the memory moves, the disks' part of it. Undefined while that is not known. */
export function predictedPauseMs({ disks = [], memory, phase }: MigrationView): number | undefined {
  const known = (ms: number | undefined) => (ms !== undefined && Number.isFinite(ms) && ms >= 0 && ms < LONGEST_ESTIMATE_MS ? ms : undefined);
  if (phase === 'memory') return known(memory?.predictedDowntimeMs);
  const drains = disks.filter(({ ready }) => ready).map(({ predictedDrainMs }) => known(predictedDrainMs));
  return drains.length > 0 && drains.length === disks.length && drains.every((ms) => ms !== undefined) ? Math.max(...drains) : undefined;
}

function notes(view: MigrationView, nowMs: number): Line[] {
  const { verdict, asks, postponedUntil, waitsFor, vm, decisions } = view;
  const pause = predictedPauseMs(view);
  const last = decisions.findLast(({ what }) => !what.startsWith('asks:'));
  return [
    ...(pause === undefined ? [] : [plain(`predicted downtime: ${formatDuration(pause)} for the ${view.phase === 'memory' ? 'memory' : 'disks'}`)]),
    ...(verdict && verdict.verdict !== 'converging' ? [[{ text: `${verdict.verdict}: `, style: 'yellow' }, { text: verdict.message }] satisfies Line] : []),
    ...(last ? [[{ text: 'last decision: ', style: 'dim' }, { text: `${last.what}, by ${last.by}: ${last.why}` }] satisfies Line] : []),
    ...(asks ? [[{ text: `asks until ${asks.until}: `, style: 'yellow' }, { text: `vmferry steer ${vm} ${asks.choices.join(' | ')}` }] satisfies Line] : []),
    ...(postponedUntil ? [plain(`put off until ${postponedUntil}; the guest runs where it was`)] : []),
    ...(waitsFor ?? []).filter(({ since }) => nowMs - Date.parse(since) > WAIT_SHOWN_MS).map(({ host, why }): Line => [{ text: `waits for host ${host}`, style: 'yellow' }, { text: ` (${why}): start its agent, or see vmferry fence --help` }]),
  ];
}

/** What holds now of all that was decided; a nudge is over when it is on record. */
export function remedyInForce(decisions: DecisionRecord[]): string | undefined {
  const held = new Map<string, string>();
  for (const { what } of decisions) {
    const kind = /^(?:a )?(throttle|write-blocking|lift-limits|set-bandwidth|post-copy|unthrottle|postpone|copies anew)\b/.exec(what)?.[1];
    if (kind === undefined) continue;
    if (kind === 'postpone' || kind === 'copies anew') held.clear();
    else if (kind === 'unthrottle') held.delete('throttle');
    else if (what.endsWith(' failed')) held.delete(kind);
    else held.set(kind, what);
  }
  return held.size > 0 ? [...held.values()].join(', ') : undefined;
}
