import { readFileSync, statSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

const LOOK_MS = 1_000;

/** How long each block device was busy, in ms, by `major:minor`: the 10th statistic of /proc/diskstats (Linux, Documentation/admin-guide/iostats.rst). */
export function busyMs(diskstats: string): Map<string, number> {
  return new Map(
    diskstats.split('\n').flatMap((line) => {
      const fields = line.trim().split(/\s+/);
      return fields.length > 12 ? [[`${fields[0]}:${fields[1]}`, Number(fields[12])] as const] : [];
    }),
  );
}

/** The `major:minor` of what a path is on, as makedev(3) of Linux packs it. */
export function deviceOf({ dev, rdev, isBlock }: { dev: number; rdev: number; isBlock: boolean }): string {
  const device = BigInt(isBlock ? rdev : dev);
  return `${((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn)}:${(device & 0xffn) | ((device >> 12n) & ~0xffn & 0xffffffffn)}`;
}

/** The share of a second for which the busiest disk behind these paths was busy, 0 to 1; undefined if none of them is on a disk, as on tmpfs. */
export async function busyShare(paths: string[]): Promise<number | undefined> {
  const devices = new Set(paths.map((path) => statSync(path)).map((stat) => deviceOf({ dev: stat.dev, rdev: stat.rdev, isBlock: stat.isBlockDevice() })));
  const look = () => busyMs(readFileSync('/proc/diskstats', 'utf8'));
  const [before, since] = [look(), performance.now()];
  await delay(LOOK_MS);
  const [after, passedMs] = [look(), performance.now() - since];
  const shares = [...devices].filter((device) => before.has(device) && after.has(device)).map((device) => Math.min(1, (after.get(device)! - before.get(device)!) / passedMs));
  return shares.length > 0 ? Math.max(...shares) : undefined;
}
