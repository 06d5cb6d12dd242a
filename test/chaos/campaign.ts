import { appendFileSync, existsSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { runCell, type Verdict } from './cell';
import { type Fault, FAULTS, faultNamed } from './faults';
import { Stage } from './stage';
import { type Step, STEPS, stepNamed } from './steps';
import { readVerdicts, writeTable } from './table';

/**
 * Not a part of CI: scripts/chaos.sh runs this. Random cells for some minutes, or the whole matrix, or one cell; each line on stderr is a verdict.
 * Results go to VMFERRY_CHAOS_RESULTS, one line of JSON each, from which the table of docs/reliability.md is written.
 */
const settings = process.env;
const seed = Number(settings['VMFERRY_CHAOS_SEED'] ?? Date.now() % 1_000_000);
const minutes = Number(settings['VMFERRY_CHAOS_MINUTES'] ?? 10);
const results = settings['VMFERRY_CHAOS_RESULTS'];
const keep = settings['VMFERRY_CHAOS_KEEP'];

type Cell = [Step, Fault];

/** Marsaglia's xorshift: the same seed, the same cells. */
function* randomNumbers(from: number): Generator<number> {
  for (let state = (from | 0) || 1; ; ) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    yield (state >>> 0) / 2 ** 32;
  }
}

function* randomCells(): Generator<Cell> {
  const random = randomNumbers(seed * 2654435761);
  const pick = <T>(list: T[]): T => list[Math.floor(random.next().value * list.length)]!;
  for (;;) yield [pick(STEPS), pick(FAULTS)];
}

function wanted(): Iterable<Cell> {
  const steps = settings['VMFERRY_CHAOS_STEP'] ? settings['VMFERRY_CHAOS_STEP'].split(';').map(stepNamed) : STEPS;
  const faults = settings['VMFERRY_CHAOS_FAULT'] ? settings['VMFERRY_CHAOS_FAULT'].split(';').map(faultNamed) : FAULTS;
  const done = new Set(settings['VMFERRY_CHAOS_RESUME'] ? held() : []);
  if (settings['VMFERRY_CHAOS_ALL']) return faults.flatMap((fault) => steps.filter((step) => !done.has(`${step.name} ${fault.name}`)).map((step): Cell => [step, fault]));
  return randomCells();
}

/** Cells that an earlier campaign found well. */
function held(): string[] {
  if (!results || !existsSync(results)) return [];
  return readVerdicts(results).filter(({ result }) => result !== 'failed').map(({ step, fault }) => `${step} ${fault}`);
}

function say(line: string): void {
  // Past Jest, which keeps what is printed until the end.
  writeSync(2, `${line}\n`);
}

test('chaos', async () => {
  const until = performance.now() + minutes * 60_000;
  const failed: Verdict[] = [];
  let stage: Stage | undefined;
  let count = 0;
  say(`chaos: seed ${seed}, ${minutes} minutes at most`);
  try {
    for (const [step, fault] of wanted()) {
      if (performance.now() > until) break;
      stage ??= await Stage.open();
      stage.clearLogs();
      const verdict = await runCell(stage, step, fault).catch((error: unknown): Verdict => ({ step: step.name, fault: fault.name, result: 'failed', end: '-', problems: [`the harness: ${(error as Error).stack ?? String(error)}`], ms: 0 }));
      count++;
      say(`${verdict.result.padEnd(6)} ${verdict.fault} @ ${verdict.step}: ${verdict.end}${verdict.gapMs === undefined ? '' : `, gap ${verdict.gapMs} ms`}, ${(verdict.ms / 1000).toFixed(1)} s${verdict.problems.map((problem) => `\n         ${problem}`).join('')}`);
      if (results) appendFileSync(results, `${JSON.stringify({ at: new Date().toISOString(), ...verdict })}\n`);
      if (verdict.result === 'failed') {
        failed.push(verdict);
        if (keep) stage.keepLogs(join(keep, `${verdict.fault} @ ${verdict.step}`.replace(/[^\w@]+/g, '-')));
        // Nobody knows in what state it is.
        await stage.close();
        stage = undefined;
      }
    }
  } finally {
    await stage?.close();
  }
  if (results && settings['VMFERRY_CHAOS_TABLE']) writeTable(results, settings['VMFERRY_CHAOS_TABLE']);
  say(`chaos: seed ${seed}, ${count} cells, ${failed.length} failed`);
  expect(failed).toEqual([]);
}, 2 ** 31 - 1);
