import { type Command, InvalidArgumentError } from 'commander';
import { UsageError } from '../exit-codes';
import type { MigrationClient } from '../migration-client';
import { Output, table } from '../output';
import { withClient } from '../session';
import { definitionYaml, type HostOption } from './guests';

const HELP = `
Without --pid: lists the QEMU processes on the host that are not vmferry's yet.
With --pid: reads the process's command line and asks its QMP monitor, prints the definition that follows from them,
and stores it. The guest runs on and notices nothing. What can't be carried is refused, with all reasons at once.

Examples:
  $ vmferry vm adopt --host host-a
  $ vmferry vm adopt --host host-a --pid 4711 --dry-run
  $ vmferry vm adopt --host host-a --pid 4711 --name web`;

interface AdoptOptions extends HostOption {
  pid?: number;
  name?: string;
  dryRun?: boolean;
}

export function registerAdopt(vm: Command): void {
  vm.command('adopt')
    .description('take over a running guest that somebody else started')
    .option('--host <host>', 'where it runs; needed if there are several hosts')
    .option('--pid <pid>', "its QEMU's process id", pidOption)
    .option('--name <name>', 'what to call it; default: what its -name says')
    .option('--dry-run', 'only show the definition')
    .addHelpText('after', HELP)
    .action(async ({ host, pid, name, dryRun }: AdoptOptions, command: Command) => {
      if (pid === undefined && (name !== undefined || dryRun)) throw new UsageError('--name and --dry-run need --pid: list the processes with "vmferry vm adopt" first');
      const out = Output.of(command);
      await withClient(command, async (client) => {
        const at = host ?? (await onlyHost(client));
        await (pid === undefined ? listProcesses(out, client, at) : adopt(out, client, at, { pid, ...(name !== undefined && { guest: name }), ...(dryRun && { dryRun }) }));
      });
    });
}

function pidOption(text: string): number {
  if (!/^[1-9]\d{0,9}$/.test(text)) throw new InvalidArgumentError('Give the number that "vmferry vm adopt" lists.');
  return Number(text);
}

async function onlyHost(client: MigrationClient): Promise<string> {
  const names = (await client.hosts()).map(({ name }) => name);
  if (names.length !== 1) throw new UsageError(names.length === 0 ? 'no host is known: start an agent' : `name the host with --host: ${names.join(' or ')}`);
  return names[0]!;
}

async function listProcesses(out: Output, client: MigrationClient, host: string): Promise<void> {
  const found = await client.onHost(host, 'findGuests', undefined);
  found.forEach((one) => out.event('process', { host, ...one }));
  out.list(found, `No QEMU process runs on ${host} besides vmferry's own guests.`, () => table(['pid', 'name', 'monitor', 'program'], found.map(({ pid, name, monitor, executable }) => [pid, name, monitor ?? 'none: cannot be adopted', executable])));
}

async function adopt(out: Output, client: MigrationClient, host: string, input: { pid: number; guest?: string; dryRun?: boolean }): Promise<void> {
  const { definition, monitor } = await client.onHost(host, 'adoptGuest', input);
  out.result({ outcome: input.dryRun ? 'planned' : 'completed', vm: definition.name, host, monitor, definition }, definitionYaml(definition));
  if (input.dryRun) out.say(`Nothing was stored. Adopt it: vmferry vm adopt --host ${host} --pid ${input.pid}${input.guest === undefined ? '' : ` --name ${input.guest}`}`);
  else out.say(`Guest ${definition.name} is ${host}'s now; vmferry talks to it through ${monitor}.`);
}
