import { userInfo } from 'node:os';
import type { Command } from 'commander';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes';
import { fleetHeadline, fleetTable, guestTable, headline } from '../evacuation-view';
import { Evacuation, type FleetEvacuation } from '../fleet-client';
import { type MigrationClient, VmferryError } from '../migration-client';
import { Output } from '../output';
import { withClient } from '../session';
import type { Signed } from '../../workflows/evacuation';
import { cancelFleet, cancelHost, followFleet, followHost } from './evacuation-follow';
import { addLimitOptions, limitsOf } from './evacuation-options';

const FLEET = /^fleet\/(.+)$/;
const ARGUMENT = 'a host that is being emptied, or fleet/NAME for many';

export interface SignedOptions {
  reason: string;
  author: string;
}

/** Who does something, and why. */
export function addSignedOptions(command: Command, reason: 'required' | 'optional'): Command {
  const text = 'why; others see it';
  return (reason === 'required' ? command.requiredOption('--reason <text>', text) : command.option('--reason <text>', text, 'none was given')).option('--author <name>', 'who does it', userInfo().username);
}

export const signedOf = ({ reason, author }: SignedOptions): Signed => ({ by: author, reason });

export function registerEvacuation(program: Command): void {
  const evacuation = program.command('evacuation').description('show and steer the evacuation of a host, or of many');
  const command = (name: string, does: string, example: string, argument: '<host>' | '<evacuation>' = '<evacuation>') =>
    evacuation.command(name).description(does).argument(argument, argument === '<host>' ? 'a host that is being emptied' : ARGUMENT).addHelpText('after', `\nExample:\n  $ vmferry evacuation ${example}\n\n${EXIT_CODES_HELP}`);

  command('show', 'every guest and what becomes of it, also when it is over', 'show host-a')
    .action(async (name: string, _options: unknown, command: Command) => {
      await withClient(command, async (client) => {
        const found = await evacuationOf(client, name);
        const status = await found.status();
        if (!status) throw new VmferryError('TimedOut', `no control worker answers for ${found.workflowId}: is one running?`);
        const running = await found.isRunning();
        Output.of(command).result({ ...status, outcome: running ? 'running' : 'ended', running, workflowId: found.workflowId, runId: found.runId }, 'hosts' in status ? `${fleetHeadline(status)}\n${fleetTable(status)}` : `${headline(status)}\n${guestTable(status)}`);
      });
    });

  command('watch', 'follow it to its end, and end with its exit code; Ctrl-C only stops watching', 'watch host-a')
    .action(async (name: string, _options: unknown, command: Command) => {
      await withClient(command, async (client) => {
        const found = await evacuationOf(client, name);
        await (found instanceof Evacuation ? followHost(Output.of(command), client, found) : followFleet(Output.of(command), found));
      });
    });

  addSignedOptions(command('approve', 'let an evacuation that waits for it begin', 'approve host-a', '<host>'), 'optional').action(async (host: string, options: SignedOptions, command: Command) => {
    await withClient(command, async (client) => (await client.fleet.evacuation(hostOnly(host))).approve(signedOf(options)));
    Output.of(command).result({ evacuation: host }, `The evacuation of ${host} begins: watch it with "vmferry evacuation watch ${host}".`);
  });

  addSignedOptions(command('pause', 'start no other guest, of many hosts no other host; what moves is finished', 'pause host-a --reason "backup runs"'), 'required').action(async (name: string, options: SignedOptions, command: Command) => {
    await withClient(command, async (client) => (await evacuationOf(client, name)).pause(signedOf(options)));
    Output.of(command).result({ evacuation: name }, `The evacuation ${name} is paused: "vmferry evacuation resume ${name}" lets it go on.`);
  });

  addSignedOptions(command('resume', 'let a paused evacuation go on', 'resume host-a'), 'optional').action(async (name: string, options: SignedOptions, command: Command) => {
    await withClient(command, async (client) => (await evacuationOf(client, name)).resume(signedOf(options)));
    Output.of(command).result({ evacuation: name }, `The evacuation ${name} goes on.`);
  });

  addLimitOptions(addSignedOptions(command('set-limits', 'change how many guests move at once; what is left out stays', 'set-limits host-a --limit-destination 1', '<host>'), 'optional')).action(async (host: string, options: SignedOptions & Parameters<typeof limitsOf>[0], command: Command) => {
    const limits = limitsOf(options);
    if (Object.keys(limits).length === 0) throw new UsageError('say which limit: --limit-fleet, --limit-source or --limit-destination');
    const now = await withClient(command, async (client) => (await client.fleet.evacuation(hostOnly(host))).setLimits(limits, signedOf(options)));
    Output.of(command).result({ evacuation: host, limits: now }, `At once now: ${now.fleet} in all, ${now.perSource} from a host, ${now.perDestination} to a host.`);
  });

  addSignedOptions(command('skip', 'let a guest stay that has not begun to move', 'skip host-a db-7 --reason "its owner asked"', '<host>').argument('<vm>'), 'required').action(async (host: string, vm: string, options: SignedOptions, command: Command) => {
    await withClient(command, async (client) => (await client.fleet.evacuation(hostOnly(host))).skip(vm, signedOf(options)));
    Output.of(command).result({ evacuation: host, vm }, `Guest ${vm} stays on ${host}.`);
  });

  addSignedOptions(command('bring-back', 'the maintenance is over: uncordon the host and bring its guests home (evacuate --and-return)', 'bring-back host-a', '<host>'), 'optional').action(async (host: string, options: SignedOptions, command: Command) => {
    await withClient(command, async (client) => (await client.fleet.evacuation(hostOnly(host))).bringBack(signedOf(options)));
    Output.of(command).result({ evacuation: host }, `The guests come back to ${host}: watch it with "vmferry evacuation watch ${host}".`);
  });

  command('cancel', 'start no other guest, undo what moves (or finish it: evacuate --at-cancel), and wait for that', 'cancel host-a').action(async (name: string, _options: unknown, command: Command) => {
    await withClient(command, async (client) => {
      const found = await evacuationOf(client, name);
      await (found instanceof Evacuation ? cancelHost(Output.of(command), client, found) : cancelFleet(Output.of(command), found));
    });
  });
}

async function evacuationOf(client: MigrationClient, name: string): Promise<Evacuation | FleetEvacuation> {
  const [, fleet] = FLEET.exec(name) ?? [];
  return fleet === undefined ? await client.fleet.evacuation(name) : await client.fleet.fleetEvacuation(fleet);
}

function hostOnly(name: string): string {
  if (FLEET.test(name)) throw new UsageError(`${name} empties many hosts: name one of them`);
  return name;
}
