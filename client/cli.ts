import { ServiceError } from '@temporalio/client';
import { Command, CommanderError } from 'commander';
import { registerGuestCommands } from './commands/guests';
import { registerAdopt } from './commands/adopt';
import { registerCerts } from './commands/certs';
import { registerEvacuation } from './commands/evacuation';
import { registerEvacuate } from './commands/evacuations';
import { registerHostCommands } from './commands/hosts';
import { registerMigrationCommands } from './commands/migrations';
import { registerRepairCommands } from './commands/repair';
import { registerReport } from './commands/report';
import { registerSchedules } from './commands/schedules';
import { registerSteer } from './commands/steer';
import { registerStackCommands } from './commands/stack';
import { EXIT, EXIT_CODES_HELP, exitCodeOf, type ExitCode, Interrupted, UsageError } from './exit-codes';
import { say } from './output';

const OVERVIEW = `
A first guest, moved between two hosts on this machine:
  $ vmferry dev                              # in another terminal: Temporal, its UI and two agents
  $ vmferry vm define web.yaml --host host-a
  $ vmferry vm start web
  $ vmferry migrate web --to host-b          # Ctrl-C only stops watching
  $ vmferry vm list
  $ vmferry evacuate host-b --plan           # where its guests would go; without --plan they do

Temporal is found by --temporal-address, or by TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE and the other variables and
profiles of the temporal command; by default at localhost:7233. VMFERRY_DEBUG=1 shows where an error came from.

${EXIT_CODES_HELP}
The guide is docs/operating.md.`;

export function buildProgram(): Command {
  const program = new Command('vmferry')
    .description('Moves running QEMU guests, with their disks, between hosts.')
    .option('--temporal-address <host:port>', 'where Temporal is')
    .option('--namespace <name>', 'the Temporal namespace')
    .helpCommand('help [command]', 'what a command does')
    .addHelpText('after', OVERVIEW)
    .showHelpAfterError('(--help tells more)')
    .exitOverride();
  program.configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'vmferry: ')) });
  registerMigrationCommands(program);
  registerSteer(program);
  registerRepairCommands(program);
  registerReport(program);
  registerGuestCommands(program, registerAdopt);
  registerHostCommands(program);
  registerEvacuate(program);
  registerEvacuation(program);
  registerSchedules(program);
  registerStackCommands(program);
  registerCerts(program);
  return program;
}

/** Runs the command line and ends the process with one of `EXIT`. An action may set another code than 0 by itself. */
export function run(args: string[]): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // The reader of a pipe has seen enough: `vmferry vm list | head -1`.
    if (error.code === 'EPIPE') process.exit(EXIT.done);
    throw error;
  });
  execute(args).then(
    (code) => process.exit(code),
    (error: unknown) => {
      console.error(error);
      process.exit(EXIT.failed);
    },
  );
}

/** Runs a command line and gives its exit code. */
export async function execute(args: string[]): Promise<ExitCode> {
  try {
    await buildProgram().parseAsync(args, { from: 'user' });
    return (process.exitCode as ExitCode | undefined) ?? EXIT.done;
  } catch (error) {
    // Commander has said what is wrong.
    if (!(error instanceof CommanderError)) report(error as Error);
    return exitCodeOf(error, 'command');
  }
}

/** One message for people, never a stack. */
export function report(error: Error): void {
  if (process.env['VMFERRY_DEBUG'] === '1') say(error.stack ?? error.message);
  else if (error instanceof Interrupted) say(error.message);
  else say(`vmferry: ${messageOf(error)}${error instanceof UsageError ? ' (--help tells more)' : ''}`);
}

function messageOf(error: Error): string {
  if (error instanceof ServiceError) return `Temporal does not take the request (${error.cause?.message ?? error.message}): is it running, and is the address right?`;
  return error.message;
}
