import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { guestArtifacts, guestKernelArguments, type GuestOptions } from '../demo/guest/artifacts';
import type { TestGuest } from '../demo/guest/test-guest';
import { HOST_SIDES, type HostSide, LINK_ADDRESSES, type Namespaces } from './namespaces';
import { DISKS, MACHINE, makeDisk, MEMORY_KIB, QEMU, type Side } from './side';

const NBD_PORT = 49300;
const START_MS = 60_000;
const ABORT_MS = 15_000;
/** Of one command beside the move. */
const COMMAND_MS = 60_000;
const NOBODY = 65_534;
const execute = promisify(execFile);

/**
 * Two libvirt daemons, each in a network, mount and UTS namespace of its own: they insist on different host names and host UUIDs, and have fixed folders.
 * What a definition names is at the same path on both, as on two machines.
 */
export class LibvirtSide implements Side {
  readonly name = 'libvirt';
  private readonly daemons: ChildProcess[] = [];

  private constructor(private readonly folder: string, private readonly namespaces: Namespaces, private readonly certificates: string | undefined) {}

  /** `certificates`: a folder of `ensureCertificates`; without one as plain text. */
  static async open(folder: string, namespaces: Namespaces, certificates?: string): Promise<LibvirtSide> {
    const side = new LibvirtSide(join(folder, 'libvirt'), namespaces, certificates);
    mkdirSync(side.guestFolder, { recursive: true });
    writeFileSync(side.emulator, emulatorScript(), { mode: 0o755 });
    try {
      await Promise.all(HOST_SIDES.map((host) => side.answers(host, side.startDaemon(host))));
      return side;
    } catch (error) {
      await side.close();
      throw error;
    }
  }

  /** Where each daemon and its QEMUs see their own host's `guests`. */
  private get guestFolder(): string {
    return join(this.folder, 'guests');
  }

  private get emulator(): string {
    return join(this.folder, 'qemu-system-x86_64');
  }

  private startDaemon(host: HostSide): ChildProcess {
    const own = join(this.folder, host);
    for (const folder of ['etc', 'var/lib', 'var/cache', 'var/log', 'var/tmp', 'run', 'sockets', 'guests']) mkdirSync(join(own, folder), { recursive: true });
    writeFileSync(join(own, 'etc/libvirtd.conf'), configuration({ unix_sock_dir: join(own, 'sockets'), auth_unix_ro: 'none', auth_unix_rw: 'none', host_uuid: randomUUID(), log_outputs: `3:file:${join(own, 'daemon.log')}` }));
    // No other daemon, no cgroups, and the images as they are: what the bench does not compare.
    writeFileSync(join(own, 'etc/qemu.conf'), configuration({ user: 'root', group: 'root', dynamic_ownership: 0, security_driver: 'none', cgroup_controllers: [], namespaces: [], stdio_handler: 'file', ...(this.certificates && { migrate_tls_x509_cert_dir: join(this.certificates, host) }) }));
    // libvirt does not start without the user that Debian's package of its service makes, though nothing runs as that user here.
    for (const file of ['passwd', 'group']) writeFileSync(join(own, file), `${readFileSync(`/etc/${file}`, 'utf8').replace(/^libvirt-qemu:.*\n/m, '')}libvirt-qemu:x:${NOBODY}:${file === 'passwd' ? `${NOBODY}::/nonexistent:/usr/sbin/nologin` : ''}\n`);
    const places = { etc: '/etc/libvirt', passwd: '/etc/passwd', group: '/etc/group', var: '/var', run: '/run', guests: this.guestFolder };
    const mounts = Object.entries(places).map(([from, to]) => `mount --bind ${join(own, from)} ${to}`);
    const script = ['set -e', `hostname bench-${host}`, ...mounts, `exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file ${own}/daemon.pid`].join('\n');
    const daemon = this.namespaces.start(host, ['unshare', '--mount', '--uts', 'sh', '-c', script], join(own, 'daemon.log'));
    this.daemons.push(daemon);
    return daemon;
  }

  private uri(host: HostSide): string {
    return `qemu+unix:///system?socket=${join(this.folder, host, 'sockets/libvirt-sock')}`;
  }

  private async virsh(host: HostSide, ...command: string[]): Promise<string> {
    return (await execute('virsh', ['--quiet', '--connect', this.uri(host), ...command], { timeout: COMMAND_MS })).stdout;
  }

  private async answers(host: HostSide, daemon: ChildProcess): Promise<void> {
    for (const until = Date.now() + START_MS; ; await delay(100)) {
      const error = await this.virsh(host, 'version').then(() => undefined, (reason: Error) => reason);
      if (!error) return;
      if (Date.now() > until || daemon.exitCode !== null) throw new Error(`libvirt's daemon of host ${host} does not answer: ${error.message}\n${readFileSync(join(this.folder, host, 'daemon.log'), 'utf8').slice(-2_000)}`);
    }
  }

  private onHost(host: HostSide, file: string): string {
    return join(this.folder, host, 'guests', file);
  }

  async boot(name: string, guest: TestGuest, options: GuestOptions): Promise<void> {
    for (const host of HOST_SIDES) for (let index = 0; index < DISKS; index++) makeDisk(this.onHost(host, `${name}-${index}.raw`));
    const file = join(this.folder, 'domain.xml');
    writeFileSync(file, domain(name, options, this.guestFolder, this.emulator));
    await this.virsh('a', 'create', file);
    await guest.attach(this.onHost('a', `${name}.sock`));
  }

  async move(name: string, guest: TestGuest, deadlineMs: number): Promise<boolean> {
    const over = new AbortController();
    void guest.stayAttached(this.onHost('b', `${name}.sock`), over.signal);
    const command = ['--quiet', '--connect', this.uri('a'), 'migrate', '--live', '--copy-storage-all', '--auto-converge', name, this.uri('b'),
      '--migrateuri', `tcp://${LINK_ADDRESSES.b}`, '--disks-uri', `tcp://${LINK_ADDRESSES.b}:${NBD_PORT}`, '--listen-address', LINK_ADDRESSES.b, ...(this.certificates ? ['--tls'] : [])];
    const child = spawn('virsh', command, { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    child.stderr.on('data', (text: Buffer) => (said += text.toString()));
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void this.virsh('a', 'domjobabort', name).catch(() => undefined);
      // One abort was seen to wait for ever, with a mirror that had concluded.
      setTimeout(() => child.kill('SIGKILL'), ABORT_MS).unref();
    }, deadlineMs);
    const code = await new Promise((resolve) => child.once('close', resolve));
    clearTimeout(timer);
    if (code === 0) await guest.nextTick();
    over.abort();
    if (code !== 0 && !late) throw new Error(`virsh migrate: ${said.trim()}`);
    return code === 0;
  }

  async end(name: string): Promise<void> {
    for (const host of HOST_SIDES) {
      await this.virsh(host, 'destroy', name).catch(() => undefined); // it is on one of them
      for (const file of [`${name}.sock`, ...Array.from({ length: DISKS }, (_, index) => `${name}-${index}.raw`)]) rmSync(this.onHost(host, file), { force: true });
    }
  }

  async close(): Promise<void> {
    for (const daemon of this.daemons) {
      const gone = new Promise((resolve) => daemon.once('exit', resolve));
      if (daemon.exitCode === null && daemon.kill('SIGTERM')) await gone;
    }
  }
}

/** In the syntax of libvirt's files. */
function configuration(settings: Record<string, string | number | string[]>): string {
  return Object.entries(settings).map(([name, value]) => `${name} = ${JSON.stringify(value)}\n`).join('');
}

/**
 * libvirt rounds memory up to whole MiB, which is the size that QEMU 7.2 corrupts under TCG: this gives QEMU the odd one that vmferry's guest has, in
 * the option -m and in the size of its memory backend. Nothing else is changed.
 */
function emulatorScript(): string {
  const roundedKib = Math.ceil(MEMORY_KIB / 1024) * 1024;
  return `#!/bin/bash
arguments=()
for argument; do
  [[ \${arguments[-1]:-} != -m ]] || argument=size=${MEMORY_KIB}K
  arguments+=("\${argument//"\\"size\\":${roundedKib * 1024}"/"\\"size\\":${MEMORY_KIB * 1024}"}")
done
exec ${QEMU} "\${arguments[@]}"
`;
}

/** The same machine as in vmferry-side.ts, as far as libvirt lets one say so: it puts the SCSI controller behind a PCIe port of its own. */
function domain(name: string, options: GuestOptions, folder: string, emulator: string): string {
  const { kernel, initrd } = guestArtifacts();
  const disks = Array.from({ length: DISKS }, (_, index) => `
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' io='threads'/>
      <source file='${folder}/${name}-${index}.raw'/>
      <target dev='sd${'ab'[index]}' bus='scsi'/>
      <address type='drive' controller='0' bus='0' target='0' unit='${index}'/>
    </disk>`);
  return `<domain type='qemu'>
  <name>${name}</name>
  <memory unit='KiB'>${MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='${MACHINE}'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initrd}</initrd>
    <cmdline>${guestKernelArguments(options)}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>${emulator}</emulator>
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <controller type='usb' model='none'/>${disks.join('')}
    <serial type='unix'><source mode='bind' path='${folder}/${name}.sock'/></serial>
    <memballoon model='none'/>
    <audio id='1' type='none'/>
  </devices>
</domain>
`;
}

/** Of the libvirt that is installed. */
export function libvirtVersion(): string {
  return execFileSync('libvirtd', ['--version'], { encoding: 'utf8' }).trim().replace(/.*\s/, '');
}
