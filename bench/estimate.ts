import { GUEST, HOSTS, Stage } from '../demo/stage';
import { createLogger, installRuntime } from '../workers/logger';

/** `npm run bench:estimate [-- MOVES]`: checks a move of the demo guest, makes it, and prints what was predicted beside what was measured. */
const moves = Number(process.argv[2] ?? 4);

async function main(): Promise<void> {
  const logger = createLogger({ pretty: true, level: 'error' });
  installRuntime(logger);
  const stage = await Stage.open(logger);
  const rows: string[] = ['| copies: disks, memory (MiB) | link (MiB/s) | writes cost, memory dirtied (MiB/s) | converges: predicted; remedies: predicted, real | total (ms): predicted, real | pause (ms): predicted, real |', '|---|---|---|---|---|---|'];
  try {
    await stage.boot({ diskMiB: 512, rate: '8M', region: '256M', writtenBytes: 64 * 2 ** 20 });
    for (let move = 0; move < moves; move++) {
      const to = HOSTS[(move + 1) % 2]!;
      const { disks, memory, link, estimate } = await stage.client.check({ vm: GUEST, to, maxDowntimeMs: 2_000 });
      if (!estimate || !link || !memory) throw new Error(`the move to ${to} would be refused`);
      const migration = await stage.client.migrate({ vm: GUEST, to, sourceDisks: 'wipe', maxDowntimeMs: 2_000 });
      const over = new AbortController();
      void stage.guest.stayAttached(stage.serialSocket(to), over.signal);
      const { totalMs, downtimeMs, decisions } = await migration.result().finally(() => over.abort());
      await stage.guest.nextTick();
      const remedies = decisions.map(({ what }) => what).filter((what) => what !== 'nothing');
      const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
      rows.push(`| ${mib(estimate.copiesBytes.disks)}, ${mib(estimate.copiesBytes.memory)} | ${mib(link.bytesPerSecond)} (${link.from}) | ${mib(disks.reduce((sum, disk) => sum + (disk.dirtiedBytesPerSecond ?? 0), 0))}, ${mib(memory.dirtyBytesPerSecond ?? 0)} | ${estimate.converges}; ${estimate.remedies.join(', ') || 'none'}, ${remedies.join(', ') || 'none'} | ${estimate.totalMs ?? '–'}, ${totalMs} | ${estimate.downtimeMs ?? '–'}, ${downtimeMs ?? '–'} |`);
    }
    const { blocksLost, memoryErrors } = await stage.guest.verify();
    if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${blocksLost} blocks lost, ${memoryErrors} pages damaged: these figures are worth nothing`);
  } finally {
    await stage.close();
  }
  console.log(rows.join('\n'));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
