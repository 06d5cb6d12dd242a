import type { BlockInfo } from '../qmp/vocabulary';

/** A disk of a running guest, as its block layer knows it. */
export interface GuestBlock {
  /** What `blockdev-mirror` calls it: its node, or the device if the node has only a name that QEMU made up (`#block123`). */
  device: string;
  nodeName: string | undefined;
  qdev: string | undefined;
  sizeBytes: number;
  format: string;
  readOnly: boolean;
  removable: boolean;
  file: string;
}

/** Finds a definition's disk in the reply to `query-block`: by the device's name, the node's, or the qdev id. */
export function findBlock(blocks: BlockInfo[], disk: { id: string }): GuestBlock | undefined {
  const names = (block: BlockInfo) => [block.device, block.inserted?.['node-name'], block.qdev, block.qdev?.replace(/-device$/, '')];
  const block = blocks.find((one) => one.inserted && names(one).includes(disk.id));
  if (!block?.inserted) return undefined;
  const { inserted } = block;
  const nodeName = inserted['node-name'];
  return {
    device: nodeName && !nodeName.startsWith('#') ? nodeName : block.device || nodeName || '',
    nodeName,
    qdev: block.qdev,
    sizeBytes: inserted.image['virtual-size'],
    format: inserted.image.format,
    readOnly: inserted.ro,
    removable: block.removable,
    file: inserted.image.filename,
  };
}
