import type { Command } from 'commander';
import { Output, table } from '../output';
import { formatDuration } from '../quantities';
import { CATCH_UP_SECONDS, type ScheduleDetails, type ScheduleSummary } from '../schedules';
import { withClient } from '../session';
import { addSignedOptions, type SignedOptions, signedOf } from './evacuation';

const HELP = `
A schedule is a Temporal Schedule that starts an evacuation at set times. A time that comes while its last evacuation is
still under way is skipped. One that was missed while Temporal was down is made up for if it is not later than its
--catch-up (default ${CATCH_UP_SECONDS / 60} min). Make one with "vmferry evacuate … --schedule".

Examples:
  $ vmferry evacuate --selector rack=r12 --schedule "0 2 * * SUN" --timezone Europe/Berlin --window 4h --name r12
  $ vmferry schedule list
  $ vmferry schedule pause r12 --reason "freeze"`;

export function registerSchedules(program: Command): void {
  const schedule = program.command('schedule').description('evacuations at set times').addHelpText('after', HELP);
  const command = (name: string, does: string) => schedule.command(name).description(does).argument('<name>').addHelpText('after', `\nExample:\n  $ vmferry schedule ${name} r12${name === 'pause' ? ' --reason "freeze"' : ''}`);

  schedule
    .command('list')
    .description('all schedules, and when each comes next')
    .addHelpText('after', '\nWhat was just made, paused or deleted is seen a moment later.\n\nExample:\n  $ vmferry schedule list')
    .action(async (_options: unknown, command: Command) => {
      const out = Output.of(command);
      const found = await withClient(command, (client) => client.schedules.list());
      found.forEach((one) => out.event('schedule', one));
      out.list(found, 'There is no schedule. Make one: vmferry evacuate --help', () => table(['schedule', 'hosts', 'cron', 'time zone', 'window', 'next'], found.map((one) => [one.name, one.hosts, one.cron, one.timeZone, formatDuration(one.windowSeconds * 1000), one.paused ? 'paused' : localTime(one.nextTimes[0], one.timeZone)])));
    });

  command('show', 'what it does, its next times, and what it did last')
    .action(async (name: string, _options: unknown, command: Command) => {
      const found = await withClient(command, (client) => client.schedules.show(name));
      Output.of(command).result(found, scheduleText(found));
    });

  addSignedOptions(command('pause', 'begin nothing until it is resumed; what is under way goes on'), 'required').action(async (name: string, options: SignedOptions, command: Command) => {
    await withClient(command, (client) => client.schedules.pause(name, signedOf(options)));
    Output.of(command).result({ schedule: name }, `Schedule ${name} is paused: "vmferry schedule resume ${name}" lets it go on.`);
  });

  addSignedOptions(command('resume', 'let a paused schedule go on'), 'optional').action(async (name: string, options: SignedOptions, command: Command) => {
    const { nextTimes, timeZone } = await withClient(command, async (client) => {
      await client.schedules.resume(name, signedOf(options));
      return await client.schedules.show(name);
    });
    Output.of(command).result({ schedule: name, nextTimes }, `Schedule ${name} goes on; next: ${localTime(nextTimes[0], timeZone)}.`);
  });

  command('trigger', 'begin now, whatever the time is, also if it is paused').action(async (name: string, _options: unknown, command: Command) => {
    await withClient(command, (client) => client.schedules.trigger(name));
    Output.of(command).result({ schedule: name }, `Schedule ${name} begins now: "vmferry schedule show ${name}" names its evacuation.`);
  });

  command('delete', 'remove it; what it has begun goes on').action(async (name: string, _options: unknown, command: Command) => {
    await withClient(command, (client) => client.schedules.delete(name));
    Output.of(command).result({ schedule: name }, `Schedule ${name} is deleted.`);
  });
}

/** A schedule with its next times, in its own time zone. */
export function scheduleText(schedule: ScheduleDetails): string {
  const { name, cron, timeZone, paused, note, nextTimes, hosts, windowSeconds, overlap, catchUpSeconds, jitterSeconds, taken, skippedForOverlap, missedCatchUp, recent, running } = schedule;
  return [
    `${name}: empties ${hosts} at "${cron}" in ${timeZone}, for ${formatDuration(windowSeconds * 1000)} each time${paused ? '; paused' : ''}${note ? ` (${note})` : ''}`,
    `while the last one is under way: ${overlap.toLowerCase()}; missed: made up for within ${formatDuration(catchUpSeconds * 1000)}; jitter: ${jitterSeconds > 0 ? `up to ${formatDuration(jitterSeconds * 1000)}` : 'none'}`,
    `begun ${taken} times, skipped ${skippedForOverlap}, missed ${missedCatchUp}`,
    ...running.map((one) => `under way: ${one} ("vmferry evacuation show ${one}")`),
    ...recent.filter(({ workflowId }) => !running.includes(workflowId)).map(({ at, workflowId }) => `begun ${localTime(at, timeZone)}: ${workflowId}`),
    ...nextTimes.map((time, index) => `${index === 0 ? `next${paused ? ', were it not paused' : ''}` : 'then'}: ${localTime(time, timeZone)}`),
  ].join('\n');
}

/** `2026-11-29 02:00 GMT+1`. */
export function localTime(time: ScheduleSummary['nextTimes'][number] | undefined, timeZone: string): string {
  if (time === undefined) return 'never';
  return new Intl.DateTimeFormat('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'short' }).format(new Date(time)) + ` ${zoneName(time, timeZone)}`;
}

function zoneName(time: string, timeZone: string): string {
  return new Intl.DateTimeFormat('en-GB', { timeZone, timeZoneName: 'shortOffset' }).formatToParts(new Date(time)).find(({ type }) => type === 'timeZoneName')!.value;
}
