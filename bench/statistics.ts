/** Median, and the lowest and highest, of some figures. */
export function spread(figures: number[]): { median: number; low: number; high: number } {
  const sorted = [...figures].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return { median: (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2, low: sorted[0]!, high: sorted.at(-1)! };
}

/** `median (low–high)`, in whole milliseconds, or with one decimal below 10. */
export function formatSpread(figures: number[]): string {
  const { median, low, high } = spread(figures);
  const text = (value: number) => (Math.abs(value) < 10 ? value.toFixed(1) : value.toFixed(0));
  return `${text(median)} (${text(low)}–${text(high)})`;
}
