import { writeFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes';
import { print, printJson, say } from '../output';
import { withClient } from '../session';

const HELP = `
The page has everything in itself: no script, no network. It is made from what Temporal has on record, so it works after agents and control
workers are gone, and for a migration under way shows what is known so far.

Examples:
  $ vmferry report db-7 -o report.html
  $ vmferry report migrate/db-7 --run 01a20cd3-320d-795b-9dc2-0f7040fd4a04 -o before.html
  $ vmferry report evacuate/host-a -o evacuation.html
  $ vmferry report db-7 --json | jq .window

${EXIT_CODES_HELP} docs/report.md shows two of them.`;

export function registerReport(program: Command): void {
  program
    .command('report')
    .description('what became of a migration or an evacuation, as one page')
    .argument('<id>', 'a guest, migrate/<vm>, evacuate/<host> or fleet/<name>')
    .option('--run <run-id>', 'an earlier run; default: the last one')
    .option('-o, --output <file>', 'where the page goes; - is stdout', 'report.html')
    .option('--json', 'what is on record as a line of JSON, and no page')
    .addHelpText('after', HELP)
    .action(async (id: string, { run, output, json }: { run?: string; output: string; json?: boolean }, command: Command) => {
      const { record, html } = await withClient(command, (client) => client.report(id, run));
      if (json) return printJson(record);
      if (output === '-') return print(html);
      await writeFile(output, html).catch((error: Error) => {
        throw new UsageError(`--output ${output} cannot be written: ${error.message}`);
      });
      say(`The report of ${record.workflowId} is in ${output}.`);
    });
}
