import type { TestGuest } from '../../demo/guest/test-guest';
import type { Lab } from './lab';

/** The guest's own proof: every block it ever completed, and every page, is there, and no second copy ever ticked. */
export async function expectWhole(guest: TestGuest): Promise<void> {
  const { blocksLost, memoryErrors, writeErrors, first, blocksWritten } = await guest.verify();
  expect({ blocksLost, memoryErrors, writeErrors, first, twoCopies: guest.duplicateEvidence }).toEqual({ blocksLost: 0, memoryErrors: 0, writeErrors: 0, first: [], twoCopies: [] });
  expect(blocksWritten).toBeGreaterThan(50);
}

/** Nothing on any host but the guests that live there. */
export async function expectClean(lab: Lab, where: Record<string, string[]>): Promise<void> {
  for (const host of lab.configs.keys()) expect({ host, leftovers: await lab.leftovers(host, where[host] ?? []) }).toEqual({ host, leftovers: [] });
}

/** The guest's vCPUs run on this host, by QEMU's own word. */
export async function expectRuns(lab: Lab, host: string, name: string): Promise<void> {
  expect(await lab.look(host, name, async (qmp) => await qmp.execute('query-status'))).toMatchObject({ status: 'running' });
}

/** What a look gives, as soon as it gives something. */
export async function eventually<T>(look: () => Promise<T | undefined>, timeoutMs = 60_000): Promise<T> {
  for (const until = Date.now() + timeoutMs; Date.now() < until; ) {
    const found = await look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('it did not come to pass');
}
