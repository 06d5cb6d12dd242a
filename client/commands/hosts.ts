import type { Command } from 'commander';
import { formatBytes } from '../../hypervisor/size';
import { SILENT_AFTER_MS } from '../../workflows/fleet';
import type { HostState } from '../../workflows/messages';
import { print, printJson, say, table } from '../output';
import { formatDuration } from '../quantities';
import { withClient } from '../session';

export const silentForMs = ({ reportedAt }: HostState): number => Math.max(0, Date.now() - Date.parse(reportedAt));

export function registerHostCommands(program: Command): void {
  const host = program.command('host').description('the hosts whose agents are known');
  host
    .command('list')
    .description('hosts, their guests and free memory, and when each was last heard of')
    .option('--json', 'one line of JSON a host')
    .addHelpText('after', '\nA host that has been silent for more than 75 s has no running agent. Its guests run on, but can\'t be moved.\n\nExample:\n  $ vmferry host list')
    .action(async ({ json }: { json?: boolean }, command: Command) => {
      const hosts = await withClient(command, (client) => client.hosts());
      if (json) return hosts.forEach(printJson);
      if (hosts.length === 0) return say('No host is known: start an agent (vmferry agent --config FILE, or vmferry dev).');
      print(
        table(
          ['host', 'address', 'guests', 'free memory', 'heard of'],
          hosts.map((one) => [one.name, one.address, one.guests.length, formatBytes(one.freeMemoryBytes), `${formatDuration(silentForMs(one))} ago${silentForMs(one) > SILENT_AFTER_MS ? ', silent' : ''}`]),
        ),
      );
    });
}
