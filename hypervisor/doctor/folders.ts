import { constants } from 'node:fs';
import { access, stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Host } from '../host';
import { formatBytes } from '../size';
import { type Finding, ok, problem, warning } from './findings';

export interface FolderFacts {
  /** Its field in the configuration: `stateDir`, `roots.images`. */
  field: string;
  path: string;
  kind: 'folder' | 'missing' | 'no folder';
  /** Of the folder, or of the first one above it that exists. */
  at: { path: string; mode: number; uid: number; writable: boolean; readable: boolean; memoryOnly: boolean; freeBytes: number };
}

/** `statfs` types of file systems that a reboot empties: tmpfs and ramfs (linux/magic.h). */
const MEMORY_ONLY = [0x01021994, 0x858458f6];

/** With the user that looks, and runs the agent. */
export interface FoldersFacts {
  uid: number;
  folders: FolderFacts[];
}

export async function lookAtFolders({ host }: { host: Host }): Promise<FoldersFacts> {
  const { stateDir, runDir, roots } = host.config;
  const folders = { stateDir, runDir, ...Object.fromEntries(Object.entries(roots).map(([name, { path }]) => [`roots.${name}`, path])) };
  return { uid: process.geteuid!(), folders: await Promise.all(Object.entries(folders).map(([field, path]) => lookAtFolder(field, path))) };
}

async function lookAtFolder(field: string, path: string): Promise<FolderFacts> {
  const found = await statOf(path);
  const kind = !found ? 'missing' : found.isDirectory() ? 'folder' : 'no folder';
  let above = path;
  while (!(await statOf(above))?.isDirectory()) above = dirname(above);
  const { mode, uid } = await stat(above);
  const { type, bavail, bsize } = await statfs(above);
  const may = async (what: number) => await access(above, what).then(() => true, () => false);
  return { field, path, kind, at: { path: above, mode: mode & 0o7777, uid, writable: await may(constants.W_OK | constants.X_OK), readable: await may(constants.R_OK | constants.X_OK), memoryOnly: MEMORY_ONLY.includes(type), freeBytes: bavail * bsize } };
}

async function statOf(path: string) {
  return await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
    throw error;
  });
}

/** Definitions, records and logs are small; yet a switchover that cannot write its marker is given up. */
const SMALL_BYTES = 64 * 2 ** 20;

export function judgeFolders({ uid, folders }: FoldersFacts): Finding[] {
  return folders.flatMap((folder): Finding[] => {
    const { field, path, kind, at } = folder;
    const ours = field === 'stateDir' || field === 'runDir';
    const name = `${field} ${path}`;
    if (kind === 'no folder') return [problem(`${name} is no folder`, `name a folder in ${field}`)];
    if (kind === 'missing' && !ours) return [problem(`${name} does not exist`, `mkdir -p ${path}, or correct ${field}`)];
    if (ours && !at.writable) return [problem(`${name} cannot be ${kind === 'missing' ? 'made' : 'written'} by this user`, `install -d -m 0700 -o USER ${path}, with the user of the agent`)];
    if (!at.readable) return [problem(`${name} cannot be read by this user`, `give the user of the agent access: chmod u+rx ${path}`)];
    const free = `${formatBytes(at.freeBytes)} free`;
    const found: Finding[] = [];
    if (field === 'stateDir' && at.memoryOnly) found.push(warning(`${name} is in memory (tmpfs): a reboot forgets the guests, and whose they are`, `stateDir: /var/lib/vmferry`));
    if (ours && at.freeBytes < SMALL_BYTES) found.push(problem(`${name} has only ${free}`, 'free some space there: records that cannot be written stop a move'));
    if (ours && kind === 'folder' && at.uid !== uid && at.uid !== 0) found.push(problem(`${name} belongs to user ${at.uid}, who could give guests away`, `chown ${uid} ${path}`));
    if (ours && kind === 'folder' && (at.mode & 0o077) !== 0) found.push(warning(`${name} has mode ${octal(at.mode)}: others may look in, or connect to monitors`, `chmod 0700 ${path}`));
    if (found.length > 0) return found;
    if (kind === 'missing') return [ok(`${name} will be made by the agent, with mode 0700; ${free}`)];
    return [ok(ours ? `${name} has mode ${octal(at.mode)}; ${free}` : `${name}: ${free}${at.writable ? '' : '; read-only, so no disk can come there'}`)];
  });
}

const octal = (mode: number) => mode.toString(8).padStart(4, '0');

export interface SocketFacts {
  runDir: string;
  guests: string[];
}

export async function lookAtSockets({ host }: { host: Host }): Promise<SocketFacts> {
  return { runDir: host.config.runDir, guests: host.store.names() };
}

/** sizeof(sun_path), less the NUL (unix(7)). */
const SOCKET_BYTES = 107;
/** The longest name that we give; `${run}` of a definition may have longer ones. */
const LONGEST_SOCKET = 'storage.sock';
const LONGEST_GUEST_NAME = 48;

export function judgeSockets({ runDir, guests }: SocketFacts): Finding[] {
  const room = SOCKET_BYTES - Buffer.byteLength(runDir) - '//'.length - LONGEST_SOCKET.length;
  const fix = 'runDir: /run/vmferry';
  const tooLong = guests.filter((name) => name.length > room);
  if (room < 1) return [problem(`runDir is too long for the sockets of any guest (a socket's path has ${SOCKET_BYTES} bytes at most)`, fix)];
  if (tooLong.length > 0) return [problem(`runDir leaves ${room} letters for a guest's name: the sockets of ${tooLong.join(', ')} cannot be made`, fix)];
  if (room < LONGEST_GUEST_NAME) return [warning(`runDir leaves ${room} letters for a guest's name: one with a longer name (up to ${LONGEST_GUEST_NAME}) can neither start here nor come`, fix)];
  return [ok('sockets of guests with names of any length fit below runDir')];
}
