import { statSync } from 'node:fs';
import { allDisks, type Definition, type Disk, FIRMWARE_VARIABLES, InvalidDefinition } from './definition';
import { expandArgument, type HostConfig, resolvePath, runFolder } from './host-config';

/** The monitor that the agent uses. */
export function monitorPath(config: HostConfig, definition: Definition): string {
  return resolvePath(config, definition.name, definition.monitor ?? '${run}/qmp.sock');
}

/**
 * QEMU's arguments for a guest on this host, without the binary. The same definition gives the same guest-visible machine, device for
 * device and address for address, on every host: the migration stream relies on it. Throws `PathRefused` or `InvalidDefinition`.
 */
export function qemuArguments(config: HostConfig, definition: Definition, { incoming }: { incoming: boolean }): string[] {
  const guest = definition.name;
  const given = definition.commandLine ?? structured(config, definition);
  const args = [...given, ...definition.arguments].map((argument) => expandArgument(config, guest, argument));
  args.push('-pidfile', `${runFolder(config, guest)}/qemu.pid`, '-S');
  if (!definition.monitor) args.push('-chardev', `socket,id=vmferry-monitor,path=${monitorPath(config, definition)},server=on,wait=off`, '-mon', 'chardev=vmferry-monitor,mode=control');
  if (incoming) args.push('-incoming', 'defer');
  if (config.chroot) args.push('-chroot', config.chroot);
  if (config.runAs) args.push('-runas', config.runAs);
  return args;
}

function structured(config: HostConfig, definition: Definition): string[] {
  const { name, machine, accelerator, cpu, memory, firmware, boot } = definition;
  const path = (portable: string) => resolvePath(config, name, portable);
  const machineOptions = [machine, `accel=${accelerator}`];
  const args: string[] = ['-name', `guest=${name},debug-threads=on`, '-nodefaults', '-no-user-config', '-display', 'none', '-cpu', cpu.model, '-smp', String(cpu.count), '-m', `size=${memory / 1024}K`];
  if (firmware) {
    args.push('-blockdev', JSON.stringify({ driver: 'file', 'node-name': 'firmware-code', filename: path(firmware.code), 'read-only': true }));
    machineOptions.push('pflash0=firmware-code');
    if (firmware.variables) machineOptions.push(`pflash1=${FIRMWARE_VARIABLES}`);
  }
  args.push('-machine', machineOptions.join(','));
  if (boot) args.push('-kernel', path(boot.kernel), ...(boot.initrd ? ['-initrd', path(boot.initrd)] : []), '-append', boot.append);
  const disks = allDisks(definition);
  if (disks.some(({ bus }) => bus === 'virtio-scsi')) args.push('-device', 'virtio-scsi-pci,id=scsi0');
  let lun = 0;
  let port = 0;
  for (const disk of disks) {
    args.push(...blockdev(disk, path(disk.path)));
    const identity = `id=${disk.id}-device,drive=${disk.id}`;
    if (disk.bus === 'virtio-scsi') args.push('-device', `${disk.removable ? 'scsi-cd' : 'scsi-hd'},${identity},bus=scsi0.0,channel=0,scsi-id=0,lun=${lun++}`);
    else if (disk.bus === 'virtio-blk') args.push('-device', `virtio-blk-pci,${identity}`);
    else if (disk.bus === 'sata') args.push('-device', `${disk.removable ? 'ide-cd' : 'ide-hd'},${identity},bus=ide.${port++}`);
  }
  for (const { id, model, mac, backend } of definition.nics) args.push('-netdev', backend.replace(/^(\w+)/, `$1,id=${id}`), '-device', `${model},id=${id}-device,netdev=${id},mac=${mac}`);
  return args;
}

function blockdev(disk: Disk, filename: string): string[] {
  if (disk.aio === 'native' && disk.cache !== 'none') throw new InvalidDefinition(`disk ${disk.id}: aio native needs cache none`);
  const blockDevice = statSync(filename, { throwIfNoEntry: false })?.isBlockDevice() ?? false;
  const discard = disk.discard ? 'unmap' : 'ignore';
  const cache = { direct: disk.cache === 'none' };
  const common = { 'read-only': disk.readOnly, discard, cache };
  return [
    '-blockdev',
    JSON.stringify({ driver: blockDevice ? 'host_device' : 'file', 'node-name': `${disk.id}-file`, filename, aio: disk.aio, ...common }),
    '-blockdev',
    JSON.stringify({ driver: disk.format, 'node-name': disk.id, file: `${disk.id}-file`, ...common }),
  ];
}
