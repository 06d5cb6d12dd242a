import { basename } from 'node:path';
import { NETWORK_DEVICE } from './argument-allowlist';
import { isOn, joinFields, type Option, readFields, splitFields } from './qemu-options';

type Refuse = (reason: string) => void;

/** A QMP socket of a foreign QEMU. */
export interface ForeignMonitor {
  /** As it is written. */
  path: string;
  portable: string;
}

/**
 * Character devices, monitors and screens of a foreign command line, so that they work on every host, without a terminal: sockets that
 * QEMU serves move to `${run}` under their own name, and none waits for a client. The guest's side stays as it is.
 */
export class Sockets {
  readonly monitors: ForeignMonitor[] = [];
  private readonly names = new Map<string, string>();
  /** Character devices of monitors, and those of them that speak QMP, a line a message (`pretty` takes several). */
  private readonly monitorIds: Set<string | undefined>;
  private readonly controlIds: Set<string | undefined>;

  /** `output` places a file that QEMU writes. */
  constructor(
    options: readonly Option[],
    private readonly output: (path: string) => string,
    private readonly refuse: Refuse,
  ) {
    const monitors = options.filter(({ flag }) => flag === 'mon').map(readFields);
    this.monitorIds = new Set(monitors.map(({ chardev }) => chardev));
    this.controlIds = new Set(monitors.filter(({ mode, pretty }) => mode === 'control' && !isOn(pretty)).map(({ chardev }) => chardev));
  }

  /** All sockets that were placed, as they are written. */
  get paths(): string[] {
    return [...this.names.keys()].filter((path) => !path.includes('\0'));
  }

  /** `-serial`, `-parallel`, `-debugcon`, `-monitor`, `-qmp`, `-qmp-pretty`. */
  device({ flag, value = '' }: Option): Option {
    const isMonitor = /^(monitor|qmp|qmp-pretty)$/.test(flag);
    const mux = value.startsWith('mon:');
    const [device = '', ...options] = splitFields(mux ? value.slice(4) : value);
    const [, kind = '', path = ''] = /^([a-z0-9_]+)(?::(.*))?$/s.exec(device) ?? [];
    const served = (where: string) => ({ flag, value: `${mux && kind === 'unix' ? 'mon:' : ''}${joinFields([`unix:${where}`, ...withoutServer(options), 'server=on', 'wait=off'])}` });
    if (kind === 'unix') {
      if (!isServer(options)) this.refuse(`-${flag} ${value}: QEMU connects to a socket of another program, which would not be there on another host`);
      const where = this.place(path);
      if (flag === 'qmp') this.monitors.push({ path, portable: where });
      return served(where);
    }
    if (kind === 'stdio' || (isMonitor && NETWORK_DEVICE.test(device))) return { flag, value: `unix:${this.place(`${flag}.sock`, true)},server=on,wait=off` };
    if (kind === 'file') return { flag, value: joinFields([`file:${this.output(path)}`, ...options]) };
    if (/^(null|none|vc|pty|chardev|ringbuf|msmouse|braille)$/.test(kind)) return { flag, value };
    this.refuse(`-${flag} ${value}: "${kind || device}" belongs to this host: only sockets, files, null, vc and pty can be carried`);
    return { flag, value };
  }

  chardev(option: Option): Option {
    const fields = readFields(option);
    const { backend = '', id = '' } = fields;
    const network = backend === 'udp' || (backend === 'socket' && fields['path'] === undefined);
    const keep = ['mux', 'logfile', 'logappend'].flatMap((key) => (fields[key] === undefined ? [] : [`${key}=${key === 'logfile' ? this.output(fields[key]) : fields[key]}`]));
    const socket = (where: string, more: string[] = []) => ({ flag: 'chardev', value: joinFields(['socket', `id=${id}`, `path=${where}`, 'server=on', 'wait=off', ...more, ...keep]) });
    if (fields['fd'] !== undefined) this.refuse(`-chardev ${option.value}: it uses an inherited file descriptor`);
    else if (backend === 'stdio' || (network && this.monitorIds.has(id))) return socket(this.place(`${id}.sock`, true));
    else if (backend === 'socket' && !network) {
      if (!isOn(fields['server'])) this.refuse(`-chardev ${option.value}: QEMU connects to a socket of another program, which would not be there on another host`);
      const where = this.place(fields['path']!);
      if (this.controlIds.has(id)) this.monitors.push({ path: fields['path']!, portable: where });
      return socket(where, ['telnet', 'websocket', 'abstract', 'tight'].flatMap((key) => (fields[key] === undefined ? [] : [`${key}=${fields[key]}`])));
    } else if (backend === 'file') return { flag: 'chardev', value: joinFields(['file', `id=${id}`, `path=${this.output(fields['path'] ?? '')}`, ...(fields['append'] === undefined ? [] : [`append=${fields['append']}`]), ...keep]) };
    else if (!/^(null|vc|pty|ringbuf|msmouse|braille|testdev|hub)$/.test(backend)) this.refuse(`-chardev ${option.value}: "${backend}" belongs to this host: only sockets, files, null, vc and pty can be carried`);
    return option;
  }

  /** `-vnc`, and `-display vnc=…`. */
  vnc({ flag, value = '' }: Option): Option {
    const [screen = '', ...options] = splitFields(value);
    const [, before = '', path] = /^(vnc=)?unix:(.*)$/s.exec(screen) ?? [];
    if (path) return { flag, value: joinFields([`${before}unix:${this.place(path)}`, ...options]) };
    if (!/^(vnc=)?none$/.test(screen)) this.refuse(`-${flag} ${value}: it listens on a TCP port, which may be taken on another host: use a unix: socket`);
    return { flag, value };
  }

  /** `${run}/name` for a socket; the same path gives the same name, another path of that name a number. */
  private place(path: string, always = false): string {
    const known = this.names.get(path);
    if (known && !always) return known;
    const wanted = basename(path).replace(/[^A-Za-z0-9_.-]/g, '_');
    const taken = new Set(this.names.values());
    const [stem, end] = [wanted.replace(/\.[^.]*$/, ''), /\.[^.]*$/.exec(wanted)?.[0] ?? ''];
    let portable = `\${run}/${wanted}`;
    for (let number = 2; taken.has(portable); number++) portable = `\${run}/${stem}-${number}${end}`;
    this.names.set(always ? `${path}\0${taken.size}` : path, portable);
    return portable;
  }
}

const isServer = (options: string[]) => options.some((option) => option === 'server' || /^server=(on|yes|true|y)$/.test(option));
const withoutServer = (options: string[]) => options.filter((option) => !/^(server|wait|nowait|reconnect)(=|$)/.test(option));
