import { isIP } from 'node:net';
import { join } from 'node:path';
import { allowProblems, NETWORK_DEVICE } from './argument-allowlist';
import { expandArgument, type HostConfig, PathRefused, runFolder } from './host-config';
import { checkLayers } from './image-layers';
import { pathProblem } from './portable-paths';
import { mapFields, type Option, readFields, UnreadableOption } from './qemu-options';

/** The id of the character device of our own monitor. */
export const OUR_MONITOR = 'vmferry-monitor';

/** Options that vmferry writes itself, with what to use instead of giving them in `arguments`. */
const OWNED: Record<string, string> = {
  name: 'use the field name', machine: 'use the fields machine and accelerator', M: 'use the fields machine and accelerator', accel: 'use the field accelerator',
  'enable-kvm': 'use the field accelerator', cpu: 'use the field cpu.model', smp: 'use the field cpu.count', m: 'use the field memory', pidfile: 'vmferry keeps its own pid file',
  daemonize: 'vmferry watches QEMU itself', incoming: 'vmferry says when a guest is incoming', S: 'vmferry says when a guest starts',
};

/** Options that no definition may bring, adopted or not. */
const FORBIDDEN: Record<string, string> = {
  chroot: "it is the host's: use chroot in the host's configuration", runas: "it is the host's: use runAs in the host's configuration", 'run-with': "it is the host's: use chroot and runAs in the host's configuration",
  readconfig: 'what it reads cannot be checked: give its options here', writeconfig: 'it writes a file that nobody reads', set: 'it changes other options unseen: write them as they are meant',
  'add-fd': 'no file descriptor is handed to QEMU', loadvm: 'a guest that moves has its state from the source', preconfig: 'nobody would end it',
  gdb: 'it gives control of the guest to whoever connects', s: 'it gives control of the guest to whoever connects',
};

/** Values without paths, though they may have slashes. `cpu` because of model-id. */
const TEXT_FLAGS = new Set(['append', 'uuid', 'name', 'cpu']);
const TEXT_KEYS = new Set(['name', 'string', 'net', 'ipv6-net', 'bootfile', 'serial', 'append']);
/** QEMU runs in `/`, so a relative path is an absolute one in disguise. These keys are paths even without a slash. */
const PATH_KEYS = new Set(['dumpdtb', 'rrfile', 'firmware', 'file', 'filename', 'path', 'dir', 'logfile', 'mem-path', 'kernel', 'initrd', 'dtb', 'D', 'L', 'hda', 'hdb', 'hdc', 'hdd', 'cdrom', 'fda', 'fdb', 'sd', 'mtdblock', 'pflash']);
export const isPathKey = (key: string) => PATH_KEYS.has(key.slice(key.lastIndexOf('.') + 1));

/** The absolute path in a text, with what stands before it (`unix:`): it starts where a slash does not follow a name. */
export function absolutePathIn(text: string): { before: string; path: string } | undefined {
  const at = text.search(/(?<![\w.~%@+)-])\//);
  return at < 0 ? undefined : { before: text.slice(0, at), path: text.slice(at) };
}

/** Replaces the placeholders of an option. Throws `PathRefused` and `UnreadableOption`. */
function expandOption(config: HostConfig, guest: string, option: Option): Option {
  if (option.value === undefined) return option;
  // In JSON each text on its own: the end of a path is not seen from outside.
  if (option.value.startsWith('{')) return mapFields(option, (text) => expandArgument(config, guest, text));
  return { flag: option.flag, value: expandArgument(config, guest, option.value) };
}

/**
 * Expands options of a definition, and says everything in them that is refused: paths outside the host's roots and the guest's run
 * folder (after symbolic links), what is on no list of allowed things (argument-allowlist.ts), monitors on the network, commands, images that
 * lead elsewhere, and options that vmferry owns (`commandLine` may name its own machine).
 */
export function checkedOptions(config: HostConfig, guest: string, field: 'arguments' | 'commandLine' | 'nics', given: readonly Option[]): { options: Option[]; reasons: string[] } {
  const reasons: string[] = [];
  const options: Option[] = [];
  const ours = ['qemu.pid', 'qmp.sock'].map((file) => join(runFolder(config, guest), file));
  for (const raw of given) {
    const refuse = (why: string) => reasons.push(`${field}: -${raw.flag}${raw.value === undefined ? '' : ` ${raw.value.slice(0, 200)}`}: ${why}`);
    try {
      const option = expandOption(config, guest, raw);
      const fix = FORBIDDEN[option.flag] ?? (field === 'arguments' ? OWNED[option.flag] : undefined);
      if (fix) refuse(fix);
      else allowProblems(option, config.allow).forEach(refuse);
      // A QEMU that knows this option as one without a value would take its value for an option that nobody checked.
      if (/^-./.test(option.value ?? '') && option.flag !== 'append') refuse('its value looks like another option');
      pathProblems(config, guest, option).forEach(refuse);
      if (option.flag === 'chardev' && readFields(option)['id'] === OUR_MONITOR) refuse(`"${OUR_MONITOR}" is vmferry's own: give it another id`);
      if (option.flag === 'mon' && readFields(option)['chardev'] === OUR_MONITOR) refuse(`"${OUR_MONITOR}" is vmferry's own: give a second monitor its own chardev`);
      if (field === 'arguments' && ours.some((path) => option.value?.includes(path))) refuse('that file is vmferry\'s own: give another name');
      options.push(option);
    } catch (error) {
      if (!(error instanceof PathRefused || error instanceof UnreadableOption)) throw error;
      refuse(error.message);
    }
  }
  networkMonitors(options).forEach((option) => reasons.push(`${field}: -${option.flag} ${option.value}: a monitor on the network gives the guest to whoever reaches it: use a unix: socket in \${run}`));
  return { options, reasons };
}

function pathProblems(config: HostConfig, guest: string, option: Option): string[] {
  const problems: string[] = [];
  mapFields(option, (text, key) => {
    if (isText(option.flag, key, text)) return text;
    if (/-cmd:/.test(text)) problems.push('it runs a command');
    const absolute = absolutePathIn(text);
    const relative = text.includes('/') || (isPathKey(key) && text !== '') || /^(unix|file|pipe):/.test(text);
    const problem = absolute ? pathProblem(config, guest, absolute.path) : relative ? `"${text}" is a relative path: give it as "\${root}/…"` : undefined;
    if (problem) problems.push(problem);
    else if (absolute && mayHaveLayers(option)) problems.push(...layerProblems(config, absolute.path));
    return text;
  });
  return problems;
}

/** Not one that is opened as raw: there its first bytes are the guest's, and mean nothing. */
function mayHaveLayers(option: Option): boolean {
  if (option.flag !== 'drive' && option.flag !== 'blockdev') return false;
  const { format, driver } = readFields(option);
  return format !== 'raw' && driver !== 'raw';
}

function layerProblems(config: HostConfig, path: string): string[] {
  try {
    checkLayers(config, path);
    return [];
  } catch (error) {
    return [(error as Error).message];
  }
}

/** A text that is no path, whatever it looks like: prose, an address with its prefix, or, as `file` of `-blockdev`, the name of another node. */
export function isText(flag: string, key: string, text: string): boolean {
  if (TEXT_FLAGS.has(flag) || TEXT_KEYS.has(key) || isNetwork(text)) return true;
  if (flag === 'blockdev') return /(^|\.)file$/.test(key) && !text.includes('/');
  // `path` of type 11 is a file whose text the guest gets.
  return (flag === 'smbios' && key !== '' && key !== 'file' && key !== 'path') || (flag === 'object' && key === 'data');
}

/** `10.0.2.0/24` */
function isNetwork(text: string): boolean {
  const [, address, bits] = /^([^/]+)\/(\d+)$/.exec(text) ?? [];
  return bits !== undefined && isIP(address!) !== 0;
}

/** Monitors, QMP or for people, that listen on, or connect to, anything but a UNIX socket. */
function networkMonitors(options: readonly Option[]): Option[] {
  const device = ({ flag, value = '' }: Option) => (/^(monitor|qmp|qmp-pretty)$/.test(flag) ? value : /^mon:/.test(value) ? value.slice(4) : undefined);
  const ids = new Set(options.flatMap((option) => (option.flag === 'mon' ? [readFields(option)['chardev']] : /^chardev:/.test(device(option) ?? '') ? [device(option)!.slice(8)] : [])));
  return options.filter((option) => {
    if (option.flag !== 'chardev') return NETWORK_DEVICE.test(device(option) ?? '');
    const fields = readFields(option);
    return ids.has(fields['id']) && (fields['backend'] === 'udp' || (fields['backend'] === 'socket' && fields['path'] === undefined));
  });
}
