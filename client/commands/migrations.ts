import type { Command } from 'commander';
import { EXIT, EXIT_CODES_HELP, FollowedFailed, Interrupted, UsageError } from '../exit-codes';
import { type Migration, type MigrationView, VmferryError } from '../migration-client';
import { MigrationDisplay } from '../migration-display';
import { Output } from '../output';
import { formatDuration } from '../quantities';
import { withClient } from '../session';
import { shutdownSignal } from '../../workers/shutdown';
import type { MigrationResult } from '../../workflows/messages';
import { addMigrationOptions, checkMigrationOptions, coldFields, migrationFields, type MigrationOptions, runningOnly } from './migration-options';

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
A move takes a slot at both hosts and waits for it (vmferry host set-limits). With --stopped the guest is one that does
not run: its definition and its images are copied, and it can be started nowhere meanwhile.

With --json, stdout has a line of JSON for each look, and a last one: a result with "outcome" completed, or, with --detach,
started; or an error.

Examples:
  $ vmferry migrate web --to host-b
  $ vmferry migrate web --to host-b --max-downtime 300ms --bandwidth 100MB/s
  $ vmferry migrate web --to host-b --source-disks wipe --detach
  $ vmferry migrate web --to host-b --json | tail -1 | jq .downtimeMs
  $ vmferry migrate archive --to host-b --stopped

${EXIT_CODES_HELP}`;

interface MigrateOptions extends MigrationOptions {
  to: string;
  stopped?: boolean;
  detach?: boolean;
}

export function registerMigrationCommands(program: Command): void {
  const migrate = program
    .command('migrate')
    .description('move a guest, with its disks, to another host')
    .argument('<vm>')
    .requiredOption('--to <host>', 'the destination');
  addMigrationOptions(migrate)
    .option('--stopped', 'the guest does not run: copy its definition and images')
    .option('--detach', 'start it, wait until it is accepted or refused, and leave it alone')
    .addHelpText('after', MIGRATE_HELP);
  migrate.action(async (vm: string, options: MigrateOptions, command: Command) => {
    checkMigrationOptions(command, options);
    const surplus = options.stopped ? runningOnly(command) : undefined;
    if (surplus !== undefined) throw new UsageError(`--stopped is for a guest that does not run: leave ${surplus} out`);
    const { to } = options;
    await withClient(command, async (client) => {
      const started = options.stopped ? client.migrateStopped({ vm, to, ...coldFields(options) }) : client.migrate({ vm, to, ...migrationFields(options) });
      const migration = await started.catch((error: Error) => {
        throw new FollowedFailed(error, { vm, to });
      });
      await follow(Output.of(command), migration, options.detach ? 'accepted' : 'ended', to);
    });
  });

  program
    .command('watch')
    .description("follow a guest's migration, or say how the last one ended")
    .argument('<vm>')
    .addHelpText('after', `\nEnds with the migration, and with its exit code. Ctrl-C only stops watching.\n\nExamples:\n  $ vmferry watch web\n  $ vmferry watch web --json | tail -1\n\n${EXIT_CODES_HELP}`)
    .action(async (vm: string, _options: unknown, command: Command) => {
      await withClient(command, async (client) => follow(Output.of(command), await client.migration(vm), 'ended'));
    });

  program
    .command('cancel')
    .description("stop a guest's migration; waits until everything is undone")
    .argument('<vm>')
    .addHelpText('after', `\nBefore the switchover the guest runs on where it is and the destination is cleaned. During the switchover the move is\nfinished instead. Exit code 0: the guest did not move; 1: it did, or the undo needs a look; 3: no migration was under way.\n\nExample:\n  $ vmferry cancel web`)
    .action(async (vm: string, _options: unknown, command: Command) => {
      await withClient(command, async (client) => cancel(Output.of(command), await client.migration(vm)));
    });
}

/** Shows a migration until it has ended, or has been accepted. Throws `Interrupted` at the first SIGINT or SIGTERM, and `FollowedFailed`. */
async function follow(out: Output, migration: Migration, until: 'accepted' | 'ended', to?: string): Promise<void> {
  const { vm, workflowId, runId } = migration;
  const over = new AbortController();
  const interrupted = shutdownSignal().then((signal) => over.abort(new Interrupted(`Stopped watching (${signal}). The migration of ${vm} goes on: watch it with "vmferry watch ${vm}", end it with "vmferry cancel ${vm}".`)));
  interrupted.catch(() => undefined);
  const ended = migration.result().finally(() => over.abort());
  ended.catch(() => undefined);
  if (until === 'ended') out.say(`Watching ${workflowId}; Ctrl-C stops watching, "vmferry cancel ${vm}" ends the migration.`);

  let last: MigrationView | undefined;
  let accepted = false;
  const display = out.talks ? new MigrationDisplay(process.stderr) : undefined;
  try {
    for await (const view of migration.watch(over.signal)) {
      last = view;
      out.event('migration', view);
      display?.show(view);
      accepted = view.phase !== 'preflight';
      if (until === 'accepted' && accepted) break;
    }
  } catch (error) {
    if (!over.signal.aborted) throw new Error(`watching failed, the migration of ${vm} goes on without it: ${(error as Error).message}`, { cause: error });
  } finally {
    display?.end();
  }

  const known = { vm, ...(last?.from && { from: last.from }), ...((last?.to ?? to) && { to: last?.to ?? to }), workflowId, runId };
  if (over.signal.reason instanceof Interrupted) throw new FollowedFailed(over.signal.reason, known);
  if (until === 'accepted' && accepted) return out.result({ ...known, outcome: 'started' }, `The migration of ${vm} is under way: watch it with "vmferry watch ${vm}", end it with "vmferry cancel ${vm}".`);
  const result = await ended.catch(async (error: Error) => {
    const status = await migration.status();
    throw new FollowedFailed(error, { ...known, ...(status && { to: status.to, ...(status.from && { from: status.from }) }) });
  });
  out.result({ ...result, workflowId, runId }, account(result));
}

function account({ vm, from, to, totalMs, downtimeMs, memoryTries, warnings }: MigrationResult): string {
  const pause = downtimeMs === undefined ? '' : `, paused for ${formatDuration(Math.max(0, downtimeMs))}`;
  return [`${vm} moved from ${from} to ${to} in ${formatDuration(totalMs)}${pause}${memoryTries > 1 ? `, after ${memoryTries} tries to move its memory` : ''}.`, ...warnings.map((warning) => `Warning: ${warning}`)].join('\n');
}

async function cancel(out: Output, migration: Migration): Promise<void> {
  const { vm, workflowId, runId } = migration;
  const outcome = () => migration.result().then(account, (error: Error) => error.message);
  if (!(await migration.isRunning())) throw new VmferryError('MigrationRefused', `guest ${vm} is not being moved; its last migration: ${await outcome()}`);
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Interrupted(`Stopped waiting (${signal}). The migration of ${vm} is being cancelled: watch it with "vmferry watch ${vm}".`)));
  interrupted.catch(() => undefined);
  await migration.cancel();
  out.say(`Cancelling ${workflowId}; waiting until everything is undone …`);
  const about = { vm, workflowId, runId };
  try {
    const result = await Promise.race([migration.result(), interrupted]);
    out.result({ ...result, workflowId, runId }, `It was too late to cancel: ${account(result)}`, EXIT.failed);
  } catch (error) {
    if (!(error instanceof VmferryError)) throw error;
    if (error.type !== 'Cancelled') throw new VmferryError('Failed', `the migration ended before it could be cancelled: ${error.message}`);
    const from = (await migration.status())?.from;
    out.result({ ...about, outcome: 'cancelled', ...(from && { from }) }, `The migration of ${vm} was cancelled; the guest stays ${from ? `on ${from}` : 'where it was'}.`);
  }
}
