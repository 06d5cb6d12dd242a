import { existsSync, lstatSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { basename, dirname, isAbsolute, join, normalize } from 'node:path';
import { z } from 'zod';
import { guestNameSchema, parseYamlWith } from './definition';
import { sizeSchema } from './size';

const absolutePath = z.string().refine((path) => isAbsolute(path) && normalize(path) === path.replace(/(.)\/$/, '$1') && !/[\0\n,]/.test(path), 'give an absolute path without "..", comma or trailing slash');

/** How disks, memory and the lease travel to and from this host. Plain text is never what is taken when nothing is said. */
const securitySchema = {
  /** TLS with a certificate of each host: `dir` holds files by QEMU's names (ca-cert.pem, server-cert.pem, …; docs/operating.md). */
  tls: z.strictObject({ dir: absolutePath }).optional(),
  /** TLS with keys that the hosts share: `dir` holds keys.psk, a line `NAME:HEX` a host. */
  psk: z.strictObject({ dir: absolutePath }).optional(),
  /** Plain text, without authentication. */
  insecure: z.literal(true, 'leave it out, or give true').optional(),
};

const SECURITY_WAYS = `say how disks and memory travel between hosts, by exactly one of these fields:
    tls: { dir: /etc/vmferry/tls }    certificates; "vmferry certs init" makes them for a lab
    psk: { dir: /etc/vmferry/tls }    a file keys.psk that the hosts share; "vmferry certs init --psk" makes one
    insecure: true                    plain text, for a network that nobody else is on`;

/** One host agent's configuration: what it may touch, and where others reach it. */
export const hostConfigSchema = z.strictObject({
  /** The host's name; also its Temporal task queue. */
  name: z.string().regex(/^[a-z0-9][a-z0-9.-]{0,62}$/, 'a host name has up to 63 lower-case letters, digits, "." or "-"'),
  /** The IP address that other hosts' QEMUs and agents use to reach this one: disks, memory and the lease. */
  address: z.string().refine((address) => isIP(address) !== 0, 'give an IPv4 or IPv6 address without brackets'),
  /** Where Temporal is; without it, the standard TEMPORAL_* environment and profiles (`temporal env`) decide. */
  temporal: z.strictObject({ address: z.string(), namespace: z.string().default('default') }).optional(),
  ...securitySchema,
  /** Survives a reboot: definitions, who owns which guest, what an attempt made. */
  stateDir: absolutePath,
  /** Sockets, pid files and logs of running guests. Short: a UNIX socket's path has 107 bytes at most. */
  runDir: absolutePath,
  /** The folders that definitions may name. Nothing outside them is read or written for a guest. */
  roots: z.record(
    z.string().regex(/^[a-z][a-z0-9-]*$/).refine((name) => name !== 'run' && name !== 'name', '"run" and "name" are taken'),
    z.union([absolutePath.transform((path) => ({ path, blockDevices: false })), z.strictObject({ path: absolutePath, blockDevices: z.boolean().default(false) })]),
  ),
  binaries: z
    .strictObject({
      qemu: z.array(absolutePath).min(1).default(['/usr/bin/qemu-system-x86_64']),
      storageDaemon: absolutePath.default('/usr/bin/qemu-storage-daemon'),
      qemuImg: absolutePath.default('/usr/bin/qemu-img'),
    })
    .prefault({}),
  /** TCP ports for incoming disks, memory and leases, both ends included. */
  ports: z.strictObject({ from: z.int().min(1024).max(65535), to: z.int().min(1024).max(65535) }).refine(({ from, to }) => to >= from + 2, 'the range needs at least 3 ports').default({ from: 49152, to: 49407 }),
  /** Defaults for migrations that leave this host: any field of `convergencePolicySchema` (workflows/messages.ts), which the agent checks. */
  migration: z.record(z.string(), z.unknown()).default({}),
  /** For selectors, such as `rack: r12`. */
  labels: z.record(z.string(), z.string()).default({}),
  /** How many guests may leave and come at once; `vmferry host set-limits` overrides it. */
  slots: z.strictObject({ outgoing: z.int().min(0).max(1000), incoming: z.int().min(0).max(1000) }).default({ outgoing: 2, incoming: 2 }),
  /** Memory for guests in bytes; default: what the kernel says is available. */
  memory: sizeSchema.optional(),
  /** What definitions may bring beyond `argument-allowlist.ts`: an option without its dash, or `kind=name`, such as `device=vfio-pci`. */
  allow: z.array(z.string().regex(/^[A-Za-z0-9_-]+(=[A-Za-z0-9_.-]+)?$/, 'give an option without its dash, or kind=name, such as device=usb-host')).default([]),
  /** QEMU's `-sandbox` for guests started here: system calls that it never needs end it. */
  sandbox: z.enum(['on', 'off']).default('on'),
  /** The UNIX socket of the launcher that starts what must outlive the agent, where the agent lives in a container of its own. */
  launcher: absolutePath.optional(),
  /** Further `-chroot` and `-runas` for guests started here, as an adopted guest's command line may carry them. */
  chroot: absolutePath.optional(),
  runAs: z.string().regex(/^[a-z_][a-z0-9_-]*$/).optional(),
}).superRefine((config, context) => {
  const given = Object.keys(securitySchema).filter((field) => config[field as keyof typeof securitySchema] !== undefined);
  if (given.length !== 1) context.addIssue({ code: 'custom', path: [given[0] ?? 'tls'], message: `${SECURITY_WAYS}\n  here ${given.length === 0 ? 'is none of them' : `are ${given.join(' and ')}`}` });
  const { stateDir, runDir, tls, psk } = config;
  const within = (inner: string, outer: string) => inner === outer || inner.startsWith(outer === '/' ? '/' : `${outer.replace(/\/$/, '')}/`);
  for (const [name, { path }] of Object.entries(config.roots)) {
    for (const [field, own] of Object.entries({ stateDir, runDir, 'tls.dir': tls?.dir, 'psk.dir': psk?.dir })) {
      if (own !== undefined && (within(path, own) || within(own, path))) context.addIssue({ code: 'custom', path: ['roots', name], message: `a definition could name files of ${field} (${own}): give guests a folder beside it` });
    }
  }
});

export type HostConfig = z.output<typeof hostConfigSchema>;

/** Reads an agent's configuration. Throws `InvalidDefinition`. */
export function readHostConfig(path: string): HostConfig {
  return parseYamlWith(hostConfigSchema, readFileSync(path, 'utf8'), path);
}

/** A path that leads out of the configured roots, or is not what it must be. */
export class PathRefused extends Error {
  override readonly name = 'PathRefused';
}

/** The guest's run folder on this host. Throws `PathRefused` for a name that would lead elsewhere. */
export function runFolder(config: HostConfig, guest: string): string {
  return join(config.runDir, folderName(guest));
}

/** A guest's name as that of a folder. It comes with every request, also from whoever schedules an agent's activities by himself. */
export function folderName(guest: string): string {
  if (!guestNameSchema.safeParse(guest).success) throw new PathRefused(`${JSON.stringify(guest)?.slice(0, 80)} is no guest's name`);
  return guest;
}

/**
 * The real path of `${root}/relative` on this host. Throws `PathRefused` if the root is unknown here, or if symbolic links lead out
 * of it (only a root with `blockDevices: true` may hold links, and only to block devices below /dev).
 */
export function resolvePath(config: HostConfig, guest: string, portable: string): string {
  const match = /^\$\{([a-z][a-z0-9-]*)\}\/(.+)$/.exec(portable);
  if (!match) throw new PathRefused(`"${portable}" is not of the form "\${root}/name"`);
  const [, root, relative] = match as unknown as [string, string, string];
  if (/[\0\n,]/.test(relative) || relative.split('/').some((part) => part === '..' || part === '.' || part === '')) throw new PathRefused(`"${portable}" must not contain "..", an empty part, a comma or control characters`);
  if (root === 'run') return join(runFolder(config, guest), relative);
  const folder = config.roots[root];
  if (!folder) throw new PathRefused(`"${portable}": host ${config.name} has no root "${root}" (it has ${Object.keys(config.roots).join(', ') || 'none'}): add it to roots in its configuration`);
  const path = join(folder.path, relative);
  const real = realPathOfLongestExisting(path);
  const nowhere = linkToNowhere(path);
  if (nowhere) throw new PathRefused(`"${portable}" leads through ${nowhere}, a link to nowhere: a file made there would be wherever it points`);
  if (real === join(realPathOfLongestExisting(folder.path), relative)) return path;
  if (folder.blockDevices && real.startsWith('/dev/') && isLinkToBlockDevice(path)) return path;
  throw new PathRefused(`"${portable}" leads to ${real}, outside the root "${root}" (${folder.path}) of host ${config.name}`);
}

function isLinkToBlockDevice(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink() && statSync(path).isBlockDevice();
  } catch {
    // Such as a path below a device.
    return false;
  }
}

function linkToNowhere(path: string): string | undefined {
  if (existsSync(path)) return undefined;
  return isLink(path) ? path : linkToNowhere(dirname(path));
}

function isLink(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink();
  } catch {
    return false;
  }
}

function realPathOfLongestExisting(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    if (path === '/') return path;
    return join(realPathOfLongestExisting(dirname(path)), basename(path));
  }
}

/** Replaces `${run}`, `${name}` and `${root}` in one argument. Throws `PathRefused` for an unknown placeholder, or a path that leaves its root. */
export function expandArgument(config: HostConfig, guest: string, argument: string): string {
  return argument.replace(/\$\{([a-z][a-z0-9-]*)\}((?:\/[^,\0\s]*)?)/g, (_all, name: string, rest: string) => {
    if (name === 'name') return guest + rest;
    if (rest) return resolvePath(config, guest, `\${${name}}${rest}`);
    if (name === 'run') return runFolder(config, guest);
    const root = config.roots[name];
    if (!root) throw new PathRefused(`argument "${argument}": host ${config.name} has no root "${name}"`);
    return root.path;
  });
}
