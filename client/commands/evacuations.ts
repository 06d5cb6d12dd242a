import type { Command } from 'commander';
import { EXIT_CODES_HELP, FollowedFailed } from '../exit-codes';
import { planText } from '../evacuation-view';
import type { About } from '../json-events';
import { Output } from '../output';
import { withClient } from '../session';
import { addEvacuateOptions, evacuateOf, type EvacuateOptions } from './evacuation-options';
import { followFleet, followHost } from './evacuation-follow';
import { scheduleText } from './schedules';

const HELP = `
The host is cordoned: it gets nothing new, also afterwards, until "vmferry host uncordon". Then its guests move, the
largest first, each to the host that fits it (memory, disk space, machine type, CPU model, labels, anti-affinity) and is
then the least full, never more at once than the limits allow. A guest that cannot go, or fails, stops nobody else, but
after --max-failures no other starts. Guests that do not run are copied; --stopped leave lets them stay. Ctrl-C only
stops watching; "vmferry evacuation" steers it.

Several hosts, or a --selector, are emptied in waves of --hosts-at-once. With --schedule nothing moves now: a schedule is
made that does it at set times (vmferry schedule).

Selectors: rack=r12, zone!=b, gpu, !old, "rack in (r1,r2)", "rack notin (r1)", joined by commas, which mean "and".

With --json, stdout has a line of JSON whenever something changes, and a last one: a result with "outcome" completed,
partly, planned, cancelled, scheduled or, with --detach, started; or an error. Exit code 1 also means that some guest
stayed that was to go.

Examples:
  $ vmferry evacuate host-a --plan
  $ vmferry evacuate host-a --limit-destination 1 --bandwidth 200MB/s --window 4h --at-window-end postpone
  $ vmferry evacuate host-a --approve --and-return --detach     # then: vmferry evacuation approve host-a
  $ vmferry evacuate --selector rack=r12 --to "rack!=r12" --hosts-at-once 2
  $ vmferry evacuate host-a --schedule "0 2 * * SUN" --timezone Europe/Berlin --window 4h --jitter 10m

${EXIT_CODES_HELP} The guide is docs/fleet.md.`;

export function registerEvacuate(program: Command): void {
  const evacuate = program.command('evacuate').description('move all guests off a host, or off many').argument('[hosts...]', 'by name');
  addEvacuateOptions(evacuate)
    .addHelpText('after', HELP)
    .action(async (hosts: string[], options: EvacuateOptions, command: Command) => {
      const wanted = evacuateOf(hosts, options, command);
      const out = Output.of(command);
      const accepted = async <T>(about: About, started: Promise<T>): Promise<T> => {
        return await started.catch((error: Error) => {
          throw new FollowedFailed(error, about);
        });
      };
      await withClient(command, async (client) => {
        if (wanted.kind === 'schedule') {
          const { name } = wanted.request;
          const made = await accepted({ name }, client.schedules.create(wanted.request));
          out.result({ outcome: 'scheduled', schedule: made }, scheduleText(made));
          return out.say(`Schedule ${name} is made: "vmferry schedule trigger ${name}" begins now, "vmferry schedule delete ${name}" removes it.`);
        }
        if (wanted.kind === 'fleet') {
          const { name, input } = wanted;
          const { evacuation } = await accepted({ name }, client.fleet.evacuateFleet(name, input));
          return await followFleet(out, evacuation, options.detach);
        }
        const { host, mode, ...rest } = wanted.input;
        if (mode === 'plan') {
          const plan = await accepted({ host }, client.fleet.plan(host, rest));
          return out.result(plan, planText(planned(plan)));
        }
        const { evacuation, plan } = await accepted({ host }, client.fleet.evacuate(wanted.input));
        if (mode === 'approve' || options.detach) out.text(planText(planned(plan)));
        await followHost(out, client, evacuation, options.detach);
      });
    });
}

/** What has begun to move meanwhile was planned too. */
function planned<Plan extends Parameters<typeof planText>[0]>(plan: Plan): Plan {
  const begun = plan.moving.map(({ guest, from, to }) => ({ guest, from, to, cold: false, memoryBytes: 0, diskBytes: 0, why: 'begins at once' }));
  return { ...plan, planned: [...begun, ...plan.planned], moving: [] };
}
