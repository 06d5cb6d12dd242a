import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { type HostConfig, PathRefused } from './host-config';
import { pathProblem } from './portable-paths';

/**
 * Which other files a qcow2 image leads to. Its header is data of whoever could write the image, and QEMU, and qemu-img already when it only
 * looks (CVE-2024-4467), opens what it names, over the network too. So it is read here first. Source: QEMU's docs/interop/qcow2.txt.
 */
interface Layers {
  backingFile?: string;
  backingFormat?: string;
  /** Its blocks are in another file. */
  externalData: boolean;
}

const MAGIC = 0x514649fb;
const EXTENSION_BACKING_FORMAT = 0xe2792aca;
const EXTENSION_DATA_FILE = 0x44415441;
const INCOMPATIBLE_EXTERNAL_DATA = 1n << 2n;
/** QEMU takes no longer name. */
const LONGEST_NAME = 1023;
/** The header is in the first cluster, of 2 MiB at most; its extensions come right behind it. */
const HEADER_BYTES = 64 * 1024;
const MOST_LAYERS = 64;

/** What an image's header names; undefined if it is no qcow2 image. */
function readLayers(path: string): Layers | undefined {
  const header = Buffer.alloc(HEADER_BYTES);
  const file = openSync(path, 'r');
  let length: number;
  const nameAt = (offset: number, size: number): string => {
    const name = Buffer.alloc(size);
    return name.toString('utf8', 0, readSync(file, name, 0, size, offset));
  };
  try {
    length = readSync(file, header, 0, HEADER_BYTES, 0);
    if (length < 72 || header.readUInt32BE(0) !== MAGIC) return undefined;
    const version = header.readUInt32BE(4);
    const [offset, size] = [header.readBigUInt64BE(8), header.readUInt32BE(16)];
    const layers: Layers = { externalData: version >= 3 && (header.readBigUInt64BE(72) & INCOMPATIBLE_EXTERNAL_DATA) !== 0n };
    if (offset !== 0n) {
      if (size === 0 || size > LONGEST_NAME || offset > BigInt(2 ** 21)) throw new PathRefused(`${path} has a backing file whose name cannot be read: the image is damaged, or was made to mislead`);
      layers.backingFile = nameAt(Number(offset), size);
    }
    // As QEMU reads them: the last of a kind counts, and none behind the backing file's name.
    const end = offset === 0n ? Infinity : Number(offset);
    for (let at = version >= 3 ? header.readUInt32BE(100) : 72; at < end; ) {
      if (at < 72 || at + 8 > length) throw new PathRefused(`${path} has a header that cannot be read to its end: the image is damaged, or was made to mislead`);
      const [type, bytes] = [header.readUInt32BE(at), header.readUInt32BE(at + 4)];
      if (type === 0) break;
      if (type === EXTENSION_DATA_FILE) layers.externalData = true;
      if (type === EXTENSION_BACKING_FORMAT) layers.backingFormat = header.toString('utf8', at + 8, Math.min(at + 8 + bytes, length));
      at += 8 + Math.ceil(bytes / 8) * 8;
    }
    return layers;
  } finally {
    closeSync(file);
  }
}

/**
 * Throws `PathRefused` if a qcow2 image leads anywhere but to raw or qcow2 files below the host's roots, however many layers down. A format
 * must be named in each header: else the bytes of the layer below, which a guest may once have written, would decide it.
 */
export function checkLayers(config: HostConfig, image: string): void {
  let path = image;
  for (let depth = 0; ; depth++) {
    const stat = statSync(path, { throwIfNoEntry: false });
    const layers = stat?.isFile() || stat?.isBlockDevice() ? readLayers(path) : undefined;
    if (!layers) return;
    const refuse = (why: string) => new PathRefused(`${path === image ? image : `${path}, which is below ${image},`} ${why}`);
    if (layers.externalData) throw refuse('keeps its data in another file, which is not carried: convert it (qemu-img convert -O qcow2)');
    const { backingFile, backingFormat } = layers;
    if (backingFile === undefined) return;
    const flatten = `flatten it (qemu-img convert), or name another file (qemu-img rebase -u)`;
    if (/\0|^json:/.test(backingFile) || /^[A-Za-z0-9+.-]+:/.test(backingFile)) throw refuse(`has the backing file "${backingFile.slice(0, 120)}", which is no local file: ${flatten}`);
    if (backingFormat !== 'raw' && backingFormat !== 'qcow2') throw refuse(`${backingFormat === undefined ? 'does not say which format its backing file has' : `says that its backing file is "${backingFormat.slice(0, 20)}"`}: only raw and qcow2 are taken, by name (qemu-img rebase -u -b FILE -F raw)`);
    if (depth === MOST_LAYERS) throw refuse(`is below ${MOST_LAYERS} other layers, or goes in a circle: flatten it (qemu-img convert)`);
    // QEMU takes a relative name from the folder of the image that names it, links not followed.
    const below = isAbsolute(backingFile) ? resolve(backingFile) : resolve(dirname(path), backingFile);
    const problem = pathProblem(config, undefined, below);
    if (problem) throw refuse(`has the backing file "${backingFile.slice(0, 120)}", and ${problem}`);
    if (backingFormat === 'raw') return;
    path = below;
  }
}
