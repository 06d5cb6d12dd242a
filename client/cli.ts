import { ServiceError } from '@temporalio/client';
import { Command, CommanderError } from 'commander';
import { registerGuestCommands } from './commands/guests';
import { registerAdopt } from './commands/adopt';
import { registerCodecServer } from './commands/codec-server';
import { registerCerts } from './commands/certs';
import { registerCheck } from './commands/check';
import { registerDoctor } from './commands/doctor';
import { registerCompletion } from './commands/completion';
import { registerEvacuation } from './commands/evacuation';
import { registerEvacuate } from './commands/evacuations';
import { registerHostCommands } from './commands/hosts';
import { registerMigrationCommands } from './commands/migrations';
import { registerRepairCommands } from './commands/repair';
import { registerReport } from './commands/report';
import { registerSchedules } from './commands/schedules';
import { registerSteer } from './commands/steer';
import { registerStackCommands } from './commands/stack';
import { InvalidDefinition } from '../hypervisor/definition';
import { TemporalUnreachable } from '../workers/connection';
import { VmferryError } from './errors';
import { EXIT, EXIT_CODES_HELP, exitCodeOf, type ExitCode, FollowedFailed, Interrupted, UsageError } from './exit-codes';
import { complain, printJsonError } from './output';

const OVERVIEW = `
A first guest, moved between two hosts on this machine:
  $ vmferry dev                              # in another terminal: Temporal, its UI and two agents
  $ vmferry vm define web.yaml --host host-a
  $ vmferry vm start web
  $ vmferry migrate web --to host-b          # Ctrl-C only stops watching
  $ vmferry vm list
  $ vmferry evacuate host-b --plan           # where its guests would go; without --plan they do

Temporal is found by --temporal-address, or by TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE and the other variables and
profiles of the temporal command; by default at localhost:7233.
Every command takes --json (docs/json.md) and --quiet. VMFERRY_DEBUG=1 shows where an error came from.

${EXIT_CODES_HELP}
The guide is docs/operating.md.`;

/** The whole command line. With `json` what is wrong with its use is left to the caller to say. */
export function buildProgram({ json = false }: { json?: boolean } = {}): Command {
  const program = new Command('vmferry')
    .description('Moves running QEMU guests, with their disks, between hosts.')
    .option('--temporal-address <host:port>', 'where Temporal is')
    .option('--namespace <name>', 'the Temporal namespace')
    .helpCommand('help [command]', 'what a command does')
    .addHelpText('after', OVERVIEW)
    .showHelpAfterError('(--help tells more)')
    .exitOverride();
  program.configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'vmferry: ')), ...(json && { writeErr: () => undefined }) });
  registerMigrationCommands(program);
  registerCheck(program);
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
  registerCodecServer(program);
  registerDoctor(program);
  addOutputOptions(program);
  registerCompletion(program);
  return program;
}

/** Every command says what it does in the same ways. */
function addOutputOptions(command: Command): void {
  if (command.commands.length > 0) return command.commands.forEach(addOutputOptions);
  const has = (long: string) => command.options.some((option) => option.long === long);
  if (!has('--json')) command.option('--json', 'lines of JSON on stdout, the last one a result or an error (docs/json.md)');
  if (!has('--quiet')) command.option('--quiet', 'nothing on stderr but errors');
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
  const json = args.slice(0, args.includes('--') ? args.indexOf('--') : undefined).includes('--json');
  try {
    await buildProgram({ json }).parseAsync(args, { from: 'user' });
    return (process.exitCode as ExitCode | undefined) ?? EXIT.done;
  } catch (error) {
    const exitCode = exitCodeOf(error, 'command');
    const { cause, about } = error instanceof FollowedFailed ? error : { cause: error as Error, about: {} };
    if (json && exitCode !== EXIT.done) printJsonError({ type: typeOf(cause), message: messageOf(cause), exitCode, ...(cause instanceof VmferryError && cause.details.blockers && { blockers: cause.details.blockers }), ...about });
    // Commander has said to people what is wrong.
    if (!json && !(cause instanceof CommanderError)) report(cause);
    if (json && process.env['VMFERRY_DEBUG'] === '1') complain(cause.stack ?? cause.message);
    return exitCode;
  }
}

/** One message for people, never a stack. */
export function report(error: Error): void {
  if (process.env['VMFERRY_DEBUG'] === '1') complain(error.stack ?? error.message);
  else if (error instanceof Interrupted) complain(error.message);
  else complain(`vmferry: ${messageOf(error)}${error instanceof UsageError ? ' (--help tells more)' : ''}`);
}

/** A stable word: those of docs/operating.md, and two for the command line itself. */
function typeOf(error: Error): string {
  if (error instanceof VmferryError) return error.type;
  if (error instanceof CommanderError || error instanceof UsageError) return 'UsageError';
  if (error instanceof Interrupted) return 'Interrupted';
  if (error instanceof TemporalUnreachable || error instanceof ServiceError) return 'TemporalUnreachable';
  return error instanceof InvalidDefinition ? 'InvalidDefinition' : 'InternalError';
}

function messageOf(error: Error): string {
  if (error instanceof ServiceError) return `Temporal does not take the request (${error.cause?.message ?? error.message}): is it running, and is the address right?`;
  if (error instanceof CommanderError) return error.code === 'commander.help' ? 'a command is missing (--help lists them)' : error.message.replace(/^error: /, '');
  return error.message;
}
