import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Host } from '../host';
import { inspectTls, type TlsFinding } from '../tls-files';
import { FILES, type SecurityMode, transportOf } from '../transport';
import { type Finding, ok, problem, warning } from './findings';

export interface TlsFacts {
  mode: SecurityMode;
  dir?: string;
  chroot?: string;
  /** What the files themselves say. */
  findings: TlsFinding[];
  /** Who QEMU is when it reads the files; absent without `runAs`, or if there is no such user. */
  reader?: { name: string; uid: number; gids: number[] };
  /** The files and the folders that lead to them. */
  rights: Rights[];
}

interface Rights {
  path: string;
  uid: number;
  gid: number;
  mode: number;
  folder: boolean;
}

export async function lookAtTls({ host: { config, programs } }: { host: Host }): Promise<TlsFacts> {
  const transport = transportOf(config);
  const { chroot, runAs } = config;
  const findings = inspectTls(config);
  if (transport.mode === 'insecure') return { mode: 'insecure', findings, rights: [] };
  const { mode, dir } = transport;
  const ids = async (flag: string) => (await programs.run('id', [flag, runAs!]).catch(() => '')).split(' ').map((id) => Number.parseInt(id, 10));
  const [[uid], gids] = runAs ? await Promise.all([ids('-u'), ids('-G')]) : [[], []];
  const files = [...new Set([...FILES[mode].server, ...FILES[mode].client])].map((file) => join(dir, file));
  const rights = runAs ? await Promise.all([...foldersTo(files[0]!), ...files].map(rightsOf)) : [];
  return { mode, dir, ...(chroot && { chroot }), findings, ...(runAs && uid !== undefined && !Number.isNaN(uid) && { reader: { name: runAs, uid, gids } }), rights: rights.flat() };
}

const foldersTo = (path: string): string[] => (path === '/' ? [] : [...foldersTo(dirname(path)), dirname(path)]);

/** What is missing is said by `inspectTls`. */
async function rightsOf(path: string): Promise<Rights[]> {
  const found = await stat(path).catch(() => undefined);
  return found ? [{ path, uid: found.uid, gid: found.gid, mode: found.mode & 0o777, folder: found.isDirectory() }] : [];
}

export function judgeTls({ mode, dir, chroot, findings, reader, rights }: TlsFacts): Finding[] {
  if (mode === 'insecure') return [warning('disks and memory travel as plain text, without authentication (insecure: true)', 'vmferry certs init makes certificates for a lab; then tls: { dir: /etc/vmferry/tls } in place of insecure')];
  const found = findings.map(({ severity, file, problem: what, fix }) => (severity === 'blocker' ? problem : warning)(`${file} ${what}`, fix));
  if (chroot !== undefined && dir !== chroot && !dir!.startsWith(`${chroot}/`)) found.push(problem(`a QEMU in the chroot ${chroot} cannot see ${dir}`, `keep the files below the jail: ${mode}: { dir: ${chroot}/tls }`));
  const closed = reader ? rights.filter((one) => !mayUse(reader, one)) : [];
  if (closed.length > 0) found.push(problem(`a QEMU as user ${reader!.name} (runAs) cannot ${closed[0]!.folder ? 'enter' : 'read'} ${closed.map(({ path }) => path).join(', ')}`, closed.map(({ path, folder }) => `chgrp ${reader!.gids[0] ?? reader!.name} ${path} && chmod g+${folder ? 'x' : 'r'} ${path}`).join(' && ')));
  return found.length > 0 ? found : [ok(`the files in ${dir} are this host's, in date, and readable (${mode})`)];
}

/** By the mode bits alone; root may everything. */
export function mayUse({ uid, gids }: { uid: number; gids: number[] }, { uid: owner, gid: group, mode, folder }: Rights): boolean {
  const bit = folder ? 0o1 : 0o4;
  const shift = uid === owner ? 6 : gids.includes(group) ? 3 : 0;
  return uid === 0 || (mode & (bit << shift)) !== 0;
}
