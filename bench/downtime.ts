import { crossingGapMs, GUEST, HOSTS, Stage } from '../demo/stage';
import { hostNowMs } from '../demo/guest/test-guest';
import { createLogger, installRuntime } from '../workers/logger';
import { Recorder, uncovered } from './recorder';
import { formatSpread, spread } from './statistics';

/**
 * `npm run bench:downtime [-- MOVES [--insecure]]`: moves the demo guest there and back, by TLS or as plain text, and says where its downtime and the whole time went: what QEMU and
 * its tools took, and what was ours, which is every moment when none of them had anything to do for us.
 */
const insecure = process.argv.includes('--insecure');
const moves = Number(process.argv[2] ?? 10);
const say = (text: string) => process.stderr.write(`${text}\n`);

interface Row {
  guestGap: number;
  window: number;
  parts: Record<string, number>;
  oursInWindow: number;
  total: number;
  ours: number;
}

async function main(): Promise<void> {
  const recorder = new Recorder();
  const logger = createLogger({ pretty: true, level: 'error' });
  installRuntime(logger);
  const stage = await Stage.open(logger, { insecure });
  const rows: Row[] = [];
  try {
    await stage.boot({ diskMiB: 128, rate: '8M', writtenBytes: 32 * 2 ** 20 });
    for (let move = 0; move < moves; move++) {
      const [from, to] = move % 2 === 0 ? [HOSTS[0], HOSTS[1]] : [HOSTS[1], HOSTS[0]];
      rows.push(await measure(stage, recorder, from, to));
      say(`move ${move + 1} of ${moves}: gap ${rows.at(-1)!.guestGap.toFixed(0)} ms, total ${rows.at(-1)!.total.toFixed(0)} ms`);
    }
    const { blocksLost, memoryErrors } = await stage.guest.verify();
    if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${blocksLost} blocks lost, ${memoryErrors} pages damaged: these figures are worth nothing`);
  } finally {
    await stage.close();
  }
  print(rows);
}

async function measure(stage: Stage, recorder: Recorder, from: string, to: string): Promise<Row> {
  recorder.clear();
  const began = hostNowMs();
  const migration = await stage.client.migrate({ vm: GUEST, to, sourceDisks: 'wipe', maxDowntimeMs: 2_000 });
  const attached = stage.guest.attach(stage.serialSocket(to as (typeof HOSTS)[number]));
  await migration.result();
  const ended = hostNowMs();
  await attached;
  await stage.guest.nextTick();
  const stopped = recorder.heard(from, 'STOP');
  const resumed = recorder.heard(to, 'RESUME');
  const preSwitchover = recorder.heard(from, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  const cancelled = recorder.sent(from, 'block-job-cancel');
  const concluded = recorder.heard(from, 'JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
  const continued = recorder.sent(from, 'migrate-continue');
  const completed = recorder.heard(to, 'MIGRATION', ({ status }) => status === 'completed');
  const cont = recorder.sent(to, 'cont');
  // While QEMU works towards an event that we wait for, it is QEMU's time.
  const waits = [{ from: stopped, to: preSwitchover }, { from: cancelled, to: concluded }, { from: continued, to: completed }, { from: cont, to: resumed }];
  const copying = [{ from: recorder.sent(from, 'blockdev-mirror'), to: recorder.heard(from, 'BLOCK_JOB_READY') }, { from: recorder.sent(from, 'migrate'), to: stopped }];
  return {
    guestGap: crossingGapMs(stage.guest.ticksSince(began)) ?? Number.NaN,
    window: resumed - stopped,
    parts: {
      'STOP → pre-switchover': preSwitchover - stopped,
      '→ mirrors asked to end': cancelled - preSwitchover,
      '→ mirrors ended': concluded - cancelled,
      '→ migrate-continue': continued - concluded,
      '→ completed at the destination': completed - continued,
      '→ cont': cont - completed,
      '→ RESUME': resumed - cont,
    },
    oursInWindow: uncovered(stopped, resumed, [...recorder.spans, ...waits]),
    total: ended - began,
    ours: uncovered(began, ended, [...recorder.spans.filter(({ what }) => what !== 'query-migrate'), ...waits, ...copying]),
  };
}

function print(rows: Row[]): void {
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
