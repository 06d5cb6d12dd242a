/** How long a caller is willing to wait. Without `timeoutMs`, or beyond what a timer can count (24 days), there is no limit. */
export interface Deadline {
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Arms the timer and the signal; the result disarms both, and must be called. A signal that is aborted already never calls: check it first. */
export function arm({ timeoutMs, signal }: Deadline, onTimeout: (timeoutMs: number) => void, onAbort: (reason: Error) => void): () => void {
  const timer = timeoutMs === undefined || timeoutMs > LONGEST_TIMER_MS ? undefined : setTimeout(() => onTimeout(timeoutMs), timeoutMs);
  const abort = () => onAbort(signal?.reason as Error);
  signal?.addEventListener('abort', abort);
  return () => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  };
}
