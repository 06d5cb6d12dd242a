import { statSync } from 'node:fs';
import { formatIsGuessed } from './argument-allowlist';
import { checkedOptions, OUR_MONITOR } from './argument-rules';
import { type Definition, type Disk, FIRMWARE_VARIABLES, InvalidDefinition } from './definition';
import { type HostConfig, resolvePath, runFolder } from './host-config';
import { formatArguments, isOn, joinFields, type Option, parseArguments, readFields } from './qemu-options';

/** Real path of the QMP socket that the agent uses. Throws `PathRefused`. */
export function monitorPath(config: HostConfig, definition: Definition): string {
  return resolvePath(config, definition.name, definition.monitor ?? '${run}/qmp.sock');
}

/**
 * The arguments, without the binary, that start this guest on this host; it looks at nothing but paths. The same definition gives the
 * guest the same machine on every host: QEMU numbers PCI slots in the order of devices, which is nics, SCSI controller, disks, then
 * `arguments` (so a disk more does not rename a nic). It always starts stopped. Throws `InvalidDefinition` with everything that the host refuses.
 */
export function qemuArguments(config: HostConfig, definition: Definition, { incoming }: { incoming: boolean }): string[] {
  const guest = definition.name;
  const reasons: string[] = [];
  const collect = (found: { options: Option[]; reasons: string[] }) => {
    reasons.push(...found.reasons);
    return found.options;
  };
  const place = (portable: string) => {
    try {
      return resolvePath(config, guest, portable);
    } catch (error) {
      reasons.push((error as Error).message);
      return portable;
    }
  };
  const machine = definition.commandLine
    ? collect(checkedOptions(config, guest, 'commandLine', parseArguments(definition.commandLine).filter(({ flag }) => !OURS_TO_GIVE.has(flag)).map((option) => withFormat(option, definition.disks))))
    : machineOptions(definition, place, (netdevs) => collect(checkedOptions(config, guest, 'nics', netdevs)));
  const further = collect(checkedOptions(config, guest, 'arguments', parseArguments(definition.arguments)));
  const monitor = place(definition.monitor ?? '${run}/qmp.sock');
  if (definition.monitor && ![...machine, ...further].some(({ value }) => value?.includes(monitor))) {
    reasons.push(`monitor: no argument makes ${definition.monitor}: remove the field, and vmferry makes a monitor of its own`);
  }
  const confined = config.chroot !== undefined || config.runAs !== undefined;
  if (confined) [...machine, ...further].filter(opensAgain).forEach(({ flag, value }) => reasons.push(`-${flag} ${value}: QEMU could not open it again, as it must when it takes or hands over a guest, since host ${config.name} has chroot or runAs: write it as -drive, or without auto-read-only`));
  const all = [...new Set(reasons)];
  if (all.length > 0) throw new InvalidDefinition(`guest "${guest}" cannot be started on host ${config.name}:\n  ${all.join('\n  ')}`, all);
  return formatArguments([
    ...machine.map((option) => (confined ? keptOpen(option) : option)),
    { flag: 'pidfile', value: `${runFolder(config, guest)}/qemu.pid` },
    ...(definition.monitor ? [] : [{ flag: 'chardev', value: `socket,id=${OUR_MONITOR},path=${monitor},server=on,wait=off` }, { flag: 'mon', value: `chardev=${OUR_MONITOR},mode=control` }]),
    // Always: a guest runs only when an agent that knows whose it is says `cont` (R10).
    { flag: 'S' },
    ...(incoming ? [{ flag: 'incoming', value: 'defer' }] : []),
    ...(config.sandbox === 'on' ? [{ flag: 'sandbox', value: sandbox(config, [...machine, ...further]) }] : []),
    ...(config.chroot ? [{ flag: 'chroot', value: config.chroot }] : []),
    ...(config.runAs ? [{ flag: 'runas', value: config.runAs }] : []),
    ...further.map((option) => (confined ? keptOpen(option) : option)),
  ]);
}

/**
 * What QEMU's seccomp filter takes from it: system calls that it never needs, new privileges, other programs, its own priority and affinity
 * (qemu-options.hx). The filter is there before QEMU becomes the user of `-runas`, which `elevateprivileges=deny` then kills (SIGSYS, measured on 7.2;
 * `children` does the same). Nothing is lost by that: as that user it has no privileges, and cannot get them back without another program. A bridge is
 * joined by such a program, and a tap without `script=no` is brought up by one of the host's: a guest with such a nic may start programs.
 */
function sandbox(config: HostConfig, options: readonly Option[]): string {
  const bridge = options.some((option) => isNet(option) && readFields(option)['type'] === 'bridge');
  const tap = options.some((option) => isNet(option) && readFields(option)['type'] === 'tap' && !['script', 'downscript'].every((key) => readFields(option)[key] === 'no'));
  const privileges = bridge || config.runAs ? 'allow' : 'deny';
  return `on,obsolete=deny,elevateprivileges=${privileges},spawn=${bridge || tap ? 'allow' : 'deny'},resourcecontrol=deny`;
}

const isNet = ({ flag }: Option) => ['netdev', 'nic', 'net'].includes(flag);

/** `-hda` and its like as the -drive that QEMU makes of them (system/vl.c). */
const SHORTHANDS: Record<string, string> = {
  hda: 'index=0,media=disk', hdb: 'index=1,media=disk', hdc: 'index=2,media=disk', hdd: 'index=3,media=disk', cdrom: 'index=2,media=cdrom',
  fda: 'if=floppy,index=0', fdb: 'if=floppy,index=1', pflash: 'if=pflash', sd: 'if=sd', mtdblock: 'if=mtd',
};

/**
 * An adopted guest's disk whose format its command line leaves out. QEMU would read it from the image's first bytes, which are the guest's, and which
 * have come with it: one that has written a qcow2 header there would name its new host's files. So the format is named that QEMU had when it was adopted.
 */
function withFormat(option: Option, disks: readonly Disk[]): Option {
  const { flag, value = '' } = option;
  const formatOf = (file: string | undefined) => disks.find(({ path }) => path === file?.replace(/^file:/, ''))?.format ?? 'raw';
  const shorthand = SHORTHANDS[flag];
  if (shorthand) return { flag: 'drive', value: `${joinFields([`file=${value}`])},${shorthand},format=${formatOf(value)}` };
  if (flag !== 'drive' || !isReadable(option) || !formatIsGuessed(option)) return option;
  const fields = readFields(option);
  return { flag, value: `${value},format=${formatOf(fields['file'] ?? fields['file.filename'])}` };
}

/** One that is not is refused with its reason where it is checked. */
function isReadable(option: Option): boolean {
  try {
    readFields(option);
    return true;
  } catch {
    return false;
  }
}

/**
 * A QEMU in a chroot, or as another user, cannot open an image again by its path. `auto-read-only`, which is on for every -drive, does so
 * when the guest begins to write it and when it stops: a move from there fails with "bdrv_inactivate_all() failed (-1)", one to there at
 * `cont` (measured, 7.2). Without it the image is opened once, for writing.
 */
function keptOpen(option: Option): Option {
  return option.flag === 'drive' && readFields(option)['file'] ? { flag: 'drive', value: `${option.value},auto-read-only=off` } : option;
}

/** Disks that `keptOpen` cannot help. */
function opensAgain(option: Option): boolean {
  return option.flag === 'blockdev' && Object.entries(readFields(option)).some(([key, value]) => /(^|\.)auto-read-only$/.test(key) && isOn(value));
}

/** Options of an adopted command line that are left out: how to start is said anew each time. */
const OURS_TO_GIVE = new Set(['daemonize', 'S', 'incoming', 'pidfile', 'sandbox']);

/** The machine that a definition's fields describe: no default device, no window, only what is named. */
function machineOptions(definition: Definition, place: (portable: string) => string, checked: (options: Option[]) => Option[]): Option[] {
  const { name, machine, accelerator, cpu, memory, firmware, boot, disks, nics } = definition;
  const pflash = [firmware && ',pflash0=firmware-code', firmware?.variables && `,pflash1=${FIRMWARE_VARIABLES}`].filter(Boolean).join('');
  const firmwareDisks = firmware ? [{ id: 'firmware-code', path: firmware.code, readOnly: true }, ...(firmware.variables ? [{ id: FIRMWARE_VARIABLES, path: firmware.variables, readOnly: false }] : [])] : [];
  const plain = { format: 'raw', removable: false, cache: 'writeback', aio: 'threads', discard: false } as const;
  return [
    { flag: 'name', value: `guest=${name},debug-threads=on` },
    { flag: 'machine', value: `${machine},accel=${accelerator}${pflash}` },
    { flag: 'cpu', value: cpu.model },
    { flag: 'smp', value: `cpus=${cpu.count}` },
    // In KiB, and never with maxmem: both ends must have the same RAM block, to the byte.
    { flag: 'm', value: `size=${memory / 1024}K` },
    { flag: 'nodefaults' },
    { flag: 'no-user-config' },
    { flag: 'display', value: 'none' },
    ...[boot && ['kernel', place(boot.kernel)], boot?.initrd && ['initrd', place(boot.initrd)], boot?.append && ['append', boot.append]].flatMap((pair) => (pair ? [{ flag: pair[0]!, value: pair[1]! }] : [])),
    ...checked(nics.map(({ id, backend }) => ({ flag: 'netdev', value: backend.replace(/^[a-z]+/, (type) => `${type},id=${id}`) }))),
    // No option ROM: it is a RAM block whose size depends on the host's packages, and must be equal on both ends.
    ...nics.map(({ id, model, mac }) => ({ flag: 'device', value: `${model},id=${id}-device,netdev=${id},mac=${mac},romfile=` })),
    ...firmwareDisks.flatMap((disk) => blockdevs({ ...plain, ...disk }, place)),
    ...disks.flatMap((disk) => blockdevs(disk, place)),
    ...(disks.some(({ bus }) => bus === 'virtio-scsi') ? [{ flag: 'device', value: 'virtio-scsi-pci,id=scsi0' }] : []),
    ...disks.map((disk, index) => ({ flag: 'device', value: `${diskDevice(disk, disks.slice(0, index).filter(({ bus }) => bus === disk.bus).length)},id=${disk.id}-device,drive=${disk.id},bootindex=${index + 1}` })),
  ];
}

/**
 * A disk's nodes: the file, and the format under the disk's id. As JSON, where no name needs escaping. `auto-read-only` stays off, as
 * it is by default: a disk that cannot be written must not turn into a read-only one unseen.
 */
function blockdevs(disk: Omit<Disk, 'bus'>, place: (portable: string) => string): Option[] {
  const filename = place(disk.path);
  const readOnly = disk.readOnly || disk.removable;
  const both = { 'read-only': readOnly, cache: { direct: disk.cache === 'none', 'no-flush': false }, ...(disk.discard && !readOnly && { discard: 'unmap' }) };
  const driver = statSync(filename, { throwIfNoEntry: false })?.isBlockDevice() ? 'host_device' : 'file';
  return [
    { driver, 'node-name': `${disk.id}-file`, filename, aio: disk.aio, ...both },
    { driver: disk.format, 'node-name': disk.id, file: `${disk.id}-file`, ...both },
  ].map((node) => ({ flag: 'blockdev', value: JSON.stringify(node) }));
}

/** `position` counts the disks on the same bus. */
function diskDevice({ bus, removable }: Disk, position: number): string {
  const kind = removable ? 'cd' : 'hd';
  switch (bus) {
    case 'virtio-scsi':
      return `scsi-${kind},bus=scsi0.0,channel=0,scsi-id=0,lun=${position}`;
    case 'virtio-blk':
      return 'virtio-blk-pci';
    case 'sata':
      return `ide-${kind},bus=ide.${position}`;
    case 'pflash':
      throw new InvalidDefinition(`bus "pflash" is for adopted guests: give the firmware in the field firmware`);
  }
}
