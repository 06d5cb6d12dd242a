import { existsSync, lstatSync, statSync } from 'node:fs';
import { chmod, link, mkdir, open, rename, rm, rmdir, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { z } from 'zod';
import { parseWith } from './definition';
import type { Host } from './host';
import { checkLayers } from './image-layers';

/** What qemu-img prints is made of the image's own words. */
const infoSchema = z.object({ 'virtual-size': z.int().min(0), format: z.string(), 'backing-filename': z.string().optional(), snapshots: z.array(z.object({ name: z.string() })).optional() });

export interface ImageInfo {
  /** What the guest sees, in bytes; sizes must match to the byte, or the mirror fails at its very end (facts/qemu.md §6). */
  virtualSizeBytes: number;
  format: string;
  blockDevice: boolean;
  backingFile?: string;
  /** Internal snapshots of a qcow2 image, which a mirror would lose. */
  snapshots: string[];
}

/** Reads an image; `-U` because a running QEMU holds its lock. Throws `PathRefused` if its header leads outside of the host's roots. */
export async function imageInfo(host: Host, path: string, format: string): Promise<ImageInfo> {
  const blockDevice = statSync(path).isBlockDevice();
  if (format === 'qcow2') checkLayers(host.config, path);
  const printed = await host.programs.run(host.config.binaries.qemuImg, ['info', '-U', '--output=json', '-f', format, path]);
  const info = parseWith(infoSchema, JSON.parse(printed), `what qemu-img says of ${path}`);
  return {
    virtualSizeBytes: blockDevice && format === 'raw' ? await blockDeviceSize(host, path) : info['virtual-size'],
    format: info.format,
    blockDevice,
    ...(info['backing-filename'] && { backingFile: info['backing-filename'] }),
    snapshots: (info.snapshots ?? []).map(({ name }) => name),
  };
}

async function blockDeviceSize({ programs }: Host, path: string): Promise<number> {
  return Number(await programs.run('/sbin/blockdev', ['--getsize64', path]));
}

/** The name under which an attempt makes an image before it gets its real one. */
const temporaryName = (path: string, attempt: string) => `${path}.vmferry-${attempt}`;

/**
 * Makes a sparse image, unless this attempt has made it already. Throws if anything else has that name: an image that we did not make
 * is never opened for writing. The image is made under a name of ours and then *linked* to its own, which fails if that name exists;
 * so a crash at any point leaves no doubt about whose file it is. `note` records durably that the path is ours, before our name goes.
 */
export async function createImage(host: Host, path: string, format: string, sizeBytes: number, attempt: string, note: (path: string) => Promise<void>): Promise<void> {
  const temporary = temporaryName(path, attempt);
  for (const folder of missingFolders(dirname(path))) {
    await note(folder);
    await mkdir(folder, { mode: 0o700 });
  }
  if (!isSameFile(temporary, path)) {
    await rm(temporary, { force: true });
    if (format === 'raw') {
      // qemu-img rounds raw sizes up to 512 bytes; truncate does not.
      const file = await open(temporary, 'wx', 0o600);
      await file.truncate(sizeBytes);
      await file.close();
    } else {
      await host.programs.run(host.config.binaries.qemuImg, ['create', '-q', '-f', format, temporary, String(sizeBytes)]);
      await chmod(temporary, 0o600);
    }
    await link(temporary, path).catch((error: NodeJS.ErrnoException) => {
      throw error.code === 'EEXIST' ? new ImageExists(path) : error;
    });
  }
  await note(path);
  await unlink(temporary);
}

/** An image at the destination that this attempt did not make. */
export class ImageExists extends Error {
  override readonly name = 'ImageExists';
  constructor(readonly path: string) {
    super(`${path} exists already: move or delete it if it is not needed`);
  }
}

/** Deletes what an attempt made, newest first, and what it had begun to make. Folders go only if they are empty. */
export async function deleteMade(made: string[], planned: string[], attempt: string): Promise<void> {
  for (const path of planned) {
    const temporary = temporaryName(path, attempt);
    if (isSameFile(temporary, path)) await unlink(path);
    await rm(temporary, { force: true });
  }
  for (const path of [...made].reverse()) {
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat?.isDirectory()) await rmdir(path).catch(() => undefined);
    else if (stat) await unlink(path);
  }
}

function isSameFile(one: string, other: string): boolean {
  const [a, b] = [one, other].map((path) => statSync(path, { throwIfNoEntry: false }));
  return a !== undefined && b !== undefined && a.ino === b.ino && a.dev === b.dev;
}

/** The folders that do not exist yet on the way to this one, outermost first. */
export function missingFolders(folder: string): string[] {
  return existsSync(folder) ? [] : [...missingFolders(dirname(folder)), folder];
}

/** Puts an image file aside under a name that says why; its place is free then. Idempotent. Returns the new path; a block device stays as it is. */
export async function putAside(path: string, attempt: string): Promise<string | undefined> {
  if (statSync(path, { throwIfNoEntry: false })?.isBlockDevice()) return undefined;
  const aside = `${path}.kept-${attempt}`;
  if (existsSync(path)) await rename(path, aside);
  return aside;
}

/** Deletes an image's contents: a file goes with its space, a block device is overwritten with zeros. */
export async function wipe({ programs }: Host, path: string): Promise<void> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) return;
  if (stat.isBlockDevice()) await programs.run('/sbin/blkdiscard', ['-z', path]);
  else await unlink(path);
}
