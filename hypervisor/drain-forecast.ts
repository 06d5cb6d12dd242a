/** Enough of a drain to know its rate: several steps of the mirror, and a small part of any budget. */
const FORECAST_MS = 60;

/** How long the drain of a paused guest's mirrors still takes: a try that cannot succeed is given up before it has cost the guest its whole budget. */
export class DrainForecast {
  private first: { atMs: number; bytes: number } | undefined;

  /** Milliseconds from now; undefined as long as nobody can say. */
  needsMs(bytes: number): number | undefined {
    const atMs = performance.now();
    this.first ??= { atMs, bytes };
    const [spanMs, drained] = [atMs - this.first.atMs, this.first.bytes - bytes];
    return spanMs < FORECAST_MS || drained <= 0 ? undefined : (bytes * spanMs) / drained;
  }
}
