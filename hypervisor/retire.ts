import { rm } from 'node:fs/promises';
import { movingDisks } from './definition';
import { stopGuard } from './guard';
import type { Host } from './host';
import { runFolder } from './host-config';
import { putAside, wipe } from './images';
import { quitQemu } from './launch';

export type SourceDisks = 'keep' | 'wipe';

/** Throws away this host's copy of a guest that lives elsewhere, which the caller has made sure of: ends its QEMU, puts its images aside or wipes them, forgets it. Idempotent. */
export async function retireCopy(host: Host, guest: string, attempt: string, { sourceDisks, keepHours }: { sourceDisks: SourceDisks; keepHours: number }): Promise<void> {
  const { store } = host;
  await stopGuard(host, guest);
  await quitQemu(host, guest);
  const paths = movingDisks(host.definition(guest)).map((disk) => host.path(guest, disk.path));
  if (sourceDisks === 'wipe') for (const path of paths) await wipe(host, path);
  else {
    const until = new Date(Date.now() + keepHours * 3_600_000).toISOString();
    const aside = (await Promise.all(paths.map((path) => putAside(path, attempt)))).filter((path) => path !== undefined);
    await store.setKept([...store.kept().filter((kept) => kept.attempt !== attempt), { guest, attempt, paths: aside, until }]);
  }
  await rm(runFolder(host.config, guest), { recursive: true, force: true });
  await store.remove(guest);
}
