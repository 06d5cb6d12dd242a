import { userInfo } from 'node:os';
import type { Command } from 'commander';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes';
import { Output } from '../output';
import { durationOption, parseDuration, rateOption } from '../quantities';
import { withClient } from '../session';
import type { Steer } from '../../workflows/steer';
import { OPTION_BOUNDS } from './migration-options';

const KINDS = ['lift-limits', 'set-bandwidth', 'nudge', 'write-blocking', 'throttle', 'unthrottle', 'set-max-downtime', 'wait', 'postpone', 'switchover-now', 'abort'] as const;

const HELP = `
What can be decided, mildest first:
  lift-limits                     lift our own bandwidth cap
  set-bandwidth --rate R          change that cap
  nudge                           hold the guest's writes back for a moment, for a mirror that hovers near ready
  write-blocking                  each write of the guest waits for the copy: it writes as fast as the link carries
  throttle --rate R               limit what the guest writes, all its disks together
  unthrottle                      lift that
  set-max-downtime --pause D      another budget for the pause
  wait --until T                  do nothing, and let no deadline pass, before then
  postpone --until T              undo everything, and begin again then
  switchover-now --pause D        move the memory now, and accept a pause of up to D
  abort                           undo everything; the guest runs on where it is
T is a time (2026-11-29T02:00:00Z) or a duration from now (90m).

Examples:
  $ vmferry steer db-7 write-blocking --reason "nightly import, latency does not matter"
  $ vmferry steer db-7 throttle --rate 8MB/s --reason "window ends at 4"
  $ vmferry steer db-7 postpone --until 6h --reason "import runs until 8"

${EXIT_CODES_HELP} A steer that makes no sense now is refused with the reason.`;

interface SteerOptions {
  reason: string;
  author: string;
  rate?: number;
  pause?: number;
  until?: string;
}

export function registerSteer(program: Command): void {
  const steer = program.command('steer').description('decide about a migration under way').argument('<vm>');
  steer
    .addArgument(steer.createArgument('<decision>').choices(KINDS))
    .requiredOption('--reason <text>', 'why; shown in the Temporal UI')
    .option('--author <name>', 'who decides', userInfo().username)
    .option('--rate <rate>', 'for set-bandwidth and throttle', rateOption(OPTION_BOUNDS.bandwidthBytesPerSecond))
    .option('--pause <duration>', 'for set-max-downtime and switchover-now', durationOption(...OPTION_BOUNDS.maxDowntimeMs, '300ms'))
    .option('--until <time>', 'for wait and postpone')
    .addHelpText('after', HELP)
    .action(async (vm: string, kind: (typeof KINDS)[number], options: SteerOptions, command: Command) => {
      const steer = toSteer(kind, options);
      const decision = await withClient(command, async (client) => (await client.migration(vm)).steer(steer));
      Output.of(command).result({ vm, ...decision }, `${vm}: ${decision.what}, by ${decision.by}: ${decision.why}`);
    });
}

function toSteer(kind: (typeof KINDS)[number], { author, reason, rate, pause, until }: SteerOptions): Steer {
  const need = <T>(value: T | undefined, option: string): T => {
    if (value === undefined) throw new UsageError(`${kind} needs ${option}`);
    return value;
  };
  const signed = { author, reason };
  const given = { '--rate': rate, '--pause': pause, '--until': until };
  const only = (...taken: (keyof typeof given)[]) => {
    const surplus = (Object.keys(given) as (keyof typeof given)[]).find((option) => given[option] !== undefined && !taken.includes(option));
    if (surplus) throw new UsageError(`${kind} takes no ${surplus}`);
  };
  switch (kind) {
    case 'lift-limits':
    case 'nudge':
    case 'write-blocking':
    case 'unthrottle':
    case 'abort':
      only();
      return { do: kind, ...signed };
    case 'set-bandwidth':
    case 'throttle':
      only('--rate');
      return { do: kind, bytesPerSecond: need(rate, '--rate, such as 50MB/s'), ...signed };
    case 'set-max-downtime':
      only('--pause');
      return { do: 'set-max-downtime', ms: need(pause, '--pause, such as 300ms'), ...signed };
    case 'switchover-now':
      only('--pause');
      return { do: 'switchover-now', maxPauseMs: need(pause, '--pause, such as 2s'), ...signed };
    case 'wait':
    case 'postpone':
      only('--until');
      return { do: kind, until: toTime(need(until, '--until, such as 90m or 2026-11-29T02:00:00Z')), ...signed };
  }
}

function toTime(text: string): string {
  const ms = parseDuration(text);
  const time = ms === undefined ? new Date(text) : new Date(Date.now() + ms);
  if (Number.isNaN(time.getTime())) throw new UsageError(`--until ${text} is no time: give 2026-11-29T02:00:00Z, or a duration from now such as 90m`);
  return time.toISOString();
}
