import { megabytes, seconds } from './convergence';
import { cell } from './details';
import type { EvacuationStatus } from './evacuation';

/** What the Temporal UI shows of an evacuation, Markdown. */
export function evacuationDetails({ host, phase, planned, moving, moved, stayed, failures, windowEndsAt, stopped }: EvacuationStatus): string {
  const rows = [
    ...moving.map(({ guest, to }) => [guest, to, '**moves**', '']),
    ...planned.map(({ guest, to, cold, why }) => [guest, to, cold ? 'planned, stopped' : 'planned', why]),
    ...moved.map(({ guest, to, totalMs, downtimeMs, bytes }) => [guest, to, 'moved', `${seconds(totalMs)}, ${megabytes(bytes)}${downtimeMs === undefined ? '' : `, paused ${seconds(downtimeMs)}`}`]),
    ...stayed.map(({ guest, reasons }) => [guest, '–', 'stays', reasons.join('; ')]),
  ];
  return [
    `**${host}** is emptied: ${phase}, ${moved.length} moved, ${moving.length} under way, ${planned.length} to go, ${stayed.length} stay`,
    ...(phase === 'waiting-for-approval' ? [`**Waits for approval**: \`vmferry evacuation approve ${host}\``] : []),
    ...(phase === 'away' ? [`**Waits for the end of the maintenance**: \`vmferry evacuation bring-back ${host}\``] : []),
    ...(windowEndsAt ? [`Window until **${windowEndsAt}**`] : []),
    ...(stopped ? [`No other guest starts: ${stopped}`] : []),
    ...(rows.length > 0 ? [['| guest | to | | why |', '|---|---|---|---|', ...rows.slice(0, MOST_ROWS).map((row) => `| ${row.map(cell).join(' | ')} |`), ...(rows.length > MOST_ROWS ? [`| … ${rows.length - MOST_ROWS} more | | | |`] : [])].join('\n')] : []),
    ...failures.slice(-5).map(({ guest, to, type, why }) => `${guest} → ${to} failed, ${type}: ${why}`),
  ].join('\n\n');
}

/** Details are in the history: short. */
const MOST_ROWS = 40;
