import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { MAX_DOWNTIME_MS, R9_MS, type Verdict } from './cell';
import { FAULTS } from './faults';
import { STEPS } from './steps';

const [BEGIN, END] = ['<!-- chaos: written by npm run test:chaos -- --all -->', '<!-- chaos: end -->'];

type Dated = Verdict & { at: string };

/** Replaces the tables in the document by those of these results; the last one of each cell counts. The prose around them stays. */
export function writeTable(results: string, document: string): void {
  const verdicts = new Map(readVerdicts(results).map((one) => [key(one.step, one.fault), one]));
  const before = existsSync(document) ? readFileSync(document, 'utf8') : `# Reliability\n\n${BEGIN}\n${END}\n`;
  const [head, rest] = [before.split(BEGIN)[0]!, before.split(END)[1] ?? '\n'];
  writeFileSync(document, `${head}${BEGIN}\n\n${tables(verdicts)}\n${END}${rest}`);
}

/** The last verdict of each cell, from a file with one line of JSON each. */
export function readVerdicts(results: string): Dated[] {
  const all = readFileSync(results, 'utf8').split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Dated);
  return [...new Map(all.map((one) => [key(one.step, one.fault), one])).values()];
}

const key = (step: string, fault: string) => `${step}\0${fault}`;

function tables(verdicts: Map<string, Dated>): string {
  const all = [...verdicts.values()];
  const dates = all.map(({ at }) => at.slice(0, 10)).sort();
  const count = (result: Verdict['result']) => all.filter((one) => one.result === result).length;
  const failed = all.filter((one) => one.result === 'failed');
  const mark = (verdict: Dated | undefined) => {
    if (!verdict) return ' ';
    if (verdict.result === 'failed') return `✗ [${failed.indexOf(verdict) + 1}](#what-did-not-hold)`;
    if (verdict.result === 'void') return '·';
    if (verdict.end.includes('lost')) return '†';
    return verdict.end.startsWith('completed') ? '→' : verdict.end === 'terminated' ? '⏻' : '↩';
  };
  const columns = FAULTS.filter(({ name }) => name !== 'none');
  const rows = STEPS.map(({ name }) => `| ${name} | ${columns.map((fault) => mark(verdicts.get(key(name, fault.name)))).join(' | ')} |`);
  return [
    `${all.length} of ${STEPS.length * FAULTS.length} cells, ${dates[0] ?? '-'} to ${dates.at(-1) ?? '-'}, by \`npm run test:chaos -- --all\` with \`--step\` and \`--fault\`: ${count('ok')} held, ${count('failed')} did not, ${count('void')} have no object. A cell that is empty was not run.`,
    '',
    '`→` the guest moved · `↩` it stayed, and the migration names the reason · `⏻` terminated, and cleaned up by its next migration · `†` its own QEMU was killed: one copy was startable, and was started · `·` there is nothing to do it to at this step · `✗` did not hold',
    '',
    ...columns.map(({ name }, index) => `${index + 1}. ${name}`),
    '',
    `| step | ${columns.map((_, index) => index + 1).join(' | ')} |`,
    `|---|${columns.map(() => '---').join('|')}|`,
    ...rows,
    '',
    '### What did not hold',
    '',
    ...(failed.length === 0 ? ['Nothing, of what was run.'] : failed.map(({ step, fault, end, problems }, index) => `${index + 1}. ${fault}, ${step} (${end}): ${problems.join('; ').replaceAll('\n', ' ').slice(0, 400)}`)),
    '',
    '### The pause (R9)',
    '',
    `The longest silence between two ticks of the guest, in ms, less the time that the harness held an agent. The downtime budget is ${MAX_DOWNTIME_MS} ms, and R9 allows ${R9_MS} ms more; a cell fails beyond ${MAX_DOWNTIME_MS + R9_MS + 1_000} ms, as the machine was busy.`,
    '',
    gapTable(verdicts),
    '',
  ].join('\n');
}

function gapTable(verdicts: Map<string, Dated>): string {
  const columns = FAULTS.filter(({ ours, name }) => ours && !name.includes('SIGTERM'));
  const rows = STEPS.filter(({ paused }) => paused).map(({ name }) => {
    const gaps = columns.map((fault) => verdicts.get(key(name, fault.name))?.gapMs);
    return `| ${name} | ${gaps.map((gap) => gap ?? ' ').join(' | ')} |`;
  });
  return [`| step | ${columns.map(({ name }) => name).join(' | ')} |`, `|---|${columns.map(() => '---:').join('|')}|`, ...rows].join('\n');
}
