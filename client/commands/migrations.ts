import type { Command } from 'commander';
import { EXIT, EXIT_CODES_HELP, exitCodeOf, Interrupted, outcomeOf, UsageError } from '../exit-codes';
import { type Migration, type MigrationView, VmferryError } from '../migration-client';
import { printJson, say } from '../output';
import { ProgressPrinter, progressLine } from '../progress';
import { durationOption, formatDuration, rateOption } from '../quantities';
import { withClient } from '../session';
import { shutdownSignal } from '../../workers/shutdown';
import type { MigrateVmInput, MigrationResult } from '../../workflows/messages';

const HOUR_MS = 3_600_000;
/** The same bounds as `migrateVmSchema`. */
export const OPTION_BOUNDS = { maxDowntimeMs: [20, 2_000_000], bandwidthBytesPerSecond: 65_536 } as const;

const MIGRATE_HELP = `
The guest runs while its disks and memory are copied, and pauses once, for less than --max-downtime; if that can't be
had (default 500ms), it runs on where it is and vmferry tries again. A guest that writes faster than it can be copied
is noticed before the pause: vmferry does the mildest thing that works, asks, or gives up (--on-divergence, default
auto; docs/divergence.md), and "vmferry steer" decides otherwise. Until the guest runs at the destination every failure leaves it
running at the source and nothing at the destination. Ctrl-C only stops watching.

--post-copy is never used at once: only when the memory has not converged for 20 s, or for 80 % of its deadline. The
guest then pauses as always, runs at the destination, and fetches what is missing from the source. From that pause until
its last page has come it lives in both hosts: if either of them or the link fails then, and the link does not come back
within stallSeconds (2 min), the running guest is lost and starts again from its disks, at the destination. There is no
way back to the source, and no cap on the memory's bandwidth. Refused where a QEMU cannot do it (it needs userfaultfd).

With --json, stdout has one line of JSON for each look, and a last one with "outcome": completed, failed, refused,
cancelled, or, after Ctrl-C, running; with --detach, started.

Examples:
  $ vmferry migrate web --to host-b
  $ vmferry migrate web --to host-b --max-downtime 300ms --bandwidth 100MB/s
  $ vmferry migrate web --to host-b --source-disks wipe --detach
  $ vmferry migrate web --to host-b --json | tail -1 | jq .downtimeMs

${EXIT_CODES_HELP}`;

interface MigrateOptions {
  to: string;
  maxDowntime?: number;
  onDivergence?: 'auto' | 'ask' | 'abort';
  copyMode?: 'background' | 'write-blocking';
  disksDeadline?: number;
  memoryDeadline?: number;
  postCopy?: boolean;
  bandwidth?: number;
  sourceDisks: string;
  keepFor: number;
  detach?: boolean;
  json?: boolean;
}

export function registerMigrationCommands(program: Command): void {
  const migrate = program
    .command('migrate')
    .description('move a running guest, with its disks, to another host')
    .argument('<vm>')
    .requiredOption('--to <host>', 'the destination')
    .option('--max-downtime <duration>', 'the longest pause that a try may cost the guest', durationOption(...OPTION_BOUNDS.maxDowntimeMs, '300ms'))
    .option('--bandwidth <rate>', 'a cap for disks, and one for memory; default: as fast as the link', rateOption(OPTION_BOUNDS.bandwidthBytesPerSecond))
    .option('--disks-deadline <duration>', 'how long the disks may take to catch up', durationOption(1_000, 365 * 24 * HOUR_MS, '2h'))
    .option('--memory-deadline <duration>', 'how long one try to move the memory may take', durationOption(1_000, 365 * 24 * HOUR_MS, '10m'))
    .option('--post-copy', 'if the memory does not converge, let the guest run at the destination before all of it is there. At risk: until its last page has come the guest is lost if either host or the link fails (its disks are whole at the destination), and it is slow')
    .option('--keep-for <duration>', "how long the source's images are kept, put aside", durationOption(60_000, 10 * 365 * 24 * HOUR_MS, '24h'), 24 * HOUR_MS)
    .option('--detach', 'start it, wait until it is accepted or refused, and leave it alone')
    .option('--json', 'lines of JSON on stdout')
    .addHelpText('after', MIGRATE_HELP);
  migrate.addOption(migrate.createOption('--source-disks <what>', "what becomes of the source's images").choices(['keep', 'wipe']).default('keep'));
  migrate.addOption(migrate.createOption('--on-divergence <policy>', 'when the guest writes faster than it can be copied: act, ask for a steer, or give up').choices(['auto', 'ask', 'abort']));
  migrate.addOption(migrate.createOption('--copy-mode <mode>', 'write-blocking: each write of the guest waits for the copy, from the start').choices(['background', 'write-blocking']));
  for (const option of migrate.options) if (option.long === '--keep-for') option.defaultValueDescription = '24h';
  migrate.action(async (vm: string, options: MigrateOptions, command: Command) => {
    if (options.sourceDisks === 'wipe' && command.getOptionValueSource('keepFor') === 'cli') throw new UsageError('--source-disks wipe keeps nothing: leave --keep-for out');
    const input: MigrateVmInput = {
      vm,
      to: options.to,
      // What is left out is the source host's to say (its configuration's field `migration`).
      ...(options.maxDowntime !== undefined && { maxDowntimeMs: options.maxDowntime }),
      ...(options.onDivergence && { onDivergence: options.onDivergence }),
      ...(options.copyMode && { copyMode: options.copyMode }),
      ...(options.disksDeadline !== undefined && { disksDeadlineSeconds: options.disksDeadline / 1_000 }),
      ...(options.memoryDeadline !== undefined && { memoryDeadlineSeconds: options.memoryDeadline / 1_000 }),
      ...(options.postCopy && { postCopy: true }),
      sourceDisks: options.sourceDisks as 'keep' | 'wipe',
      keepHours: options.keepFor / HOUR_MS,
      ...(options.bandwidth !== undefined && { bandwidthBytesPerSecond: options.bandwidth }),
    };
    await withClient(command, async (client) => {
      const migration = await client.migrate(input).catch((error: unknown) => {
        if (options.json && error instanceof VmferryError) printJson({ vm, to: options.to, ...failure(error) });
        throw error;
      });
      await follow(migration, { to: options.to, json: options.json ?? false, until: options.detach ? 'accepted' : 'ended' });
    });
  });

  program
    .command('watch')
    .description("follow a guest's migration, or say how the last one ended")
    .argument('<vm>')
    .option('--json', 'lines of JSON on stdout')
    .addHelpText('after', `\nEnds with the migration, and with its exit code. Ctrl-C only stops watching.\n\nExamples:\n  $ vmferry watch web\n  $ vmferry watch web --json | tail -1\n\n${EXIT_CODES_HELP}`)
    .action(async (vm: string, { json }: { json?: boolean }, command: Command) => {
      await withClient(command, async (client) => follow(await client.migration(vm), { json: json ?? false, until: 'ended' }));
    });

  program
    .command('cancel')
    .description("stop a guest's migration; waits until everything is undone")
    .argument('<vm>')
    .addHelpText('after', `\nBefore the switchover the guest runs on where it is and the destination is cleaned. During the switchover the move is\nfinished instead. Exit code 0: the guest did not move; 1: it did, or the undo needs a look; 3: no migration was under way.\n\nExample:\n  $ vmferry cancel web`)
    .action(async (vm: string, _options: unknown, command: Command) => {
      await withClient(command, async (client) => cancel(await client.migration(vm)));
    });
}

interface Following {
  to?: string;
  json: boolean;
  until: 'accepted' | 'ended';
}

/** Shows a migration until it has ended, or has been accepted, and sets the exit code. Throws `Interrupted` at the first SIGINT or SIGTERM. */
async function follow(migration: Migration, { to, json, until }: Following): Promise<void> {
  const { vm, workflowId, runId } = migration;
  const over = new AbortController();
  const interrupted = shutdownSignal().then((signal) => over.abort(new Interrupted(`Stopped watching (${signal}). The migration of ${vm} goes on: watch it with "vmferry watch ${vm}", end it with "vmferry cancel ${vm}".`)));
  interrupted.catch(() => undefined);
  const ended = migration.result().finally(() => over.abort());
  ended.catch(() => undefined);
  if (!json && until === 'ended') say(`Watching ${workflowId}; Ctrl-C stops watching, "vmferry cancel ${vm}" ends the migration.`);

  let last: MigrationView | undefined;
  let accepted = false;
  const printer = new ProgressPrinter(process.stderr);
  try {
    for await (const view of migration.watch(over.signal)) {
      last = view;
      if (json) printJson(view);
      printer.show(progressLine(view), view.phase);
      accepted = view.phase !== 'preflight';
      if (until === 'accepted' && accepted) break;
    }
  } catch (error) {
    if (!over.signal.aborted) throw new Error(`watching failed, the migration of ${vm} goes on without it: ${(error as Error).message}`, { cause: error });
  } finally {
    printer.end();
  }

  const known = { vm, ...(last?.from && { from: last.from }), ...((last?.to ?? to) && { to: last?.to ?? to }) };
  const ids = { workflowId, runId };
  if (over.signal.reason instanceof Interrupted) {
    if (json) printJson({ ...known, outcome: outcomeOf(EXIT.interrupted), ...ids });
    throw over.signal.reason;
  }
  if (until === 'accepted' && accepted) {
    if (json) printJson({ ...known, outcome: 'started', ...ids });
    return say(`The migration of ${vm} is under way: watch it with "vmferry watch ${vm}", end it with "vmferry cancel ${vm}".`);
  }
  try {
    const result = await ended;
    if (json) printJson({ ...result, ...ids });
    say(account(result));
  } catch (error) {
    const code = exitCodeOf(error, 'migration');
    const status = await migration.status();
    if (json && error instanceof VmferryError) printJson({ ...known, ...(status?.from && { from: status.from }), ...(status && { to: status.to }), ...failure(error), ...ids });
    if (!(error instanceof VmferryError)) throw error;
    say(`vmferry: ${error.message}`);
    process.exitCode = code;
  }
}

function failure(error: VmferryError): { outcome: string; error: { type: string; message: string; blockers?: string[] } } {
  return { outcome: outcomeOf(exitCodeOf(error, 'migration')), error: { type: error.type, message: error.message, ...(error.details.blockers && { blockers: error.details.blockers }) } };
}

function account({ vm, from, to, totalMs, downtimeMs, memoryTries, warnings }: MigrationResult): string {
  const pause = downtimeMs === undefined ? '' : `, paused for ${formatDuration(Math.max(0, downtimeMs))}`;
  return [`${vm} moved from ${from} to ${to} in ${formatDuration(totalMs)}${pause}${memoryTries > 1 ? `, after ${memoryTries} tries to move its memory` : ''}.`, ...warnings.map((warning) => `Warning: ${warning}`)].join('\n');
}

async function cancel(migration: Migration): Promise<void> {
  const { vm } = migration;
  const outcome = () => migration.result().then(account, (error: Error) => error.message);
  if (!(await migration.isRunning())) throw new VmferryError('MigrationRefused', `guest ${vm} is not being moved; its last migration: ${await outcome()}`);
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Interrupted(`Stopped waiting (${signal}). The migration of ${vm} is being cancelled: watch it with "vmferry watch ${vm}".`)));
  interrupted.catch(() => undefined);
  await migration.cancel();
  say(`Cancelling ${migration.workflowId}; waiting until everything is undone …`);
  try {
    const result = await Promise.race([migration.result(), interrupted]);
    say(`It was too late to cancel: ${account(result)}`);
    process.exitCode = EXIT.failed;
  } catch (error) {
    if (!(error instanceof VmferryError)) throw error;
    const from = (await migration.status())?.from;
    if (error.type === 'Cancelled') return say(`The migration of ${vm} was cancelled; the guest stays ${from ? `on ${from}` : 'where it was'}.`);
    say(`vmferry: the migration ended before it could be cancelled: ${error.message}`);
    process.exitCode = EXIT.failed;
  }
}
