import { type Option, readFields, splitFields } from './qemu-options';

/** A character device, as `-serial` and `-monitor` take it, that is on the network. */
export const NETWORK_DEVICE = /^(tcp|udp|telnet|tn3270|websocket|ws):/;

/**
 * What a definition may bring into QEMU: options, and the kinds of things that they make. Everything else is refused, also what a newer QEMU
 * invents, unless the host's configuration allows it by name (`allow`). A path is checked besides, wherever it stands (argument-rules.ts).
 */
const OPTIONS = words(`
  name uuid machine M accel enable-kvm cpu smp numa m mem-path mem-prealloc overcommit icount rtc boot k echr msg compat seed global
  no-reboot no-shutdown action watchdog watchdog-action no-acpi no-hpet no-fd-bootchk win2k-hack nodefaults no-user-config only-migratable
  kernel initrd append dtb bios option-rom fw_cfg smbios L D d dfilter
  drive blockdev hda hdb hdc hdd cdrom fda fdb sd mtdblock pflash
  device usb usbdevice object netdev nic net audio audiodev
  chardev serial parallel debugcon monitor qmp qmp-pretty mon
  display nographic vga vnc g`);

/** Devices whose whole state is QEMU's own. Not here: whatever passes a part of the host to the guest, or speaks to another program. */
const DEVICES = [
  /^virtio-(net|blk|scsi|rng|balloon|gpu|gpu-gl|vga|vga-gl|keyboard|mouse|tablet|multitouch|serial|iommu|crypto|sound|pmem|mem)(-pci|-device|-ccw)?(-non)?(-transitional)?$/,
  /^(virtserialport|virtconsole|scsi-(hd|cd|disk)|ide-(hd|cd|drive|cf)|nvme(-ns|-subsys)?|floppy|sd-card|sdhci-pci|isa-fdc|pc-dimm|nvdimm|loader)$/,
  /^(am53c974|dc390|lsi53c8(10|95a)|megasas(-gen2)?|mptsas1068|pvscsi|ahci|ich9-ahci|piix[34]-ide)$/,
  /^(usb-(hub|kbd|mouse|tablet|wacom-tablet|storage|bot|uas|net|serial|audio|braille|ccid|ehci)|qemu-xhci|nec-usb-xhci|pci-ohci|ich9-usb-.*|piix[34]-usb-uhci)$/,
  /^(pcie-root-port|ioh3420|xio3130-downstream|x3130-upstream|pcie-pci-bridge|pci-bridge|i82801b11-bridge|pxb(-pcie)?|intel-iommu|amd-iommu|vmbus-bridge)$/,
  /^(VGA|secondary-vga|isa-vga|qxl(-vga)?|cirrus-vga|bochs-display|ramfb|vmware-svga|virtio-vga.*|intel-hda|ich9-intel-hda|hda-(duplex|micro|output)|AC97|ES1370|sb16)$/,
  /^(e1000e?|e1000-825.*|igb|rtl8139|ne2k_(pci|isa)|pcnet|i825.*|vmxnet3|tulip|usb-net)$/,
  /^(isa-(serial|parallel|debugcon|debug-exit|pcspk)|pci-serial(-[24]x)?|pvpanic(-pci)?|vmcoreinfo|vmgenid|i6300esb|ib700|sga|smbus-eeprom|vmmouse|i8042|hpet)$/,
  /-(cpu|x86_64-cpu)$/,
];

/** Values of which each kind of option makes one thing; the host's `allow` names them `kind=name`, and options by their bare name. */
const KINDS: Record<string, ReadonlySet<string>> = {
  object: words('memory-backend-ram memory-backend-memfd memory-backend-file rng-builtin rng-random iothread main-loop thread-context throttle-group cryptodev-backend-builtin secret tls-creds-x509 tls-creds-psk tls-creds-anon authz-list authz-list-file authz-simple filter-buffer filter-dump'),
  chardev: words('null vc pty ringbuf memory socket file pipe stdio msmouse braille hub wctablet qemu-vdagent'),
  netdev: words('user tap bridge hubport nic none'),
  display: words('none vnc egl-headless'),
  audiodev: words('none wav'),
  usbdevice: words('tablet mouse keyboard wacom-tablet braille ccid audio'),
  driver: words('file host_device raw qcow2 null-co null-aio throttle'),
};
/** As `-serial` and `-monitor` name character devices. */
const SERIAL = words('unix file pipe null none vc pty chardev ringbuf stdio msmouse braille');

function words(text: string): ReadonlySet<string> {
  return new Set(text.trim().split(/\s+/));
}

/** Why a definition may not bring this option; `allow` is the host's own list. Throws `UnreadableOption`. */
export function allowProblems(option: Option, allow: readonly string[]): string[] {
  const { flag, value = '' } = option;
  const problems: string[] = [];
  const allowed = (kind: string, name: string) => allow.includes(`${kind}=${name}`) || (kind === 'device' ? DEVICES.some((pattern) => pattern.test(name)) : (KINDS[kind]?.has(name) ?? false));
  const need = (kind: string, name: string | undefined) => {
    if (name !== undefined && !allowed(kind, name)) problems.push(`${kind} "${name}" is none that a definition may bring${kind === 'driver' ? ': only local raw and qcow2 images' : ''}; if this host is to have it, add "${kind}=${name}" to allow in its configuration`);
  };
  if (!OPTIONS.has(flag)) {
    if (!allow.includes(flag)) problems.push(`no definition may bring this option; if this host is to have it, add "${flag}" to allow in its configuration`);
    return problems;
  }
  switch (flag) {
    case 'device':
      need('device', readFields(option)['driver']);
      break;
    case 'object': {
      const fields = readFields(option);
      need('object', fields['qom-type']);
      if (fields['qom-type'] === 'secret' && fields['data'] !== undefined) problems.push('a secret in a definition is in Temporal and in the list of processes: give it as file=');
      break;
    }
    case 'chardev': {
      const fields = readFields(option);
      need('chardev', fields['backend']);
      if (fields['backend'] === 'socket' && (fields['path'] === undefined || fields['fd'] !== undefined) && !allow.includes('chardev=socket-network')) problems.push('it is a socket on the network: use path=${run}/NAME, or add "chardev=socket-network" to allow in the host\'s configuration');
      if (fields['abstract'] !== undefined && fields['abstract'] !== 'off') problems.push('everybody on the host can connect to an abstract socket: use path=${run}/NAME');
      break;
    }
    case 'serial':
    case 'parallel':
    case 'debugcon':
    case 'monitor':
    case 'qmp':
    case 'qmp-pretty': {
      const device = splitFields(value)[0]!.replace(/^mon:/, '');
      const kind = device.split(':')[0]!;
      // A monitor there is refused with its own reason, whatever is allowed (argument-rules.ts).
      if (NETWORK_DEVICE.test(device) ? /^(serial|parallel|debugcon)$/.test(flag) && !value.startsWith('mon:') && !allow.includes('chardev=socket-network') : !SERIAL.has(kind)) problems.push(`"${device.slice(0, 60)}" is none of ${[...SERIAL].join(', ')}: use unix:\${run}/NAME,server=on,wait=off`);
      break;
    }
    case 'netdev':
    case 'nic':
    case 'net':
      need('netdev', readFields(option)['type']);
      problems.push(...networkProblems(option));
      break;
    case 'display':
      need('display', /^[^=,]*/.exec(value)![0]);
      if (value.startsWith('vnc=')) problems.push(...screenProblems(value.slice(4), allow));
      break;
    case 'vnc':
      problems.push(...screenProblems(value, allow));
      break;
    case 'audio':
    case 'audiodev':
      need('audiodev', readFields(option)['driver'] ?? splitFields(value)[0]);
      break;
    case 'k':
      // QEMU takes anything else for a file with a keyboard.
      if (!/^[a-z]{2,3}(-[a-z]{2})?$/.test(value)) problems.push('a keyboard is named by its language, such as de or fr-ch');
      break;
    case 'usbdevice':
      need('usbdevice', value);
      break;
    case 'global':
      // Capabilities and parameters of the migration are set by vmferry, before each; what would be different before that is nobody's to guess.
      if (/^migration[.,]|driver=migration/.test(value)) problems.push('how a guest migrates is vmferry\'s own');
      break;
    case 'drive':
    case 'blockdev':
      problems.push(...blockProblems(option, need));
      break;
    case 'hda': case 'hdb': case 'hdc': case 'hdd': case 'cdrom': case 'fda': case 'fdb': case 'sd': case 'mtdblock': case 'pflash':
      problems.push('its format would be decided by the guest\'s own bytes: write it as -drive file=…,format=raw');
  }
  return problems;
}

/** QEMU runs these as who it is: root, unless the host says otherwise. */
function networkProblems(option: Option): string[] {
  const problems: string[] = [];
  for (const part of splitFields(option.value ?? '')) {
    const [, key = '', text = ''] = /^([a-z]+)=(.*)$/s.exec(part) ?? [];
    if (/^(down)?script$/.test(key) && text !== 'no' && text !== '') problems.push(`${key} is a program, which no definition may name: use ${key}=no`);
    if (key === 'helper' || key === 'smb' || key === 'cmd') problems.push(`${key} runs a program, which no definition may name`);
    if (key === 'guestfwd' && !/-chardev:[\w.-]+$/.test(text)) problems.push('guestfwd may only lead to a character device: guestfwd=tcp:ADDRESS:PORT-chardev:ID');
  }
  return problems;
}

function screenProblems(value: string, allow: readonly string[]): string[] {
  const [screen = '', ...options] = splitFields(value);
  if (allow.includes('vnc=network')) return [];
  if (!/^(none$|unix:)/.test(screen) || options.some((option) => /^websocket(=(?!off)|$)/.test(option))) return ['it is a screen on the network: use unix:${run}/vnc.sock, or add "vnc=network" to allow in the host\'s configuration'];
  return [];
}

/** Only drivers of the list, at any depth, and no other protocol in a file's name. */
function blockProblems(option: Option, need: (kind: string, name: string | undefined) => void): string[] {
  const fields = readFields(option);
  for (const [key, text] of Object.entries(fields)) if (/(^|\.)(driver|format)$/.test(key)) need('driver', text);
  // `filename` of a `file` node is a name, whatever it looks like; -drive's reads a protocol in it.
  if (option.flag === 'blockdev') return [];
  return [...protocolProblem(fields['file'] ?? ''), ...(formatIsGuessed(option) ? ['say format=raw or format=qcow2: else the guest\'s own bytes decide it'] : [])];
}

/**
 * Whether QEMU would take the format of this -drive from its image's first bytes. Whoever can write the image, and that is the guest, then says
 * what it is, and with a header that names them which files of the host QEMU opens.
 */
export function formatIsGuessed(option: Option): boolean {
  const fields = readFields(option);
  if (fields['format'] !== undefined || fields['driver'] !== undefined) return false;
  // What stands behind `json:` is the topmost node itself.
  if (/(^|,)(file|filename)=json:/.test(option.value ?? '')) return fields['file.driver'] === undefined;
  return Boolean(fields['file'] || fields['file.filename'] || fields['filename']);
}

function protocolProblem(file: string): string[] {
  const [, protocol] = /^([A-Za-z0-9+.-]+):/.exec(file) ?? [];
  return protocol === undefined || ['file', 'json', 'host_device'].includes(protocol) ? [] : [`"${protocol}:" is none of the protocols that a disk may have: only local files and block devices`];
}
