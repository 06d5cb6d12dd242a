import { VmferryError } from '../client/migration-client';
import { GUEST, HOSTS, Stage } from '../demo/stage';
import { createLogger, installRuntime } from '../workers/logger';
import type { MigrateVmInput } from '../workflows/messages';
import type { Steer } from '../workflows/steer';
import { plot } from './plot';

/**
 * `npm run bench:divergence`: a guest that writes three times what its copy carries, once with each remedy and once with none, through the client
 * alone; what remains over time goes to docs/divergence-remaining.svg (by gnuplot), the figures to stdout.
 */
const LINK = 10_000_000;
const WATCH_MS = 25_000;
const say = (text: string) => process.stderr.write(`${text}\n`);
const signed = { author: 'bench', reason: 'to measure it' };

interface Case {
  name: string;
  input?: Partial<MigrateVmInput>;
  steer?: Steer;
}

const CASES: Case[] = [
  { name: 'none' },
  { name: 'write-blocking by re-arm', steer: { do: 'write-blocking', ...signed } },
  { name: 'write-blocking from the start', input: { copyMode: 'write-blocking' } },
  { name: 'throttle 1 MB/s', steer: { do: 'throttle', bytesPerSecond: 1_000_000, ...signed } },
  { name: 'lift-limits', steer: { do: 'lift-limits', ...signed } },
];

interface Row {
  name: string;
  points: { x: number; y: number }[];
  outcome: string;
  guestMbPerSecond: number;
  downtimeMs?: number;
  totalS: number;
}

async function measure({ name, input, steer }: Case): Promise<Row> {
  const stage = await Stage.open(createLogger({ pretty: true, level: 'error' }), { insecure: true });
  try {
    await stage.boot({ diskMiB: 48, rate: '15M', writtenBytes: 8 * 2 ** 20 });
    const began = Date.now();
    const migration = await stage.client.migrate({ vm: GUEST, to: HOSTS[1], sourceDisks: 'wipe', onDivergence: 'ask', bandwidthBytesPerSecond: LINK, memory: { maxBandwidthBytesPerSecond: 1e9 }, maxDowntimeMs: 1_000, ...input });
    const attached = stage.guest.attach(stage.serialSocket(HOSTS[1])).catch(() => undefined);
    const points: Row['points'] = [];
    let written: { bytes: number; atMs: number } | undefined;
    let guestMbPerSecond = 0;
    let steered = false;
    for await (const view of migration.watch()) {
      if (view.disks) points.push({ x: (Date.now() - began) / 1000, y: view.disks.reduce((sum, disk) => sum + disk.remainingBytes, 0) / 1e6 });
      if (view.asks && steer && !steered) {
        steered = true;
        await migration.steer(steer);
      }
      if (view.phase === 'converge' && (steered || !steer)) {
        const bytes = Number(/bytes=(\d+)/.exec(await stage.guest.command('stats'))![1]);
        written ??= { bytes, atMs: Date.now() };
        if (Date.now() > written.atMs) guestMbPerSecond = (bytes - written.bytes) / 1000 / (Date.now() - written.atMs);
      }
      if (Date.now() - began > WATCH_MS) await migration.steer({ do: 'abort', ...signed }).catch(() => undefined);
    }
    const result = await migration.result().catch((error: unknown) => (error instanceof VmferryError ? error : Promise.reject(error as Error)));
    const outcome = result instanceof VmferryError ? `not after ${WATCH_MS / 1000} s` : result.outcome;
    if (!(result instanceof VmferryError)) await attached;
    const { blocksLost, memoryErrors } = await stage.guest.verify();
    if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${name}: ${blocksLost} blocks lost, ${memoryErrors} pages damaged`);
    say(`${name}: ${outcome}`);
    return { name, points, outcome, guestMbPerSecond, totalS: (Date.now() - began) / 1000, ...(!(result instanceof VmferryError) && result.downtimeMs !== undefined && { downtimeMs: result.downtimeMs }) };
  } finally {
    await stage.close();
  }
}

async function main(): Promise<void> {
  installRuntime(createLogger({ pretty: true, level: 'error' }));
  const rows: Row[] = [];
  for (const one of CASES) rows.push(await measure(one));
  console.log(`\nLink ${LINK / 1e6} MB/s (our cap), guest 2 × 15 MB/s in random 16 KiB writes, 2 × 48 MiB, budget 1 s; 0 blocks lost in each\n`);
  console.log('| remedy | moved | after | pause | guest writes meanwhile |\n|---|---|---|---|---|');
  for (const { name, outcome, totalS, downtimeMs, guestMbPerSecond } of rows) console.log(`| ${name} | ${outcome} | ${totalS.toFixed(1)} s | ${downtimeMs === undefined ? '–' : `${downtimeMs} ms`} | ${guestMbPerSecond.toFixed(1)} MB/s |`);
  plot('docs/divergence-remaining.svg', { x: 'seconds since the start', y: 'MB that remain, both disks', curves: rows.map(({ name, points }) => ({ title: name, points })) });
}

main().then(
  () => process.exit(0),
  (error: Error) => {
    say(error.stack ?? error.message);
    process.exit(1);
  },
);
