import { GUEST, HOSTS, Stage } from '../demo/stage';
import { createLogger, installRuntime } from '../workers/logger';
import { measureAgents } from './agent-cost';
import { assertWhole, type MeasuredMove, measureMove } from './measured-move';
import { Recorder } from './recorder';
import { formatSpread, spread } from './statistics';
import { type Doer, timeline } from './timeline';
import { requests } from './usage';

/**
 * `npm run bench:cost [-- MOVES [GUESTS]]`: what vmferry itself costs. Moves the demo guest there and back as plain text, and says which step takes time that is neither QEMU's nor the
 * link's, and how much of Temporal a move takes; then what agents, as processes of their own, use for guests that idle and that move. 0 leaves a part out.
 */
const moves = Number(process.argv[2] ?? 10);
const guests = Number(process.argv[3] ?? 100);
const say = (text: string) => process.stderr.write(`${text}\n`);

/** Long polls, of which an idle fleet has as many. */
const POLLS = /^Poll|GetSystemInfo|DescribeNamespace/;

interface Cost extends MeasuredMove {
  steps: Map<string, Record<Doer, number>>;
  events: number;
  historyBytes: number;
  /** Of the two hosts' entities. */
  hostEvents: number;
  requests: Map<string, number>;
}

async function main(): Promise<void> {
  for (const [what, number] of Object.entries({ moves, guests })) if (!Number.isInteger(number) || number < 0) throw new Error(`bench:cost: the number of ${what} is a whole number from 0 on`);
  if (moves > 0) await measureMoves();
  if (guests > 0) await measureAgents(guests, say);
}

async function measureMoves(): Promise<void> {
  const recorder = new Recorder();
  const logger = createLogger({ pretty: true, level: 'error' });
  installRuntime(logger);
  const stage = await Stage.open(logger, { insecure: true });
  const rows: Cost[] = [];
  try {
    await stage.boot({ diskMiB: 128, rate: '8M', writtenBytes: 32 * 2 ** 20 });
    for (let move = 0; move < moves; move++) {
      rows.push(await measure(stage, recorder, move));
      const { total, ours } = rows.at(-1)!;
      say(`move ${move + 1} of ${moves}: total ${total.toFixed(0)} ms, ours ${ours.toFixed(0)} ms`);
    }
    await assertWhole(stage);
  } finally {
    await stage.close();
  }
  print(rows);
}

async function measure(stage: Stage, recorder: Recorder, move: number): Promise<Cost> {
  const asked = await requests(stage.stack.server.pid);
  const hosts = await hostEvents(stage);
  const measured = await measureMove(stage, recorder, move);
  const handle = stage.client.temporal.workflow.getHandle(`migrate/${GUEST}`);
  const { events } = await handle.fetchHistory();
  const { historyLength, historySize } = await handle.describe();
  const now = await requests(stage.stack.server.pid);
  return {
    ...measured,
    steps: timeline(events!, measured.qemu, measured.began, measured.ended),
    events: historyLength,
    historyBytes: historySize!,
    hostEvents: (await hostEvents(stage)) - hosts,
    requests: new Map([...now].map(([operation, count]) => [operation, count - (asked.get(operation) ?? 0)])),
  };
}

async function hostEvents(stage: Stage): Promise<number> {
  const lengths = await Promise.all(HOSTS.map(async (host) => (await stage.client.temporal.workflow.getHandle(`host/${host}`).describe()).historyLength));
  return lengths.reduce((sum, one) => sum + one, 0);
}

function print(rows: Cost[]): void {
  const line = (name: string, figures: number[]) => console.log(`| ${name} | ${formatSpread(figures)} |`);
  console.log(`\n${rows.length} moves as plain text of the demo guest (256 MiB, 2 × 128 MiB raw, 8 MiB/s written to each): median (lowest–highest)\n\n| what | |\n|---|---|`);
  line('total, ms', rows.map(({ total }) => total));
  line('**ours in total**, ms', rows.map(({ ours }) => ours));
  line('**ours inside the window**, ms', rows.map(({ oursInWindow }) => oursInWindow));
  for (const part of Object.keys(rows[0]!.parts)) line(`– ${part}, ms`, rows.map(({ parts }) => parts[part]!));
  const doers: [Doer, string][] = [['activity', 'agents at work'], ['to the agent', "Temporal's hand-over to an agent"], ['to the workflow', "Temporal's hand-over to the workflow"], ['workflow', 'the workflow at work'], ['nobody', 'before the first task, after the last, and timers']];
  const sum = ({ steps }: Cost, doer: Doer) => [...steps.values()].reduce((total, row) => total + row[doer], 0);
  for (const [doer, name] of doers) line(`– ${name}, ms`, rows.map((row) => sum(row, doer)));
  line('events of its history', rows.map(({ events }) => events));
  line('bytes of its history', rows.map(({ historyBytes }) => historyBytes));
  line("events of the two hosts' entities meanwhile", rows.map(({ hostEvents: events }) => events));
  const asked = (row: Cost, matches: (operation: string) => boolean) => [...row.requests].reduce((total, [operation, count]) => total + (matches(operation) ? count : 0), 0);
  line('requests to Temporal, without polls', rows.map((row) => asked(row, (operation) => !POLLS.test(operation))));
  line('polls', rows.map((row) => asked(row, (operation) => operation.startsWith('Poll'))));

  console.log('\n| step | QEMU | agent | to the agent | to the workflow | workflow | ours together |\n|---|---|---|---|---|---|---|');
  const names = [...new Set(rows.flatMap(({ steps }) => [...steps.keys()]))];
  for (const name of names) {
    const of = (doer: Doer) => rows.map(({ steps }) => steps.get(name)?.[doer] ?? 0);
    const median = (doer: Doer) => spread(of(doer)).median.toFixed(0);
    const together = rows.map(({ steps }) => doers.reduce((total, [doer]) => total + (steps.get(name)?.[doer] ?? 0), 0));
    console.log(`| ${name} | ${median('qemu')} | ${median('activity')} | ${median('to the agent')} | ${median('to the workflow')} | ${median('workflow')} | ${formatSpread(together)} |`);
  }
  const operations = [...new Set(rows.flatMap((row) => [...row.requests.keys()]))];
  const perMove = operations.map((operation) => [operation, spread(rows.map((row) => row.requests.get(operation) ?? 0)).median] as const).filter(([, count]) => count > 0);
  console.log(`\nrequests a move, median: ${perMove.sort((a, b) => b[1] - a[1]).map(([operation, count]) => `${operation} ${count}`).join(', ')}`);
}

main().then(
  () => process.exit(0),
  (error: Error) => {
    say(error.stack ?? error.message);
    process.exit(1);
  },
);
