import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Definition, definitionSchema } from '../../hypervisor/definition';
import { Host } from '../../hypervisor/host';
import { ensureQemu, killQemu } from '../../hypervisor/launch';
import { machinePrograms } from '../../hypervisor/programs';
import { ensureExports, type Exports, releaseImages, stopStorageDaemon, storageDaemonProcess } from '../../hypervisor/storage-daemon';
import type { QmpConnection } from '../../qmp/connection';
import { QmpCommandFailed } from '../../qmp/errors';
import type { QmpEventQueue } from '../../qmp/event-queue';
import { devHostConfig } from '../../workers/dev';
import { QUIET, SimulatedHypervisor } from './hypervisor';

export type Kind = 'real' | 'simulated';
export type Actor = 'source' | 'destination';

const GUEST = 'g';
export const DISK_BYTES = 8 * 2 ** 20;

/** Two hosts with real or simulated programs, on which a script of QMP exchanges is carried out by vmferry's own code, and written down. */
export class Stage {
  readonly world = new SimulatedHypervisor();
  /** What was said and seen, in a form that is equal on both kinds if our code cannot tell them apart. */
  readonly transcript: string[] = [];
  private readonly hosts: Record<Actor, Host>;
  private readonly connections = new Map<Actor, { qmp: QmpConnection; events: QmpEventQueue }>();
  private readonly definition: Definition;
  exports!: Exports;

  constructor(readonly kind: Kind) {
    this.folder = mkdtempSync(join(process.env['VMFERRY_LAB'] ?? '/dev/shm', 'con-'));
    this.world.setBehaviour(GUEST, { ...QUIET, disk: { writeBytesPerSecond: 0, workingSetBytes: DISK_BYTES, dataBytes: 0 } });
    const host = (name: Actor) => new Host(devHostConfig(this.folder, name, 'unused:1', { insecure: true }), kind === 'real' ? machinePrograms : this.world.host(name).programs);
    this.hosts = { source: host('source'), destination: host('destination') };
    this.definition = definitionSchema.parse({ name: GUEST, machine: 'pc-q35-7.2', memory: '131080K', disks: [{ id: 'disk0', path: '${images}/disk0.raw' }] });
    for (const name of ['source', 'destination'] as const) {
      writeFileSync(this.image(name), '');
      truncateSync(this.image(name), DISK_BYTES);
      mkdirSync(join(this.hosts[name].config.runDir, GUEST), { recursive: true });
    }
  }

  private readonly folder: string;

  image(actor: Actor): string {
    return join(this.folder, actor, 'images', 'disk0.raw');
  }

  async start(actor: Actor): Promise<void> {
    const host = this.hosts[actor];
    await host.store.setDefinition(this.definition);
    const qmp = await (await ensureQemu(host, this.definition, actor === 'destination')).connection();
    this.connections.set(actor, { qmp, events: qmp.listen() });
  }

  async export(): Promise<void> {
    this.exports = await ensureExports(this.hosts.destination, GUEST, 'source', [{ id: 'disk0', path: this.image('destination'), format: 'raw', blockDevice: false, sizeBytes: DISK_BYTES, cache: 'writeback' }], undefined, undefined, async () => undefined);
  }

  async release(): Promise<void> {
    await releaseImages(this.hosts.destination, GUEST);
  }

  async killDaemon(): Promise<void> {
    const { programs } = this.hosts.destination;
    await programs.terminate(storageDaemonProcess(this.hosts.destination, GUEST)!, 0);
    this.hosts.destination.monitors.forget(this.hosts.destination.runFile(GUEST, 'storage.sock'));
  }

  async kill(actor: Actor): Promise<void> {
    await killQemu(this.hosts[actor], GUEST);
  }

  qmp(actor: Actor): QmpConnection {
    return this.connections.get(actor)!.qmp;
  }

  note(what: string): void {
    this.transcript.push(what);
  }

  /** Sends a command, and writes down the form of its answer, or the error. `loud: false`: only that it succeeded. */
  async say(actor: Actor, command: string, args?: object, loud = true): Promise<unknown> {
    const execute = this.qmp(actor).execute.bind(this.qmp(actor)) as unknown as (name: string, args?: object) => Promise<unknown>;
    try {
      const value = await execute(command, args);
      this.note(`${actor}: ${command}${loud ? ` => ${this.form(value)}` : ''}`);
      return value;
    } catch (error) {
      if (!(error instanceof QmpCommandFailed)) throw error;
      this.note(`${actor}: ${command} => ${error.errorClass}: ${this.neutral(error.desc)}`);
      return undefined;
    }
  }

  /** Waits for an event whose data have these fields, and writes down all that came until then. */
  async until(actor: Actor, name: string, fields: object = {}): Promise<void> {
    const { events } = this.connections.get(actor)!;
    for (;;) {
      const event = await events.next({ timeoutMs: 10_000 }).catch((error: Error) => {
        throw new Error(`${this.kind}: ${actor} gave no ${name} ${JSON.stringify(fields)}: ${error.message}\n${this.transcript.join('\n')}`);
      });
      const data = event.data as Record<string, unknown>;
      const found = event.event === name && Object.entries(fields).every(([key, value]) => data[key] === value);
      this.heard(actor, event.event, data);
      if (found) return;
    }
  }

  /** Writes down what came by now: nothing, if all is as it should be. */
  async quiet(actor: Actor, ms = 150): Promise<void> {
    await delay(ms);
    const { events } = this.connections.get(actor)!;
    for (let event = events.tryNext(); event; event = events.tryNext()) this.heard(actor, event.event, event.data);
  }

  async close(): Promise<void> {
    for (const host of Object.values(this.hosts)) {
      await killQemu(host, GUEST);
      await stopStorageDaemon(host, GUEST);
      host.close();
    }
    this.world.close();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private drained = false;

  /**
   * QEMU drains at its own discretion, and each time sends a job from ready to standby, or from running to paused, and back: that says nothing. How
   * many passes the memory takes is a matter of time.
   */
  private heard(actor: Actor, event: string, data: object): void {
    const { status } = data as { status?: string };
    if (event === 'MIGRATION_PASS') return;
    if (event === 'JOB_STATUS_CHANGE' && (/standby|paused/.test(status!) || (/ready|running/.test(status!) && this.drained))) {
      this.drained = /standby|paused/.test(status!);
      return;
    }
    this.note(`${actor}! ${event} ${this.form(data)}`);
  }

  private neutral(text: string): string {
    return text.replaceAll(this.folder, 'FOLDER').replaceAll(String(this.exports?.port), 'PORT').replace(/disk0-[0-9a-f-]{36}/g, 'EXPORT');
  }

  /** Keys and kinds of values; words that our code decides by are kept. */
  private form(value: unknown): string {
    const KEPT = /^(status|type|class|ready|running|paused|busy|error|error-desc|operation|action|io-status|node-name|device|id|qdev|drv|driver|bps_wr|group|path)$/;
    const of = (one: unknown, key = ''): unknown => {
      if (Array.isArray(one)) return one.map((item) => of(item));
      if (one !== null && typeof one === 'object') return Object.fromEntries(Object.entries(one).sort(([a], [b]) => a.localeCompare(b)).filter(([name]) => !IGNORED.has(name)).map(([name, item]) => [name, of(item, name)]));
      return KEPT.test(key) ? (typeof one === 'string' ? this.neutral(one) : one) : typeof one;
    };
    return JSON.stringify(of(value));
  }
}

/** What nobody reads, and what a simulation of writes only cannot know. */
const IGNORED = new Set(['dirty-bitmaps', 'busy', 'singlestep', 'actual-size', 'timed_stats', 'backing_file']);
