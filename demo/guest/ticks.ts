/** What the test guest says on its serial ports, and what follows from it. Pure: no sockets, no clock. The protocol is described in init.c. */

export interface Tick {
  sequence: number;
  /** The guest's CLOCK_MONOTONIC. */
  guestMs: number;
}

export type GuestLine = ({ kind: 'tick' } & Tick) | { kind: 'answer'; command: string; text: string; id?: string } | { kind: 'other'; text: string };

export function parseLine(line: string): GuestLine {
  const tick = /^t (\d+) (\d+)$/.exec(line);
  if (tick) return { kind: 'tick', sequence: Number(tick[1]), guestMs: Number(tick[2]) };
  const answer = /^= (\w+)(.*?)(?: (#\w+))?$/.exec(line);
  if (answer) return { kind: 'answer', command: answer[1]!, text: answer[2]!.trim(), ...(answer[3] && { id: answer[3] }) };
  return { kind: 'other', text: line };
}

export interface VerifyResult {
  writesCompleted: number;
  blocksWritten: number;
  blocksChecked: number;
  blocksLost: number;
  memoryErrors: number;
  /** Writes that the guest's kernel refused; each is also likely to show as a lost block. */
  writeErrors: number;
  /** The first bad blocks as `disk:block:expected:found`; found is a sequence number, `zeros`, `torn`, `foreign` or `unreadable`. */
  first: string[];
}

/** Throws if a figure is missing: an answer cut short must not read as "nothing lost". */
export function parseVerify(text: string): VerifyResult {
  const fields = new Map(text.split(' ').map((word) => word.split(/=(.*)/) as [string, string]));
  const figure = (name: string): number => {
    const value = fields.get(name);
    if (value === undefined || !/^\d+$/.test(value)) throw new Error(`the test guest's answer has no ${name}: verify ${text}`);
    return Number(value);
  };
  const first = fields.get('first');
  if (!first) throw new Error(`the test guest's answer has no end: verify ${text}`);
  return {
    writesCompleted: figure('written'),
    blocksWritten: figure('blocks'),
    blocksChecked: figure('checked'),
    blocksLost: figure('lost'),
    memoryErrors: figure('memory'),
    writeErrors: figure('errors'),
    first: first === '-' ? [] : first.split(','),
  };
}

/** Cuts bytes into lines; keeps the unfinished one. */
export class LineSplitter {
  tail = '';

  push(text: string): string[] {
    const lines = (this.tail + text).split(/\r?\n/);
    this.tail = lines.pop()!;
    return lines;
  }
}

interface ConsoleState {
  name: string;
  last: number;
  /** The first sequence number that another console continued with. From there on, ticks of this one prove a second copy. */
  supersededFrom?: number;
}

export interface RecordedTick extends Tick {
  hostMs: number;
  console: string;
}

/**
 * The ticks of one guest, from whichever consoles it has.
 * A guest that moved says its next number on another console; what the old console still delivers after that has lower numbers, since
 * sockets are read in no particular order. Anything else means that two copies run.
 */
export class TickLog {
  duplicates = 0;
  /** The first few duplicates, in words. */
  readonly evidence: string[] = [];
  /** Times that a guest booted after it had ticked. */
  restarts = 0;
  private readonly consoles = new Map<string, ConsoleState>();
  private current: ConsoleState | undefined;
  private ticks: RecordedTick[] = [];

  constructor(private readonly limit = 200_000) {}

  get lastTick(): RecordedTick | undefined {
    return this.ticks.at(-1);
  }

  /** The console that the guest is on. */
  get currentConsole(): string | undefined {
    return this.current?.name;
  }

  /** The guest on this console has just booted: it counts from 1. */
  booted(name: string): void {
    if (this.ticks.length > 0) this.restarts++;
    if (this.current) this.current.supersededFrom = 1;
    this.current = { name, last: 0 };
    this.consoles.set(name, this.current);
  }

  record(name: string, tick: Tick, hostMs: number): void {
    let from = this.consoles.get(name);
    if (!from) this.consoles.set(name, (from = { name, last: 0 }));
    const doubled = this.seenBefore(from, tick.sequence);
    if (doubled) {
      this.duplicates++;
      if (this.evidence.length < 8) this.evidence.push(doubled);
    }
    if (from.supersededFrom === undefined && from !== this.current) {
      if (this.current) this.current.supersededFrom = tick.sequence;
      this.current = from;
    }
    from.last = Math.max(from.last, tick.sequence);
    this.ticks.push({ ...tick, hostMs, console: name });
    if (this.ticks.length > 2 * this.limit) this.ticks = this.ticks.slice(-this.limit);
  }

  private seenBefore(from: ConsoleState, sequence: number): string | undefined {
    if (sequence <= from.last) return `tick ${sequence} twice on ${from.name}`;
    if (from.supersededFrom !== undefined) {
      return sequence >= from.supersededFrom ? `tick ${sequence} on ${from.name}, though ${this.current?.name} had gone on from ${from.supersededFrom}` : undefined;
    }
    const other = this.current;
    return other && other !== from && sequence <= other.last ? `tick ${sequence} on ${from.name}, though ${other.name} had reached ${other.last}` : undefined;
  }

  since(hostMs: number): RecordedTick[] {
    return this.ticks.slice(this.firstAfter(hostMs));
  }

  /** The longest silence that ended, or goes on until `now`, after `since`. A silence that began before it counts whole. */
  longestGapMs(since: number, now: number): number {
    let longest = 0;
    const first = this.firstAfter(since);
    for (let i = Math.max(first, 1); i < this.ticks.length; i++) longest = Math.max(longest, this.ticks[i]!.hostMs - this.ticks[i - 1]!.hostMs);
    return this.lastTick ? Math.max(longest, now - this.lastTick.hostMs) : 0;
  }

  private firstAfter(hostMs: number): number {
    let first = this.ticks.length;
    while (first > 0 && this.ticks[first - 1]!.hostMs >= hostMs) first--;
    return first;
  }
}
