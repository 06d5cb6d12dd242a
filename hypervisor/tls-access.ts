import { constants, existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { folderBelow, rootOf } from './credentials';
import type { HostConfig } from './host-config';
import type { ProcessIdentity } from './processes';
import { FILES, transportOf } from './transport';

/** Who a program is when it opens a file. */
interface Reader {
  name: string;
  uid: number;
  gids: number[];
}

/**
 * Why a guest's QEMU cannot read the TLS files that it needs at this end of a move, with what to do; empty if it can. The agent reads them as another user,
 * and sees more: a QEMU may be in a chroot, or run as a user of its own. Without a process it is one that this host would start.
 */
export function tlsOutOfReach(config: HostConfig, end: 'server' | 'client', process?: ProcessIdentity): string[] {
  const transport = transportOf(config);
  if (transport.mode === 'insecure') return [];
  const root = process ? rootOf(process) : (config.chroot ?? '/');
  try {
    const { real } = folderBelow(config, root);
    const reader = process ? readerOf(process) : configuredReader(config);
    if (!reader || reader.uid === 0) return [];
    const files = FILES[transport.mode];
    const present = files.optional.filter((file) => existsSync(join(real, file)));
    const closed = [...files[end], ...present].map((file) => join(real, file)).filter((file) => !mayRead(reader, file, root));
    if (closed.length === 0) return [];
    return [`a QEMU of ${config.name} runs as ${reader.name}, and that user may not read ${closed.join(', ')}: give the files its group (chgrp, chmod 0640), and the folders to them x for it`];
  } catch (error) {
    return [(error as Error).message];
  }
}

/** Undefined for a user that reads what the agent reads. */
function configuredReader({ runAs }: HostConfig): Reader | undefined {
  if (runAs === undefined) return undefined;
  const [, uid, gid] = new RegExp(`^${runAs}:[^:]*:(\\d+):(\\d+):`, 'm').exec(readFileSync('/etc/passwd', 'utf8')) ?? [];
  if (uid === undefined) throw new Error(`runAs: there is no user ${runAs} in /etc/passwd`);
  const groups = [...readFileSync('/etc/group', 'utf8').matchAll(/^[^:]*:[^:]*:(\d+):(.*)$/gm)].filter(([, , members]) => members!.split(',').includes(runAs));
  return { name: runAs, uid: Number(uid), gids: [Number(gid), ...groups.map(([, id]) => Number(id))] };
}

function readerOf({ pid }: ProcessIdentity): Reader | undefined {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const ids = (field: string) => new RegExp(`^${field}:\\s*(.*)$`, 'm').exec(status)![1]!.trim().split(/\s+/).filter(Boolean).map(Number);
  // The last of the four is who it is to the file system.
  const [uid, gid] = [ids('Uid')[3]!, ids('Gid')[3]!];
  return { name: `user ${uid}`, uid, gids: [gid, ...ids('Groups')] };
}

/** By the modes of the file and of every folder above it, up to the chroot; access lists are not looked at. */
function mayRead(reader: Reader, file: string, root: string): boolean {
  if (!has(reader, file, constants.R_OK)) return false;
  for (let folder = dirname(file); ; folder = dirname(folder)) {
    if (!has(reader, folder, constants.X_OK)) return false;
    if (folder === root || folder === '/') return true;
  }
}

function has({ uid, gids }: Reader, path: string, bit: number): boolean {
  const stat = statSync(path);
  const shift = stat.uid === uid ? 6 : gids.includes(stat.gid) ? 3 : 0;
  return ((stat.mode >> shift) & bit) !== 0;
}
