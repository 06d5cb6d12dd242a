import { mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { MigrationClient } from '../client/migration-client';
import { guestArtifacts } from '../demo/guest/artifacts';
import { hostNowMs, TestGuest } from '../demo/guest/test-guest';
import { crossingGapMs, HOSTS } from '../demo/stage';
import { type DevStack, startDevStack } from '../workers/dev';
import { createLogger, installRuntime } from '../workers/logger';
import { migrationWorkflowId } from '../workflows/messages';
import { assertSameImage, definitionOf, type GuestSpec, imageName, makeDisks, type Moved, type MoveSide } from './copied-guest';
import { LINK_ADDRESS } from './link';
import { Recorder } from './recorder';

/** Moves by the client, with agents in this process, so that `Recorder` hears their QEMUs. */
export class ProductSide implements MoveSide {
  readonly name = 'vmferry';
  private booted: { spec: GuestSpec; guest: TestGuest }[] = [];

  private constructor(private readonly folder: string, private readonly stack: DevStack, private readonly client: MigrationClient, private readonly recorder: Recorder) {}

  static async open(folder: string): Promise<ProductSide> {
    const recorder = new Recorder();
    const logger = createLogger({ pretty: true, level: 'error' });
    installRuntime(logger);
    const own = join(folder, 'vmferry');
    mkdirSync(own, { recursive: true });
    const stack = await startDevStack({ folder: own, hosts: [...HOSTS], address: LINK_ADDRESS, insecure: true, roots: { boot: dirname(guestArtifacts().kernel) }, logger });
    const client = await MigrationClient.connect({ address: stack.server.address, namespace: 'default' });
    for (const host of HOSTS) await client.fleet.setSlots(host, { outgoing: 8, incoming: 8 });
    return new ProductSide(folder, stack, client, recorder);
  }

  private image(host: (typeof HOSTS)[number], name = ''): string {
    return join(this.folder, 'vmferry', host, 'images', name);
  }

  private serial(host: (typeof HOSTS)[number], { name }: GuestSpec): string {
    return join(this.stack.configs[host]!.runDir, name, 'serial.sock');
  }

  async boot(specs: GuestSpec[]): Promise<void> {
    for (const spec of specs) makeDisks(this.folder, this.image('host-a'), spec);
    await Promise.all(specs.map(async (spec) => {
      const guest = new TestGuest();
      this.booted.push({ spec, guest });
      await this.client.onHost('host-a', 'defineGuest', { definition: definitionOf(spec) });
      await this.client.onHost('host-a', 'startGuest', { guest: spec.name });
      await guest.attach(this.serial('host-a', spec));
      await guest.ready();
    }));
  }

  imagesThere({ name, disks }: GuestSpec): string[] {
    return Array.from({ length: disks }, (_, index) => this.image('host-b', imageName(name, index)));
  }

  async move(): Promise<Moved[]> {
    this.recorder.clear();
    return await Promise.all(this.booted.map((one) => this.moveOne(one)));
  }

  private async moveOne({ spec, guest }: { spec: GuestSpec; guest: TestGuest }): Promise<Moved> {
    const began = hostNowMs();
    const migration = await this.client.migrate({ vm: spec.name, to: 'host-b', sourceDisks: 'wipe' });
    const over = new AbortController();
    void guest.stayAttached(this.serial('host-b', spec), over.signal);
    const { memoryTries } = await migration.result().finally(() => over.abort());
    const ended = hostNowMs();
    await guest.nextTick();
    const [source, destination] = [`host-a/run/${spec.name}`, `host-b/run/${spec.name}`];
    const { recorder } = this;
    return {
      began,
      copyBegan: await this.scheduled(spec.name, migration.runId, 'startMirrors'),
      copied: recorder.heard(source, 'BLOCK_JOB_READY'),
      memoryBegan: recorder.sent(source, 'migrate'),
      memoryMoved: recorder.heard(destination, 'MIGRATION', ({ status }) => status === 'completed'),
      stopped: recorder.heard(source, 'STOP'),
      resumed: recorder.heard(destination, 'RESUME'),
      ended,
      gapMs: crossingGapMs(guest.ticksSince(began)) ?? Number.NaN,
      memoryTries,
    };
  }

  /** When the workflow first asked for an activity. */
  private async scheduled(guest: string, runId: string, activity: string): Promise<number> {
    const { events } = await this.client.temporal.workflow.getHandle(migrationWorkflowId(guest), runId).fetchHistory();
    const time = events?.find((event) => event.activityTaskScheduledEventAttributes?.activityType?.name === activity)?.eventTime;
    if (!time) throw new Error(`the workflow of ${guest} never asked for ${activity}`);
    return Number(time.seconds) * 1_000 + (time.nanos ?? 0) / 1e6;
  }

  async verify(): Promise<void> {
    for (const { spec, guest } of this.booted) {
      for (const image of this.imagesThere(spec)) assertSameImage(this.folder, spec, image);
      const { blocksLost, memoryErrors } = await guest.verify();
      if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${this.name}: ${blocksLost} blocks lost, ${memoryErrors} pages damaged: these figures are worth nothing`);
    }
  }

  async end(): Promise<void> {
    for (const { spec, guest } of this.booted) {
      guest.close();
      for (const host of HOSTS) {
        const known = await this.client.onHost(host, 'listGuests').catch(() => []);
        if (!known.some(({ name }) => name === spec.name)) continue;
        await this.client.onHost(host, 'stopGuest', { guest: spec.name, graceMs: 0 });
        await this.client.onHost(host, 'removeGuest', { guest: spec.name });
        for (let index = 0; index < spec.disks; index++) rmSync(this.image(host, imageName(spec.name, index)), { force: true });
      }
    }
    this.booted = [];
  }

  async close(): Promise<void> {
    await this.end();
    await this.client.close();
    await this.stack.stop();
  }
}
