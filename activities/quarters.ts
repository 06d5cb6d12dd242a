/**
 * Says when another quarter of a copy is done, for what is told to the workflow: each telling is four events of its history, so samples are not. Never twice
 * for the same quarter, whatever becomes dirty again, nor within 10 s: three times at most for each watch.
 */
export class Quarters {
  private most: number | undefined;
  private toldAtMs: number;

  constructor(nowMs: number, private readonly pauseMs = 10_000) {
    this.toldAtMs = nowMs;
  }

  /** Something was told anyway. */
  told(nowMs: number): void {
    this.toldAtMs = nowMs;
  }

  isNews(remainingBytes: number, totalBytes: number, nowMs: number): boolean {
    const done = totalBytes === 0 ? 0 : Math.min(3, Math.floor(4 * (1 - remainingBytes / totalBytes)));
    // What an earlier watch has copied was told by it.
    this.most ??= done;
    if (done <= this.most || nowMs - this.toldAtMs < this.pauseMs) return false;
    this.most = done;
    this.toldAtMs = nowMs;
    return true;
  }
}
