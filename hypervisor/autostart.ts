import { readFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeDurably } from './durable';
import type { Host } from './host';
import { startGuest } from './launch';
import { mayStart } from './startable';

/**
 * Starts the guests with `autostart` once after each boot of this host. A copy that this host does not own is left alone (R10): at whatever
 * moment of a move the host went down, no second copy starts. Says what became of each.
 */
export async function autostartAfterBoot(host: Host): Promise<{ guest: string; error?: string }[]> {
  const file = join(host.config.stateDir, 'boot-id');
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  if ((await readFile(file, 'utf8').catch(() => '')) === boot) return [];
  const wanted = host.store.names().filter((guest) => host.definition(guest).autostart && mayStart(host.store.ownership(guest)) && !host.process(guest));
  const started = await Promise.all(wanted.map((guest) => startGuest(host, guest).then(() => ({ guest }), (error: Error) => ({ guest, error: error.message }))));
  // Last: an agent that is killed meanwhile begins again, and finds those that run.
  await writeDurably(file, boot);
  return started;
}
