import type { Host } from '../host';
import { tlsOutOfReach } from '../tls-access';
import { inspectTls, type TlsFinding } from '../tls-files';
import { type SecurityMode, transportOf } from '../transport';
import { type Finding, ok, problem, warning } from './findings';

export interface TlsFacts {
  mode: SecurityMode;
  dir?: string;
  /** What the files themselves say. */
  findings: TlsFinding[];
  /** Why a QEMU that this host starts, with its `chroot` and `runAs`, could not read them. */
  outOfReach: string[];
}

export async function lookAtTls({ host: { config } }: { host: Host }): Promise<TlsFacts> {
  const transport = transportOf(config);
  const findings = inspectTls(config);
  if (transport.mode === 'insecure') return { mode: 'insecure', findings, outOfReach: [] };
  // Of files that are missing nothing more can be said.
  const reach = findings.some(({ problem: what }) => what === 'is missing') ? [] : (['server', 'client'] as const).flatMap((end) => tlsOutOfReach(config, end));
  return { ...transport, findings, outOfReach: [...new Set(reach)] };
}

export function judgeTls({ mode, dir, findings, outOfReach }: TlsFacts): Finding[] {
  if (mode === 'insecure') return [warning('disks and memory travel as plain text, without authentication (insecure: true)', 'vmferry certs init makes certificates for a lab; then tls: { dir: /etc/vmferry/tls } in place of insecure')];
  const found = findings.map(({ severity, file, problem: what, fix }) => (severity === 'blocker' ? problem : warning)(`${file} ${what}`, fix));
  for (const reason of outOfReach) {
    const [saw, ...fix] = reason.split(': ');
    found.push(problem(saw!, fix.join(': ') || 'keep the files where a QEMU with chroot and runAs can read them'));
  }
  return found.length > 0 ? found : [ok(`the files in ${dir} are this host's, in date, and within reach (${mode})`)];
}
