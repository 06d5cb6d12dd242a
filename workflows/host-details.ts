import { formatBytes } from '../hypervisor/size';
import { slotsOf } from './capacity';
import { clock, LAST_LINE, plural, table } from './details';
import { SILENT_AFTER_MS } from './fleet';
import type { HostState } from './messages';

const MOST_ROWS = 40;

/** What the Temporal UI shows of a host, Markdown. It cannot say that a host is silent: nothing happens here then, so it says when that is so. */
export function hostDetails(name: string, state: HostState | undefined): string {
  if (!state) return `**${name}** has not reported yet: start its agent`;
  const { guests, reservations, cordoned, reportedAt, freeMemoryBytes, totalMemoryBytes } = state;
  const { outgoing, incoming } = slotsOf(state);
  const taken = (direction: string) => reservations.filter((one) => one.direction === direction).length;
  return [
    `**${name}** reported at ${clock(reportedAt)}; if that is more than ${SILENT_AFTER_MS / 1000} s ago its agent is silent, and nothing new comes: start it`,
    ...(cordoned ? [`**Cordoned** by ${cordoned.by}: ${cordoned.reason}. Nothing new comes until \`vmferry host uncordon ${name}\``] : []),
    `${plural(guests.length, 'guest')}. Memory: ${formatBytes(freeMemoryBytes)} of ${formatBytes(totalMemoryBytes)} free. ${(state.roots ?? []).map((root) => `${root.name}: ${formatBytes(root.freeBytes)} free`).join(', ')}`,
    `Slots: ${taken('outgoing')} of ${outgoing} outgoing and ${taken('incoming')} of ${incoming} incoming are taken (\`vmferry host set-limits ${name}\`)`,
    ...(reservations.length > 0 ? [table(['guest', '', 'for'], reservations.map(({ guest, direction, workflowId }) => [guest, direction === 'outgoing' ? 'leaves' : 'comes', workflowId]))] : []),
    ...(guests.length > 0 ? ['Its guests:', table(['guest', 'state', 'memory'], [...guests.slice(0, MOST_ROWS).map((guest) => [guest.name, guest.state, formatBytes(guest.memoryBytes)]), ...(guests.length > MOST_ROWS ? [[`… ${guests.length - MOST_ROWS} more`, '', '']] : [])])] : []),
    LAST_LINE,
  ].join('\n\n');
}
