import { type Option, isOn, readFields } from './qemu-options';

/** A disk as a foreign command line describes it. `file` is as it is written there. */
export interface ForeignDisk {
  /** The -drive's id, also one that QEMU makes up, or the name of the -blockdev node: what `query-block` shows. */
  id: string;
  file: string;
  format: string;
  /** The guest's kind of controller; any SCSI controller is `virtio-scsi` and any IDE `sata` here, as the command line itself is kept. */
  bus: 'virtio-scsi' | 'virtio-blk' | 'sata' | 'pflash';
  readOnly: boolean;
  removable: boolean;
  cache: 'none' | 'writeback';
  aio: 'threads' | 'native' | 'io_uring';
  discard: boolean;
  /** QEMU opens its image again, by its path, when its last writer goes: `auto-read-only`, which is on for every -drive. */
  reopens: boolean;
}

type Fields = Record<string, string>;
type Refuse = (reason: string) => void;
interface Attachment {
  bus: ForeignDisk['bus'];
  removable: boolean;
}

/** Shorthands as the -drive that they mean; index 2 is the CD-ROM's place. */
const SHORTHANDS: Record<string, Fields> = {
  hda: { index: '0' }, hdb: { index: '1' }, hdc: { index: '2' }, hdd: { index: '3' }, cdrom: { index: '2', media: 'cdrom' },
  fda: { if: 'floppy', index: '0' }, fdb: { if: 'floppy', index: '1' }, pflash: { if: 'pflash' }, sd: { if: 'sd' }, mtdblock: { if: 'mtd' },
};

const INTERFACES: Record<string, ForeignDisk['bus']> = { ide: 'sata', scsi: 'virtio-scsi', virtio: 'virtio-blk', pflash: 'pflash' };

/** Every disk with a medium, in the order of the command line. What cannot be carried is refused, each with its reason. */
export function readDisks(options: readonly Option[], machine: string, refuse: Refuse): ForeignDisk[] {
  const attached = attachments(options, refuse);
  return [...readDrives(options, machine, attached, refuse), ...readBlockdevs(options, attached, refuse)];
}

/** Which device has which drive or node. */
function attachments(options: readonly Option[], refuse: Refuse): Map<string, Attachment> {
  const attached = new Map<string, Attachment>();
  for (const option of options) {
    const fields = ['device', 'machine', 'M'].includes(option.flag) ? readFields(option) : {};
    for (const key of ['pflash0', 'pflash1']) if (fields[key] && option.flag !== 'device') attached.set(fields[key], { bus: 'pflash', removable: false });
    const { driver = '', drive } = fields;
    if (!drive || option.flag !== 'device') continue;
    const bus = /^scsi-(hd|cd|disk)$/.test(driver) ? 'virtio-scsi' : /^ide-(hd|cd|drive)$/.test(driver) ? 'sata' : /^virtio-blk(-pci(-non)?(-transitional)?)?$/.test(driver) ? 'virtio-blk' : undefined;
    if (!bus) refuse(`disk ${drive} is a ${driver}: only SCSI, SATA or IDE, and virtio-blk disks can be carried`);
    attached.set(drive, { bus: bus ?? 'virtio-scsi', removable: /-cd$/.test(driver) });
  }
  return attached;
}

/** The ids that QEMU makes up are those of `drive_new()` (blockdev.c): `virtio0`, `ide0-hd1`, and `ide1-hd0` on q35 with its one disk a port. */
function readDrives(options: readonly Option[], machine: string, attached: Map<string, Attachment>, refuse: Refuse): ForeignDisk[] {
  const disks: ForeignDisk[] = [];
  const taken = new Set<string>();
  for (const option of options) {
    const shorthand = SHORTHANDS[option.flag];
    if (option.flag !== 'drive' && !shorthand) continue;
    const fields = shorthand ? { ...shorthand, file: option.value ?? '', ...(option.flag === 'pflash' && { format: 'raw' }) } : readFields(option);
    const type = fields['if'] ?? 'ide';
    const perBus = type === 'scsi' ? 7 : type === 'ide' ? (machine.includes('q35') ? 1 : 2) : 0;
    let index = fields['index'] !== undefined ? Number(fields['index']) : fields['unit'] !== undefined ? Number(fields['bus'] ?? 0) * perBus + Number(fields['unit']) : 0;
    if (fields['index'] === undefined && fields['unit'] === undefined) while (taken.has(`${type}${index}`)) index++;
    taken.add(`${type}${index}`);
    const cd = fields['media'] === 'cdrom';
    const media = type === 'ide' || type === 'scsi' ? (cd ? '-cd' : '-hd') : '';
    const id = fields['id'] ?? (perBus > 0 ? `${type}${Math.floor(index / perBus)}${media}${index % perBus}` : `${type}${media}${index}`);
    const file = fields['file'] || fields['file.filename'] || fields['filename'];
    if (!file) {
      if (fields['driver'] || fields['format'] || fields['file.driver']) refuse(`disk ${id}: its file cannot be found in "-${option.flag} ${option.value}"`);
      continue;
    }
    if (isOn(fields['snapshot'])) refuse(`disk ${id} has snapshot=on: what the guest writes is in a temporary file that nobody else can open`);
    refuseLayers(id, fields, refuse);
    const device = INTERFACES[type] ? { bus: INTERFACES[type], removable: cd } : attached.get(id);
    if (type !== 'none' && !INTERFACES[type]) refuse(`disk ${id} is on the interface "${type}": only none, ide, scsi, virtio and pflash can be carried`);
    else if (!device) refuse(`disk ${id} is attached to no device`);
    const readOnly = cd || device?.removable === true || ['readonly', 'read-only', 'ro'].some((key) => isOn(fields[key]));
    disks.push({
      id,
      file: localFile(id, file, fields['file.driver'], refuse),
      format: fields['format'] ?? fields['driver'] ?? 'raw',
      bus: device?.bus ?? 'virtio-scsi',
      readOnly,
      removable: cd || device?.removable === true,
      reopens: !readOnly && isOn(fields['auto-read-only'] ?? 'on'),
      ...caching(fields),
    });
  }
  return disks;
}

function readBlockdevs(options: readonly Option[], attached: Map<string, Attachment>, refuse: Refuse): ForeignDisk[] {
  const nodes = options.filter(({ flag }) => flag === 'blockdev').map(readFields);
  const byName = new Map(nodes.map((node) => [node['node-name'], node]));
  const children = new Set(nodes.flatMap((node) => ['file', 'backing', 'image'].map((key) => node[key])));
  const disks: ForeignDisk[] = [];
  for (const node of nodes) {
    const id = node['node-name'] ?? '';
    if (children.has(id)) continue;
    const protocol = ['file', 'host_device'].includes(node['driver'] ?? '');
    const child = node['file'] !== undefined ? byName.get(node['file']) : under(node, 'file.');
    const image = protocol ? node : child;
    const device = attached.get(id);
    if (!device) refuse(`block node ${id} is attached to no device`);
    if (!['raw', 'qcow2', 'file', 'host_device'].includes(node['driver'] ?? '') || !image?.['filename']) {
      refuse(`block node ${id} (${node['driver'] ?? 'no driver'}) cannot be carried: only raw and qcow2 on a local file or block device can`);
      continue;
    }
    refuseLayers(id, node, refuse);
    disks.push({
      id,
      file: localFile(id, image['filename'], image['driver'], refuse),
      format: protocol ? 'raw' : node['driver']!,
      bus: device?.bus ?? 'virtio-scsi',
      readOnly: isOn(node['read-only']) || device?.removable === true,
      removable: device?.removable === true,
      reopens: isOn(node['auto-read-only'] ?? image['auto-read-only']),
      ...caching(image),
    });
  }
  return disks;
}

const under = (fields: Fields, prefix: string): Fields => Object.fromEntries(Object.entries(fields).flatMap(([key, value]) => (key.startsWith(prefix) ? [[key.slice(prefix.length), value]] : [])));

/** A backing file named here, and a part of an image, would be lost in a copy. (One that a qcow2 header names is found by qemu-img in preflight.) */
function refuseLayers(id: string, fields: Fields, refuse: Refuse): void {
  if (Object.entries(fields).some(([key, value]) => /^backing(\.|$)/.test(key) && value !== 'null' && value !== '')) refuse(`disk ${id} has a backing file, which is not copied: flatten it first (block-stream, qemu-img convert)`);
  if (fields['size'] !== undefined || fields['offset'] !== undefined) refuse(`disk ${id} is a part of its image (size, offset), which cannot be carried`);
}

function localFile(id: string, file: string, driver: string | undefined, refuse: Refuse): string {
  if (driver !== undefined && driver !== 'file' && driver !== 'host_device') refuse(`disk ${id} is a ${driver} disk: only local files and block devices can be carried`);
  const [, protocol, rest] = /^([A-Za-z0-9+.-]+):(.*)$/s.exec(file) ?? [];
  if (protocol === undefined) return file;
  if (protocol === 'file') return rest!;
  refuse(`disk ${id} is on "${file.slice(0, 80)}": only local files and block devices can be carried, not ${protocol}:`);
  return file;
}

function caching(fields: Fields): Pick<ForeignDisk, 'cache' | 'aio' | 'discard'> {
  const direct = fields['cache.direct'] ?? fields['file.cache.direct'];
  const aio = fields['aio'] ?? fields['file.aio'];
  return {
    cache: (direct === undefined ? ['none', 'off', 'directsync'].includes(fields['cache'] ?? '') : isOn(direct)) ? 'none' : 'writeback',
    aio: aio === 'native' || aio === 'io_uring' ? aio : 'threads',
    discard: ['unmap', 'on'].includes(fields['discard'] ?? ''),
  };
}
