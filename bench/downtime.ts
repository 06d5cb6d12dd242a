import { Stage } from '../demo/stage';
import { createLogger, installRuntime } from '../workers/logger';
import { assertWhole, type MeasuredMove, measureMove } from './measured-move';
import { Recorder } from './recorder';
import { formatSpread, spread } from './statistics';

/**
 * `npm run bench:downtime [-- MOVES [--insecure]]`: moves the demo guest there and back, by TLS or as plain text, and says where its downtime and the whole time went: what QEMU and
 * its tools took, and what was ours, which is every moment when none of them had anything to do for us.
 */
const insecure = process.argv.includes('--insecure');
const moves = Number(process.argv[2] ?? 10);
const say = (text: string) => process.stderr.write(`${text}\n`);

async function main(): Promise<void> {
  const recorder = new Recorder();
  const logger = createLogger({ pretty: true, level: 'error' });
  installRuntime(logger);
  const stage = await Stage.open(logger, { insecure });
  const rows: MeasuredMove[] = [];
  try {
    await stage.boot({ diskMiB: 128, rate: '8M', writtenBytes: 32 * 2 ** 20 });
    for (let move = 0; move < moves; move++) {
      rows.push(await measureMove(stage, recorder, move));
      say(`move ${move + 1} of ${moves}: gap ${rows.at(-1)!.guestGap.toFixed(0)} ms, total ${rows.at(-1)!.total.toFixed(0)} ms`);
    }
    await assertWhole(stage);
  } finally {
    await stage.close();
  }
  print(rows);
}

function print(rows: MeasuredMove[]): void {
  const line = (name: string, figures: number[]) => console.log(`| ${name} | ${formatSpread(figures)} |`);
  console.log(`\n${rows.length} moves by ${insecure ? 'plain text' : 'TLS'} of the demo guest (256 MiB, 2 × 128 MiB raw, 8 MiB/s written to each), milliseconds: median (lowest–highest)\n`);
  console.log('| what | ms |\n|---|---|');
  line('guest-visible gap between 10 ms ticks', rows.map((row) => row.guestGap));
  line('QEMU\'s STOP → RESUME', rows.map((row) => row.window));
  for (const part of Object.keys(rows[0]!.parts)) line(part, rows.map((row) => row.parts[part]!));
  line('**ours inside the window**', rows.map((row) => row.oursInWindow));
  line('total', rows.map((row) => row.total));
  line('**ours in total**', rows.map((row) => row.ours));
  const share = spread(rows.map((row) => row.ours / row.total));
  console.log(`\nours is ${(share.median * 100).toFixed(0)} % of the total; ${spread(rows.map((row) => row.oursInWindow / row.window)).median.toFixed(2)} of the window`);
}

main().then(
  () => process.exit(0),
  (error: Error) => {
    say(error.stack ?? error.message);
    process.exit(1);
  },
);
