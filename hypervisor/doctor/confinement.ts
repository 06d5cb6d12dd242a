import { stat } from 'node:fs/promises';
import type { Host } from '../host';
import { type Finding, ok, problem, warning } from './findings';

/** What decides whether QEMU can confine itself as `chroot` and `runAs` say. */
export interface ConfinementFacts {
  /** Of whoever looks: only root may confine. */
  uid: number;
  runAs?: { name: string; uid?: number };
  chroot?: { path: string; kind: 'folder' | 'missing' | 'no folder'; uid: number; mode: number };
  /** Which of the options each QEMU has. Those that cannot be asked are not here. */
  qemus: { path: string; chroot: boolean; runas: boolean }[];
}

export async function lookAtConfinement({ host: { config, programs } }: { host: Host }): Promise<ConfinementFacts> {
  const { runAs, chroot, binaries } = config;
  const qemus = runAs ?? chroot ? await Promise.all(binaries.qemu.map(async (path) => {
    const help = await programs.run(path, ['--help']).catch(() => undefined);
    return help === undefined ? [] : [{ path, chroot: /^-chroot /m.test(help), runas: /^-runas /m.test(help) }];
  })) : [];
  return {
    uid: process.geteuid!(),
    ...(runAs && { runAs: { name: runAs, ...(await userId(programs, runAs)) } }),
    ...(chroot && { chroot: { path: chroot, ...(await lookAtJail(chroot)) } }),
    qemus: qemus.flat(),
  };
}

async function userId(programs: Host['programs'], name: string): Promise<{ uid?: number }> {
  return await programs.run('id', ['-u', name]).then((printed) => ({ uid: Number(printed) }), () => ({}));
}

async function lookAtJail(path: string): Promise<Omit<ConfinementFacts['chroot'] & object, 'path'>> {
  const found = await stat(path).catch(() => undefined);
  return { kind: !found ? 'missing' : found.isDirectory() ? 'folder' : 'no folder', uid: found?.uid ?? 0, mode: (found?.mode ?? 0) & 0o7777 };
}

export function judgeConfinement({ uid, runAs, chroot, qemus }: ConfinementFacts): Finding[] {
  if (!runAs && !chroot) return [ok('neither chroot nor runAs is set: QEMUs run as the agent does')];
  const found: Finding[] = [];
  if (uid !== 0) found.push(problem('chroot and runAs need an agent that runs as root', 'run the agent as root, or leave both out'));
  if (runAs && runAs.uid === undefined) found.push(problem(`runAs: there is no user "${runAs.name}"`, `useradd --system --no-create-home --shell /usr/sbin/nologin ${runAs.name}`));
  if (runAs?.uid === 0) found.push(warning(`runAs: "${runAs.name}" is root, which confines nothing`, 'runAs: libvirt-qemu, or another user without rights'));
  if (chroot && chroot.kind !== 'folder') found.push(problem(`chroot ${chroot.path} ${chroot.kind === 'missing' ? 'does not exist' : 'is no folder'}`, `install -d -m 0755 -o root ${chroot.path}`));
  if (chroot?.kind === 'folder' && (chroot.uid !== 0 || (chroot.mode & 0o022) !== 0)) found.push(problem(`chroot ${chroot.path} can be written by others than root, who could put files under QEMU's nose`, `chown root ${chroot.path} && chmod go-w ${chroot.path}`));
  for (const qemu of qemus) {
    if (chroot && !qemu.chroot) found.push(problem(`${qemu.path} has no option -chroot (QEMU ≥ 9.0 has none): no guest starts with it`, 'leave chroot out, or list an older QEMU'));
    if (runAs && !qemu.runas) found.push(problem(`${qemu.path} has no option -runas (QEMU ≥ 10.0 has none): no guest starts with it`, 'leave runAs out, or list an older QEMU'));
  }
  if (found.length > 0) return found;
  return [ok(`QEMUs are confined${chroot ? ` to ${chroot.path}` : ''}${runAs ? ` as user ${runAs.name} (${runAs.uid})` : ''}`)];
}
