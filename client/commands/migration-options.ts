import type { Command } from 'commander';
import type { MigrateVmInput, MoveColdInput } from '../../workflows/messages';
import { UsageError } from '../exit-codes';
import { durationOption, rateOption } from '../quantities';

const HOUR_MS = 3_600_000;
const YEAR_MS = 365 * 24 * HOUR_MS;
/** The same bounds as `migrateVmSchema`. */
export const OPTION_BOUNDS = { maxDowntimeMs: [20, 2_000_000], bandwidthBytesPerSecond: 65_536 } as const;

/** How a guest is moved: what `migrate` and `evacuate` have in common. */
export interface MigrationOptions {
  maxDowntime?: number;
  onDivergence?: 'auto' | 'ask' | 'abort';
  copyMode?: 'background' | 'write-blocking';
  disksDeadline?: number;
  memoryDeadline?: number;
  postCopy?: boolean;
  bandwidth?: number;
  sourceDisks: 'keep' | 'wipe';
  keepFor: number;
}

export function addMigrationOptions(command: Command): Command {
  command
    .option('--max-downtime <duration>', 'the longest pause that a try may cost a guest', durationOption(...OPTION_BOUNDS.maxDowntimeMs, '300ms'))
    .option('--bandwidth <rate>', "a cap for a guest's disks, and one for its memory; default: as fast as the link", rateOption(OPTION_BOUNDS.bandwidthBytesPerSecond))
    .option('--disks-deadline <duration>', 'how long the disks may take to catch up', durationOption(1_000, YEAR_MS, '2h'))
    .option('--memory-deadline <duration>', 'how long one try to move the memory may take', durationOption(1_000, YEAR_MS, '10m'))
    .option('--post-copy', 'if the memory does not converge, let the guest run at the destination before all of it is there. At risk: until its last page has come the guest is lost if either host or the link fails (its disks are whole at the destination), and it is slow')
    .option('--keep-for <duration>', "how long the source's images are kept, put aside", durationOption(60_000, 10 * YEAR_MS, '24h'), 24 * HOUR_MS);
  for (const option of command.options) if (option.long === '--keep-for') option.defaultValueDescription = '24h';
  command.addOption(command.createOption('--source-disks <what>', "what becomes of the source's images").choices(['keep', 'wipe']).default('keep'));
  command.addOption(command.createOption('--on-divergence <policy>', 'when a guest writes faster than it can be copied: act, ask for a steer, or give up').choices(['auto', 'ask', 'abort']));
  return command.addOption(command.createOption('--copy-mode <mode>', 'write-blocking: each write of the guest waits for the copy, from the start').choices(['background', 'write-blocking']));
}

/** Throws `UsageError` if they contradict each other. */
export function checkMigrationOptions(command: Command, { sourceDisks }: MigrationOptions): void {
  if (sourceDisks === 'wipe' && command.getOptionValueSource('keepFor') === 'cli') throw new UsageError('--source-disks wipe keeps nothing: leave --keep-for out');
}

/** The first option that was given and says something only to a guest that runs. */
export function runningOnly(command: Command): string | undefined {
  const names = { maxDowntime: '--max-downtime', onDivergence: '--on-divergence', copyMode: '--copy-mode', disksDeadline: '--disks-deadline', memoryDeadline: '--memory-deadline', postCopy: '--post-copy' };
  return Object.entries(names).find(([name]) => command.getOptionValueSource(name) === 'cli')?.[1];
}

/** What is left out is the source host's to say (its configuration's field `migration`). */
export function migrationFields(options: MigrationOptions): Omit<MigrateVmInput, 'vm' | 'to'> {
  return {
    ...(options.maxDowntime !== undefined && { maxDowntimeMs: options.maxDowntime }),
    ...(options.onDivergence && { onDivergence: options.onDivergence }),
    ...(options.copyMode && { copyMode: options.copyMode }),
    ...(options.disksDeadline !== undefined && { disksDeadlineSeconds: options.disksDeadline / 1_000 }),
    ...(options.memoryDeadline !== undefined && { memoryDeadlineSeconds: options.memoryDeadline / 1_000 }),
    ...(options.postCopy && { postCopy: true }),
    ...coldFields(options),
  };
}

/** The fields that also the move of a stopped guest has. */
export function coldFields({ sourceDisks, keepFor, bandwidth }: MigrationOptions): Omit<MoveColdInput, 'vm' | 'to'> {
  return { sourceDisks, keepHours: keepFor / HOUR_MS, ...(bandwidth !== undefined && { bandwidthBytesPerSecond: bandwidth }) };
}
