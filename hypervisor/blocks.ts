import type { BlockInfo } from '../qmp/vocabulary';

/** A disk of a running guest, as its block layer knows it. */
export interface GuestBlock {
  /** What `blockdev-mirror` takes: the node, or the device if the node has only a name that QEMU made up (`#block123`, which it takes too). */
  device: string;
  /** The topmost node; while a job runs that is its filter. */
  nodeName: string | undefined;
  /** What `block_set_io_throttle` takes: an id, or the path of a device that has none. */
  qdev: string | undefined;
  sizeBytes: number;
  format: string;
  readOnly: boolean;
  removable: boolean;
  file: string;
}

/**
 * Finds a definition's disk in the reply to `query-block`: by the device's name, its node, the id of its guest device (QEMU gives
 * `/machine/peripheral/ID/virtio-backend` for virtio-blk), and last, if that is unique, by the end of its path. A disk's node is hidden
 * behind a filter while it is mirrored, so names alone do not do for `-blockdev`.
 */
export function findBlock(blocks: readonly BlockInfo[], disk: { id: string; path?: string }): GuestBlock | undefined {
  const inserted = blocks.filter((block) => block.inserted);
  const deviceId = (block: BlockInfo) => block.qdev?.replace(/^\/machine\/peripheral\/([^/]+)(\/virtio-backend)?$/, '$1');
  const tail = disk.path?.replace(/^\$\{[a-z0-9-]+\}/, '');
  const bySuffix = tail ? inserted.filter((block) => block.inserted?.file.endsWith(tail)) : [];
  const found =
    inserted.find((block) => block.device === disk.id) ??
    inserted.find((block) => block.inserted?.['node-name'] === disk.id) ??
    inserted.find((block) => [block.qdev, deviceId(block)].some((id) => id === disk.id || id === `${disk.id}-device`)) ??
    (bySuffix.length === 1 ? bySuffix[0] : undefined);
  return found && describe(found);
}

function describe({ device, qdev, removable, inserted }: BlockInfo): GuestBlock | undefined {
  if (!inserted) return undefined;
  const nodeName = inserted['node-name'];
  const { image } = inserted;
  return {
    device: nodeName && !nodeName.startsWith('#') && !isFilter(inserted.drv) ? nodeName : device || nodeName || '',
    nodeName,
    qdev,
    sizeBytes: image['virtual-size'],
    format: isFilter(inserted.drv) ? (image['backing-image']?.format ?? image.format) : image.format,
    readOnly: inserted.ro,
    removable,
    file: inserted.file,
  };
}

const isFilter = (driver: string) => /_top$/.test(driver);
