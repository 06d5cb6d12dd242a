import type { Command } from 'commander';
import type { Reported, Severity } from '../../hypervisor/doctor/findings';
import { examine } from '../doctor/examine';
import { EXIT, EXIT_CODES_HELP } from '../exit-codes';
import { Output } from '../output';
import { givenAddress } from '../session';

const DOCTOR_HELP = `
Without --config: what a client needs: Temporal, its namespace and search attributes, clocks, control workers, agents.
With it also what the hypervisor of that configuration needs: QEMU and what it can do, KVM (a tiny guest is booted), ports,
folders, confinement, guests, what earlier moves left. Nothing is changed. It comes to an end whatever hangs, within a minute.

Each finding that is not ok has its fix, a command or a line to change.

Examples:
  $ vmferry doctor
  $ vmferry doctor --config /etc/vmferry/agent.yaml
  $ vmferry doctor --json | jq -r 'select(.fix) | .fix'

${EXIT_CODES_HELP} Warnings do not count as problems.`;

const LABELS: Record<Severity, string> = { ok: 'ok', warning: 'WARNING', problem: 'PROBLEM' };

export function registerDoctor(program: Command): void {
  program
    .command('doctor')
    .description('check this machine, and the configuration of an agent; each finding names its fix')
    .option('--config <file>', "the configuration of this machine's agent, YAML")
    .addHelpText('after', DOCTOR_HELP)
    .action(async ({ config: file }: { config?: string }, command: Command) => {
      const given = givenAddress(command);
      const found = await examine({ ...(file !== undefined && { file }), ...(given && { given }) });
      const count = (severity: Severity) => found.filter((one) => one.severity === severity).length;
      const counts = { ok: count('ok'), warnings: count('warning'), problems: count('problem') };
      const out = Output.of(command);
      found.forEach((one) => out.event('finding', one));
      const text = `${found.map(told).join('\n')}\n\n${counts.ok} ok, ${counts.warnings} warnings, ${counts.problems} problems`;
      out.result({ outcome: counts.problems > 0 ? 'problems' : 'ok', ...counts }, text, counts.problems > 0 ? EXIT.problems : EXIT.done);
    });
}

function told(finding: Reported): string {
  const width = Math.max(...Object.values(LABELS).map(({ length }) => length));
  const line = `${LABELS[finding.severity].padEnd(width)}  ${finding.check}: ${finding.saw}`;
  return 'fix' in finding ? `${line}\n${' '.repeat(width)}  fix: ${finding.fix}` : line;
}
