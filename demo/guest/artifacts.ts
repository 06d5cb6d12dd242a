import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** This file also runs from dist/demo/guest, where the guest's sources are not. */
const sources = [__dirname, join(__dirname, '../../../demo/guest')].find((folder) => existsSync(join(folder, 'init.c'))) ?? __dirname;

/** Where set-up keeps what it builds and downloads. */
export function cacheFolder(): string {
  return process.env.VMFERRY_CACHE || join(homedir(), '.cache/vmferry');
}

/** The test guest's kernel and initramfs. Keyed as in scripts/setup.sh: an edited guest is never mistaken for the built one. Throws if it is not built. */
export function guestArtifacts(): { kernel: string; initrd: string } {
  const hash = createHash('sha256');
  for (const source of ['init.c', 'build.sh']) hash.update(readFileSync(join(sources, source)));
  const folder = join(cacheFolder(), `guest-${hash.digest('hex').slice(0, 12)}`);
  const artifacts = { kernel: join(folder, 'vmlinuz'), initrd: join(folder, 'initramfs.img') };
  if (!existsSync(artifacts.kernel) || !existsSync(artifacts.initrd)) throw new Error(`the test guest is not built (no ${folder}): run scripts/setup.sh`);
  return artifacts;
}

/** Sizes are bytes, or text with K, M or G (×1024). */
export interface GuestOptions {
  /** Written per second to each disk; 0 = nothing until the command `rate`. Default 20M. */
  rate?: number | string;
  /** Size of a write. Default 16K. */
  block?: number | string;
  /** Write only to this much at the start of each disk. Default: everywhere. */
  region?: number | string;
  /** Memory with verifiable content. Default 32M. */
  memory?: number | string;
  /** How much of that memory is rewritten per second. Default 4M. */
  dirty?: number | string;
  /** Disks to leave alone, such as `sdb`. */
  skip?: string[];
  /** The disks hold other data already: blocks that the guest never wrote are not checked. */
  dirtyBase?: boolean;
}

/**
 * The kernel command line, for QEMU's `-append`.
 * The kernel shares ttyS0 with the guest's protocol and is silent at loglevel 0, except for an oops or a panic, which raise the level
 * themselves; TestGuest shows these as `kernelLog`. `mitigations=off` because flushing page tables is what costs an emulated CPU most.
 */
export function guestKernelArguments(options: GuestOptions = {}): string {
  const { skip, dirtyBase, ...sizes } = options;
  const words = ['console=ttyS0', 'loglevel=0', 'oops=panic', 'mitigations=off'];
  for (const [name, size] of Object.entries(sizes)) if (size !== undefined) words.push(`vmferry.${name}=${size}`);
  if (skip?.length) words.push(`vmferry.skip=${skip.join(',')}`);
  if (dirtyBase) words.push('vmferry.dirtybase=1');
  return words.join(' ');
}
