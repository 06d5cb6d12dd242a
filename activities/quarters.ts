/**
 * Says when a copy is far enough to be told to the workflow again: each telling is four events of its history, so samples are not told. Once at first, then for
 * each quarter, never twice for the same whatever becomes dirty again, nor within 10 s: four times at most for each watch.
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
    this.most ??= 0;
  }

  isNews(remainingBytes: number, totalBytes: number, nowMs: number): boolean {
    if (nowMs - this.toldAtMs < this.pauseMs) return false;
    const done = totalBytes === 0 ? 0 : Math.min(3, Math.floor(4 * (1 - remainingBytes / totalBytes)));
    if (this.most !== undefined && done <= this.most) return false;
    this.most = done;
    return true;
  }
}
