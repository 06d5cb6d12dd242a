import { createCommand, type Command } from 'commander';
import { formatBytes } from '../../hypervisor/size';
import type { CheckMoveResult } from '../../workflows/check-move';
import { EXIT, EXIT_CODES_HELP } from '../exit-codes';
import { Output, table } from '../output';
import { durationOption, formatDuration } from '../quantities';
import { withClient } from '../session';
import { addMigrationOptions, migrationFields, type MigrationOptions } from './migration-options';

const CHECK_HELP = `
Asks both hosts all that a migration asks before its first step, watches what the guest writes and dirties for some
seconds, and sends zeros from one host to the other for a second at most, to see what the link carries (not with
--bandwidth). Nothing is changed anywhere, and the guest runs on. The times are an estimate: docs/operating.md says how
they are made, docs/performance.md how they compare with real moves.

Exit code 0: it can move, 3: it would be refused (each reason is said), 5: the move would not converge.

Examples:
  $ vmferry check web --to host-b
  $ vmferry check web --to host-b --max-downtime 200ms --measure-for 20s
  $ vmferry check web --to host-b --json | tail -1 | jq .estimate.totalMs

${EXIT_CODES_HELP}`;

/** Those of `migrate` that say how a guest is moved, not what becomes of its images. */
const SHARED = ['--max-downtime', '--bandwidth', '--post-copy', '--on-divergence', '--copy-mode'];

type CheckOptions = Omit<MigrationOptions, 'sourceDisks' | 'keepFor'> & { to: string; measureFor: number };

export function registerCheck(program: Command): void {
  const check = program.command('check').description('what a move would be: obstacles, size, time, pause; nothing is changed').argument('<vm>').requiredOption('--to <host>', 'the destination');
  for (const option of addMigrationOptions(createCommand()).options) if (SHARED.includes(option.long!)) check.addOption(option);
  check
    .option('--measure-for <duration>', 'how long the guest is watched', durationOption(1_000, 60_000, '10s'), 3_000)
    .addHelpText('after', CHECK_HELP);
  for (const option of check.options) if (option.long === '--measure-for') option.defaultValueDescription = '3s';
  check.action(async (vm: string, { to, measureFor, ...options }: CheckOptions, command: Command) => {
    // What would become of the images is of no account here.
    const fields = migrationFields({ ...options, sourceDisks: 'keep', keepFor: 24 * 3_600_000 });
    const result = await withClient(command, (client) => client.check({ vm, to, measureSeconds: Math.round(measureFor / 1_000), ...fields }));
    const exitCode = result.movable ? EXIT.done : result.blockers.length > 0 ? EXIT.refused : EXIT.problems;
    Output.of(command).result(JSON.parse(JSON.stringify(result)) as typeof result & Record<string, never>, account(result), exitCode);
  });
}

const rate = (bytesPerSecond: number | undefined) => (bytesPerSecond === undefined ? '?' : `${formatBytes(bytesPerSecond)}/s`);

function account({ vm, from, to, blockers, warnings, disks, memory, link, estimate, maxDowntimeMs }: CheckMoveResult): string {
  const { parts, downtimeParts } = estimate ?? {};
  return [
    `${vm}: ${from ?? '?'} → ${to}`,
    ...(disks.length > 0 ? ['', table(['disk', 'size', 'allocated', 'guest writes', 'costs the copy'], disks.map((disk) => [disk.id, formatBytes(disk.virtualBytes), formatBytes(disk.allocatedBytes), rate(disk.writtenBytesPerSecond), rate(disk.dirtiedBytesPerSecond)]))] : []),
    '',
    ...(memory ? [`memory:    ${formatBytes(memory.bytes)}${memory.residentBytes === undefined ? '' : `, ${formatBytes(memory.residentBytes)} in use, ${rate(memory.dirtyBytesPerSecond)} dirtied`}`] : []),
    ...(link ? [`link:      ${rate(link.bytesPerSecond)} (${link.from === 'bandwidth' ? '--bandwidth' : link.from})`] : []),
    ...(estimate ? [`copies:    ${formatBytes(estimate.copiesBytes.disks)} of disks, ${formatBytes(estimate.copiesBytes.memory)} of memory, and what is written meanwhile`] : []),
    ...(parts ? [`takes:     about ${formatDuration(estimate!.totalMs!)}: disks ${formatDuration(parts.disksMs)}, memory ${formatDuration(parts.memoryMs)}, the rest ${formatDuration(parts.ownMs)}`] : []),
    ...(parts && downtimeParts ? [`pause:     about ${formatDuration(estimate!.downtimeMs!)}: stop ${formatDuration(downtimeParts.stopMs)}, disks ${formatDuration(downtimeParts.disksMs)}, memory ${formatDuration(downtimeParts.memoryMs)}, restart ${formatDuration(downtimeParts.restartMs)} (--max-downtime ${formatDuration(maxDowntimeMs!)})`] : []),
    ...(estimate ? [`converges: ${estimate.converges === 'with-remedy' ? `with ${estimate.remedies.join(', ')}` : estimate.converges}: ${estimate.message}`] : []),
    ...warnings.map((warning) => `Warning: ${warning}`),
    ...(blockers.length > 0 ? ['It would be refused:', ...blockers.map((blocker) => `- ${blocker}`)] : []),
  ].join('\n');
}
