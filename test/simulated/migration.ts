import type { Flow, Link } from './network';
import type { SimulatedQemu } from './qemu';
import { Refused } from './qmp-server';

/** What a guest does to its memory; wall-clock bytes a second. */
export interface MemoryBehaviour {
  dirtyBytesPerSecond: number;
  /** The part that it dirties over and over. */
  hotBytes: number;
  /** What is not zero: the rest costs no link. */
  dataBytes: number;
}

/** Durations of QEMU 7.2 under TCG, in simulated milliseconds. */
const SETUP_MS = 20;
const DEVICE_MS = 20;
const LOAD_MS = 10;
const CANCEL_MS = 10;
const PAGE = 4096;

export type MigrationState = 'setup' | 'active' | 'pre-switchover' | 'device' | 'completed' | 'failed' | 'cancelling' | 'cancelled';

/** An outgoing migration of memory: passes over what was dirtied during the last one, until the rest fits the downtime limit. */
export class OutgoingMigration implements Flow {
  state: MigrationState = 'setup';
  errorDesc: string | undefined;
  broken = false;
  private peer: SimulatedQemu | undefined;
  private leftBytes: number;
  private dirtyBytes = 0;
  private sentBytes = 0;
  private passes = 0;
  private bytesPerSecond = 0;
  private dirtyRate = 0;
  private passBegan = performance.now();
  private throttle = 0;
  private readonly began = performance.now();
  private ranBefore = false;
  private stopping = false;
  private slowPasses = 0;
  /** The parameter `max-bandwidth`, which may change meanwhile. */
  private readonly cap: Link = { bytesPerSecond: 0 };

  constructor(private readonly qemu: SimulatedQemu, uri: string) {
    this.leftBytes = Math.min(qemu.memoryBytes, qemu.behaviour.memory.dataBytes);
    this.say();
    this.later(SETUP_MS, () => this.connect(uri.replace(/^tcp:/, '').replace(/[[\]]/g, '')));
  }

  get links(): Link[] {
    return this.peer ? [this.qemu.host.uplink, this.peer.host.downlink, this.cap] : [];
  }

  get over(): boolean {
    return ['completed', 'failed', 'cancelled'].includes(this.state);
  }

  /** Whether a `yank` finds it. */
  get connected(): boolean {
    return this.peer !== undefined && !this.over;
  }

  demandBytes(): number {
    this.cap.bytesPerSecond = this.qemu.parameters['max-bandwidth'] as number;
    return this.state === 'active' && !this.stopping && !this.peer!.thawed ? this.leftBytes : 0;
  }

  step(bytes: number, ms: number): void {
    if (this.state !== 'active' || this.stopping) return;
    if (this.broken || !this.peer!.alive) return this.fail('Unable to write to socket: Broken pipe');
    const { dirtyBytesPerSecond, hotBytes } = this.qemu.behaviour.memory;
    if (this.qemu.running) {
      const dirtied = (dirtyBytesPerSecond * (1 - this.throttle / 100) * ms) / 1000;
      this.dirtyBytes += dirtied * (1 - Math.min(1, this.dirtyBytes / Math.max(1, hotBytes)));
    }
    this.leftBytes = Math.max(0, this.leftBytes - bytes);
    this.sentBytes += bytes;
    if (bytes > 0) this.bytesPerSecond = this.bytesPerSecond === 0 ? (bytes / ms) * 1000 : this.bytesPerSecond * 0.8 + (bytes / ms) * 200;
    const fits = () => this.leftBytes <= (this.bytesPerSecond * (this.qemu.parameters['downtime-limit'] as number)) / 1000;
    if (this.leftBytes > 0 && !fits()) return;
    this.sync();
    if (fits() || this.leftBytes === 0) void this.switchOver();
  }

  continue(state: string): void {
    if (state !== this.state || state !== 'pre-switchover') {
      // Only a migration that is stuck, which this one never is, takes `cancelling`.
      throw new Refused(`Migration not in expected state: ${this.state}`);
    }
    const mirrors = [...this.qemu.jobs.values()].filter(({ concluded }) => !concluded);
    this.qemu.note('migrate-continue', mirrors.map(({ id, remainingBytes }) => ({ job: id, remainingBytes: Math.round(remainingBytes) })));
    if (mirrors.length > 0) this.qemu.host.world.ledger.violation(`guest ${this.qemu.guest}: migrate-continue with ${mirrors.length} mirrors, ${Math.round(mirrors.reduce((sum, { remainingBytes }) => sum + remainingBytes, 0))} bytes behind`);
    void this.handOver(mirrors.some(({ remainingBytes }) => remainingBytes > 0));
  }

  cancel(): void {
    if (this.over || this.state === 'cancelling') return;
    this.state = 'cancelling';
    this.say();
    this.qemu.host.world.network.remove(this);
    this.later(CANCEL_MS, () => {
      this.peer?.streamEnded();
      this.runOn();
      this.state = 'cancelled';
      this.say();
    });
  }

  yank(): void {
    this.broken = true;
    if (this.state === 'active') this.fail('Unable to write to socket: Broken pipe');
  }

  describe(): Record<string, unknown> {
    const { state } = this;
    if (state === 'setup' || state === 'cancelled' || state === 'cancelling') return { status: state };
    if (state === 'failed') return { status: state, ...(this.errorDesc !== undefined && { 'error-desc': this.errorDesc }) };
    const zero = this.qemu.memoryBytes - this.qemu.behaviour.memory.dataBytes;
    return {
      status: state,
      'setup-time': SETUP_MS,
      'total-time': Math.round(performance.now() - this.began),
      ...(state === 'completed' ? { downtime: DEVICE_MS } : { 'expected-downtime': this.qemu.parameters['downtime-limit'] }),
      ...(this.throttle > 0 && { 'cpu-throttle-percentage': this.throttle }),
      ram: {
        total: this.qemu.memoryBytes, transferred: Math.round(this.sentBytes), remaining: Math.round(this.leftBytes), duplicate: Math.max(0, Math.round(zero / PAGE)), normal: Math.round(this.sentBytes / PAGE), 'normal-bytes': Math.round(this.sentBytes),
        'dirty-pages-rate': Math.round(this.dirtyRate / PAGE), mbps: (this.bytesPerSecond * 8) / 1e6, 'dirty-sync-count': this.passes, 'page-size': PAGE, 'pages-per-second': Math.round(this.bytesPerSecond / PAGE),
        'postcopy-requests': 0, 'multifd-bytes': 0, 'downtime-bytes': 0, 'postcopy-bytes': 0, 'dirty-sync-missed-zero-copy': 0, 'precopy-bytes': Math.round(this.sentBytes), skipped: 0,
      },
    };
  }

  private connect(place: string): void {
    if (this.state !== 'setup') return;
    const peer = this.qemu.host.world.incoming.get(place);
    if (!peer?.acceptStream()) return this.fail(`Failed to connect to '${place}': Connection refused`);
    this.peer = peer;
    if (this.qemu.takeFault('migrationFails')) return this.fail('simulated failure');
    this.pass();
    this.state = 'active';
    this.say();
    this.qemu.host.world.network.add(this);
  }

  private pass(): void {
    this.passes++;
    this.passBegan = performance.now();
    if (this.qemu.capabilities.get('events')) this.qemu.event('MIGRATION_PASS', { pass: this.passes });
  }

  /** Counts what was dirtied while the last pass was sent. */
  private sync(): void {
    const ms = Math.max(1, performance.now() - this.passBegan);
    this.dirtyRate = (this.dirtyBytes / ms) * 1000;
    if (this.qemu.capabilities.get('auto-converge') && this.dirtyRate > this.bytesPerSecond / 2 && ++this.slowPasses >= 2) {
      const { 'cpu-throttle-initial': initial, 'cpu-throttle-increment': increment, 'max-cpu-throttle': most } = this.qemu.parameters as Record<string, number>;
      this.throttle = this.throttle === 0 ? initial! : Math.min(most!, this.throttle + increment!);
      this.slowPasses = 0;
    }
    this.leftBytes += this.dirtyBytes;
    this.dirtyBytes = 0;
    if (this.leftBytes > 0) this.pass();
  }

  private async switchOver(): Promise<void> {
    this.stopping = true;
    this.ranBefore = this.qemu.running;
    await this.qemu.pause('finish-migrate');
    if (this.state !== 'active') return;
    if (!this.qemu.capabilities.get('pause-before-switchover')) return await this.handOver([...this.qemu.jobs.values()].some(({ remainingBytes, concluded }) => !concluded && remainingBytes > 0));
    this.state = 'pre-switchover';
    this.say();
  }

  private async handOver(mirrorsDirty: boolean): Promise<void> {
    this.state = 'device';
    this.say();
    this.pass();
    const { world } = this.qemu.host;
    world.network.remove(this);
    await world.sleep(DEVICE_MS + (this.leftBytes / Math.max(1, this.bytesPerSecond)) * 1000 * world.speed);
    // With a destination that hangs QEMU waits in `device`, its main loop with it; a yank ends that.
    while (this.peer!.thawed && !this.broken) await this.qemu.holdLoop(Promise.race([this.peer!.thawed, world.sleep(20)]));
    if (!this.qemu.alive || this.state !== 'device') return;
    if (this.broken || !this.peer!.alive) return this.fail('Unable to write to socket: Broken pipe');
    this.state = 'completed';
    this.qemu.runState = 'postmigrate';
    this.qemu.note('completed');
    this.say();
    this.peer!.streamCompleted(LOAD_MS);
    // Blocks that a mirror would have written after the images were given away: an assertion of QEMU's (facts/qemu.md §1).
    if (mirrorsDirty) this.later(CANCEL_MS, () => this.qemu.kill(134));
  }

  private fail(why: string): void {
    if (this.over || !this.qemu.alive) return;
    this.qemu.host.world.network.remove(this);
    this.errorDesc = why;
    this.qemu.note('migration-failed');
    this.state = 'failed';
    this.say();
    this.peer?.streamEnded();
    this.runOn();
  }

  private runOn(): void {
    if (this.ranBefore && this.qemu.runState === 'finish-migrate') this.qemu.run();
    else if (this.qemu.runState === 'finish-migrate') this.qemu.runState = 'paused';
  }

  private say(): void {
    if (this.qemu.capabilities.get('events')) this.qemu.event('MIGRATION', { status: this.state });
  }

  private later(ms: number, work: () => void): void {
    setTimeout(() => {
      this.qemu.host.world.network.advance();
      if (this.qemu.alive) work();
    }, this.qemu.host.world.scaled(ms)).unref();
  }
}
