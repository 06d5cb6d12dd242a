import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import { type Candidate, linesFor, type Next, SCRIPTS, type Shell, SHELLS, whatNext, WORD_SEPARATOR } from '../completion';
import { MigrationClient } from '../migration-client';
import { print } from '../output';
import { addressOf } from '../session';

/** Who presses Tab waits no longer. */
const DEADLINE_MS = 1_000;

const HELP = `
Commands, options and their choices are completed, and names of guests, hosts, evacuations and schedules, which are
asked from Temporal for at most a second.

Examples:
  $ source <(vmferry completion bash)                                       # also in ~/.bashrc
  $ vmferry completion zsh > ~/.zfunc/_vmferry                              # a folder of your fpath
  $ vmferry completion fish > ~/.config/fish/completions/vmferry.fish`;

export function registerCompletion(program: Command): void {
  const completion = program.command('completion').description('a script that lets a shell complete command lines of vmferry');
  completion
    .addArgument(completion.createArgument('<shell>', SHELLS.join(', ')).choices(SHELLS))
    .option('--after <words>', 'what could come next after these words, separated by \\x1f: what the script asks')
    .addHelpText('after', HELP)
    .action(async (shell: Shell, { after }: { after?: string }) => {
      if (after === undefined) return print(SCRIPTS[shell]);
      const next = whatNext(program, after.split(WORD_SEPARATOR));
      const lines = linesFor(shell, next, [...next.candidates, ...(await namesOf(next))]);
      if (lines.length > 0) print(lines.join('\n'));
    });
}

/** Names that the fleet knows; none if it does not answer in time. */
async function namesOf({ kind, globals }: Next): Promise<Candidate[]> {
  if (kind === undefined || kind === 'file' || kind === 'folder') return [];
  const asked = ask(kind, globals);
  asked.catch(() => undefined);
  return await Promise.race([asked.catch(() => []), delay(DEADLINE_MS, [], { ref: false })]);
}

async function ask(kind: 'vm' | 'host' | 'evacuation' | 'schedule', globals: Next['globals']): Promise<Candidate[]> {
  const client = await MigrationClient.connect(addressOf(globals));
  try {
    if (kind === 'schedule') return (await client.schedules.list()).map(({ name, hosts }) => ({ value: name, about: `empties ${hosts}` }));
    if (kind === 'evacuation') return (await client.fleet.evacuations()).map((workflowId) => ({ value: workflowId.replace(/^evacuate\//, '') }));
    const hosts = await client.hosts();
    if (kind === 'host') return hosts.map(({ name, guests }) => ({ value: name, about: `${guests.length} guests` }));
    return hosts.flatMap(({ name: host, guests }) => guests.filter(({ state }) => !/^(arriving|handed over)/.test(state)).map(({ name, state }) => ({ value: name, about: `${state} on ${host}` })));
  } finally {
    await client.close();
  }
}
