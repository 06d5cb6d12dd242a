import { setTimeout as delay } from 'node:timers/promises';
import { userInfo } from 'node:os';
import type { Command } from 'commander';
import { EXIT_CODES_HELP, Interrupted } from '../exit-codes';
import type { Repair } from '../migration-client';
import { Output, table } from '../output';
import { formatDuration } from '../quantities';
import { withClient } from '../session';
import { shutdownSignal } from '../../workers/shutdown';
import type { RepairResult } from '../../workflows/messages';

const REPAIR_HELP = `
For what a terminated migration left. Looks at what every host has of the guest, decides which copy is the guest, and
brings order: ends a migration under way and its mirrors, lifts throttles, discards a destination that never ran,
retires a copy that is out of date (its images are kept for a while), settles one that has arrived. A guest that runs
runs on; one that does not is not started. Refused while the guest is being moved. A second run finds nothing to repair.

If a host may run the guest and does not answer, it waits for it. If that machine is off for good, say so: vmferry fence.
Ctrl-C only stops watching.

Examples:
  $ vmferry repair web --dry-run
  $ vmferry repair web --json | jq -r .owner

${EXIT_CODES_HELP}`;

const FENCE_HELP = `
What is risked: the copy on another host is started in its place. If this host still runs the guest, two copies run and
write, and one's data is lost. Say it only when that machine is off, or cut from disks and network, and stays so: until
its agent is back, when its copy is retired before anything else is done with it. Do not start the guest there yourself.

Refused if the host answers, or if neither the migration nor the repair of the guest waits for it.

Example:
  $ vmferry fence host-b --vm web --reason "power supply burnt, pulled the plug"

${EXIT_CODES_HELP}`;

/** How often a repair that is waited for is looked at. */
const LOOK_MS = 500;

export function registerRepairCommands(program: Command): void {
  program
    .command('repair')
    .description('bring order after a migration that was terminated')
    .argument('<vm>')
    .option('--dry-run', 'say what is where, and what would be done first; change nothing')
    .addHelpText('after', REPAIR_HELP)
    .action(async (vm: string, { dryRun }: { dryRun?: boolean }, command: Command) => {
      const out = Output.of(command);
      const result = await withClient(command, async (client) => follow(out, await client.repair(vm, { dryRun: dryRun ?? false })));
      out.result(result, account(result));
    });

  program
    .command('fence')
    .description('confirm that a host is off: only when that machine is off or cut from disks and network')
    .argument('<host>')
    .requiredOption('--vm <vm>', 'the guest whose migration, or repair, waits for the host')
    .requiredOption('--reason <text>', 'how you know; shown in the Temporal UI')
    .option('--author <name>', 'who confirms it', userInfo().username)
    .addHelpText('after', FENCE_HELP)
    .action(async (host: string, { vm, reason, author }: { vm: string; reason: string; author: string }, command: Command) => {
      const decision = await withClient(command, (client) => client.confirmFenced({ vm, host, author, reason }));
      Output.of(command).result({ vm, ...decision }, `${vm}: ${decision.what}, by ${decision.by}: ${decision.why}`);
    });

  program
    .command('leftovers')
    .description('what hosts that were away have still to do when they return')
    .addHelpText('after', '\nEach is a workflow that waits for the agent of its host, however long. For a host that is gone for good, terminate it in Temporal.\n\nExample:\n  $ vmferry leftovers')
    .action(async (_options: unknown, command: Command) => {
      const out = Output.of(command);
      const leftovers = await withClient(command, (client) => client.leftovers());
      leftovers.forEach((leftover) => out.event('leftover', leftover));
      out.list(leftovers, 'No host has anything left to do.', () => table(['host', 'guest', 'step', 'for', 'workflow'], leftovers.map(({ host, vm, step, since, workflowId }) => [host, vm, step, formatDuration(Math.max(0, Date.now() - Date.parse(since))), workflowId])));
    });
}

/** Waits for the end of a repair, and says for whom it waits. Throws `Interrupted` at the first SIGINT or SIGTERM. */
async function follow(out: Output, repair: Repair): Promise<RepairResult> {
  const over = new AbortController();
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Interrupted(`Stopped watching (${signal}). The repair of ${repair.vm} goes on: "vmferry repair ${repair.vm}" watches it again.`)));
  interrupted.catch(() => undefined);
  const watching = sayWaits(out, repair, over.signal);
  try {
    return await Promise.race([repair.result(), interrupted]);
  } finally {
    over.abort();
    await watching;
  }
}

async function sayWaits(out: Output, repair: Repair, over: AbortSignal): Promise<void> {
  let said = '';
  for (; !over.aborted; await delay(LOOK_MS, undefined, { signal: over }).catch(() => undefined)) {
    const waits = (await repair.status())?.waitsFor ?? [];
    const text = waits.map(({ host, why }) => `Waits for host ${host}: ${why}. Start its agent; only if that machine is off, or cut from disks and network: vmferry fence ${host} --vm ${repair.vm} --reason …`).join('\n');
    if (text !== said && text !== '' && !over.aborted) {
      out.event('waiting', { vm: repair.vm, waitsFor: waits });
      out.say(text);
    }
    said = text;
  }
}

function account({ vm, outcome, owner, state, found, done, left }: RepairResult): string {
  const where = `the guest is on ${owner}, ${state}${state === 'stopped' ? `; start it: vmferry vm start ${vm}` : ''}.`;
  const end = outcome === 'nothing to repair' ? `Nothing to repair: ${where}` : outcome === 'repaired' ? `Repaired: ${where}` : `Would be done first${owner === undefined ? '' : `, as the guest is on ${owner}`}; then it looks again:`;
  return [
    `${vm}:`,
    table(['host', 'found'], found.map(({ host, copy }) => [host, copy])),
    ...(done.length > 0 ? ['', table(['host', outcome === 'planned' ? 'would be done' : 'done', 'why'], done.map(({ host, step, why }) => [host, step, why]))] : []),
    ...left.map((one) => `Left alone: ${one}`),
    '',
    end,
  ].join('\n');
}
