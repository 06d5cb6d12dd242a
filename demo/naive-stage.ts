import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { qemuArguments } from '../hypervisor/command-line';
import { definitionSchema } from '../hypervisor/definition';
import { runFolder } from '../hypervisor/host-config';
import { QmpConnection } from '../qmp/connection';
import type { StatusInfo } from '../qmp/structures';
import { devHostConfig } from '../workers/dev';
import { guestArtifacts, type GuestOptions } from './guest/artifacts';
import { TestGuest } from './guest/test-guest';
import { SlowLink } from './slow-link';
import { demoDefinition, GUEST, type HOSTS } from './stage';

type Say = (text: string) => void;

const DISK_BYTES = 128 * 2 ** 20;
const START_MS = 30_000;
const ANSWER_MS = 5_000;
/** What is shown of a QEMU's events and stderr: a failing one may repeat itself for ever. */
const MAX_LINES = 30;
const TELLING = new Set(['BLOCK_IO_ERROR', 'BLOCK_JOB_CANCELLED', 'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_ERROR', 'GUEST_PANICKED', 'MIGRATION', 'RESUME', 'SHUTDOWN', 'STOP']);

/** What became of one QEMU: it ended (`exit` says how), or lives with this status, or lives and does not answer (neither). */
export interface Fate {
  exit?: string;
  status?: StatusInfo;
}

/** Two QEMUs and the guest that goes from one to the other, all children of this process and below one folder. */
export class NaiveStage {
  readonly guest = new TestGuest();
  private link: SlowLink | undefined;
  private readonly folder = mkdtempSync(join(tmpdir(), 'vmferry-naive-'));
  private readonly qemus: NaiveQemu[] = [];
  private closed = false;

  constructor(
    private readonly options: GuestOptions,
    private readonly say: Say,
  ) {}

  /** Starts the guest, or what waits for it, with empty disks of its own; resolves when QMP answers. */
  async start(host: (typeof HOSTS)[number], incoming: boolean): Promise<NaiveQemu> {
    if (this.closed) throw new Error('the stage was closed');
    const config = devHostConfig(this.folder, host, 'none:0', { insecure: true }, { boot: dirname(guestArtifacts().kernel) });
    const run = runFolder(config, GUEST);
    mkdirSync(run, { recursive: true });
    for (const index of [0, 1]) {
      const image = join(config.roots['images']!.path, `${GUEST}-${index}.raw`);
      writeFileSync(image, '');
      truncateSync(image, DISK_BYTES);
    }
    const args = qemuArguments(config, definitionSchema.parse(demoDefinition(this.options)), { incoming });
    const qemu = new NaiveQemu(incoming ? 'destination' : 'source', config.binaries.qemu[0]!, args, run, this.say);
    this.qemus.push(qemu);
    await qemu.connect();
    return qemu;
  }

  /** The link that the disks' copy goes over. */
  async openLink(port: number): Promise<SlowLink> {
    const link = await SlowLink.listen({ target: { host: '127.0.0.1', port } });
    this.link = link;
    if (this.closed) await link.close();
    return link;
  }

  /** Ends everything and removes every file; what is awaited fails. */
  async close(): Promise<void> {
    this.closed = true;
    this.guest.close();
    await Promise.all(this.qemus.map((qemu) => qemu.end()));
    await this.link?.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A QEMU that is driven by bare QMP. Says what it prints and the events that matter, as they come. */
export class NaiveQemu {
  /** How it ended, once it has. */
  exit: string | undefined;
  readonly ended: Promise<void>;
  readonly serial: string;
  private readonly child: ChildProcess;
  private connection: QmpConnection | undefined;
  private lines = 0;

  constructor(
    private readonly name: string,
    binary: string,
    args: string[],
    private readonly run: string,
    private readonly say: Say,
  ) {
    this.serial = join(run, 'serial.sock');
    // In its run folder, where a core file is removed with the rest.
    this.child = spawn(binary, args, { cwd: run, stdio: ['ignore', 'ignore', 'pipe'] });
    createInterface({ input: this.child.stderr! }).on('line', (line) => this.show(`says: ${line}`));
    this.ended = new Promise((resolve) => {
      const end = (how: string) => {
        this.exit ??= how;
        resolve();
      };
      this.child.once('error', (error) => end(error.message));
      // Not 'exit': what it said last is read before.
      this.child.once('close', (code, signal) => end(signal ?? `exit code ${code}`));
    });
  }

  get qmp(): QmpConnection {
    if (!this.connection) throw new Error(`the ${this.name} is not connected`);
    return this.connection;
  }

  /** Throws if it ends at start, or does not answer in time. */
  async connect(): Promise<void> {
    const deadline = AbortSignal.timeout(START_MS);
    while (!this.connection) {
      this.connection = await QmpConnection.connect(join(this.run, 'qmp.sock'), { timeoutMs: START_MS }).catch(() => undefined);
      if (this.exit) throw new Error(`the ${this.name}'s QEMU ended at start: ${this.exit}`);
      if (!this.connection) await delay(5, undefined, { signal: deadline });
    }
    void this.follow(this.connection);
  }

  async enable(...capabilities: string[]): Promise<void> {
    await this.qmp.execute('migrate-set-capabilities', { capabilities: capabilities.map((capability) => ({ capability, state: true })) });
  }

  /** Listens for a migration on a port that the kernel chooses. */
  async incomingUri(): Promise<string> {
    await this.qmp.execute('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
    const { 'socket-address': [address] = [] } = await this.qmp.execute('query-migrate');
    return `tcp:127.0.0.1:${String(address?.['port'])}`;
  }

  async fate(): Promise<Fate> {
    if (!this.exit) {
      const status = await this.qmp.execute('query-status', undefined, { timeoutMs: ANSWER_MS }).catch(() => undefined);
      if (status) return { status };
      // It did not answer because it hangs, or because it is just about to be gone.
      await Promise.race([this.ended, delay(1_000, undefined, { ref: false })]);
    }
    return this.exit ? { exit: this.exit } : {};
  }

  async end(): Promise<void> {
    this.connection?.close();
    this.child.kill('SIGKILL');
    await this.ended;
  }

  private async follow(connection: QmpConnection): Promise<void> {
    try {
      for await (const { event, data } of connection.listen()) if (TELLING.has(event)) this.show(`${event} ${JSON.stringify(data)}`);
    } catch {
      // The connection ended; `ended` tells more.
    }
  }

  private show(text: string): void {
    if (++this.lines <= MAX_LINES) this.say(`    ${this.name}: ${text}`);
  }
}
