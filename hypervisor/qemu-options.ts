/** One option of a QEMU command line, without its dashes. */
export interface Option {
  flag: string;
  value?: string;
}

/** Options that take no value (qemu-options.hx, 7.2 to 10.0, those without HAS_ARG); every other takes one. */
const WITHOUT_VALUE = new Set(
  'h help version S s daemonize nographic snapshot nodefaults no-user-config no-reboot no-shutdown no-acpi no-hpet no-fd-bootchk enable-kvm enable-fips mem-prealloc only-migratable preconfig usb full-screen portrait alt-grab ctrl-grab no-frame no-quit sdl curses singlestep win2k-hack xen-attach xen-domid-restrict enable-sync-profile async-teardown audio-help old-param semihosting perfmap jitdump'.split(' '),
);

/** Options whose whole value is one thing: QEMU does not split it at commas. */
const UNSPLIT = new Set('kernel initrd dtb append hda hdb hdc hdd cdrom fda fdb sd mtdblock pflash bios L D loadvm k uuid pidfile chroot runas incoming mem-path readconfig writeconfig'.split(' '));

/** The key of a first part that has none, as in `-device virtio-scsi-pci,id=scsi0`. */
const IMPLIED: Record<string, string> = {
  machine: 'type', M: 'type', device: 'driver', chardev: 'backend', netdev: 'type', net: 'type', nic: 'type', object: 'qom-type', blockdev: 'driver', m: 'size', smp: 'cpus',
  name: 'guest', accel: 'accel', mon: 'chardev', cpu: 'model', display: 'type', fw_cfg: 'name', tpmdev: 'type', fsdev: 'fsdriver', virtfs: 'fsdriver', plugin: 'file', 'option-rom': 'romfile',
};

/** Splits a command line (without its binary) into options. A word without a dash is a disk, as `-hda` is. */
export function parseArguments(argv: readonly string[]): Option[] {
  const options: Option[] = [];
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i]!;
    if (!/^-./.test(word)) options.push({ flag: 'hda', value: word });
    else {
      const flag = word.replace(/^--?/, '');
      const value = WITHOUT_VALUE.has(flag) ? undefined : argv[++i];
      options.push(value === undefined ? { flag } : { flag, value });
    }
  }
  return options;
}

export function formatArguments(options: readonly Option[]): string[] {
  return options.flatMap(({ flag, value }) => (value === undefined ? [`-${flag}`] : [`-${flag}`, value]));
}

/** An option that is written in a way that we cannot read. */
export class UnreadableOption extends Error {
  override readonly name = 'UnreadableOption';
}

/** Splits at commas; a doubled one stands for itself. */
export function splitFields(value: string): string[] {
  return value.replaceAll(',,', '\0').split(',').map((part) => part.replaceAll('\0', ','));
}

export function joinFields(parts: readonly string[]): string {
  return parts.map((part) => part.replaceAll(',', ',,')).join(',');
}

/**
 * An option's fields by key: those of JSON flattened to QEMU's dotted keys (`file.filename`), JSON's true and false as `on` and `off`;
 * short forms as QEMU takes them (`server` is `server=on`, `nowait` is `wait=off`). The last of several wins. Throws `UnreadableOption`.
 */
export function readFields({ flag, value = '' }: Option): Record<string, string> {
  if (UNSPLIT.has(flag)) return { [flag]: value };
  const fields: Record<string, string> = {};
  const add = (text: string, key: string) => {
    fields[key] = text;
    return text;
  };
  if (value.startsWith('{')) mapJson(parseJson(value), '', add);
  else {
    splitFields(value).forEach((part, index) => {
      const { key, text } = splitField(flag, part, index);
      if (key !== undefined && text.startsWith('json:')) mapJson(parseJson(text.slice(5)), `${key}.`, add);
      else if (key !== undefined) add(text, key);
      else if (/^no./.test(part)) add('off', part.slice(2));
      else if (part) add('on', part);
    });
  }
  return fields;
}

/**
 * Rewrites an option's texts in place, whatever the spelling: whole, `key=value,…`, JSON, or JSON behind `json:`. `change` gets each text
 * with its key ('' for a bare word such as `nowait`, or the device of `-serial`). Throws `UnreadableOption`.
 */
export function mapFields({ flag, value }: Option, change: (text: string, key: string) => string): Option {
  if (value === undefined) return { flag };
  if (UNSPLIT.has(flag)) return { flag, value: change(value, flag) };
  if (value.startsWith('{')) return { flag, value: JSON.stringify(mapJson(parseJson(value), '', change)) };
  const parts = splitFields(value).map((part, index) => {
    const { key, text, written } = splitField(flag, part, index);
    const changed = text.startsWith('json:') ? `json:${JSON.stringify(mapJson(parseJson(text.slice(5)), `${key ?? ''}.`, change))}` : change(text, key ?? '');
    return `${written}${changed}`;
  });
  return { flag, value: joinFields(parts) };
}

/** `written` is what stands before the text. A first part such as `unix:/a=b` is one text: keys have no colon. */
function splitField(flag: string, part: string, index: number): { key?: string; text: string; written: string } {
  const match = /^([A-Za-z0-9_.-]+)=(.*)$/s.exec(part);
  if (match) return { key: match[1]!, text: match[2]!, written: `${match[1]}=` };
  const implied = index === 0 ? IMPLIED[flag] : undefined;
  return { ...(implied && { key: implied }), text: part, written: '' };
}

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

function mapJson(value: Json, key: string, change: (text: string, key: string) => string): Json {
  if (Array.isArray(value)) return value.map((item, index) => mapJson(item, join(key, String(index)), change));
  if (value !== null && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, mapJson(item, join(key, name), change)]));
  if (typeof value === 'string') return change(value, key);
  change(value === true ? 'on' : value === false ? 'off' : String(value), key);
  return value;
}

const join = (prefix: string, name: string) => (prefix === '' || prefix.endsWith('.') ? prefix + name : `${prefix}.${name}`);

/** QEMU also takes single quotes and `%`; such text is refused, since a rule that reads it otherwise than QEMU protects nothing. */
function parseJson(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    throw new UnreadableOption(`"${text.slice(0, 120)}" is not JSON`);
  }
}

/** QEMU's words for true. */
export function isOn(value: string | undefined): boolean {
  return value === 'on' || value === 'yes' || value === 'true' || value === 'y';
}
