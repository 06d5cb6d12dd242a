import { InvalidArgumentError } from 'commander';
import { formatBytes, parseSize } from '../hypervisor/size';
import { InvalidSelector, parseSelector } from '../workflows/selector';

/** Durations and rates as people write them. Parsers for options throw commander's `InvalidArgumentError`: it adds the option and the value. */
const UNIT_MS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, min: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds of `300ms`, `1.5s`, `2m`, `24h`, `7d`. Undefined if it is no duration; a bare number is none, since its unit can't be told. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(text.trim());
  const factor = match && Object.hasOwn(UNIT_MS, match[2]!) ? UNIT_MS[match[2]!] : undefined;
  return match && factor !== undefined ? finite(Number(match[1]) * factor) : undefined;
}

/** Bytes a second of `100MB/s`, `64MiB/s`, `1.5Gbit/s`. `MiB` and `M` are powers of 1024, `MB` and `Mbit` of 1000. Undefined if it is no rate. */
export function parseRate(text: string): number | undefined {
  const bits = /^(\d+(?:\.\d+)?)\s*([kMG]?)bit\/s$/i.exec(text.trim());
  if (bits) return finite((Number(bits[1]) * { '': 1, K: 1e3, M: 1e6, G: 1e9 }[bits[2]!.toUpperCase()]!) / 8);
  const bytes = /^(.+)\/s$/.exec(text.trim());
  return bytes ? parseSize(bytes[1]!) : undefined;
}

const finite = (number: number) => (Number.isFinite(number) ? number : undefined);

/** `1.5 s` for people. */
export function formatDuration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${Number((ms / 1_000).toFixed(1))} s`;
  if (ms < 2 * 3_600_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.round(ms / 3_600_000)} h`;
}

/** A parser for an option that takes a duration from `min` to `max`, in milliseconds. */
export function durationOption(min: number, max: number, example: string): (text: string) => number {
  return (text) => {
    const ms = parseDuration(text);
    if (ms === undefined) throw new InvalidArgumentError(`Give a number with ms, s, m, h or d, such as ${example}.`);
    if (ms < min || ms > max) throw new InvalidArgumentError(`Give a duration from ${formatDuration(min)} to ${formatDuration(max)}, such as ${example}.`);
    return ms;
  };
}

/** A parser for an option that takes a rate of at least `min` bytes a second. */
export function rateOption(min: number): (text: string) => number {
  return (text) => {
    const rate = parseRate(text);
    if (rate === undefined) throw new InvalidArgumentError('Give an amount a second, such as 100MB/s, 64MiB/s or 1Gbit/s.');
    if (rate < min) throw new InvalidArgumentError(`Give at least ${formatBytes(min)}/s.`);
    return Math.floor(rate);
  };
}

export function portOption(text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port < 1 || port > 65_535) throw new InvalidArgumentError('Give a TCP port from 1 to 65535.');
  return port;
}

/** A parser for an option that takes a whole number from `min` to `max`. */
export function wholeOption(min: number, max: number): (text: string) => number {
  return (text) => {
    const number = Number(text);
    if (!/^\d+$/.test(text) || number < min || number > max) throw new InvalidArgumentError(`Give a whole number from ${min} to ${max}.`);
    return number;
  };
}

/** A share, 0 to 1, of `10%`. */
export function percentOption(text: string): number {
  const [, number] = /^(\d+(?:\.\d+)?)\s*%$/.exec(text.trim()) ?? [];
  if (number === undefined || Number(number) > 100) throw new InvalidArgumentError('Give 0% to 100%, such as 10%.');
  return Number(number) / 100;
}

/** A selector of labels, checked; not empty. */
export function selectorOption(text: string): string {
  try {
    if (parseSelector(text).length > 0) return text.trim();
  } catch (error) {
    if (!(error instanceof InvalidSelector)) throw error;
  }
  throw new InvalidArgumentError('Give conditions on labels, such as rack=r12, zone!=b, gpu, !old or "rack in (r1,r2)", joined by commas.');
}

/** A parser for an option that can be repeated. */
export function collectOption(text: string, before: string[] = []): string[] {
  return [...before, text];
}
