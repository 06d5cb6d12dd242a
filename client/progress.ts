import type { MigrationView } from './migration-client';
import { formatBytes } from '../hypervisor/size';

/** Each step waits for a host a moment: that is no news. */
export const WAIT_SHOWN_MS = 5_000;

/** One line about a migration under way: the phase, each disk's and the memory's part that is done, and rates. What is not known yet is left out. */
export function progressLine(view: MigrationView): string {
  const parts = (view.disks ?? [])
    .filter(({ lengthBytes, remainingBytes }) => lengthBytes > 0 && remainingBytes >= 0)
    .map(({ id, remainingBytes, lengthBytes, ready, bytesPerSecond }) => {
      const state = ready ? `ready, ${formatBytes(remainingBytes)} behind` : `${percent(lengthBytes - remainingBytes, lengthBytes)} of ${formatBytes(lengthBytes)}`;
      return `${id} ${state}${rate(bytesPerSecond)}`;
    });
  if (view.memory && view.memory.totalBytes > 0) {
    const { remainingBytes, totalBytes, bytesPerSecond } = view.memory;
    parts.push(`memory ${formatBytes(Math.min(Math.max(0, remainingBytes), totalBytes))} left of ${formatBytes(totalBytes)}${rate(bytesPerSecond)}`);
  }
  if (view.verdict && view.verdict.verdict !== 'converging') parts.push(`${view.verdict.verdict}: ${view.verdict.message}`);
  if (view.asks) parts.push(`asks until ${view.asks.until}: vmferry steer ${view.vm} ${view.asks.choices.join(' | ')}`);
  for (const { host, why, since } of view.waitsFor ?? []) if (Date.now() - Date.parse(since) > WAIT_SHOWN_MS) parts.push(`waits for host ${host} (${why}): start its agent, or see vmferry fence --help`);
  return [`${view.vm} ${view.from ?? '?'} → ${view.to}: ${view.phase}${view.memoryTry > 1 ? ` (try ${view.memoryTry})` : ''}`, ...parts].join(' · ');
}

/** `100 %` is for a disk that is ready, not for one that is nearly so; a guest that writes faster than the copy never shows less than `0 %`. */
function percent(part: number, whole: number): string {
  return `${Math.min(99, Math.max(0, Math.floor((100 * part) / whole)))} %`;
}

function rate(bytesPerSecond: number): string {
  return Number.isFinite(bytesPerSecond) && bytesPerSecond >= 1 ? ` at ${formatBytes(Math.round(bytesPerSecond))}/s` : '';
}
