import type { ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { MigrationClient } from '../client/migration-client';
import { guestArtifacts, guestKernelArguments, type GuestOptions } from '../demo/guest/artifacts';
import type { TestGuest } from '../demo/guest/test-guest';
import { DYNAMIC_CONFIG, findTemporal } from '../workers/temporal-server';
import { SEARCH_ATTRIBUTES } from '../workflows/messages';
import { CONTROL_ADDRESSES, HOST_SIDES, type HostSide, LINK_ADDRESSES, type Namespaces } from './namespaces';
import { DISKS, MACHINE, makeDisk, MEMORY_KIB, QEMU, type Side } from './side';

const TEMPORAL_PORT = 7233;
const PROGRAM = [join(__dirname, '../../bin/vmferry'), join(__dirname, '../bin/vmferry')].find((path) => existsSync(path))!;

/** A Temporal server, a control worker and two agents, each a process of its own, as on machines of their own. */
export class VmferrySide implements Side {
  readonly name = 'vmferry';
  private readonly children: ChildProcess[] = [];
  private client!: MigrationClient;

  private constructor(private readonly folder: string, private readonly namespaces: Namespaces, private readonly certificates: string | undefined) {}

  /** `certificates`: a folder of `ensureCertificates`; without one as plain text. */
  static async open(folder: string, namespaces: Namespaces, certificates?: string): Promise<VmferrySide> {
    const side = new VmferrySide(join(folder, 'vmferry'), namespaces, certificates);
    mkdirSync(side.folder, { recursive: true });
    try {
      await side.start();
      return side;
    } catch (error) {
      await side.close();
      throw error;
    }
  }

  private async start(): Promise<void> {
    const server = ['server', 'start-dev', '--ip', '0.0.0.0', '--headless', '--port', String(TEMPORAL_PORT), '--log-level', 'warn', '--db-filename', join(this.folder, 'temporal.db')];
    for (const setting of DYNAMIC_CONFIG) server.push('--dynamic-config-value', setting);
    for (const { name } of Object.values(SEARCH_ATTRIBUTES)) server.push('--search-attribute', `${name}=Keyword`);
    this.run('control', 'temporal', [findTemporal(), ...server]);
    const temporal = { address: `127.0.0.1:${TEMPORAL_PORT}`, namespace: 'default' };
    this.client = await answering(() => MigrationClient.connect(temporal));
    await answering(() => this.client.temporal.workflowService.describeNamespace({ namespace: 'default' }));
    this.run('control', 'control', [process.execPath, PROGRAM, '--temporal-address', temporal.address, 'control']);
    for (const host of HOST_SIDES) {
      const images = join(this.folder, host, 'images');
      mkdirSync(images, { recursive: true });
      const config = {
        name: host,
        address: LINK_ADDRESSES[host],
        temporal: { address: `${CONTROL_ADDRESSES[host]}:${TEMPORAL_PORT}` },
        ...(this.certificates ? { tls: { dir: join(this.certificates, host) } } : { insecure: true }),
        stateDir: join(this.folder, host, 'state'),
        runDir: join(this.folder, host, 'run'),
        roots: { images, boot: dirname(guestArtifacts().kernel) },
        binaries: { qemu: [QEMU] },
      };
      const file = join(this.folder, `${host}.yaml`);
      writeFileSync(file, JSON.stringify(config));
      this.run(host, host, [process.execPath, PROGRAM, 'agent', '--config', file]);
    }
    await answering(async () => {
      if ((await this.client.hosts()).length < HOST_SIDES.length) throw new Error('an agent is not there yet');
    });
  }

  private run(where: HostSide | 'control', log: string, command: string[]): void {
    this.children.push(this.namespaces.start(where, command, join(this.folder, `${log}.log`)));
  }

  private serial(host: HostSide, name: string): string {
    return join(this.folder, host, 'run', name, 'serial.sock');
  }

  async boot(name: string, guest: TestGuest, options: GuestOptions): Promise<void> {
    for (let index = 0; index < DISKS; index++) makeDisk(join(this.folder, 'a/images', `${name}-${index}.raw`));
    const definition = {
      name,
      machine: MACHINE,
      cpu: { model: 'qemu64', count: 1 },
      memory: `${MEMORY_KIB}K`,
      boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img', append: guestKernelArguments(options) },
      disks: Array.from({ length: DISKS }, (_, index) => ({ id: `disk-${index}`, path: `\${images}/${name}-${index}.raw`, format: 'raw', bus: 'virtio-scsi' })),
      arguments: ['-chardev', 'socket,id=serial0,path=${run}/serial.sock,server=on,wait=off', '-serial', 'chardev:serial0'],
    };
    await this.client.onHost('a', 'defineGuest', { definition });
    await this.client.onHost('a', 'startGuest', { guest: name });
    await guest.attach(this.serial('a', name));
  }

  async move(name: string, guest: TestGuest, deadlineMs: number): Promise<boolean> {
    const over = new AbortController();
    void guest.stayAttached(this.serial('b', name), over.signal);
    // Otherwise as it is when nothing is said; libvirt, too, leaves the source's images.
    const migration = await this.client.migrate({ vm: name, to: 'b' });
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void migration.cancel().catch(() => undefined);
    }, deadlineMs);
    try {
      const { outcome } = await migration.result();
      if (outcome === 'completed') await guest.nextTick();
      return outcome === 'completed';
    } catch (error) {
      if (!late) throw error;
      return false;
    } finally {
      clearTimeout(timer);
      over.abort();
    }
  }

  async end(name: string): Promise<void> {
    for (const host of HOST_SIDES) {
      await this.client.onHost(host, 'stopGuest', { guest: name, graceMs: 0 }).catch(() => undefined); // it is on one of them
      const images = join(this.folder, host, 'images');
      for (const file of readdirSync(images)) rmSync(join(images, file));
    }
  }

  async close(): Promise<void> {
    await this.client?.close();
    for (const child of this.children.reverse()) {
      const gone = new Promise((resolve) => child.once('exit', resolve));
      if (child.exitCode === null && child.kill('SIGTERM')) await gone;
    }
  }
}

/** What `look` gives as soon as it does not throw. Throws its last error after a minute. */
async function answering<T>(look: () => Promise<T>): Promise<T> {
  for (const until = Date.now() + 60_000; ; await delay(100)) {
    try {
      return await look();
    } catch (error) {
      if (Date.now() > until) throw error;
    }
  }
}
