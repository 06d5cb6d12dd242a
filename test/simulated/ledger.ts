/** One thing that happened to a guest, in the order in which it happened. */
export interface Entry {
  guest: string;
  host: string;
  what: 'runs' | 'stops' | 'migrate-continue' | 'completed' | 'ended' | 'mirror-failed' | 'migration-failed';
  /** At `migrate-continue`: the mirrors that existed, and what they had not copied. */
  mirrors?: { job: string; remainingBytes: number }[];
}

/** What happened to every guest, for a test's invariants: a violation is what must never happen, whatever fails. */
export class Ledger {
  readonly entries: Entry[] = [];
  readonly violations: string[] = [];
  /** The hosts on which a copy of the guest runs: one at most. */
  private readonly running = new Map<string, Set<object>>();

  note(entry: Entry): void {
    this.entries.push(entry);
  }

  violation(what: string): void {
    this.violations.push(what);
  }

  runs(guest: string, host: string, copy: object): void {
    const copies = this.running.get(guest) ?? new Set();
    if (copies.has(copy)) return;
    copies.add(copy);
    this.running.set(guest, copies);
    this.note({ guest, host, what: 'runs' });
    if (copies.size > 1) this.violation(`guest ${guest}: a second copy runs, on ${host}`);
  }

  stops(guest: string, host: string, copy: object): void {
    if (this.running.get(guest)?.delete(copy)) this.note({ guest, host, what: 'stops' });
  }

  copiesRunning(guest: string): number {
    return this.running.get(guest)?.size ?? 0;
  }

  of(guest: string): Entry[] {
    return this.entries.filter((entry) => entry.guest === guest);
  }
}
