import type { Command } from 'commander';
import { formatBytes } from '../../hypervisor/size';
import { isSilent, placementHost } from '../../workflows/capacity';
import type { PlacementHost } from '../../workflows/fleet';
import type { HostState } from '../../workflows/messages';
import { UsageError } from '../exit-codes';
import { VmferryError } from '../migration-client';
import { Output, table } from '../output';
import { formatDuration, wholeOption } from '../quantities';
import { withClient } from '../session';
import { addSignedOptions, type SignedOptions, signedOf } from './evacuation';

export const silentForMs = ({ reportedAt }: HostState): number => Math.max(0, Date.now() - Date.parse(reportedAt));

const LIST_HELP = `
FREE MEMORY is less what is reserved for guests on their way. OUT and IN are slots: guests that leave and come now, of
how many may (vmferry host set-limits). A host that has been silent for more than 75 s has no running agent: its guests
run on, but can't be moved.

Example:
  $ vmferry host list`;

export function registerHostCommands(program: Command): void {
  const host = program.command('host').description('the hosts whose agents are known');
  host
    .command('list')
    .description('hosts, their guests, labels, free memory and slots, and when each was last heard of')
    .addHelpText('after', LIST_HELP)
    .action(async (_options: unknown, command: Command) => {
      const out = Output.of(command);
      const hosts = await withClient(command, (client) => client.hosts());
      hosts.forEach((one) => out.event('host', described(one)));
      out.list(hosts, 'No host is known: start an agent (vmferry agent --config FILE, or vmferry dev).', () =>
        table(
          ['host', 'address', 'guests', 'free memory', 'out', 'in', 'labels', 'state', 'heard of'],
          hosts.map((one) => {
            const seen = placementHost(one, Date.now());
            return [one.name, one.address, one.guests.length, formatBytes(Math.max(0, seen.freeMemoryBytes)), ...slotCells(seen), labelsText(seen.labels), stateText(seen), `${formatDuration(silentForMs(one))} ago`];
          }),
        ),
      );
    });

  host
    .command('show')
    .description('a host: what it has, what is reserved, its guests')
    .argument('<host>')
    .addHelpText('after', '\nExample:\n  $ vmferry host show host-a')
    .action(async (name: string, _options: unknown, command: Command) => {
      const hosts = await withClient(command, (client) => client.hosts());
      const found = hosts.find((one) => one.name === name);
      if (!found) throw new VmferryError('NotFound', `there is no host "${name}" (known are: ${hosts.map((one) => one.name).join(', ') || 'none; start an agent'})`);
      Output.of(command).result(described(found), hostText(found));
    });

  addSignedOptions(host.command('cordon').description('give it no new guests; those that it has run on').argument('<host>'), 'required')
    .addHelpText('after', '\nExample:\n  $ vmferry host cordon host-a --reason "memory errors"')
    .action(async (name: string, options: SignedOptions, command: Command) => {
      if (options.reason.trim() === '' || options.author.trim() === '') throw new UsageError(`--reason "${options.reason}", --author "${options.author}": say who cordons the host, and why`);
      await withClient(command, (client) => client.fleet.cordon(name, signedOf(options)));
      Output.of(command).result({ host: name }, `Host ${name} is cordoned: it gets no guests until "vmferry host uncordon ${name}".`);
    });

  host
    .command('uncordon')
    .description('let it take guests again')
    .argument('<host>')
    .addHelpText('after', '\nExample:\n  $ vmferry host uncordon host-a')
    .action(async (name: string, _options: unknown, command: Command) => {
      await withClient(command, (client) => client.fleet.uncordon(name));
      Output.of(command).result({ host: name }, `Host ${name} takes guests.`);
    });

  host
    .command('set-limits')
    .description('how many guests may leave and come at once; what is left out stays')
    .argument('<host>')
    .option('--outgoing <n>', 'guests that leave at once; 0: none leaves', wholeOption(0, 1000))
    .option('--incoming <n>', 'guests that come at once; 0: none comes', wholeOption(0, 1000))
    .option('--reset', "back to what the host's configuration says (slots)")
    .addHelpText('after', '\nMoves under way keep their slots. It holds until it is changed, also when the agent is restarted.\n\nExamples:\n  $ vmferry host set-limits host-a --incoming 4\n  $ vmferry host set-limits host-a --reset')
    .action(async (name: string, { outgoing, incoming, reset }: { outgoing?: number; incoming?: number; reset?: boolean }, command: Command) => {
      const given = { ...(outgoing !== undefined && { outgoing }), ...(incoming !== undefined && { incoming }) };
      const some = Object.keys(given).length > 0;
      if (some && reset) throw new UsageError('--reset takes back --outgoing and --incoming: give either');
      if (!some && !reset) throw new UsageError('say what to change: --outgoing, --incoming, or --reset');
      await withClient(command, (client) => client.fleet.setSlots(name, some ? given : undefined));
      Output.of(command).result({ host: name, ...given }, some ? `Host ${name}: ${Object.entries(given).map(([direction, slots]) => `${slots} ${direction}`).join(', ')} at once.` : `Host ${name} has the slots of its configuration again.`);
    });
}

/** With what follows from its state. */
function described(host: HostState): HostState & Pick<PlacementHost, 'slots' | 'moving' | 'reachable' | 'labels'> {
  const { slots, moving, reachable, labels } = placementHost(host, Date.now());
  return { ...host, slots, moving, reachable, labels };
}

const slotCells = ({ moving, slots }: PlacementHost) => (['outgoing', 'incoming'] as const).map((direction) => `${moving[direction]}/${slots[direction]}`);
const labelsText = (labels: Record<string, string>) => Object.entries(labels).map(([key, value]) => `${key}=${value}`).sort().join(',');

function stateText({ reachable, cordoned }: Pick<PlacementHost, 'reachable' | 'cordoned'>): string {
  return [...(reachable ? [] : ['unreachable']), ...(cordoned ? ['cordoned'] : [])].join(', ') || 'ready';
}

function hostText(host: HostState): string {
  const seen = placementHost(host, Date.now());
  const { cordoned, facts, reservations, guests } = host;
  const [outgoing, incoming] = slotCells(seen);
  return [
    `${host.name} at ${host.address}: ${stateText(seen)}, heard of ${formatDuration(silentForMs(host))} ago${isSilent(host, Date.now()) ? ': start its agent' : ''}`,
    ...(cordoned ? [`cordoned by ${cordoned.by} at ${cordoned.at}: ${cordoned.reason}`] : []),
    `labels: ${labelsText(seen.labels) || 'none'}`,
    `slots in use: ${outgoing} outgoing, ${incoming} incoming${host.slots ? ' (set by an operator)' : ''}`,
    `memory: ${formatBytes(Math.max(0, seen.freeMemoryBytes))} free of ${formatBytes(seen.totalMemoryBytes)}`,
    ...(seen.roots.length > 0 ? [`roots: ${seen.roots.map(({ name, freeBytes }) => `${name} ${formatBytes(Math.max(0, freeBytes))} free`).join(', ')}`] : []),
    ...(facts ? [`processor: ${facts.processor}`, ...facts.qemu.map(({ path, version }) => `QEMU ${version}: ${path}`)] : []),
    ...(reservations.length > 0 ? ['', table(['reserved for', 'direction', 'memory', 'by'], reservations.map((one) => [one.guest, one.direction, formatBytes(one.memoryBytes), one.workflowId]))] : []),
    ...(guests.length > 0 ? ['', table(['guest', 'state', 'memory', 'migratable'], guests.map((one) => [one.name, one.state, formatBytes(one.memoryBytes), one.migratable]))] : []),
  ].join('\n');
}
