import { formatBytes } from '../hypervisor/size';
import type { EvacuationReport, EvacuationStatus, FleetEvacuationStatus } from '../workflows/evacuation';
import { table } from './output';
import { formatDuration } from './quantities';

/** A line about the whole, of a host's evacuation. */
export function headline({ host, phase, planned, moving, moved, stayed, windowEndsAt, stopped }: EvacuationStatus): string {
  return [
    `${host}: ${phase} · ${moved.length} moved, ${moving.length} under way, ${planned.length} to go, ${stayed.length} stay`,
    ...(windowEndsAt ? [`window until ${windowEndsAt}`] : []),
    ...(stopped ? [`no other guest starts: ${stopped}`] : []),
    ...(phase === 'waiting-for-approval' ? [`waits for "vmferry evacuation approve ${host}"`] : []),
    ...(phase === 'away' ? [`waits for "vmferry evacuation bring-back ${host}"`] : []),
  ].join(' · ');
}

/** Every guest with what becomes of it: those that move first. */
export function guestTable({ planned, moving, moved, stayed }: EvacuationStatus): string {
  const rows = [
    ...moving.map(({ guest, to }) => [guest, to, 'moves', '']),
    ...planned.map(({ guest, to, cold, why }) => [guest, to, cold ? 'planned, stopped' : 'planned', why]),
    ...moved.map(({ guest, to, totalMs, downtimeMs, bytes }) => [guest, to, 'moved', `${formatDuration(totalMs)}, ${formatBytes(bytes)}${downtimeMs === undefined ? '' : `, paused for ${formatDuration(Math.max(0, downtimeMs))}`}`]),
    ...stayed.map(({ guest, reasons }) => [guest, undefined, 'stays', reasons.join('; ')]),
  ];
  return rows.length === 0 ? 'There is no guest to move.' : table(['guest', 'to', 'state', ''], rows);
}

/** A plan before anything moves. */
export function planText(plan: EvacuationStatus): string {
  const { planned, stayed } = plan;
  const bytes = planned.reduce((sum, { memoryBytes, diskBytes, cold }) => sum + diskBytes + (cold ? 0 : memoryBytes), 0);
  return `${guestTable(plan)}\n${plural(planned.length, 'guest')} would move, ${formatBytes(bytes)} in all; ${stayed.length} would stay.`;
}

/** What has become of every guest. */
export function reportText(report: EvacuationReport): string {
  const { host, outcome, moved, stayed, failures, totalMs, stopped } = report;
  const bytes = moved.reduce((sum, one) => sum + one.bytes, 0);
  const words = { planned: 'was planned', completed: stayed.length > 0 ? 'has only guests that were to stay' : 'is empty', partly: 'could be emptied only in part', cancelled: 'was not emptied further: it was cancelled' }[outcome];
  return [
    `Host ${host} ${words}: ${plural(moved.length, 'guest')} moved in ${formatDuration(totalMs)}, ${formatBytes(bytes)}; ${stayed.length} stayed.`,
    ...(stopped ? [`It stopped early: ${stopped}.`] : []),
    ...(moved.length > 0 ? [table(['guest', 'to', 'time', 'paused for', 'size', 'tries'], moved.map((one) => [one.guest, one.to, formatDuration(one.totalMs), one.downtimeMs === undefined ? undefined : formatDuration(Math.max(0, one.downtimeMs)), formatBytes(one.bytes), one.tries]))] : []),
    ...stayed.map(({ guest, reasons }) => `${guest} stayed: ${reasons.join('; ')}`),
    ...failures.filter(({ guest }) => moved.some((one) => one.guest === guest)).map(({ guest, to, type, why }) => `${guest} failed to move to ${to} at first, ${type}: ${why}`),
    ...(outcome === 'planned' ? [] : [`It takes no guests until "vmferry host uncordon ${host}".`]),
  ].join('\n');
}

export function fleetHeadline({ hosts, paused, waitsFor }: FleetEvacuationStatus): string {
  const count = (state: string) => hosts.filter((one) => one.state === state).length;
  return [`${count('done')} of ${plural(hosts.length, 'host')} done, ${count('emptying')} being emptied, ${count('failed')} failed`, ...(paused ? ['paused'] : []), ...(waitsFor ? [`waits: ${waitsFor}`] : [])].join(' · ');
}

export function fleetTable({ hosts }: FleetEvacuationStatus): string {
  return table(['host', 'state', 'moved', 'stayed', ''], hosts.map(({ host, state, moved, stayed, why }) => [host, state, moved, stayed, why ?? '']));
}

export const plural = (count: number, what: string) => `${count} ${what}${count === 1 ? '' : 's'}`;

/** What has happened between two looks, a line each. */
export function news(before: EvacuationStatus | undefined, now: EvacuationStatus): string[] {
  const fresh = <T>(key: (status: EvacuationStatus) => T[], name: (one: T) => string) => key(now).filter((one) => !(before ? key(before) : []).some((other) => name(other) === name(one)));
  return [
    ...(before?.phase !== now.phase || before.stopped !== now.stopped ? [headline(now)] : []),
    ...fresh(({ moved }) => moved, ({ guest, to }) => `${guest} ${to}`).map(({ guest, to, totalMs, downtimeMs }) => `${guest} moved to ${to} in ${formatDuration(totalMs)}${downtimeMs === undefined ? '' : `, paused for ${formatDuration(Math.max(0, downtimeMs))}`}`),
    ...now.failures.slice(before?.failures.length ?? 0).map(({ guest, to, type, why }) => `${guest} failed to move to ${to}, ${type}: ${why}`),
    ...fresh(({ moving }) => moving, ({ workflowId, since }) => `${workflowId} ${since}`).map(({ guest, from, to }) => `${guest} moves from ${from} to ${to}`),
    ...fresh(({ stayed }) => stayed, ({ guest, reasons }) => `${guest} ${reasons.join()}`).map(({ guest, reasons }) => `${guest} stays: ${reasons.join('; ')}`),
  ];
}

/** The same for many hosts. */
export function fleetNews(before: FleetEvacuationStatus | undefined, now: FleetEvacuationStatus): string[] {
  const changed = now.hosts.filter((one) => before && before.hosts.find(({ host }) => host === one.host)?.state !== one.state);
  return [
    ...(before && before.paused === now.paused && before.waitsFor === now.waitsFor ? [] : [fleetHeadline(now)]),
    ...changed.map(({ host, state, moved, stayed, why }) => `${host}: ${state}${state === 'done' ? `, ${moved} moved, ${stayed} stayed` : ''}${why ? `: ${why}` : ''}`),
  ];
}
