import { existsSync, realpathSync } from 'node:fs';
import { isAbsolute, join, relative } from 'node:path';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed } from '../qmp/errors';
import type { QmpMonitor } from '../qmp/monitor';
import type { ObjectOptions } from '../qmp/structures';
import type { HostConfig } from './host-config';
import { OURS } from './ours';
import type { ProcessIdentity } from './processes';
import { certificateIdentity, transportOf } from './transport';

/** How one program reaches another over TLS, in QEMU's terms: objects to add, and what refers to them. Plain text has none. */
export interface Channel {
  /** For `object-add`, in this order. */
  objects: ObjectOptions[];
  /** Their ids; `authz` lets in one host only. With shared keys there is none: whoever has a key is let in. */
  creds: string;
  authz?: string;
  /** Of a client: the name that the other end's certificate must have. */
  hostname?: string;
}

/** TLS that cannot be had, or that the other end refuses; the message names the host, the likely file, and the fix. Plain text is never the way out. */
export class TlsRefused extends Error {
  override readonly name = 'TlsRefused';
}

const CLIENT = `${OURS}tls-client`;
const SERVER = `${OURS}tls-server`;
const AUTHZ = `${OURS}tls-authz`;

/** The way from this host to another. `dir` is where the program that uses it sees the files. */
export function outgoingChannel(config: HostConfig, to: string, dir = tlsFolder(config)): Channel | undefined {
  const { mode } = transportOf(config);
  if (mode === 'insecure') return undefined;
  const files = { id: CLIENT, dir, endpoint: 'client' };
  // A host's key goes by its name; certificates are checked both ways.
  const objects = [mode === 'tls' ? { 'qom-type': 'tls-creds-x509', ...files, 'verify-peer': true } : { 'qom-type': 'tls-creds-psk', ...files, username: config.name }];
  return { objects, creds: CLIENT, hostname: to };
}

/** The way from one other host to this one: nobody else is let in. */
export function incomingChannel(config: HostConfig, from: string, dir = tlsFolder(config)): Channel | undefined {
  const { mode } = transportOf(config);
  if (mode === 'insecure') return undefined;
  const files = { id: SERVER, dir, endpoint: 'server' };
  if (mode === 'psk') return { objects: [{ 'qom-type': 'tls-creds-psk', ...files }], creds: SERVER };
  return { objects: [{ 'qom-type': 'tls-creds-x509', ...files, 'verify-peer': true }, { 'qom-type': 'authz-simple', id: AUTHZ, identity: certificateIdentity(from) }], creds: SERVER, authz: AUTHZ };
}

const tlsFolder = ({ tls, psk }: HostConfig): string => (tls ?? psk)?.dir ?? '';

/** A host's TLS folder as a program in a chroot sees it, and where that is for all others. */
export interface SeenFolder {
  dir: string;
  real: string;
}

/** Where a process that runs sees this host's TLS files. Throws `TlsRefused` if it cannot see them. */
export function folderSeenBy(config: HostConfig, process: ProcessIdentity): string {
  return folderBelow(config, rootOf(process)).dir;
}

/** The root folder of a process: its chroot. */
export function rootOf({ pid }: ProcessIdentity): string {
  try {
    return realpathSync(`/proc/${pid}/root`);
  } catch {
    // It has ended, or is not ours to look at: who uses the path hears of it.
    return '/';
  }
}

/** The TLS folder of this host for what is in this chroot: a folder that is below it, or a copy below it under the same path. Throws `TlsRefused` if there is neither. */
export function folderBelow(config: HostConfig, root: string): SeenFolder {
  const dir = tlsFolder(config);
  if (dir === '' || root === '/') return { dir, real: dir };
  const copy = join(root, dir);
  if (existsSync(copy)) return { dir, real: copy };
  const inside = relative(root, existsSync(dir) ? realpathSync(dir) : dir);
  if (inside.startsWith('..') || isAbsolute(inside)) throw new TlsRefused(`a QEMU of ${config.name} in the chroot ${root} cannot see the TLS files in ${dir}: keep a copy of them in ${copy}, or choose a folder below the chroot`);
  return { dir: join('/', inside), real: dir };
}

/** Ensures a channel's objects. They read their files now. Throws `TlsRefused` with QEMU's own words. */
export async function addCredentials(qmp: QmpMonitor | QmpConnection, channel: Channel | undefined): Promise<void> {
  for (const object of channel?.objects ?? []) {
    await qmp.execute('object-add', object).catch((error: unknown) => {
      if (!(error instanceof QmpCommandFailed)) throw error;
      if (!/duplicate property|already exists/.test(error.desc)) throw new TlsRefused(`QEMU does not take the TLS files in ${String(object['dir'])}: ${error.desc}: see that they are there, and that QEMU's own user may read them`);
    });
  }
}

/** A channel's objects on the command line of `qemu-img`. */
export function objectArguments(channel: Channel | undefined): string[] {
  return (channel?.objects ?? []).flatMap(({ 'qom-type': type, ...properties }) => ['--object', [type, ...Object.entries(properties).map(([name, value]) => `${name}=${value === true ? 'on' : String(value)}`)].join(',')]);
}

/** Removes our objects from a guest's QEMU, and its migration's word of them. Idempotent. Connections that use them go on. */
export async function removeCredentials(qmp: QmpMonitor | QmpConnection): Promise<void> {
  const ours = await ourObjects(qmp);
  for (const id of ours) await qmp.execute('object-del', { id });
  if (ours.length > 0) await qmp.execute('migrate-set-parameters', NO_TLS);
}

/** The ids of our objects in a QEMU. */
export async function ourObjects(qmp: QmpMonitor | QmpConnection): Promise<string[]> {
  return (await qmp.execute('qom-list', { path: '/objects' })).map(({ name }) => name).filter((name) => name.startsWith(OURS));
}

/** A migration's parameters without TLS: also those that somebody else set. */
export const NO_TLS = { 'tls-creds': '', 'tls-hostname': '', 'tls-authz': '' } as const;
