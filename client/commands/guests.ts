import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { stringify } from 'yaml';
import type { GuestDetails, GuestSummary } from '../../activities/guests';
import { type Definition, definitionSchema, InvalidDefinition, parseYamlWith } from '../../hypervisor/definition';
import { formatBytes } from '../../hypervisor/size';
import { UsageError } from '../exit-codes';
import type { MigrationClient } from '../migration-client';
import { Output, table } from '../output';
import { durationOption } from '../quantities';
import { withClient } from '../session';
import { silentForMs } from './hosts';
import { SILENT_AFTER_MS } from '../../workflows/fleet';

/** A command on a host ends within 5 minutes; the rest is for ending QEMU itself. */
const LONGEST_GRACE_MS = 4 * 60_000;

const DEFINITION_EXAMPLE = `
A definition is YAML, and the same on every host: paths start with a root of the host's configuration.
  name: web
  machine: pc-q35-7.2
  cpu: { model: qemu64, count: 2 }
  memory: 2G
  disks:
    - { id: disk-0, path: "\${images}/web.qcow2", format: qcow2, bus: virtio-scsi }
  nics:
    - { id: net0, mac: "52:54:00:12:34:56", backend: user }
Every field is in docs/operating.md. The images must exist on the host (qemu-img create).

Example:
  $ vmferry vm define web.yaml --host host-a`;

export function registerGuestCommands(program: Command, registerAdopt: (vm: Command) => void): void {
  const vm = program.command('vm').description('define, start, stop, show and adopt guests');
  vm.command('define')
    .description('make a guest known to a host, or change one that is stopped')
    .argument('<file>', 'its definition; - reads standard input')
    .requiredOption('--host <host>', 'where it lives')
    .addHelpText('after', DEFINITION_EXAMPLE)
    .action(async (file: string, { host }: { host: string }, command: Command) => {
      const definition = readDefinition(file);
      await withClient(command, (client) => client.onHost(host, 'defineGuest', { definition }));
      const out = Output.of(command);
      out.result({ vm: definition.name, host }, `Guest ${definition.name} is defined on ${host}.`);
      out.say(`Start it: vmferry vm start ${definition.name}`);
    });

  vm.command('start')
    .description('start a guest where it is defined; nothing happens if it runs')
    .argument('<vm>')
    .option('--host <host>', 'default: found')
    .addHelpText('after', '\nA copy that was handed over to another host is not started: two copies would destroy each other\'s work.\n\nExample:\n  $ vmferry vm start web')
    .action(async (guest: string, { host }: HostOption, command: Command) => {
      const { summary, at } = await onItsHost(command, guest, host, async (client, at) => ({ summary: await client.onHost(at, 'startGuest', { guest }), at }));
      Output.of(command).result({ vm: guest, host: at, state: summary.state }, `Guest ${guest} is ${summary.state} on ${at}.`);
    });

  vm.command('stop')
    .description('power a guest off')
    .argument('<vm>')
    .option('--host <host>', 'default: found')
    .option('--grace <duration>', "how long the guest's own system may take to shut down; then QEMU is ended", durationOption(0, LONGEST_GRACE_MS, '60s'), 60_000)
    .option('--now', 'end QEMU at once, as if the power failed')
    .addHelpText('after', '\nExamples:\n  $ vmferry vm stop web --grace 2m\n  $ vmferry vm stop web --now')
    .action(async (guest: string, { host, grace, now }: HostOption & { grace: number; now?: boolean }, command: Command) => {
      if (now && command.getOptionValueSource('grace') === 'cli') throw new UsageError('--now and --grace contradict each other: give one');
      const at = await onItsHost(command, guest, host, async (client, at) => {
        await client.onHost(at, 'stopGuest', { guest, graceMs: now ? 0 : grace });
        return at;
      });
      Output.of(command).result({ vm: guest, host: at, state: 'stopped' }, `Guest ${guest} is stopped on ${at}.`);
    });

  vm.command('list')
    .description('guests of all hosts, or of one')
    .option('--host <host>', 'only this host')
    .addHelpText('after', '\nA host that does not answer is shown with what it said last.\n\nExamples:\n  $ vmferry vm list\n  $ vmferry vm list --host host-a --json')
    .action(async ({ host }: HostOption, command: Command) => {
      const out = Output.of(command);
      const guests = await withClient(command, (client) => listGuests(client, host));
      guests.forEach((one) => out.event('guest', one));
      out.list(guests, 'There is no guest. Define one: vmferry vm define --help', () => table(['guest', 'host', 'state', 'memory', 'disks', 'moving'], guests.map(({ name, host, state, memoryBytes, disks, moving }) => [name, host, state, memoryBytes === undefined ? undefined : formatBytes(memoryBytes), disks, moving])));
    });

  vm.command('show')
    .description('a guest: state, images and definition')
    .argument('<vm>')
    .option('--host <host>', 'default: found')
    .addHelpText('after', '\nExamples:\n  $ vmferry vm show web\n  $ vmferry vm show web --json | jq .definition')
    .action(async (guest: string, { host }: HostOption, command: Command) => {
      const details = await onItsHost(command, guest, host, async (client, at) => ({ host: at, ...(await client.onHost(at, 'showGuest', { guest })) }));
      Output.of(command).result(details, describeGuest(details));
    });

  registerAdopt(vm);

  vm.command('remove')
    .description('forget a stopped guest on one host; its images stay')
    .argument('<vm>')
    .requiredOption('--host <host>', 'where it is forgotten')
    .addHelpText('after', '\nExample:\n  $ vmferry vm remove web --host host-a')
    .action(async (guest: string, { host }: { host: string }, command: Command) => {
      await withClient(command, (client) => client.onHost(host, 'removeGuest', { guest }));
      Output.of(command).result({ vm: guest, host }, `Guest ${guest} is no longer known on ${host}. Its images were left alone.`);
    });
}

export interface HostOption {
  host?: string;
}

async function onItsHost<T>(command: Command, guest: string, given: string | undefined, work: (client: MigrationClient, host: string) => Promise<T>): Promise<T> {
  return await withClient(command, async (client) => work(client, given ?? (await client.hostOf(guest))));
}

function readDefinition(file: string): Definition {
  let text;
  try {
    text = readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    throw new UsageError(`the definition cannot be read: ${(error as Error).message}`);
  }
  try {
    return parseYamlWith(definitionSchema, text, file === '-' ? 'the definition' : file);
  } catch (error) {
    throw error instanceof InvalidDefinition ? new UsageError(error.message) : error;
  }
}

type ListedGuest = Partial<GuestSummary> & { name: string; host: string; state: string };

/** What hosts say now; a silent one's last word is better than a wait for it. */
async function listGuests(client: MigrationClient, only: string | undefined): Promise<ListedGuest[]> {
  if (only !== undefined) return (await client.onHost(only, 'listGuests', undefined as never)).map((guest) => ({ ...guest, host: only }));
  const lists = await Promise.all(
    (await client.hosts()).map(async (host): Promise<ListedGuest[]> => {
      const last = () => host.guests.map(({ name, state }) => ({ name, host: host.name, state: `${state}, it was said` }));
      if (silentForMs(host) > SILENT_AFTER_MS) return last();
      return await client.onHost(host.name, 'listGuests', undefined as never).then((guests) => guests.map((guest) => ({ ...guest, host: host.name })), last);
    }),
  );
  return lists.flat().sort((a, b) => a.name.localeCompare(b.name) || a.host.localeCompare(b.host));
}

function describeGuest({ host, name, state, pid, moving, images, definition }: GuestDetails & { host: string }): string {
  const image = images.map(({ id, path, format, virtualSizeBytes, problem }) => [id, format, virtualSizeBytes === undefined ? undefined : formatBytes(virtualSizeBytes), problem ? `${path}: ${problem}` : path]);
  return [
    `${name} on ${host}: ${state}${pid === undefined ? '' : `, QEMU has pid ${pid}`}${moving ? `, moving ${moving}` : ''}`,
    ...(image.length > 0 ? ['', table(['disk', 'format', 'size', 'image'], image)] : []),
    '',
    definitionYaml(definition),
  ].join('\n');
}

/** As `vm define` reads it: sizes with units, nothing that is empty. */
export function definitionYaml(definition: Definition): string {
  const { memory, ...rest } = definition;
  const shown = Object.entries({ ...rest, memory: memory % 2 ** 30 === 0 ? `${memory / 2 ** 30}G` : memory % 2 ** 20 === 0 ? `${memory / 2 ** 20}M` : `${memory / 1024}K` });
  return stringify(Object.fromEntries(shown.filter(([, value]) => !(Array.isArray(value) && value.length === 0) && !(typeof value === 'object' && Object.keys(value).length === 0))), { lineWidth: 0 }).trimEnd();
}
