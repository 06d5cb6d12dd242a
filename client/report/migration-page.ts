import { formatBytes } from '../../hypervisor/size';
import { PHASES } from '../../workflows/phases';
import type { Trace } from '../../workflows/trace';
import { formatDuration } from '../quantities';
import { type Band, type Charts, COLOURS, type Curve, type Mark } from './charts';
import { html, type Markup, tableOf } from './markup';
import { clock, factsOf, key, number, page, section, utc } from './page';
import type { MigrationRecord } from './record';

/** Disks beyond this have no picture, only a line in the table: a page is kept below 1.5 MB. */
export const MOST_CHARTS = 16;
/** Of one curve. */
const MOST_POINTS = 200;

const VERDICT_COLOURS: Record<MigrationRecord['verdicts'][number]['verdict'], string> = { converging: COLOURS.green, hovering: COLOURS.yellow, diverging: COLOURS.orange, stalled: COLOURS.purple, failed: COLOURS.red };
const PHASE_COLOURS: Record<MigrationRecord['phases'][number]['phase'], string> = { preflight: COLOURS.grey, reserve: COLOURS.grey, prepare: COLOURS.grey, export: COLOURS.grey, mirror: COLOURS.blue, converge: COLOURS.blue, memory: COLOURS.purple, switchover: COLOURS.orange, cleanup: COLOURS.grey, 'put off': COLOURS.yellow };

/** What truly happened, in a sentence or two. */
export function account(record: MigrationRecord): string {
  const { vm, from = 'its host', to, outcome, stopped, startedAtMs, endedAtMs, downtimeMs, maxDowntimeMs, tries, phases, leftovers, error } = record;
  const took = formatDuration(endedAtMs - startedAtMs);
  const vainMs = tries.reduce((sum, { ending, pausedMs = 0 }) => sum + (ending === 'given-up' ? pausedMs : 0), 0);
  const vain = vainMs > 0 ? ` Tries that were given up had paused it for ${formatDuration(vainMs)} before.` : '';
  const lost = leftovers.filter(({ workflowId }) => workflowId === undefined);
  const mess = lost.length > 0 ? ` Not everything could be undone: ${lost.map(({ step, host }) => `${step} on ${host}`).join(', ')}; "vmferry repair ${vm}" looks after it.` : '';
  const phase = phases.at(-1)?.phase ?? 'preflight';
  switch (outcome) {
    case 'completed': {
      if (stopped) return `${vm} is on ${to}, stopped as it was: its definition and images were copied from ${from} in ${took}.${mess}`;
      const pause = downtimeMs === undefined ? 'how long it was paused for that is not known' : `was paused for ${formatDuration(Math.max(0, downtimeMs))}${maxDowntimeMs === undefined ? '' : ` of the ${formatDuration(maxDowntimeMs)} allowed`}`;
      return `${vm} runs on ${to}: it moved from ${from} in ${took} and ${pause}.${vain}${mess}`;
    }
    case 'failed':
      return `${vm} did not move to ${to}: ${error!.message}${/[.!?]$/.test(error!.message) ? '' : '.'}${vain}${mess}`;
    case 'cancelled':
      return `The move of ${vm} to ${to} was cancelled after ${took}, and undone: it stays on ${from}.${vain}${mess}`;
    case 'terminated':
      return `The migration of ${vm} was terminated in phase ${phase} (${error!.message}): nothing was undone, and nobody has looked which copy is the guest. "vmferry repair ${vm}" does.`;
    case 'running':
      return `${vm} is on its way from ${from} to ${to}: phase ${phase}. This is what was on record ${took} after its start.`;
  }
}

/** A migration as one page. */
export function migrationPage(record: MigrationRecord, charts: Charts): string {
  const { vm, from, to, tries, disks, memoryBytes, downtimeMs, workflowId, runId, startedAtMs, endedAtMs, warnings } = record;
  const title = `${vm}: ${from ?? '?'} → ${to}`;
  const story = storyOf(record);
  const marks = story.flatMap(({ mark, atMs }) => (mark === undefined ? [] : [{ number: mark, atMs }]));
  return page(`${title}, ${record.outcome}`, html`
<header><h1>${title}</h1><p class="outcome ${record.outcome}">${account(record)}</p>
${factsOf([
    ['Outcome', record.error ? html`${record.outcome} <code>${record.error.type}</code>` : record.outcome],
    ['Total', formatDuration(endedAtMs - startedAtMs)],
    ['Guest paused for', downtimeMs === undefined ? undefined : formatDuration(Math.max(0, downtimeMs))],
    ['Disks', disks.length === 0 ? undefined : `${disks.length}, ${formatBytes(disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0))}`],
    ['Of it allocated', disks.some(({ allocatedBytes }) => allocatedBytes === undefined) || disks.length === 0 ? undefined : formatBytes(disks.reduce((sum, { allocatedBytes = 0 }) => sum + allocatedBytes, 0))],
    ['Memory', memoryBytes === undefined || record.stopped ? undefined : formatBytes(memoryBytes)],
    ['Tries to move its memory', tries.length === 0 ? undefined : tries.length],
    ['Began', utc(startedAtMs)],
    ['Workflow', html`<code>${workflowId}</code>`],
    ['Run', html`<code>${runId}</code>`],
  ])}
${warnings.map((warning) => html`<p>Warning: ${warning}</p>`)}</header>
${section('Phases', phasesFigure(record, marks, charts))}
${copySections(record, marks, charts)}
${windowSection(record, charts)}
${story.length === 0 ? undefined : section('What was seen, and who decided what', html`<p class="note">Numbers are those in the pictures.</p>${tableOf(['', 'When', 'Who', 'What', 'Why'], story.map(({ mark, atMs, by, what, why }) => [mark === undefined ? undefined : number(mark), clock(atMs), by, what, why]))}`)}
${tries.length === 0 || (tries.length === 1 && tries[0]!.ending === 'completed') ? undefined : section('Tries to move the memory', tableOf(['Try', 'Began', 'Took', 'Ended', 'Guest paused for', 'Why'], tries.map((one, index) => [index + 1, clock(one.fromMs), formatDuration(one.toMs - one.fromMs), one.ending, pauseOf(record, one), one.message])))}
${troubleSection(record)}`);
}

function pauseOf({ downtimeMs }: MigrationRecord, { ending, pausedMs }: MigrationRecord['tries'][number]): string | undefined {
  const ms = ending === 'completed' ? downtimeMs : pausedMs;
  return ms === undefined ? undefined : formatDuration(Math.max(0, ms));
}

function phasesFigure({ phases, startedAtMs, endedAtMs }: MigrationRecord, marks: Mark[], charts: Charts): Markup {
  const rows = [...PHASES, 'put off' as const].filter((phase) => phases.some((one) => one.phase === phase));
  const bars = phases.map(({ phase, fromMs, toMs }) => ({ row: rows.indexOf(phase), fromMs, toMs, colour: PHASE_COLOURS[phase], label: formatDuration(toMs - fromMs) }));
  const describes = `The phases over time: ${rows.map((phase) => `${phase} ${formatDuration(phases.filter((one) => one.phase === phase).reduce((sum, { fromMs, toMs }) => sum + toMs - fromMs, 0))}`).join(', ')}`;
  return html`<figure>${charts.gantt({ rows, bars, fromMs: startedAtMs, toMs: endedAtMs, marks, describes })}</figure>`;
}

interface Told {
  atMs: number;
  mark?: number;
  by: string;
  what: string;
  why: string;
}

/** Verdicts and decisions in order of time; decisions are numbered. */
function storyOf({ verdicts, decisions }: MigrationRecord): Told[] {
  const seen = verdicts.map(({ atMs, of, verdict, message }): Told => ({ atMs, by: 'seen', what: `${of === 'memory' ? 'memory ' : ''}${verdict}`, why: message }));
  const decided = decisions.map(({ at, ...decision }): Told => ({ atMs: Date.parse(at), ...decision }));
  const all = [...seen, ...decided].sort((a, b) => a.atMs - b.atMs);
  let marks = 0;
  return all.map((told) => (told.by === 'seen' ? told : { ...told, mark: ++marks }));
}

/** A round that was put off is drawn apart from the next: nothing was copied meanwhile. */
function copySections(record: MigrationRecord, marks: Mark[], charts: Charts): Markup[] {
  const rounds = [...new Set(record.phases.map(({ round }) => round))];
  return rounds.flatMap((round) => {
    const spans = record.phases.filter((one) => one.round === round && one.phase !== 'put off');
    const [fromMs, toMs] = [Math.min(...spans.map((one) => one.fromMs)), Math.max(...spans.map((one) => one.toMs))];
    const name = rounds.length > 1 ? `, round ${round} of ${rounds.length}` : '';
    return [section(`Disks${name}`, lanes(record, 'disks', fromMs, toMs, marks, charts)), ...(record.traces.some(({ of }) => of === 'memory') ? [section(`Memory${name}`, lanes(record, 'memory', fromMs, toMs, marks, charts))] : [])];
  });
}

function lanes(record: MigrationRecord, of: 'disks' | 'memory', fromMs: number, toMs: number, allMarks: Mark[], charts: Charts): Markup {
  const traces = record.traces.filter((one) => one.of === of && one.trace.startedAtMs <= toMs && endOf(one.trace) >= fromMs).map(({ trace }) => trace);
  if (traces.length === 0) return html`<p class="note">How the copy went is not on record: it was over before the first look, was made by an older agent, or by one that was ended.</p>`;
  const ids = [...new Set(traces.flatMap((trace) => trace.lanes.map(({ id }) => id)))];
  const shown = { fromMs: Math.max(fromMs, Math.min(...traces.map(({ startedAtMs }) => startedAtMs))), toMs: Math.min(toMs, Math.max(...traces.map(endOf))) };
  const marks = allMarks.filter(({ atMs }) => atMs >= shown.fromMs && atMs <= shown.toMs);
  const bands = verdictBands(record, of, shown.fromMs, shown.toMs);
  const rows = ids.map((id) => summaryOf(id, traces));
  // A single look makes no curve.
  const figures = (traces.some(({ at }) => at.length > 1) ? ids : []).slice(0, MOST_CHARTS).map((id) => {
    const { most, last, copied, dirtied } = rows.find((row) => row.id === id)!;
    const name = of === 'memory' ? 'memory' : `disk ${id}`;
    const { unit, bytes } = unitOf(most);
    const describes = `${name} over time: at most ${formatBytes(most)} remained, ${formatBytes(last)} in the end; ${formatBytes(copied)} a second were copied and ${formatBytes(dirtied)} a second became dirty, in the mean. ${bands.map(({ label }) => label).join(', then ')}`;
    return html`<figure><figcaption><strong>${name}</strong>${key(COLOURS.blue, 'remains')}${key(COLOURS.green, of === 'memory' ? 'is sent' : 'is copied')}${key(COLOURS.orange, 'becomes dirty', 'dashed')}</figcaption>${charts.curves({
      upper: [{ name: 'remains', colour: COLOURS.blue, filled: true, points: traces.flatMap((trace) => remaining(trace, id, bytes)) }],
      lower: [curve('copied', COLOURS.green, traces, id, bytes), { ...curve('dirtied', COLOURS.orange, traces, id, bytes), dashed: true }],
      unit, ...shown, marks, bands, describes,
    })}</figure>`;
  });
  return html`${figures}${tableOf([of === 'memory' ? '' : 'Disk', 'Remained at most', 'In the end', of === 'memory' ? 'Sent' : 'Copied', 'Became dirty'], rows.map(({ id, most, last, copied, dirtied }) => [id, formatBytes(most), formatBytes(last), `${formatBytes(copied)}/s`, `${formatBytes(dirtied)}/s`]))}
<p class="note">From ${clock(shown.fromMs)}, by the source's clock. The most and the least that remained are exact; rates are means.${ids.length > MOST_CHARTS ? ` The first ${MOST_CHARTS} disks are drawn.` : ''}</p>`;
}

const endOf = ({ startedAtMs, bucketMs, at }: Trace) => startedAtMs + ((at.at(-1) ?? 0) + 1) * bucketMs;

function unitOf(bytes: number): { unit: string; bytes: number } {
  return bytes >= 10 * 2 ** 30 ? { unit: 'GiB', bytes: 2 ** 30 } : { unit: 'MiB', bytes: 2 ** 20 };
}

/** Buckets of a lane, so few that they can be drawn. */
function bucketsOf({ startedAtMs, bucketMs, at, lanes: all }: Trace, id: string): { fromMs: number; ms: number; least: number; most: number; copied: number; dirtied: number }[] {
  const lane = all.find((one) => one.id === id);
  if (!lane) return [];
  const together = Math.ceil(at.length / MOST_POINTS);
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return Array.from({ length: Math.ceil(at.length / together) }, (_, index) => {
    const part = <T>(values: T[]) => values.slice(index * together, (index + 1) * together);
    const numbers = part(at);
    return { fromMs: startedAtMs + numbers[0]! * bucketMs, ms: (numbers.at(-1)! - numbers[0]! + 1) * bucketMs, least: Math.min(...part(lane.least)), most: Math.max(...part(lane.most)), copied: mean(part(lane.copied)), dirtied: mean(part(lane.dirtied)) };
  });
}

/** Both the most and the least of each bucket are on the line, the one that is nearer to what was before first. */
function remaining(trace: Trace, id: string, unitBytes: number): [number, number | null][] {
  const points: [number, number | null][] = [];
  let before = Infinity;
  for (const { fromMs, ms, least, most } of bucketsOf(trace, id)) {
    const inOrder = least === most ? [most] : Math.abs(before - most) <= Math.abs(before - least) || before === Infinity ? [most, least] : [least, most];
    inOrder.forEach((value, index) => points.push([fromMs + (ms * (index + 0.5)) / inOrder.length, rounded((value * 1024) / unitBytes)]));
    before = inOrder.at(-1)!;
  }
  return [...points, [endOf(trace), null]];
}

function curve(key: 'copied' | 'dirtied', colour: string, traces: Trace[], id: string, unitBytes: number): Curve {
  return { name: key, colour, points: traces.flatMap((trace) => [...bucketsOf(trace, id).map((bucket): [number, number] => [bucket.fromMs + bucket.ms / 2, rounded((bucket[key] * 1024) / unitBytes)]), [endOf(trace), null] as [number, null]]) };
}

const rounded = (value: number) => Number(value.toPrecision(5));

function summaryOf(id: string, traces: Trace[]): { id: string; most: number; last: number; copied: number; dirtied: number } {
  const buckets = traces.flatMap((trace) => bucketsOf(trace, id));
  const whole = buckets.reduce((sum, { ms }) => sum + ms, 0) || 1;
  const mean = (key: 'copied' | 'dirtied') => (buckets.reduce((sum, bucket) => sum + bucket[key] * bucket.ms, 0) / whole) * 1024;
  return { id, most: Math.max(0, ...buckets.map(({ most }) => most)) * 1024, last: (buckets.at(-1)?.least ?? 0) * 1024, copied: mean('copied'), dirtied: mean('dirtied') };
}

/** From one verdict to the next. What nobody was told is `converging`. */
function verdictBands({ verdicts }: MigrationRecord, of: 'disks' | 'memory', fromMs: number, toMs: number): Band[] {
  const told = verdicts.filter((one) => one.of === of && one.atMs <= toMs);
  const before = told.findLast(({ atMs }) => atMs <= fromMs)?.verdict ?? 'converging';
  const changes = [{ atMs: fromMs, verdict: before }, ...told.filter(({ atMs }) => atMs > fromMs)];
  return changes.map(({ atMs, verdict }, index) => ({ fromMs: atMs, toMs: changes[index + 1]?.atMs ?? toMs, colour: VERDICT_COLOURS[verdict], label: verdict }));
}

/** The pause of the guest, part by part. */
function windowSection(record: MigrationRecord, charts: Charts): Markup | undefined {
  const { window, from = 'source', to, maxDowntimeMs } = record;
  if (!window) return record.outcome === 'completed' && !record.stopped ? section('The pause', html`<p class="note">Its parts are not on record: an agent was restarted while the guest was paused, or the guest was paused by its operator.</p>`) : undefined;
  const { source, destination } = window;
  const parts = [
    { host: from, row: 0, name: 'QEMU stops the guest and drains its disks', short: 'stop', fromMs: source.stopped, toMs: source.preSwitchover },
    { host: from, row: 0, name: 'the mirrors reach 0 remaining bytes', short: 'drain', fromMs: source.preSwitchover, toMs: source.drained },
    { host: from, row: 0, name: 'the mirror jobs end, their nodes are removed', short: 'jobs', fromMs: source.drained, toMs: source.mirrorsEnded },
    { host: from, row: 0, name: 'no mirror is left, the destination answers: migrate-continue', short: 'look', fromMs: source.mirrorsEnded, toMs: source.continued },
    { host: from, row: 0, name: 'the last of the memory is sent', short: 'send', fromMs: source.continued, toMs: source.completed },
    { host: to, row: 1, name: 'it arrives: from migrate-continue to completed, by two clocks', short: 'load', fromMs: source.continued, toMs: destination.completed },
    { host: to, row: 1, name: destination.exportsRemoved === undefined ? 'the exports are removed, the marker is written' : 'the exports are removed', short: 'exports', fromMs: destination.completed, toMs: destination.exportsRemoved ?? destination.released },
    ...(destination.exportsRemoved === undefined ? [] : [{ host: to, row: 1, name: 'the marker is written: this copy is the guest', short: 'mark', fromMs: destination.exportsRemoved, toMs: destination.released }]),
    { host: to, row: 1, name: 'cont: the guest runs', short: 'cont', fromMs: destination.released, toMs: destination.resumed },
  ];
  const colours = [COLOURS.blue, COLOURS.green, COLOURS.purple, COLOURS.grey, COLOURS.orange];
  const endMs = Math.max(...parts.map(({ toMs }) => toMs));
  const ms = (value: number) => `${Number(value.toFixed(1))} ms`;
  const rows = parts.map(({ host, short }) => `${short}, ${host}`);
  const bars = parts.map(({ fromMs, toMs }, index) => ({ row: index, fromMs, toMs, colour: colours[index % colours.length]!, label: ms(Math.max(0, toMs - fromMs)) }));
  const total = destination.resumed - source.stopped;
  const describes = `The pause of ${ms(total)}: ${parts.map(({ name, fromMs, toMs }) => `${name} ${ms(Math.max(0, toMs - fromMs))}`).join(', ')}`;
  return section('The pause', html`<p>From STOP at ${from} to RESUME at ${to}: <strong>${ms(total)}</strong>${maxDowntimeMs === undefined ? undefined : ` of the ${formatDuration(maxDowntimeMs)} that a try may cost`}.</p>
<figure>${charts.gantt({ rows, bars, fromMs: source.stopped, toMs: endMs, describes })}</figure>
${tableOf(['Part', 'Host', 'What happens', 'From', 'Takes'], parts.map(({ short, host, name, fromMs, toMs }) => [short, host, name, ms(fromMs - source.stopped), ms(toMs - fromMs)]))}
<p class="note">Each host's moments are by its own clock: where one ends and the other begins, a difference between the clocks shows.</p>`);
}

/** What went wrong, and what is left. Nothing, if nothing did. */
function troubleSection({ vm, failures, leftovers, outcome }: MigrationRecord): Markup | undefined {
  if (failures.length === 0 && leftovers.length === 0 && outcome !== 'terminated') return undefined;
  const hints = [
    ...leftovers.map(({ host, step, workflowId, why }) => (workflowId === undefined ? html`<li>${step} on ${host} could not be done: ${why}. Run <code>vmferry repair ${vm}</code>.</li>` : html`<li>${step} was left to ${host}, which was away, and is done when it returns: workflow <code>${workflowId}</code>. <code>vmferry leftovers</code> says whether it is still to be done.</li>`)),
    ...(outcome === 'terminated' ? [html`<li>Nothing was undone. Run <code>vmferry repair ${vm}</code>: it looks at all hosts, and says which copy is the guest.</li>`] : []),
  ];
  return section('Failures, and what is left', html`${hints.length === 0 ? html`<p>Nothing is left.</p>` : html`<ul>${hints}</ul>`}
${failures.length === 0 ? undefined : tableOf(['When', 'Host', 'Step', 'What', ''], failures.map(({ atMs, host, step, tries, type, message, overcome }) => [clock(atMs), host, step, html`<code>${type}</code> ${message}`, overcome ? `overcome at try ${tries}` : undefined]))}`);
}
