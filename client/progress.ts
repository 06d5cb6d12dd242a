import type { MigrationView } from './migration-client';
import { formatBytes } from '../hypervisor/size';

/** One line about a migration under way: the phase, each disk's and the memory's part that is done, and rates. */
export function progressLine(view: MigrationView): string {
  const parts = (view.disks ?? []).map(({ id, remainingBytes, lengthBytes, ready, bytesPerSecond }) => {
    const lag = ready ? `ready, ${formatBytes(remainingBytes)} behind` : `${percent(lengthBytes - remainingBytes, lengthBytes)} of ${formatBytes(lengthBytes)}`;
    return `${id} ${lag}${bytesPerSecond > 0 ? ` at ${formatBytes(bytesPerSecond)}/s` : ''}`;
  });
  if (view.memory) parts.push(`memory ${formatBytes(view.memory.remainingBytes)} left of ${formatBytes(view.memory.totalBytes)}${view.memory.bytesPerSecond > 0 ? ` at ${formatBytes(view.memory.bytesPerSecond)}/s` : ''}`);
  return [`${view.vm} ${view.from ?? '?'} → ${view.to}: ${view.phase}${view.memoryTry > 1 ? ` (try ${view.memoryTry})` : ''}`, ...parts].join(' · ');
}

function percent(part: number, whole: number): string {
  return `${whole > 0 ? Math.floor((100 * part) / whole) : 100} %`;
}

/** Shows a line that replaces the one before on a terminal, and whole lines, only when they say something new, anywhere else. */
export class ProgressPrinter {
  private last = '';
  private shown = false;

  constructor(private readonly stream: NodeJS.WriteStream) {}

  show(line: string): void {
    if (line === this.last) return;
    this.last = line;
    if (this.stream.isTTY) this.stream.write(`\r\x1b[2K${line.slice(0, this.stream.columns - 1)}`);
    else this.stream.write(`${line}\n`);
    this.shown = true;
  }

  end(): void {
    if (this.shown && this.stream.isTTY) this.stream.write('\n');
  }
}
