import { basename, dirname, join, resolve } from 'node:path';
import { absolutePathIn, isPathKey, isText } from './argument-rules';
import { type Definition, definitionSchema, guestNameSchema, InvalidDefinition, parseWith } from './definition';
import type { HostConfig } from './host-config';
import { type ForeignDisk, readDisks } from './import-disks';
import { Sockets } from './import-sockets';
import { isHarmlessDevice, toPortable } from './portable-paths';
import { formatArguments, mapFields, type Option, parseArguments, readFields, UnreadableOption } from './qemu-options';
import { parseSize } from './size';

export interface ImportContext {
  config: HostConfig;
  /** The process's working folder, for relative paths. */
  cwd: string;
  /** The name to give it; needed only if its `-name` is none. */
  name?: string;
  /** What QMP says about the running process, and the command line only hints at: the versioned machine type, the accelerator, the binary's name. */
  machine?: string;
  accelerator?: 'tcg' | 'kvm';
  emulator?: string;
}

export interface Import {
  /** Absent if anything is refused. */
  definition?: Definition;
  /** Real path of the QMP socket that the agent is to use. */
  monitor?: string;
  disks: (ForeignDisk & { path: string })[];
  reasons: string[];
}

/** How a QEMU starts is said anew at each start, and `-gdb`, `-writeconfig` are nothing to the guest. */
const REMOVED = new Set(['daemonize', 'pidfile', 'S', 'incoming', 'chroot', 'runas', 'run-with', 'sandbox', 's', 'gdb', 'writeconfig']);

const REFUSED: Record<string, string> = {
  loadvm: 'it starts from a snapshot, which is not copied', snapshot: 'what the guest writes is in temporary files that nobody else can open', readconfig: 'its file is not read here: give its options themselves',
  set: 'it changes other options unseen', 'add-fd': 'it uses an inherited file descriptor', virtfs: 'a folder of this host is shared with the guest', fsdev: 'a folder of this host is shared with the guest',
  tpmdev: 'the TPM\'s state is in another program', spice: 'a SPICE display listens on this host', sdl: 'its window is on this host', curses: 'its screen is a terminal of this host',
  'xen-attach': 'it belongs to Xen', 'xen-domid': 'it belongs to Xen', preconfig: 'it waits for further configuration',
};

/** Guest devices that hold on to this host. */
const BOUND_DEVICES: [RegExp, string][] = [
  [/^(vfio-|pci-assign|kvm-pci-assign|usb-host|usb-redir|ipmi-bmc-extern|scsi-block|scsi-generic|ccid-card-passthru|u2f-passthru)/, 'a device of this host cannot move'],
  [/^(ivshmem|vhost-user|vhost-scsi|vhost-vdpa|virtio-9p|tpm-)/, 'its state is outside of QEMU'],
  [/^(pc-dimm|nvdimm|virtio-mem|virtio-pmem)/, 'memory besides -m cannot be carried'],
];

/**
 * Derives a definition from the command line of a QEMU that somebody else started; `argv[0]` is its binary. The command line is kept,
 * option for option in its order, so that the guest finds the same machine elsewhere; only what belongs to this host is replaced.
 * Looks at nothing but its arguments. All refusals are given at once.
 */
export function importCommandLine(argv: readonly string[], context: ImportContext): Import {
  const reasons = new Set<string>();
  try {
    return new Importer(argv, context, reasons).run();
  } catch (error) {
    if (!(error instanceof UnreadableOption)) throw error;
    return { disks: [], reasons: [...reasons, error.message] };
  }
}

class Importer {
  private readonly options: Option[];
  private readonly sockets: Sockets;
  private readonly refuse = (reason: string) => void this.reasons.add(reason);
  private readonly name: string | undefined;
  private readonly runFolders: string[];

  constructor(
    private readonly argv: readonly string[],
    private readonly context: ImportContext,
    private readonly reasons: Set<string>,
  ) {
    this.options = parseArguments(argv.slice(1));
    this.sockets = new Sockets(this.options, this.output, this.refuse);
    this.name = context.name ?? this.fields('name')['guest'];
    const monitor = findMonitor(argv, context.cwd);
    this.runFolders = [...(this.name ? [join(context.config.runDir, this.name)] : []), ...(monitor ? [dirname(monitor)] : [])];
  }

  run(): Import {
    for (const { flag, value } of this.options) if (/\$\{[a-z]/.test(value ?? '')) this.refuse(`-${flag} ${value}: it has "\${", which stands for a root in a definition`);
    const machine = this.context.machine ?? this.machineType() ?? 'pc';
    const disks = readDisks(this.options, machine, this.refuse).map((disk) => ({ ...disk, path: this.input(disk.file, `disk ${disk.id}`) }));
    disks.forEach((disk, index) => {
      const other = disks.slice(0, index).find(({ path, readOnly }) => path === disk.path && !(readOnly && disk.readOnly));
      if (other) this.refuse(`disks ${other.id} and ${disk.id} are both on ${disk.path}`);
      if (!['raw', 'qcow2'].includes(disk.format)) this.refuse(`disk ${disk.id} has the format ${disk.format}: only raw and qcow2 can be carried`);
    });
    const commandLine = this.options.filter(({ flag }) => !REMOVED.has(flag)).map((option) => this.carry(option));
    this.addMissing(commandLine);
    const [first] = this.sockets.monitors;
    if (!first) this.refuse('it has no QMP monitor on a UNIX socket (-qmp unix:PATH,server=on,wait=off), so nothing can speak to it');
    if (!this.name) this.refuse('it has no name: give one (--name)');
    else if (!guestNameSchema.safeParse(this.name).success) this.refuse(`its name "${this.name}" cannot be used here: give another (--name)`);
    const accelerator = this.accelerator();
    const draft = {
      name: this.name,
      machine,
      emulator: this.context.emulator ?? basename(this.argv[0] ?? ''),
      accelerator: this.context.accelerator ?? accelerator,
      cpu: this.cpu(),
      memory: this.memory(),
      boot: this.boot(),
      disks: disks.map(({ id, path, format, bus, readOnly, removable, cache, aio, discard }) => ({ id, path, format, bus, readOnly, removable, cache, aio, discard })),
      commandLine: formatArguments(commandLine),
      monitor: first?.portable,
    };
    const monitor = first && { monitor: this.absolute(first.path, '-qmp') };
    if (this.reasons.size > 0) return { ...monitor, disks, reasons: [...this.reasons] };
    try {
      return { definition: parseWith(definitionSchema, draft, `the definition of guest "${this.name}"`), ...monitor, disks, reasons: [] };
    } catch (error) {
      if (!(error instanceof InvalidDefinition)) throw error;
      return { ...monitor, disks, reasons: [error.message] };
    }
  }

  /** One option as it is to be on every host. */
  private carry(option: Option): Option {
    const { flag, value } = option;
    const refuse = (why: string) => this.refuse(`-${flag}${value === undefined ? '' : ` ${value}`}: ${why}`);
    if (REFUSED[flag]) refuse(REFUSED[flag]);
    switch (flag) {
      case 'machine':
      case 'M':
        return this.places(mapFields(option, (text, key) => (key === 'type' && this.context.machine ? this.context.machine : text)));
      case 'serial':
      case 'parallel':
      case 'debugcon':
      case 'monitor':
      case 'qmp':
      case 'qmp-pretty':
        return this.sockets.device(option);
      case 'chardev':
        return this.sockets.chardev(option);
      case 'vnc':
        return this.sockets.vnc(option);
      case 'display':
        if (value?.startsWith('vnc=')) return this.sockets.vnc(option);
        if (value !== 'none') refuse('its window, or screen, is on this host');
        return option;
      case 'D':
        return { flag, value: this.output(value ?? '') };
    }
    const fields = readFields(option);
    if (Object.keys(fields).some((key) => /^(vhost)?fds?$/.test(key))) refuse('it uses an inherited file descriptor');
    if (flag === 'device') BOUND_DEVICES.filter(([driver]) => driver.test(fields['driver'] ?? '')).forEach(([, why]) => refuse(why));
    if (flag === 'usbdevice' && /^host:/.test(value ?? '')) refuse('a device of this host cannot move');
    if (flag === 'netdev' && /^vhost-/.test(fields['type'] ?? '')) refuse('its state is outside of QEMU');
    if (flag === 'object' && /^(input-linux|tpm-|can-host|vfio-)/.test(fields['qom-type'] ?? '')) refuse('a device of this host cannot move');
    return this.places(option);
  }

  /** What a default would take from the terminal or screen of whoever started it. */
  private addMissing(commandLine: Option[]): void {
    const has = (...flags: string[]) => this.options.some(({ flag }) => flags.includes(flag));
    if (has('nographic') && !has('serial', 'nodefaults') && !this.options.some((option) => option.flag === 'device' && readFields(option)['driver'] === 'isa-serial')) {
      commandLine.push(this.sockets.device({ flag: 'serial', value: 'stdio' }));
    }
    if (!has('nographic', 'display', 'vnc', 'spice', 'sdl', 'curses')) commandLine.push({ flag: 'display', value: 'none' });
    if (this.context.machine && !this.machineType()) commandLine.push({ flag: 'machine', value: this.context.machine });
  }

  /** Replaces every path in an option: absolute ones wherever they stand, relative ones where a path is expected. */
  private places(option: Option): Option {
    const shown = `-${option.flag} ${option.value}`;
    return mapFields(option, (text, key) => {
      if (isText(option.flag, key, text)) return text;
      if (isPathKey(key) && text !== '') {
        const file = text.replace(/^file:/, '');
        return /^[A-Za-z0-9+.-]+:/.test(file) ? text : this.input(file, shown);
      }
      const absolute = absolutePathIn(text);
      return absolute ? absolute.before + this.input(absolute.path, shown) : text;
    });
  }

  /** A file that must be on every host. */
  private input(file: string, what: string): string {
    if (isHarmlessDevice(file)) return file;
    const path = this.absolute(file, what);
    const portable = toPortable(this.context.config, path);
    if (portable?.includes(',')) this.refuse(`${what}: ${path} has a comma in its name, which a definition cannot name: rename it`);
    if (portable) return portable;
    const { name, roots } = this.context.config;
    this.refuse(`${what}: ${path} is outside the roots of host ${name} (${Object.entries(roots).map(([root, at]) => `${root}=${at.path}`).join(', ') || 'none'}): add a root for ${dirname(path)}`);
    return path;
  }

  /** A file that QEMU writes and nobody copies: in the guest's run folder, if it is beside the monitor now, else as any other. */
  private readonly output = (file: string): string => {
    if (isHarmlessDevice(file)) return file;
    const path = this.absolute(file, 'a log');
    return this.runFolders.includes(dirname(path)) ? `\${run}/${basename(path)}` : this.input(file, 'a file that QEMU writes');
  };

  private absolute(file: string, what: string): string {
    if (!file.startsWith('/') && this.options.some(({ flag }) => ['daemonize', 'chroot', 'run-with'].includes(flag))) {
      this.refuse(`${what}: "${file}" is relative, and a QEMU with -daemonize or -chroot has left the folder that it started in`);
    }
    return resolve(this.context.cwd, file);
  }

  /** All fields of an option that may be given several times. */
  private fields(...flags: string[]): Record<string, string> {
    return Object.assign({}, ...this.options.filter(({ flag }) => flags.includes(flag)).map(readFields)) as Record<string, string>;
  }

  private machineType(): string | undefined {
    return this.fields('machine', 'M')['type'];
  }

  private accelerator(): string {
    const given = this.options.some(({ flag }) => flag === 'enable-kvm') ? 'kvm' : (this.fields('accel')['accel'] ?? this.fields('machine', 'M')['accel'] ?? 'tcg');
    const [first = 'tcg'] = given.split(':');
    if (first !== 'tcg' && first !== 'kvm') this.refuse(`its accelerator ${first} is not supported: only kvm and tcg are`);
    return first;
  }

  private cpu(): { model: string; count: number } {
    const smp = this.fields('smp');
    const product = ['sockets', 'dies', 'clusters', 'cores', 'threads'].reduce((count, key) => count * Number(smp[key] ?? 1), 1);
    const model = this.options.findLast(({ flag }) => flag === 'cpu')?.value;
    return { model: model ?? 'qemu64', count: Number(smp['cpus'] ?? product) };
  }

  /** Bytes. A number without a unit is MiB; QEMU rounds up to 8 KiB; without `-m` it is 128 MiB. */
  private memory(): number {
    const { size = '128', slots, maxmem } = this.fields('m');
    if (slots !== undefined || maxmem !== undefined) this.refuse('memory that can be plugged in (-m with slots or maxmem) cannot be carried');
    const bytes = parseSize(/^\d+$/.test(size) ? `${size}M` : size);
    if (!bytes) this.refuse(`-m ${size}: this is no size`);
    return Math.ceil((bytes ?? 0) / 8192) * 8192;
  }

  private boot(): { kernel: string; initrd?: string; append: string } | undefined {
    const last = (flag: string) => this.options.findLast((option) => option.flag === flag)?.value;
    const [kernel, initrd, append = ''] = ['kernel', 'initrd', 'append'].map(last);
    return kernel ? { kernel: this.input(kernel, '-kernel'), ...(initrd && { initrd: this.input(initrd, '-initrd') }), append } : undefined;
  }
}

/** Absolute paths of what a QEMU makes at its start and removes at its end: its pid file and the sockets that it serves. `argv[0]` is the binary. */
export function madeAtStart(argv: readonly string[]): string[] {
  const options = parseArguments(argv.slice(1));
  const sockets = new Sockets(options, (path) => path, () => undefined);
  options.forEach((option) => (/^(serial|parallel|debugcon|monitor|qmp|qmp-pretty)$/.test(option.flag) ? sockets.device(option) : option.flag === 'chardev' ? sockets.chardev(option) : option.flag === 'vnc' ? sockets.vnc(option) : undefined));
  return [...sockets.paths, ...options.flatMap(({ flag, value }) => (flag === 'pidfile' && value ? [value] : []))].filter((path) => path.startsWith('/'));
}

/** Real path of the first QMP socket that a command line makes; undefined if there is none, or it cannot be read. `argv[0]` is the binary. */
export function findMonitor(argv: readonly string[], cwd: string): string | undefined {
  try {
    const options = parseArguments(argv.slice(1));
    const sockets = new Sockets(options, (path) => path, () => undefined);
    options.forEach((option) => (option.flag === 'qmp' ? sockets.device(option) : option.flag === 'chardev' ? sockets.chardev(option) : undefined));
    const [first] = sockets.monitors;
    return first && resolve(cwd, first.path);
  } catch {
    return undefined;
  }
}

/** The guest's name as a command line gives it. */
export function findName(argv: readonly string[]): string | undefined {
  const option = parseArguments(argv.slice(1)).findLast(({ flag }) => flag === 'name');
  return option && readFields(option)['guest'];
}

