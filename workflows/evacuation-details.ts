import { formatBytes } from '../hypervisor/size';
import { seconds } from './convergence';
import { clock, decisionTable, LAST_LINE, table } from './details';
import type { EvacuationStatus, FleetEvacuationStatus } from './evacuation';

/** Of guests, or hosts: the server takes no details of more than some kilobytes. */
const MOST_ROWS = 40;

/** What happens in each phase of an evacuation, and what comes next. */
const PHASES: Record<EvacuationStatus['phase'], (host: string) => [now: string, next: string | undefined]> = {
  planning: () => ['looks where each guest fits', 'the host is cordoned, and the guests move'],
  'waiting-for-approval': (host) => ['**You decide**: the plan is below, and nothing moves before it is approved', `\`vmferry evacuation approve ${host}\`, or \`vmferry evacuation cancel ${host}\``],
  moving: (host) => ['moves the guests, a few at a time', `those that are planned. \`vmferry evacuation pause ${host} --reason …\` starts no other, \`vmferry evacuation skip ${host} GUEST --reason …\` lets one stay, \`vmferry evacuation cancel ${host}\` ends it`],
  paused: (host) => ['**paused**: what moves is finished, no other guest starts', `\`vmferry evacuation resume ${host}\``],
  away: (host) => ['all are away; **you decide** when the maintenance is over', `\`vmferry evacuation bring-back ${host}\``],
  returning: () => ['brings the guests back', 'the end; the host is not cordoned any more'],
  done: (host) => ['over', `the host stays cordoned until \`vmferry host uncordon ${host}\``],
};

/** What the Temporal UI shows of an evacuation, Markdown. */
export function evacuationDetails({ host, phase, planned, moving, moved, stayed, failures, limits, windowEndsAt, stopped, decisions = [] }: EvacuationStatus, outcome?: string): string {
  const rows = [
    ...moving.map(({ guest, to, since }) => [`${guest} → ${to}`, '**moves**', `since ${since.slice(11, 19)}: workflow migrate/${guest}`]),
    ...planned.map(({ guest, to, cold, why }) => [`${guest} → ${to}`, cold ? 'planned, stopped' : 'planned', why]),
    ...stayed.map(({ guest, reasons }) => [guest, 'stays', reasons.join('; ')]),
    ...moved.map(({ guest, to, totalMs, downtimeMs, bytes }) => [`${guest} → ${to}`, 'moved', `${seconds(totalMs)}, ${formatBytes(bytes)}${downtimeMs === undefined ? '' : `, paused ${seconds(downtimeMs)}`}`]),
  ];
  const [now, next] = PHASES[phase](host);
  return [
    `**${host}** is emptied: ${moved.length} moved, ${moving.length} under way, ${planned.length} to go, ${stayed.length} stay${outcome === undefined ? '' : `: **${outcome}**`}`,
    [`Phase **${phase}**: ${now}`, ...(next && outcome !== 'planned' ? [`Next: ${next}`] : [])].join('. '),
    [`At once: ${limits.fleet}, from a host ${limits.perSource}, to a host ${limits.perDestination}`, ...(windowEndsAt ? [`Window until **${clock(windowEndsAt)}**`] : [])].join('. '),
    ...(stopped ? [`**No other guest starts**: ${stopped}`] : []),
    ...(rows.length > 0 ? [table(['guest', '', 'why'], shortened(rows))] : []),
    ...decisionTable(decisions),
    ...failures.slice(-5).map(({ guest, to, type, why }) => `${guest} → ${to} failed, **${type}**: ${why}`),
    LAST_LINE,
  ].join('\n\n');
}

/** The same of an evacuation of many hosts. */
export function fleetEvacuationDetails({ hosts, paused, waitsFor, cancelled, decisions = [] }: FleetEvacuationStatus, name: string, outcome?: string): string {
  const count = (state: string) => hosts.filter((one) => one.state === state).length;
  return [
    `${count('done')} of ${hosts.length} hosts done, ${count('emptying')} under way${count('failed') > 0 ? `, ${count('failed')} failed` : ''}${paused ? ', **paused**' : ''}${cancelled ? ', cancelled' : ''}${outcome === undefined ? '' : `: **${outcome}**`}`,
    ...(waitsFor ? [`**Waits**: ${waitsFor}`] : []),
    ...(outcome === undefined ? [`Next: ${paused ? `\`vmferry evacuation resume ${name}\`` : `the hosts that wait. \`vmferry evacuation pause ${name} --reason …\` begins no other, \`vmferry evacuation cancel ${name}\` ends it`}. Each host is a workflow of its own, evacuate/HOST`] : []),
    table(['host', '', 'moved', 'stay', 'why'], shortened(hosts.map(({ host, state, moved, stayed, why = '' }) => [host, state, String(moved), String(stayed), why]))),
    ...decisionTable(decisions),
    LAST_LINE,
  ].join('\n\n');
}

function shortened(rows: string[][]): string[][] {
  return rows.length <= MOST_ROWS ? rows : [...rows.slice(0, MOST_ROWS), [`… ${rows.length - MOST_ROWS} more`, ...Array<string>(rows[0]!.length - 1).fill('')]];
}
