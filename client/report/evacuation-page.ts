import { formatBytes } from '../../hypervisor/size';
import { plural } from '../evacuation-view';
import { formatDuration } from '../quantities';
import { type Charts, COLOURS } from './charts';
import { html, type Markup, tableOf } from './markup';
import { clock, factsOf, key, number, page, section, utc } from './page';
import type { EvacuationRecord, FleetRecord, RecordedMove } from './evacuation-record';

/** Moves beyond this have no bar, only a line in the table: a page is kept below 1.5 MB. */
export const MOST_BARS = 300;

const DESTINATIONS = [COLOURS.blue, COLOURS.green, COLOURS.purple, COLOURS.orange, COLOURS.yellow, COLOURS.grey];

/** What truly happened, in a sentence or two. */
export function accountOf({ host, outcome, moves, stayed, startedAtMs, endedAtMs, why }: EvacuationRecord): string {
  const moved = moves.filter(({ ending, to }) => ending === 'completed' && to !== host);
  const back = moves.filter(({ ending, to }) => ending === 'completed' && to === host);
  const numbers = `${plural(moved.length, 'guest')} moved in ${formatDuration(endedAtMs - startedAtMs)}${back.length > 0 ? `, ${plural(back.length, 'guest')} came back` : ''}; ${stayed.length} stayed`;
  const because = why === undefined ? '' : ` It stopped early: ${why}.`;
  switch (outcome) {
    case 'completed':
      return stayed.length > 0 ? `Host ${host} has only guests that were to stay: ${numbers}.` : `Host ${host} was emptied: ${numbers}.`;
    case 'partly':
      return `Host ${host} could be emptied only in part: ${numbers}.${because}`;
    case 'cancelled':
      return `The evacuation of host ${host} was cancelled: ${numbers}.`;
    case 'planned':
      return `The evacuation of host ${host} was only planned: nothing was moved.`;
    case 'failed':
      return `Host ${host} was not emptied: ${why ?? 'it failed'}`;
    case 'terminated':
      return `The evacuation of host ${host} was terminated (${why}): ${numbers}. Moves that were under way went on by themselves.`;
    case 'running':
      return `Host ${host} is being emptied: ${numbers} so far. This is what was on record ${formatDuration(endedAtMs - startedAtMs)} after its start.`;
  }
}

/** The evacuation of a host as one page. */
export function evacuationPage(record: EvacuationRecord, charts: Charts): string {
  return page(`Evacuation of ${record.host}, ${record.outcome}`, html`<header><h1>Evacuation of ${record.host}</h1></header>${evacuation(record, charts)}`);
}

/** The evacuation of many hosts as one page, each host with a section of its own. */
export function fleetPage({ workflowId, runId, startedAtMs, endedAtMs, outcome, why, hosts, evacuations }: FleetRecord, charts: Charts): string {
  const rows = evacuations.map(({ host }) => host);
  const bars = evacuations.map((one, row) => ({ row, fromMs: one.startedAtMs, toMs: one.endedAtMs, colour: one.outcome === 'completed' ? COLOURS.green : COLOURS.orange, broken: one.outcome === 'failed' || one.outcome === 'terminated', label: `${one.outcome}, ${formatDuration(one.endedAtMs - one.startedAtMs)}` }));
  const done = hosts.filter(({ state }) => state === 'done').length;
  return page(`Evacuation ${workflowId}, ${outcome}`, html`
<header><h1>Evacuation ${workflowId}</h1><p class="outcome ${outcome}">${done} of ${plural(hosts.length, 'host')} done in ${formatDuration(endedAtMs - startedAtMs)}: ${plural(hosts.reduce((sum, { moved }) => sum + moved, 0), 'guest')} moved, ${hosts.reduce((sum, { stayed }) => sum + stayed, 0)} stayed. Outcome: ${outcome}.${why === undefined ? undefined : ` ${why}`}</p>
${factsOf([['Began', utc(startedAtMs)], ['Workflow', html`<code>${workflowId}</code>`], ['Run', html`<code>${runId}</code>`]])}</header>
${rows.length === 0 ? undefined : section('Hosts over time', html`<figure>${charts.gantt({ rows, bars, fromMs: startedAtMs, toMs: endedAtMs, describes: `When each host was emptied: ${bars.map(({ row, label }) => `${rows[row]} ${label}`).join('; ')}` })}</figure>`)}
${tableOf(['Host', 'State', 'Moved', 'Stayed', 'Why'], hosts.map(({ host, state, moved, stayed, why: reason }) => [evacuations.some((one) => one.host === host) ? html`<a href="#host-${host}">${host}</a>` : host, state, moved, stayed, reason]))}
${evacuations.map((one) => html`<section id="host-${one.host}"><h2>Host ${one.host}</h2>${evacuation(one, charts)}</section>`)}`);
}

function evacuation(record: EvacuationRecord, charts: Charts): Markup {
  const { host, workflowId, runId, startedAtMs, endedAtMs, outcome, moves, stayed, orders, limits } = record;
  const moved = moves.filter(({ ending }) => ending === 'completed');
  const longestMs = Math.max(0, ...moved.map(({ downtimeMs = 0 }) => downtimeMs));
  return html`<p class="outcome ${outcome}">${accountOf(record)}</p>
${factsOf([
    ['Outcome', outcome],
    ['Total', formatDuration(endedAtMs - startedAtMs)],
    ['Moved', moved.length],
    ['Stayed', stayed.length],
    ['Size of what moved', moved.length === 0 ? undefined : formatBytes(moved.reduce((sum, { bytes = 0 }) => sum + bytes, 0))],
    ['Longest pause of a guest', longestMs === 0 ? undefined : formatDuration(longestMs)],
    ['Limits in the end', `${limits.fleet} at once, ${limits.perSource} a source, ${limits.perDestination} a destination`],
    ['Began', utc(startedAtMs)],
    ['Workflow', html`<code>${workflowId}</code>`],
    ['Run', html`<code>${runId}</code>`],
  ])}
${moves.length === 0 ? undefined : html`<h3>Guests over time</h3>${ganttOf(record, charts)}`}
${orders.length === 0 ? undefined : html`<h3>Who changed what</h3>${tableOf(['', 'When', 'Who', 'What', 'Why'], orders.map(({ atMs, by, what, why }, index) => [number(index + 1), clock(atMs), by, what, why]))}`}
${stayed.length === 0 ? undefined : html`<h3>Guests that stayed</h3>${tableOf(['Guest', 'On', 'Why'], stayed.map(({ guest, from, reasons }) => [guest, from, reasons.join('; ')]))}`}
${moves.length === 0 ? undefined : html`<h3>Moves</h3>${tableOf(['Guest', 'To', 'Began', 'Took', 'Paused for', 'Size', 'Ended'], moves.map((move, index) => [html`<a href="#${anchorOf(host, index)}">${move.guest}</a>`, move.to, clock(move.fromMs), formatDuration(move.toMs - move.fromMs), move.downtimeMs === undefined ? undefined : formatDuration(Math.max(0, move.downtimeMs)), move.bytes === undefined ? undefined : formatBytes(move.bytes), move.ending]))}`}
${moves.map((move, index) => moveDetails(move, anchorOf(host, index)))}`;
}

const anchorOf = (host: string, index: number) => `${host}-move-${index + 1}`;

/** A row a guest, grouped by where it went; a guest that was tried again has more than one bar. */
function ganttOf({ moves: all, orders, pauses, startedAtMs, endedAtMs, host }: EvacuationRecord, charts: Charts): Markup {
  const destinations = [...new Set(all.map(({ to }) => to))].sort();
  const moves = all.slice(0, MOST_BARS).sort((a, b) => a.to.localeCompare(b.to) || a.fromMs - b.fromMs);
  const last = (guest: string) => moves.findLast((move) => move.guest === guest)!;
  const guests = [...new Set(moves.map(({ guest }) => guest))].sort((a, b) => last(a).to.localeCompare(last(b).to) || last(a).fromMs - last(b).fromMs);
  const colourOf = (to: string) => DESTINATIONS[destinations.indexOf(to) % DESTINATIONS.length]!;
  const bars = moves.map(({ guest, to, fromMs, toMs, ending }) => ({ row: guests.indexOf(guest), fromMs, toMs, colour: ending === 'failed' ? COLOURS.red : colourOf(to), broken: ending !== 'completed', label: `${to}${ending === 'completed' ? '' : `, ${ending}`}, ${formatDuration(toMs - fromMs)}` }));
  const describes = `When each guest moved, and to which host: ${bars.map(({ row, label }) => `${guests[row]} to ${label}`).join('; ')}`.slice(0, 4000);
  return html`<figure><figcaption>${destinations.slice(0, 12).map((to) => key(colourOf(to), to === host ? `back to ${to}` : `to ${to}`, 'block'))}; a dashed frame is a move that did not come to its end${pauses.length > 0 ? ', a grey band is a pause' : ''}</figcaption>
${charts.gantt({ rows: guests, bars, fromMs: startedAtMs, toMs: endedAtMs, marks: orders.map(({ atMs }, index) => ({ atMs, number: index + 1 })), bands: pauses.map((pause) => ({ ...pause, colour: COLOURS.ink, label: 'paused' })), describes })}</figure>
${all.length > MOST_BARS ? html`<p class="note">The first ${MOST_BARS} of ${all.length} moves are drawn; the table has all.</p>` : undefined}`;
}

function moveDetails({ guest, from, to, stopped, ending, why, memoryTries, warnings, decisions, runId }: RecordedMove, id: string): Markup {
  return html`<details id="${id}"${(why !== undefined || warnings.length > 0 || decisions.length > 0) && html` open`}><summary><strong>${guest}</strong>: ${from} → ${to}, ${ending}</summary>
${why === undefined ? undefined : html`<p class="outcome ${ending}">${why}</p>`}
<p class="note">${stopped ? 'It did not run: its definition and images were copied. ' : ''}${memoryTries !== undefined && memoryTries > 1 ? `Its memory was moved at try ${memoryTries}. ` : ''}The whole story: <code>vmferry report ${guest} --run ${runId}</code></p>
${warnings.map((warning) => html`<p>Warning: ${warning}</p>`)}
${decisions.length === 0 ? undefined : tableOf(['When', 'Who', 'What', 'Why'], decisions.map(({ at, by, what, why: reason }) => [at.slice(11, 19), by, what, reason]))}</details>`;
}
