import { execFileSync, type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** The network namespaces that scripts/libvirt-bench.sh makes; this process lives in `control`. */
export const HOST_SIDES = ['a', 'b'] as const;
export type HostSide = (typeof HOST_SIDES)[number];
/** Of the link that guests travel by. */
export const LINK_ADDRESSES: Record<HostSide, string> = { a: '10.77.0.1', b: '10.77.0.2' };
/** The address of `control` as each host sees it. */
export const CONTROL_ADDRESSES: Record<HostSide, string> = { a: '10.77.1.1', b: '10.77.2.1' };
const LINK = 'guests';
/** USER_HZ: the unit of times in /proc. */
const TICKS_A_SECOND = 100;
const SAMPLE_MS = 250;

export class Namespaces {
  constructor(private readonly prefix: string) {}

  private path(side: HostSide | 'control'): string {
    return `/run/netns/${this.prefix}-${side}`;
  }

  /** Starts a program in a namespace, with what it prints in a file. It becomes the process itself: `nsenter` leaves none between. */
  start(side: HostSide | 'control', command: string[], logFile: string): ChildProcess {
    const log = openSync(logFile, 'a', 0o600);
    try {
      return spawn('nsenter', [`--net=${this.path(side)}`, ...command], { stdio: ['ignore', log, log], cwd: '/' });
    } finally {
      closeSync(log);
    }
  }

  /** Limits the link both ways, for whoever uses it; `undefined` lifts the limit. */
  limit(bytesPerSecond: number | undefined): void {
    for (const side of HOST_SIDES) {
      const qdisc = (action: string, ...rest: string[]) => ['-n', `${this.prefix}-${side}`, 'qdisc', action, 'dev', LINK, 'root', ...rest];
      if (bytesPerSecond !== undefined) execFileSync('tc', qdisc('replace', 'tbf', 'rate', `${bytesPerSecond * 8}bit`, 'burst', '256kb', 'latency', '50ms'));
      else if (execFileSync('tc', ['-n', `${this.prefix}-${side}`, 'qdisc', 'show', 'dev', LINK], { encoding: 'utf8' }).includes('tbf')) execFileSync('tc', qdisc('delete'));
    }
  }

  /** What has crossed the link since it was made, both ways, with all headers. */
  linkBytes(): number {
    const [link] = JSON.parse(execFileSync('ip', ['-n', `${this.prefix}-a`, '-s', '-j', 'link', 'show', 'dev', LINK], { encoding: 'utf8' })) as [{ stats64: Record<'rx' | 'tx', { bytes: number }> }];
    return link.stats64.rx.bytes + link.stats64.tx.bytes;
  }

  /** Starts to count what controllers use. */
  watchControllers(): ControllerMeter {
    return new ControllerMeter(new Set((['control', ...HOST_SIDES] as const).map((side) => statSync(this.path(side)).ino)));
  }
}

export interface ControllerMs {
  vmferry: number;
  libvirt: number;
}

/**
 * CPU time, in the namespaces, of what steers QEMUs: libvirt's daemons; vmferry's agents, control worker, guards, and the Temporal server. Not of QEMU and its
 * tools, nor of the two clients (this process, and virsh). Looks often, so that of a process which ends little is missed.
 */
export class ControllerMeter {
  private readonly first: Map<string, Used>;
  private readonly last = new Map<string, Used>();
  private readonly timer: NodeJS.Timeout;

  constructor(private readonly namespaces: Set<number>) {
    this.first = this.look();
    this.timer = setInterval(() => this.look(), SAMPLE_MS);
  }

  stop(): ControllerMs {
    clearInterval(this.timer);
    this.look();
    const spent: ControllerMs = { vmferry: 0, libvirt: 0 };
    for (const [key, { of, ms }] of this.last) spent[of] += ms - (this.first.get(key)?.ms ?? 0);
    return spent;
  }

  private look(): Map<string, Used> {
    for (const pid of readdirSync('/proc')) {
      if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
      try {
        if (!this.namespaces.has(Number(/\d+/.exec(readlinkSync(join('/proc', pid, 'ns/net')))))) continue;
        const stat = readFileSync(join('/proc', pid, 'stat'), 'utf8');
        const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
        if (/^(qemu|virsh)/.test(name)) continue;
        const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        // proc(5): fields 14, 15 and 22, of which the first here is the third.
        const [user, system, started] = [fields[11], fields[12], fields[19]];
        this.last.set(`${pid} ${started}`, { of: name.startsWith('libvirt') ? 'libvirt' : 'vmferry', ms: ((Number(user) + Number(system)) * 1000) / TICKS_A_SECOND });
      } catch {
        // It ended meanwhile.
      }
    }
    return new Map(this.last);
  }
}

interface Used {
  of: keyof ControllerMs;
  ms: number;
}
