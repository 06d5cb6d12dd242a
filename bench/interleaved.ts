import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { dirname } from 'node:path';
import { parseArgs } from 'node:util';
import { shutdownSignal } from '../workers/shutdown';
import { spread } from './statistics';

export const say = (text: string) => process.stderr.write(`${text}\n`);

/** One side's figures of one go at one case. */
export interface Run {
  case: string;
  side: string;
  /** By name; in milliseconds where the name does not say otherwise. */
  figures: Record<string, number>;
  /** The machine's, over the last minute. */
  loadAverage: number;
}

export interface Options {
  folder: string;
  runs: number;
  cases: string[];
  json: string;
}

/** Reads the options that these benches share. Undefined if only the help was asked for. Throws an error that says what is wrong. */
export function optionsOf(name: string, help: string, cases: string[], quick: string[]): Options | undefined {
  const { values } = parseArgs({
    options: { folder: { type: 'string' }, runs: { type: 'string' }, case: { type: 'string' }, json: { type: 'string', default: `test-results/bench-${name}.json` }, quick: { type: 'boolean', default: false }, help: { type: 'boolean', default: false } },
  });
  if (values.help) return void console.log(`${help}\n  --case NAME,...  of ${cases.join(', ')} (default: all)\n  --runs N         of each side, a case (default 5)\n  --quick          one run of ${quick.join(', ')}, to see whether all of it works\n  --json FILE      where every run's figures go (default test-results/bench-${name}.json)`);
  const chosen = values.case?.split(',') ?? (values.quick ? quick : cases);
  const unknown = chosen.find((one) => !cases.includes(one));
  if (unknown !== undefined) throw new Error(`--case ${unknown}: give some of ${cases.join(', ')}, separated by commas`);
  const runs = Number(values.runs ?? (values.quick ? 1 : 5));
  if (!Number.isInteger(runs) || runs < 1) throw new Error(`--runs ${values.runs}: give a whole number above 0`);
  if (values.folder === undefined) throw new Error(`run this by npm run bench:${name}, which makes the network`);
  return { folder: values.folder, runs, cases: chosen, json: values.json };
}

/**
 * Measures every side in turn, their order turned round in every second go, and writes down each figure as soon as it is known. A go that fails ends the bench: what
 * was measured until then is kept.
 */
export async function interleave(what: { options: Options; name: string; sidesOf: (name: string) => string[]; measure: (name: string, side: string, run: number) => Promise<Record<string, number>> }): Promise<Run[]> {
  const { options, measure, sidesOf } = what;
  const runs: Run[] = [];
  for (const name of options.cases) {
    for (let run = 0; run < options.runs; run++) {
      const sides = sidesOf(name);
      for (const side of run % 2 === 0 ? sides : [...sides].reverse()) {
        const figures = await measure(name, side, run);
        runs.push({ case: name, side, figures, loadAverage: loadavg()[0]! });
        mkdirSync(dirname(options.json), { recursive: true });
        writeFileSync(options.json, `${JSON.stringify({ at: new Date().toISOString(), bench: what.name, cpus: cpus().length, runs }, undefined, 2)}\n`);
        say(`${name}, ${run + 1} of ${options.runs}, ${side}: ${Object.entries(figures).map(([figure, value]) => `${figure} ${value.toFixed(0)}`).join(', ')}`);
      }
    }
  }
  return runs;
}

export interface Column {
  title: string;
  figure: string;
  digits: number;
  /** Of the median to the reference's: how often as much of it (×), or, for times, how often as fast. */
  ratio?: 'of values' | 'of speeds';
}

/** A table a case: median (lowest–highest) of each side, and what the first side is beside each other. */
export function printTable(runs: Run[], columns: Column[]): void {
  const loads = spread(runs.map(({ loadAverage }) => loadAverage));
  console.log(`\nmedian (lowest–highest); the machine's load ${loads.low.toFixed(1)} to ${loads.high.toFixed(1)}\n`);
  console.log(`| case | side | runs | ${columns.map(({ title }) => title).join(' | ')} |\n|---|---|---|${'---|'.repeat(columns.length)}`);
  for (const name of new Set(runs.map((run) => run.case))) {
    const mine = runs.filter((run) => run.case === name);
    const sides = [...new Set(mine.map(({ side }) => side))].sort((a, b) => Number(b === 'vmferry') - Number(a === 'vmferry'));
    const valuesOf = (side: string, figure: string) => mine.filter((run) => run.side === side && figure in run.figures).map(({ figures }) => figures[figure]!);
    for (const side of sides) {
      const cells = columns.map(({ figure, digits }) => {
        const values = valuesOf(side, figure);
        if (values.length === 0) return '–';
        const { median, low, high } = spread(values);
        return `${median.toFixed(digits)} (${low.toFixed(digits)}–${high.toFixed(digits)})`;
      });
      console.log(`| ${name} | ${side} | ${mine.filter((run) => run.side === side).length} | ${cells.join(' | ')} |`);
    }
    for (const other of sides.slice(1)) {
      const cells = columns.map(({ figure, ratio }) => {
        const [ours, theirs] = [valuesOf(sides[0]!, figure), valuesOf(other, figure)];
        if (!ratio || ours.length === 0 || theirs.length === 0) return '';
        const [a, b] = [spread(ours).median, spread(theirs).median];
        return `${(ratio === 'of speeds' ? b / a : a / b).toFixed(2)}×`;
      });
      console.log(`| ${name} | **${sides[0]} / ${other}** | | ${cells.join(' | ')} |`);
    }
  }
}

/** Runs a bench's main function as a program: one line for an error, and an end by a signal that still cleans up. */
export function runBench(main: () => Promise<void>): void {
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Error(`interrupted by ${signal}`)));
  // What lives is ended by the script, with its namespace.
  Promise.race([main(), interrupted]).then(
    () => process.exit(0),
    (error: Error) => {
      say(`bench: ${error.message}`);
      process.exit(1);
    },
  );
}
