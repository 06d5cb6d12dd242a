import { z } from 'zod';

const FACTORS: Record<string, number> = { '': 1, B: 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30, TIB: 2 ** 40 };

/** Bytes of `262152K`, `4GiB`, `100MB` or a plain number. `K`, `M`, `G`, `T` are powers of 1024, as in QEMU; `KB`, `MB` … powers of 1000. Undefined if it is no size. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text.trim());
  const factor = FACTORS[match?.[2]?.toUpperCase() ?? 'none'];
  if (!match || factor === undefined) return undefined;
  const bytes = Number(match[1]) * factor;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** A number of bytes, given as a number or as text with a unit. */
export const sizeSchema = z.union([z.number(), z.string()]).transform((value, context) => {
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes === undefined || !Number.isSafeInteger(bytes) || bytes <= 0) {
    context.addIssue({ code: 'custom', message: `${JSON.stringify(value)} is not a size: give bytes, or a number with K, M, G, T (×1024) or KB, MB, GB (×1000)` });
    return z.NEVER;
  }
  return bytes;
});

/** `46.5 GiB` for people; three significant digits. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  for (; Math.abs(value) >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? value : Number(value.toPrecision(3))} ${units[unit]}`;
}
