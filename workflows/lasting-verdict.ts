/** From best to worst. */
export const VERDICTS = ['converging', 'hovering', 'diverging', 'stalled', 'failed'] as const;

/**
 * What becomes of a copy if nothing changes. `converging`: it will be done; `hovering`: near, but never quite there; `diverging`: it
 * falls behind, or will be late; `stalled`: nothing arrives any more; `failed`: a job ended with an error.
 */
export type Verdict = (typeof VERDICTS)[number];

export const severity = (verdict: Verdict): number => VERDICTS.indexOf(verdict);
export const worst = (verdicts: Verdict[]): Verdict => verdicts.reduce((a, b) => (severity(b) > severity(a) ? b : a), 'converging');

export interface LastingTimes {
  /** How long every sample must be worse before the verdict is. */
  lastsMs: number;
  /** How long every sample must be better before the verdict is. */
  calmMs: number;
  /** A verdict that has changed this recently counts as restless. */
  flapMemoryMs: number;
}

/** Trouble, a remedy, calm: so many changes are an honest story. More of them in a short time are a threshold being crossed to and fro. */
const HONEST_CHANGES = 2;
/** However restless, trouble is told after this many times `lastsMs`. */
const MOST_PATIENT = 8;

/**
 * The verdict that lasts, out of what single samples say: a signal is sent when it changes, and only then, so it must never flap.
 *
 * Each severity has its own clock of "at least this bad since", so samples that alternate between hovering and diverging still add up to
 * trouble. `stalled` and `failed` are taken at once: the first is itself measured over a time, the second is a fact. A restless verdict
 * needs twice as long for each further worsening; getting better is never slowed down, since a remedy is judged by it.
 */
export class LastingVerdict {
  readonly #atLeast = new Map<Verdict, number>();
  readonly #atMost = new Map<Verdict, number>();
  #changes: number[] = [];

  constructor(
    private readonly times: LastingTimes,
    public verdict: Verdict = 'converging',
    /** When the verdict became this one; undefined until the first sample. */
    public sinceMs?: number,
  ) {}

  /** Takes what a sample says, `undefined` if it says nothing, and returns whether the verdict has changed by it. */
  push(says: Verdict | undefined, nowMs: number): boolean {
    this.sinceMs ??= nowMs;
    for (const verdict of VERDICTS) {
      keep(this.#atLeast, verdict, nowMs, says !== undefined && severity(says) >= severity(verdict));
      keep(this.#atMost, verdict, nowMs, says !== undefined && severity(says) <= severity(verdict));
    }
    const next = this.#worse(nowMs) ?? this.#better(nowMs);
    // Samples that have gone beyond it are on their way to a verdict that will be told instead.
    const passedBy = next !== undefined && says !== undefined && (severity(next) - severity(this.verdict)) * (severity(says) - severity(next)) > 0;
    if (next === undefined || passedBy) return false;
    this.#changes.push(nowMs);
    this.verdict = next;
    this.sinceMs = nowMs;
    return true;
  }

  #worse(nowMs: number): Verdict | undefined {
    this.#changes = this.#changes.filter((atMs) => nowMs - atMs < this.times.flapMemoryMs);
    const restless = Math.max(0, this.#changes.length - HONEST_CHANGES);
    const lastsMs = this.times.lastsMs * Math.min(2 ** restless, MOST_PATIENT);
    return VERDICTS.filter((verdict) => severity(verdict) > severity(this.verdict))
      .reverse()
      .find((verdict) => held(this.#atLeast.get(verdict), nowMs, verdict === 'stalled' || verdict === 'failed' ? 0 : lastsMs));
  }

  #better(nowMs: number): Verdict | undefined {
    return VERDICTS.filter((verdict) => severity(verdict) < severity(this.verdict)).find((verdict) => held(this.#atMost.get(verdict), nowMs, this.times.calmMs));
  }
}

function keep(clock: Map<Verdict, number>, verdict: Verdict, nowMs: number, holds: boolean): void {
  if (!holds) clock.delete(verdict);
  else if (!clock.has(verdict)) clock.set(verdict, nowMs);
}

function held(sinceMs: number | undefined, nowMs: number, forMs: number): boolean {
  return sinceMs !== undefined && nowMs - sinceMs >= forMs;
}
