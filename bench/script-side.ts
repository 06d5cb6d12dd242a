import { execFile } from 'node:child_process';
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { guestArtifacts } from '../demo/guest/artifacts';
import { hostNowMs, TestGuest } from '../demo/guest/test-guest';
import { crossingGapMs } from '../demo/stage';
import { qemuArguments } from '../hypervisor/command-line';
import { definitionSchema } from '../hypervisor/definition';
import type { HostConfig } from '../hypervisor/host-config';
import { devHostConfig } from '../workers/dev';
import { BareQemu } from './bare-qemu';
import { assertSameImage, definitionOf, type GuestSpec, imageName, makeDisks, type Moved, type MoveSide } from './copied-guest';
import { LINK_ADDRESS } from './link';

const FIRST_PORT = 47_000;
/** As vmferry gives memory half of its default budget. */
const DOWNTIME_LIMIT_MS = 250;
const UNLIMITED = 2 ** 40;
const UNMAP = 'discard=unmap,detect-zeroes=unmap';

const TOOLS = {
  'qemu-img convert': (image: string, uri: string) => ['qemu-img', 'convert', '-n', '-U', '--target-is-zero', '-f', 'raw', '-O', 'raw', image, uri],
  nbdcopy: (image: string, uri: string) => ['nbdcopy', '--destination-is-zero', image, uri],
};
export type Tool = keyof typeof TOOLS;

interface Booted {
  spec: GuestSpec;
  guest: TestGuest;
  source: BareQemu;
  destination?: BareQemu;
}

/** QEMUs that a script drives: the same machines and steps, QEMU's own defaults for mirrors, no looks, no limits, nothing that survives a failure. */
export class ScriptSide implements MoveSide {
  readonly name = 'script';
  private booted: Booted[] = [];
  private readonly here: HostConfig;
  private readonly there: HostConfig;

  constructor(private readonly folder: string) {
    const host = (name: string) => devHostConfig(join(folder, 'script'), name, 'none', { insecure: true, address: LINK_ADDRESS }, { boot: dirname(guestArtifacts().kernel) });
    [this.here, this.there] = [host('a'), host('b')];
  }

  async boot(specs: GuestSpec[]): Promise<void> {
    for (const spec of specs) makeDisks(this.folder, this.image(this.here), spec);
    await Promise.all(specs.map(async (spec) => {
      const guest = new TestGuest();
      const source = await this.start(this.here, spec, false);
      this.booted.push({ spec, guest, source });
      await source.execute('cont');
      await guest.attach(this.run(this.here, spec, 'serial.sock'));
      await guest.ready();
    }));
  }

  imagesThere({ name, disks }: GuestSpec): string[] {
    return Array.from({ length: disks }, (_, index) => this.image(this.there, imageName(name, index)));
  }

  async move(): Promise<Moved[]> {
    return await Promise.all(this.booted.map((one, index) => this.moveOne(one, FIRST_PORT + 2 * index)));
  }

  /** Copies the one disk of the one guest by a tool, the guest running beside it; in milliseconds, from its start to its end. */
  async copyBy(tool: Tool): Promise<number> {
    const { spec } = this.booted[0]!;
    const exports = await this.exportDisks(spec, FIRST_PORT);
    try {
      const [program, ...args] = TOOLS[tool](this.image(this.here, imageName(spec.name, 0)), `nbd://${LINK_ADDRESS}:${FIRST_PORT}/disk0`);
      const began = hostNowMs();
      await promisify(execFile)(program!, args);
      return hostNowMs() - began;
    } finally {
      await exports.end('SIGTERM');
    }
  }

  async verify(): Promise<void> {
    for (const { spec, guest } of this.booted) {
      this.assertCopied(spec);
      const { blocksLost, memoryErrors } = await guest.verify();
      if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${this.name}: ${blocksLost} blocks lost, ${memoryErrors} pages damaged: these figures are worth nothing`);
    }
  }

  /** Throws if a guest that wrote nothing has another disk there. */
  assertCopied(spec: GuestSpec): void {
    for (const image of this.imagesThere(spec)) assertSameImage(this.folder, spec, image);
  }

  async end(): Promise<void> {
    for (const { spec, guest, source, destination } of this.booted) {
      guest.close();
      await source.end();
      await destination?.end();
      for (let index = 0; index < spec.disks; index++) for (const host of [this.here, this.there]) rmSync(this.image(host, imageName(spec.name, index)), { force: true });
    }
    this.booted = [];
  }

  private image(host: HostConfig, name = ''): string {
    return join(host.roots['images']!.path, name);
  }

  private run({ runDir }: HostConfig, { name }: GuestSpec, file: string): string {
    return join(runDir, name, file);
  }

  private async start(host: HostConfig, spec: GuestSpec, incoming: boolean): Promise<BareQemu> {
    mkdirSync(join(host.runDir, spec.name), { recursive: true });
    return await BareQemu.start(host.binaries.qemu[0]!, qemuArguments(host, definitionSchema.parse(definitionOf(spec)), { incoming }), this.run(host, spec, 'qmp.sock'));
  }

  private async exportDisks(spec: GuestSpec, port: number): Promise<BareQemu> {
    const images = this.imagesThere(spec);
    for (const image of images) {
      writeFileSync(image, '');
      truncateSync(image, spec.sizeMiB * 2 ** 20);
    }
    const socket = this.run(this.there, spec, 'storage.sock');
    mkdirSync(dirname(socket), { recursive: true });
    rmSync(socket, { force: true });
    const nodes = images.flatMap((image, index) => ['--blockdev', `driver=file,node-name=file${index},filename=${image},discard=unmap`, '--blockdev', `driver=raw,node-name=disk${index},file=file${index},${UNMAP}`, '--export', `type=nbd,id=export${index},node-name=disk${index},name=disk${index},writable=on`]);
    return await BareQemu.start(this.there.binaries.storageDaemon, ['--chardev', `socket,id=monitor,path=${socket},server=on,wait=off`, '--monitor', 'chardev=monitor', '--nbd-server', `addr.type=inet,addr.host=${LINK_ADDRESS},addr.port=${port},max-connections=0`, ...nodes], socket);
  }

  private async moveOne(booted: Booted, port: number): Promise<Moved> {
    const { spec, guest, source } = booted;
    const began = hostNowMs();
    const disks = Array.from({ length: spec.disks }, (_, index) => index);
    const exports = await this.exportDisks(spec, port);
    try {
      const destination = (booted.destination = await this.start(this.there, spec, true));
      await guest.attach(this.run(this.there, spec, 'serial.sock'));
      const capabilities = (...names: string[]) => ({ capabilities: names.map((capability) => ({ capability, state: true })) });
      await destination.execute('migrate-set-capabilities', capabilities('events', 'late-block-activate'));
      await destination.execute('migrate-incoming', { uri: `tcp:${LINK_ADDRESS}:${port + 1}` });

      const copyBegan = hostNowMs();
      await Promise.all(disks.map(async (index) => {
        await source.execute('blockdev-add', { driver: 'nbd', 'node-name': `nbd${index}`, server: { type: 'inet', host: LINK_ADDRESS, port: String(port) }, export: `disk${index}`, discard: 'unmap', 'detect-zeroes': 'unmap' });
        await source.execute('blockdev-mirror', { 'job-id': `mirror${index}`, device: `disk-${index}`, target: `nbd${index}`, sync: 'full' });
      }));
      const { at: copied } = await source.event('BLOCK_JOB_READY', undefined, spec.disks);

      await source.execute('migrate-set-capabilities', capabilities('events', 'pause-before-switchover'));
      await source.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED, 'downtime-limit': DOWNTIME_LIMIT_MS });
      const memoryBegan = hostNowMs();
      await source.execute('migrate', { uri: `tcp:${LINK_ADDRESS}:${port + 1}` });
      await source.event('MIGRATION', ({ status }) => status === 'pre-switchover');
      await Promise.all(disks.map((index) => source.execute('block-job-cancel', { device: `mirror${index}` })));
      await source.event('BLOCK_JOB_COMPLETED', undefined, spec.disks);
      await Promise.all(disks.map((index) => source.execute('blockdev-del', { 'node-name': `nbd${index}` })));
      await source.execute('migrate-continue', { state: 'pre-switchover' });
      const { at: memoryMoved } = await destination.event('MIGRATION', ({ status }) => status === 'completed');
      await exports.end('SIGTERM');
      await destination.execute('cont');
      const { at: resumed } = await destination.event('RESUME');
      const { at: stopped } = await source.event('STOP');
      await source.end();
      const ended = hostNowMs();
      await guest.nextTick();
      return { began, copyBegan, copied, memoryBegan, memoryMoved, stopped, resumed, ended, gapMs: crossingGapMs(guest.ticksSince(began)) ?? Number.NaN, memoryTries: 1 };
    } finally {
      await exports.end();
    }
  }
}
