import type { MigrationView } from './migration-client';
import { formatBytes } from '../hypervisor/size';

/** Each step waits for a host a moment. */
const WAIT_SHOWN_MS = 5_000;

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

/** The same in a few words, for one of many. */
export function shortProgress({ phase, disks = [], memory, verdict, asks }: MigrationView): string {
  const sum = (of: (disk: (typeof disks)[number]) => number) => disks.reduce((all, disk) => all + of(disk), 0);
  const length = sum(({ lengthBytes }) => Math.max(0, lengthBytes));
  const parts = [
    ...(disks.length > 0 && length > 0 ? [disks.every(({ ready }) => ready) ? 'disks ready' : `disks ${percent(length - sum(({ remainingBytes }) => Math.max(0, remainingBytes)), length)}`] : []),
    ...(memory && memory.totalBytes > 0 ? [`memory ${percent(memory.totalBytes - memory.remainingBytes, memory.totalBytes)}`] : []),
    ...(verdict && verdict.verdict !== 'converging' ? [verdict.verdict] : []),
    ...(asks ? ['asks'] : []),
  ];
  return [phase, ...parts].join(', ');
}

/** `100 %` is for a disk that is ready, not for one that is nearly so; a guest that writes faster than the copy never shows less than `0 %`. */
function percent(part: number, whole: number): string {
  return `${Math.min(99, Math.max(0, Math.floor((100 * part) / whole)))} %`;
}

function rate(bytesPerSecond: number): string {
  return Number.isFinite(bytesPerSecond) && bytesPerSecond >= 1 ? ` at ${formatBytes(Math.round(bytesPerSecond))}/s` : '';
}

/** In a log, a line this often is enough within one phase. */
const LOG_EVERY_MS = 5_000;

/** Shows a line that replaces the one before on a terminal, and whole lines, only when they say something new, anywhere else. */
export class ProgressPrinter {
  private last = '';
  private lastPhase: string | undefined;
  private lastAt = -Infinity;
  private readonly overwrites: boolean;

  constructor(private readonly stream: NodeJS.WriteStream, private readonly now: () => number = () => performance.now()) {
    this.overwrites = stream.isTTY && process.env['TERM'] !== 'dumb';
  }

  /** Without a terminal, and with `phase` given, lines of the same phase come at most every 5 s. */
  show(line: string, phase?: string): void {
    if (line === this.last) return;
    if (!this.overwrites && phase !== undefined && phase === this.lastPhase && this.now() - this.lastAt < LOG_EVERY_MS) return;
    this.last = line;
    this.lastPhase = phase;
    this.lastAt = this.now();
    if (this.overwrites) this.stream.write(`\r\x1b[2K${line.slice(0, Math.max(20, (this.stream.columns || 80) - 1))}`);
    else this.stream.write(`${line}\n`);
  }

  /** Leaves the last line where it is. */
  end(): void {
    if (this.last !== '' && this.overwrites) this.stream.write('\n');
    this.last = '';
  }
}
