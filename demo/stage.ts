import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Logger } from 'pino';
import { type DevStack, startDevStack } from '../workers/dev';
import { MigrationClient } from '../client/migration-client';
import { guestArtifacts, guestKernelArguments, type GuestOptions } from './guest/artifacts';
import { type RecordedTick, TestGuest } from './guest/test-guest';

export const GUEST = 'demo';
export const HOSTS = ['host-a', 'host-b'] as const;
const MIB = 2 ** 20;

/**
 * The demo guest's definition. Its memory is odd on purpose: QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a
 * multiple of 256 KiB.
 */
export function demoDefinition(options: GuestOptions) {
  return {
    name: GUEST,
    machine: 'pc-q35-7.2',
    cpu: { model: 'qemu64', count: 1 },
    memory: '262152K',
    boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img', append: guestKernelArguments(options) },
    disks: [0, 1].map((index) => ({ id: `drive-scsi-disk-${index}`, path: `\${images}/${GUEST}-${index}.raw`, format: 'raw', bus: 'virtio-scsi' })),
    arguments: ['-chardev', 'socket,id=serial0,path=${run}/serial.sock,server=on,wait=off', '-serial', 'chardev:serial0'],
  };
}

/** What the demo prints with --json. */
export interface Summary {
  vm: string;
  from: string;
  to: string;
  outcome: string;
  totalMs: number;
  /** The guest's own; null if it did not arrive. */
  downtimeMs: number | null;
  blocksWritten: number;
  /** null if no guest was left to ask. */
  blocksLost: number | null;
  /** null where no workflow ran. */
  workflowId: string | null;
  runId: string | null;
}

/** Two hosts on this machine with a guest that writes to both its disks. */
export class Stage {
  readonly guest = new TestGuest();
  private constructor(readonly folder: string, readonly stack: DevStack, readonly client: MigrationClient) {}

  static async open(logger: Logger, { insecure = false } = {}): Promise<Stage> {
    const folder = mkdtempSync(join(tmpdir(), 'vmferry-demo-'));
    const { kernel } = guestArtifacts();
    const stack = await startDevStack({ folder, hosts: [...HOSTS], insecure, roots: { boot: dirname(kernel) }, logger });
    const client = await MigrationClient.connect({ address: stack.server.address, namespace: 'default' });
    return new Stage(folder, stack, client);
  }

  serialSocket(host: (typeof HOSTS)[number]): string {
    return join(this.stack.configs[host]!.runDir, GUEST, 'serial.sock');
  }

  /** Boots the guest on host-a and waits until it has written to a good part of its disks. */
  async boot(options: GuestOptions & { diskMiB: number; writtenBytes: number }): Promise<void> {
    const { diskMiB, writtenBytes, ...guest } = options;
    for (const index of [0, 1]) {
      const image = join(this.folder, 'host-a/images', `${GUEST}-${index}.raw`);
      writeFileSync(image, '');
      truncateSync(image, diskMiB * MIB);
    }
    await this.client.onHost('host-a', 'defineGuest', { definition: demoDefinition(guest) });
    await this.client.onHost('host-a', 'startGuest', { guest: GUEST });
    await this.guest.attach(this.serialSocket('host-a'));
    await this.guest.ready();
    while (Number(/bytes=(\d+)/.exec(await this.guest.command('stats'))?.[1] ?? 0) < writtenBytes) await this.guest.nextTick();
  }

  /** Ends the guest wherever it is, then everything else. With `keep` the stack and the guest stay. */
  async close(): Promise<void> {
    this.guest.close();
    for (const host of HOSTS) {
      const guests = await this.client.onHost(host, 'listGuests').catch(() => []);
      for (const { name } of guests) await this.client.onHost(host, 'stopGuest', { guest: name, graceMs: 0 }).catch((error: Error) => console.error(error.message));
    }
    await this.client.close();
    await this.stack.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** The guest's own downtime: the silence between its last tick on one console and its first on the next, in milliseconds. */
export function crossingGapMs(ticks: RecordedTick[]): number | undefined {
  const crossing = ticks.findIndex((tick, index) => index > 0 && tick.console !== ticks[index - 1]!.console);
  return crossing === -1 ? undefined : ticks[crossing]!.hostMs - ticks[crossing - 1]!.hostMs;
}
