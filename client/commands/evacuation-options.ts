import { type Command, InvalidArgumentError } from 'commander';
import type { EvacuateFleetInput, EvacuateHostInput } from '../../workflows/evacuation';
import { UsageError } from '../exit-codes';
import { collectOption, durationOption, percentOption, selectorOption, wholeOption } from '../quantities';
import { CATCH_UP_SECONDS, isTimeZone, LEAST_CATCH_UP_SECONDS, type ScheduleRequest } from '../schedules';
import { addMigrationOptions, checkMigrationOptions, migrationFields, type MigrationOptions } from './migration-options';

const DAY_MS = 24 * 3_600_000;
/** The same bounds as the schemas of workflows/evacuation.ts. */
const MOST_AT_ONCE = 10_000;

export interface EvacuateOptions extends MigrationOptions {
  selector?: string;
  plan?: boolean;
  approve?: boolean;
  to?: string;
  skip?: string[];
  approveGuest?: string[];
  limitFleet?: number;
  limitSource?: number;
  limitDestination?: number;
  maxFailures?: number;
  tries?: number;
  window?: number;
  atWindowEnd?: 'finish' | 'postpone';
  atCancel?: 'finish' | 'undo';
  stopped?: 'move' | 'leave';
  andReturn?: boolean;
  hostsAtOnce?: number;
  minFreeMemory?: number;
  name?: string;
  schedule?: string;
  timezone?: string;
  jitter?: number;
  catchUp?: number;
  detach?: boolean;
}

/** Guests under way at once. */
export function addLimitOptions(command: Command): Command {
  return command
    .option('--limit-fleet <n>', 'guests under way at once, all together; default: 10', wholeOption(1, MOST_AT_ONCE))
    .option('--limit-source <n>', 'guests that leave a host at once; default: 2', wholeOption(1, MOST_AT_ONCE))
    .option('--limit-destination <n>', 'guests that come to a host at once; default: 2', wholeOption(1, MOST_AT_ONCE));
}

export function addEvacuateOptions(command: Command): Command {
  command
    .option('--selector <selector>', 'the hosts to empty, by their labels, in place of names', selectorOption)
    .option('--plan', 'only show where each guest would go, and which would stay')
    .option('--approve', 'show the plan, and wait for "vmferry evacuation approve" before anything moves')
    .option('--to <selector>', 'labels that a destination must have; default: any host', selectorOption)
    .option('--skip <vm>', 'a guest that stays; can be repeated', collectOption)
    .option('--approve-guest <vm>', 'a guest with "migratable: ask" that may go; can be repeated', collectOption);
  addLimitOptions(command)
    .option('--max-failures <n>', 'when more tries than this have failed, no other guest starts; default: 3', wholeOption(0, MOST_AT_ONCE))
    .option('--tries <n>', 'how often a guest is tried, each time to another host if that one failed; default: 2', wholeOption(1, 10))
    .option('--window <duration>', 'after this no guest starts', durationOption(1_000, 365 * DAY_MS, '4h'));
  command.addOption(command.createOption('--at-window-end <what>', 'guests that move when the window ends: finish, or undo and leave them').choices(['finish', 'postpone']));
  command.addOption(command.createOption('--at-cancel <what>', 'guests that move when it is cancelled; default: undo').choices(['finish', 'undo']));
  command.addOption(command.createOption('--stopped <what>', 'guests that do not run: copy them too (default), or leave them').choices(['move', 'leave']));
  command
    .option('--and-return', 'wait for "vmferry evacuation bring-back", then bring the guests home')
    .option('--hosts-at-once <n>', 'of many hosts: how many are emptied together; default: 1', wholeOption(1, MOST_AT_ONCE))
    .option('--min-free-memory <percent>', 'of many hosts: no host is begun if the others would have less of their memory free; default: 10%', percentOption)
    .option('--name <name>', 'of many hosts, or a schedule: what to call it; default: after its hosts')
    .option('--schedule <cron>', 'do it at these times: minute, hour, day of the month, month, day of the week')
    .option('--timezone <zone>', "the schedule's time zone, such as Europe/Berlin; default: UTC", zoneOption)
    .option('--jitter <duration>', 'each time is later by up to this, at random', durationOption(0, DAY_MS, '10m'))
    .option('--catch-up <duration>', `how late one may begin that was missed while Temporal was down; default: ${CATCH_UP_SECONDS / 60}m`, durationOption(LEAST_CATCH_UP_SECONDS * 1000, 365 * DAY_MS, '10m'));
  return addMigrationOptions(command)
    .option('--detach', 'start it, wait until it is accepted or refused, and leave it alone');
}

function zoneOption(text: string): string {
  if (!isTimeZone(text)) throw new InvalidArgumentError('Give a time zone such as Europe/Berlin, America/New_York or UTC.');
  return text;
}

export type Evacuate = { kind: 'host'; input: EvacuateHostInput } | { kind: 'fleet'; name: string; input: EvacuateFleetInput } | { kind: 'schedule'; request: ScheduleRequest };

/** What a command line asks for. Throws `UsageError` if it contradicts itself. */
export function evacuateOf(hosts: string[], options: EvacuateOptions, command: Command): Evacuate {
  const { selector, schedule, window } = options;
  checkMigrationOptions(command, options);
  if (hosts.length > 0 && selector !== undefined) throw new UsageError(`${hosts.join(' ')} and --selector ${selector} both say which hosts: give one of them`);
  if (hosts.length === 0 && selector === undefined) throw new UsageError('say which hosts: names, or --selector with labels, such as --selector rack=r12');
  if (options.plan && options.approve) throw new UsageError('--plan moves nothing, --approve moves once it is approved: give one of them');
  const surplus = (when: string, names: Record<string, string>) => {
    const [option] = Object.entries(names).find(([, name]) => command.getOptionValueSource(name) === 'cli') ?? [];
    if (option) throw new UsageError(`${option} ${when}`);
  };
  if (schedule === undefined) surplus('belongs to --schedule: give that too, or leave it out', { '--timezone': 'timezone', '--jitter': 'jitter', '--catch-up': 'catchUp' });
  else surplus('does nothing with --schedule, which only makes the schedule: leave it out', { '--plan': 'plan', '--approve': 'approve', '--and-return': 'andReturn', '--detach': 'detach' });
  const many = hosts.length !== 1 || schedule !== undefined;
  if (many) surplus('is for one host: name it in place of several hosts or a selector', { '--plan': 'plan', '--approve': 'approve', '--and-return': 'andReturn' });
  else surplus('is for many hosts: leave it out, or name several or a --selector', { '--hosts-at-once': 'hostsAtOnce', '--min-free-memory': 'minFreeMemory', '--name': 'name' });
  if (options.plan) surplus('does nothing with --plan, which ends at once: leave it out', { '--detach': 'detach', '--and-return': 'andReturn' });
  if (options.atWindowEnd && window === undefined) throw new UsageError(`--at-window-end ${options.atWindowEnd} needs a --window, such as --window 4h`);

  const how = howFields(options);
  if (!many) return { kind: 'host', input: { ...how, host: hosts[0]!, ...(options.plan && { mode: 'plan' }), ...(options.approve && { mode: 'approve' }), ...(options.andReturn && { andReturn: true }) } };
  const input: EvacuateFleetInput = {
    ...how,
    ...(selector === undefined ? { hosts } : { selector }),
    ...(options.hostsAtOnce !== undefined && { hostsAtOnce: options.hostsAtOnce }),
    ...(options.minFreeMemory !== undefined && { minFreeMemory: options.minFreeMemory }),
  };
  const name = options.name ?? (selector ?? hosts.join('-')).replace(/[^A-Za-z0-9.-]+/g, '-').replace(/^[^A-Za-z0-9]+|-+$/g, '').slice(0, 100);
  if (schedule === undefined) return { kind: 'fleet', name, input };
  if (window === undefined) throw new UsageError('--schedule needs a --window: for how long after each of its times guests may start to move, such as --window 4h');
  return {
    kind: 'schedule',
    request: { name, cron: schedule, ...(options.timezone && { timeZone: options.timezone }), ...(options.jitter !== undefined && { jitterSeconds: options.jitter / 1000 }), ...(options.catchUp !== undefined && { catchUpSeconds: options.catchUp / 1000 }), evacuation: { ...input, windowSeconds: window / 1000 } },
  };
}

/** Fields of both inputs; what is left out has the workflow's defaults. */
function howFields(options: EvacuateOptions): Omit<EvacuateHostInput, 'host' | 'mode' | 'andReturn'> {
  const { to, skip, approveGuest, maxFailures, tries, window, atWindowEnd, atCancel, stopped } = options;
  return {
    ...(to !== undefined && { destinations: to }),
    ...(skip && { skip }),
    ...(approveGuest && { approved: approveGuest }),
    limits: limitsOf(options),
    ...(maxFailures !== undefined && { maxFailures }),
    ...(tries !== undefined && { tries }),
    ...(window !== undefined && { windowSeconds: window / 1000 }),
    ...(atWindowEnd && { atWindowEnd }),
    ...(atCancel && { atCancel }),
    ...(stopped && { stopped }),
    migration: migrationFields(options),
  };
}

export function limitsOf({ limitFleet, limitSource, limitDestination }: Pick<EvacuateOptions, 'limitFleet' | 'limitSource' | 'limitDestination'>) {
  return { ...(limitFleet !== undefined && { fleet: limitFleet }), ...(limitSource !== undefined && { perSource: limitSource }), ...(limitDestination !== undefined && { perDestination: limitDestination }) };
}
