import type { EvacuationStatus } from '../workflows/evacuation';
import { headline } from './evacuation-view';
import type { MigrationView } from './migration-client';
import { advance, predictedPauseMs, type Room, type Shown } from './migration-picture';
import { formatDuration } from './quantities';
import { fit, type Line, plain, type Span, widthOf, wrap } from './terminal';

/** What was seen of an evacuation so far: how fast it goes, and how far each guest was shown to be. */
export interface Pace {
  samples: { atMs: number; moved: number }[];
  /** By guest and destination: another destination is another try. */
  shown: Record<string, Shown>;
}

/** Guests are counted over this, so that one that is slow shows. */
const PACE_MS = 10 * 60_000;
const LONGEST_NAME = 24;

const keyOf = ({ guest, to }: { guest: string; to: string }) => `${guest} ${to}`;

/** What is known once these were seen. Time in which nothing may start does not count. Pure. */
export function advancePace(before: Pace | undefined, status: EvacuationStatus, views: MigrationView[], { startedAt, nowMs }: { startedAt: string; nowMs: number }): Pace {
  const now = { atMs: nowMs, moved: status.moved.length };
  const waits = status.phase !== 'moving' && status.phase !== 'returning';
  const samples = waits ? [now] : [...(before?.samples ?? [{ atMs: Date.parse(startedAt), moved: 0 }]).filter(({ atMs }) => nowMs - atMs <= PACE_MS), now];
  const shown = Object.fromEntries(
    status.moving.flatMap((move) => {
      const view = views.find(({ vm, to }) => vm === move.guest && to === move.to);
      const last = before?.shown[keyOf(move)];
      return view ? [[keyOf(move), advance(last, view)]] : last ? [[keyOf(move), last]] : [];
    }),
  );
  return { samples, shown };
}

/** Undefined until one has moved. */
export function guestsPerMinute({ samples }: Pace): number | undefined {
  const [first, last] = [samples[0]!, samples.at(-1)!];
  const minutes = (last.atMs - first.atMs) / 60_000;
  return minutes > 0 && last.moved > first.moved ? (last.moved - first.moved) / minutes : undefined;
}

/** What a terminal shows of a host's evacuation: a line about the whole, and a row a guest, those that move first. Pure. */
export function evacuationPicture(status: EvacuationStatus, views: MigrationView[], pace: Pace, { columns, rows }: Room): Line[] {
  const guests = guestRows(status, views, pace);
  const summary = wrap([{ text: headline(status), style: 'bold' }], { columns, rows: 2, indent: 2 });
  if (guests.length === 0) return [...summary, plain('There is no guest to move.')];
  const top = [...summary, ...paceLine(status, pace)];
  // The head, and what says how many are not shown.
  const room = Math.max(1, rows - top.length - 1);
  const folded = guests.length > room;
  const seen = folded ? guests.slice(0, Math.max(1, room - 1)) : guests;
  return [...top, ...aligned([HEAD, ...seen.map(({ cells }) => cells)], columns), ...(folded ? [plain(`… ${moreOf(guests.slice(seen.length))}`)] : [])].slice(0, rows).map((line) => fit(line, columns));
}

function paceLine({ planned, moving, phase }: EvacuationStatus, pace: Pace): Line[] {
  const perMinute = guestsPerMinute(pace);
  const left = planned.length + moving.length;
  if (perMinute === undefined || left === 0 || phase === 'done') return [];
  return [plain(`${Number(perMinute.toPrecision(2))} guests a minute · ETA ${formatDuration((left / perMinute) * 60_000)}`)];
}

type State = 'moves' | 'waits' | 'moved' | 'stays';

/** In the order in which a narrow terminal leaves them out, the last ones first. */
const HEAD: Span[] = ['GUEST', 'STATE', 'TO', 'PROGRESS', 'PHASE', 'ETA, PAUSE', 'VERDICT'].map((text) => ({ text, style: 'bold' }));
const STYLES: Record<State, Span['style']> = { moves: 'cyan', waits: 'dim', moved: 'green', stays: 'yellow' };

function guestRows({ moving, planned, moved, stayed }: EvacuationStatus, views: MigrationView[], pace: Pace): { state: State; cells: Span[] }[] {
  const row = (state: State, guest: string, ...rest: string[]) => ({ state, cells: [{ text: guest.slice(0, LONGEST_NAME) }, { text: state, style: STYLES[state]! }, ...rest.map((text) => ({ text }))] });
  return [
    ...moving.map((move) => {
      const view = views.find(({ vm, to }) => vm === move.guest && to === move.to);
      const verdict = view?.asks ? 'asks' : view?.verdict?.verdict;
      return row('moves', move.guest, move.to, shareOf(pace.shown[keyOf(move)], view), view?.phase ?? '', view ? expected(view) : '', verdict ?? '');
    }),
    ...planned.map(({ guest, to, cold }) => row('waits', guest, to, '', cold ? 'stopped' : '')),
    ...moved.toReversed().map(({ guest, to, totalMs, downtimeMs }) => row('moved', guest, to, '100 %', `in ${formatDuration(totalMs)}`, downtimeMs === undefined ? '' : formatDuration(Math.max(0, downtimeMs)))),
    ...stayed.map(({ guest, reasons }) => row('stays', guest, '', '', '', '', reasons.join('; '))),
  ];
}

/** Of the memory once that moves, before of all disks. */
function shareOf(shown: Shown | undefined, view: MigrationView | undefined): string {
  const disks = Object.values(shown?.disks ?? {});
  const total = disks.reduce((sum, { totalBytes }) => sum + totalBytes, 0);
  const memory = view && ['memory', 'switchover', 'cleanup'].includes(view.phase) ? shown?.memory : undefined;
  const share = memory ? memory.share : total > 0 ? disks.reduce((sum, disk) => sum + disk.share * disk.totalBytes, 0) / total : undefined;
  return share === undefined ? '' : `${Math.floor(share * 100)} %`;
}

function expected(view: MigrationView): string {
  const pause = predictedPauseMs(view);
  if (pause !== undefined) return `pause ${formatDuration(pause)}`;
  const etas = (view.disks ?? []).map(({ etaMs }) => etaMs ?? NaN);
  const slowest = Math.max(...etas);
  return etas.length > 0 && Number.isFinite(slowest) ? `ETA ${formatDuration(slowest)}` : '';
}

function moreOf(rows: { state: State }[]): string {
  const count = (state: State) => rows.filter((one) => one.state === state).length;
  const words: Record<State, string> = { moves: 'under way', waits: 'waiting', moved: 'moved', stays: 'staying' };
  return `${rows.length} more: ${(Object.keys(words) as State[]).filter((state) => count(state) > 0).map((state) => `${count(state)} ${words[state]}`).join(', ')}`;
}

/** Columns that are as wide as their widest cell; those that do not fit are left out. The last one that is shown may be cut. */
function aligned(rows: Span[][], columns: number): Line[] {
  const widths = HEAD.map((_, column) => Math.max(...rows.map((row) => widthOf([row[column] ?? { text: '' }]))));
  let left = columns;
  let shown = 0;
  const last = widths.length - 1;
  while (shown < widths.length && (shown < 2 || widths[shown]! <= left || (shown === last && left >= 10))) left -= widths[shown++]! + 2;
  return rows.map((row) => HEAD.slice(0, shown).flatMap((_, column) => [row[column] ?? { text: '' }, { text: ' '.repeat(column === shown - 1 ? 0 : widths[column]! + 2 - widthOf([row[column] ?? { text: '' }])) }]));
}
