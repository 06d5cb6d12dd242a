/** Something whose bytes a second are shared by the flows that pass it: a host's network card, or a throttle group. */
export interface Link {
  /** Wall-clock bytes a second; 0: no limit. */
  bytesPerSecond: number;
}

/** A stream of bytes from one host to another. */
export interface Flow {
  readonly links: Link[];
  /** What it would send in this time if nothing held it back. Called before `step`. */
  demandBytes(ms: number): number;
  /** It sent this much in this time. */
  step(bytes: number, ms: number): void;
}

/** The time between two looks at all flows, and the longest step of one look: rates are constant within it. */
const TICK_MS = 10;
const STEP_MS = 20;
/** A process that was held up for longer does not make up for it. */
const LONGEST_MS = 2_000;

/** Shares links among flows, in wall-clock time. It works only while there are flows. */
export class Network {
  private readonly flows = new Set<Flow>();
  private timer: NodeJS.Timeout | undefined;
  private at = performance.now();
  private advancing = false;

  add(flow: Flow): void {
    this.advance();
    this.flows.add(flow);
    this.timer ??= setInterval(() => this.advance(), TICK_MS).unref();
  }

  remove(flow: Flow): void {
    this.flows.delete(flow);
    if (this.flows.size > 0) return;
    clearInterval(this.timer);
    this.timer = undefined;
  }

  get flowCount(): number {
    return this.flows.size;
  }

  /** Brings all flows to now. Called before anything is read of them, or changed about them. */
  advance(): void {
    if (this.advancing) return;
    this.advancing = true;
    try {
      const now = performance.now();
      let leftMs = Math.min(LONGEST_MS, now - this.at);
      this.at = now;
      for (; leftMs > 0 && this.flows.size > 0; leftMs -= STEP_MS) this.step(Math.min(STEP_MS, leftMs));
    } finally {
      this.advancing = false;
    }
  }

  close(): void {
    clearInterval(this.timer);
    this.flows.clear();
  }

  /** Progressive filling: in each round every unsatisfied flow gets an equal part of what its fullest link has left. */
  private step(ms: number): void {
    const left = new Map<Link, number>();
    const all = [...this.flows].map((flow) => ({ flow, wants: flow.demandBytes(ms), gets: 0 }));
    for (const { flow } of all) for (const link of flow.links) if (link.bytesPerSecond > 0) left.set(link, (link.bytesPerSecond * ms) / 1000);
    let hungry = all.filter(({ wants }) => wants > 0);
    for (let round = 0; round < 4 && hungry.length > 0; round++) {
      const sharers = new Map<Link, number>();
      for (const { flow } of hungry) for (const link of flow.links) sharers.set(link, (sharers.get(link) ?? 0) + 1);
      const shares = hungry.map(({ flow, wants, gets }) => Math.min(wants - gets, ...flow.links.filter((link) => left.has(link)).map((link) => left.get(link)! / sharers.get(link)!)));
      hungry.forEach((one, index) => {
        one.gets += shares[index]!;
        for (const link of one.flow.links) if (left.has(link)) left.set(link, Math.max(0, left.get(link)! - shares[index]!));
      });
      hungry = hungry.filter(({ flow, wants, gets }) => wants - gets > 1 && flow.links.every((link) => (left.get(link) ?? 1) > 1));
    }
    for (const { flow, gets } of all) if (this.flows.has(flow)) flow.step(gets, ms);
  }
}
