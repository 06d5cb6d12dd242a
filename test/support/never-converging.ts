import { execFileSync } from 'node:child_process';
import type { MigrateVmInput } from '../../workflows/messages';
import type { Lab } from './lab';
import type { QmpTap } from './qmp-tap';

/** A guest that dirties all of this memory anew in each pass over the cap. */
export const NEVER = { memory: '24M', dirty: '60M', rate: '500K' };
/** No auto-converge: it would slow this guest until its memory converges. */
export const INPUT: Partial<MigrateVmInput> = { maxDowntimeMs: 500, memoryDeadlineSeconds: 4, memoryTries: 2, memory: { autoConverge: false, maxBandwidthBytesPerSecond: 20_000_000 } };
/** The first pass of the try that goes by post-copy is made shorter: it is not what is tested. */
const FASTER = 60_000_000;

/**
 * How fast the post-copy try of a guest sends: its first pass, and then its pages. vmferry sets no cap for pages; with one of the test's there is time for
 * what it does to them. QEMU reads that as post-copy begins.
 */
export function paceOfPostCopy(lab: Lab, tap: QmpTap, name: string, pagesBytesPerSecond = 0): void {
  let tries = 0;
  const set = async (parameters: Record<string, number>) => await lab.look('host-a', name, async (qmp) => void (await qmp.execute('migrate-set-parameters', parameters)));
  tap.before('host-a', 'migrate', () => (++tries === 2 ? set({ 'max-bandwidth': FASTER }) : undefined));
  tap.once('host-a', 'migrate-start-postcopy', () => set({ 'max-postcopy-bandwidth': pagesBytesPerSecond }));
}

/** Resets the connection over which pages go, once; as root. */
export function cutPages(lab: Lab, name: string): void {
  const { migrationPort } = lab.agents.get('host-b')!.host.store.attempt(name) as { migrationPort: number };
  execFileSync('ss', ['-K', '-tnH', 'state', 'connected', `( dport = :${migrationPort} or sport = :${migrationPort} )`]);
}
