import type { NbdConnection, Node } from './block-graph';
import { BlockGraph } from './block-graph';
import type { GuestDisk } from './guest-disk';
import type { Flow, Link } from './network';
import type { SimulatedQemu } from './qemu';
import { Refused } from './qmp-server';

export interface MirrorOptions {
  'job-id': string;
  target: string;
  sync: 'full' | 'top' | 'none';
  'copy-mode'?: 'background' | 'write-blocking';
  'buf-size'?: number;
  'filter-node-name'?: string;
  'auto-dismiss'?: boolean;
  'on-target-error'?: 'report' | 'stop' | 'ignore' | 'enospc';
}

/** With a job that waits for writes nothing that it shows moves for this long (QEMU's BLOCK_JOB_SLICE_TIME): an offset that equals the length proves nothing. */
const IDLE_SLICE_MS = 100;
/** A disk's zeros are not sent, only said: virtual bytes a second. */
const ZEROS_BYTES_PER_SECOND = 8e9;
/** Half of the link goes to the guest's own writes while a write-blocking mirror is behind. */
const GUEST_PART = 0.3;

type Status = 'created' | 'running' | 'ready' | 'paused' | 'standby' | 'waiting' | 'pending' | 'aborting' | 'concluded';

/** A `blockdev-mirror` job, as a fluid: bytes that were never copied, bytes that the guest made dirty again, and the link that carries both. */
export class Mirror implements Flow {
  readonly id: string;
  readonly filterName: string;
  status: Status = 'created';
  error: string | undefined;
  ioStatus = 'ok';
  writeBlocking: boolean;
  /** What no pass has copied yet, in bytes of the disk. */
  private bulkBytes: number;
  private dirtyBytes = 0;
  private copiedBytes = 0;
  private shown = { offset: 0, len: 0, at: 0 };
  private readyOnce = false;
  private ending: 'graceful' | 'forced' | undefined;
  /** What it carried lately, bytes a second. */
  private rate = 0;
  /** Since it was connected. */
  private failures = 0;
  private readonly connection: NbdConnection;
  private readonly density: number;
  /** With `sync: none` a target that differed at the start differs for ever. */
  private readonly sound: boolean;

  constructor(private readonly qemu: SimulatedQemu, readonly disk: GuestDisk, readonly target: Node, private readonly options: MirrorOptions) {
    const { world } = qemu.host;
    this.id = options['job-id'];
    this.filterName = options['filter-node-name'] ?? `#mirror-${this.id}`;
    this.writeBlocking = options['copy-mode'] === 'write-blocking';
    if (!target.connection) throw new Refused(`node ${target.name} is no NBD node: the simulation mirrors onto nothing else`);
    this.connection = target.connection;
    const full = options.sync !== 'none';
    this.bulkBytes = full ? disk.node.sizeBytes : 0;
    this.density = Math.min(1, disk.behaviour.dataBytes / Math.max(1, disk.node.sizeBytes));
    disk.settle();
    const { images } = world;
    const [source, copy] = [images.of(BlockGraph.imageOf(disk.node)), images.of(BlockGraph.imageOf(this.connection.target))];
    this.sound = full || copy.version === source.version;
    this.shown = { offset: 0, len: full ? disk.node.sizeBytes : 0, at: 0 };
    disk.mirror = this;
    this.set('running');
    if (disk.node.sizeBytes !== target.sizeBytes) this.later(() => this.fail('Source and target image have different sizes'));
    world.network.add(this);
    if (!full) this.later(() => this.look(true));
  }

  get links(): Link[] {
    const { throttle, server } = this.connection;
    return [this.qemu.host.uplink, server.host.downlink, ...(throttle ? [throttle] : [])];
  }

  get remainingBytes(): number {
    return this.bulkBytes + this.dirtyBytes;
  }

  get concluded(): boolean {
    return this.status === 'concluded';
  }

  /** How long a drain of what is in flight takes: QMP is silent, and the guest paused, meanwhile. */
  get drainMs(): number {
    if (this.concluded || this.stopped || this.connection.broken) return 0;
    return (Math.min(this.remainingBytes, this.options['buf-size'] ?? 16 * 2 ** 20) / Math.max(1e6, this.rate)) * 1000;
  }

  /** What everything that drains waits for: a peer that takes nothing, and whose connection was not cut. */
  get hangsOn(): Promise<void> | undefined {
    return this.concluded || this.stopped || this.connection.broken || this.remainingBytes === 0 ? undefined : this.connection.server.thawed;
  }

  private get stopped(): boolean {
    return this.ioStatus !== 'ok';
  }

  dirty(bytes: number): void {
    if (this.concluded) return;
    const { workingSetBytes } = this.disk.behaviour;
    const { sizeBytes } = this.disk.node;
    const fresh = bytes * (1 - Math.min(1, this.dirtyBytes / Math.max(1, Math.min(workingSetBytes, sizeBytes)))) * (1 - this.bulkBytes / Math.max(1, sizeBytes));
    this.dirtyBytes = Math.min(sizeBytes, this.dirtyBytes + fresh);
  }

  demandBytes(ms: number): number {
    // Before it is asked: what is written during a step is copied in the next one, as long as the link carries it.
    this.disk.settle();
    if (this.concluded || this.stopped || this.connection.server.thawed) return 0;
    const guest = this.writeBlocking ? (this.disk.rate * ms) / 1000 : 0;
    const bulk = Math.min(this.bulkBytes, (ZEROS_BYTES_PER_SECOND * this.qemu.host.world.speed * ms) / 1000) * this.density;
    return this.dirtyBytes + bulk + guest;
  }

  step(bytes: number, ms: number): void {
    if (this.concluded) return;
    const wants = this.writeBlocking ? (this.disk.rate * ms) / 1000 : 0;
    if ((this.connection.broken || !this.connection.server.alive) && (this.remainingBytes > 0 || wants > 0)) return this.fail('Input/output error');
    if (this.stopped || this.connection.server.thawed) return;
    if (this.connection.server.host.full && (this.dirtyBytes > 0 || wants > 0 || this.bulkBytes > 0)) return this.fail('No space left on device');
    let left = bytes;
    if (this.writeBlocking && wants > 0) {
      const through = Math.min(wants, this.remainingBytes > 0 ? left * GUEST_PART : left);
      const before = this.dirtyBytes;
      this.disk.write(through);
      // A write that waited for its copy leaves nothing dirty.
      this.dirtyBytes = before;
      left -= through;
    }
    const dirty = Math.min(this.dirtyBytes, left);
    this.dirtyBytes -= dirty;
    left -= dirty;
    const fastest = (ZEROS_BYTES_PER_SECOND * this.qemu.host.world.speed * ms) / 1000;
    const bulk = Math.min(this.bulkBytes, fastest, this.density > 0 ? left / this.density : Infinity);
    this.bulkBytes -= bulk;
    if (this.bulkBytes < 1) this.bulkBytes = 0;
    if (this.dirtyBytes < 1) this.dirtyBytes = 0;
    this.copiedBytes += dirty + bulk;
    if (bytes > 0) this.rate = this.rate * 0.7 + (bytes / ms) * 1000 * 0.3;
    this.look();
  }

  /** Shows how far it is, and says what follows from it. */
  look(now = false): void {
    if (this.concluded) return;
    const idle = this.readyOnce && this.shown.offset === this.shown.len;
    if (now || !idle || performance.now() - this.shown.at >= IDLE_SLICE_MS / this.qemu.host.world.speed) {
      this.shown = { offset: Math.floor(this.copiedBytes), len: Math.floor(this.copiedBytes) + Math.ceil(this.remainingBytes), at: performance.now() };
    }
    if (this.remainingBytes > 0) return;
    if (!this.readyOnce && !this.ending) {
      this.readyOnce = true;
      this.shown.offset = this.shown.len = Math.floor(this.copiedBytes);
      this.set('ready');
      this.qemu.event('BLOCK_JOB_READY', this.data());
    }
    if (this.ending === 'graceful') this.complete();
  }

  /** What QEMU does to all jobs when it drains: each is looked at, and goes on. */
  drained(): void {
    if (this.status !== 'ready') return;
    this.set('standby');
    this.look(true);
    this.set('ready');
  }

  cancel(force: boolean): void {
    if (this.concluded) throw new Refused(`Job '${this.id}' in state 'concluded' cannot accept command verb 'cancel'`);
    if (!force && this.readyOnce && this.stopped) return this.later(() => this.fail('Input/output error', 'report'));
    this.ending = force || !this.readyOnce ? 'forced' : 'graceful';
    if (this.ending === 'forced') this.later(() => this.abort());
    else this.later(() => this.look(true));
  }

  resume(): void {
    if (!this.stopped) throw new Refused(`Job '${this.id}' can't be resumed: it is not paused`);
    this.ioStatus = 'ok';
    // The request that fails first finds the connection dead, the next one only makes QEMU's client connect again.
    const again = this.failures > 1 && !this.connection.yanked ? this.qemu.host.world.reconnected(this.target.filename) : undefined;
    if (again) {
      Object.assign(this.connection, again);
      this.failures = 0;
    }
    this.set(this.readyOnce ? 'ready' : 'running');
  }

  makeWriteBlocking(): void {
    this.disk.settle();
    this.writeBlocking = true;
  }

  yank(): void {
    this.connection.broken = this.connection.yanked = true;
    this.look(true);
  }

  describe(): Record<string, unknown> {
    const { offset, len } = this.shown;
    return {
      'auto-finalize': true, 'io-status': this.ioStatus, device: this.id, 'auto-dismiss': this.options['auto-dismiss'] ?? true, busy: this.remainingBytes > 0 && !this.concluded, len, offset,
      status: this.status, paused: this.stopped, speed: 0, ready: this.status === 'ready' || this.status === 'standby', type: 'mirror', ...(this.error !== undefined && { error: this.error }),
    };
  }

  describeJob(): Record<string, unknown> {
    const { offset, len } = this.shown;
    return { 'current-progress': offset, status: this.status, 'total-progress': len, type: 'mirror', id: this.id, ...(this.error !== undefined && { error: this.error }) };
  }

  private complete(): void {
    const { images } = this.qemu.host.world;
    const copy = images.of(BlockGraph.imageOf(this.connection.target));
    copy.version = this.sound ? images.of(BlockGraph.imageOf(this.disk.node)).version : -1;
    this.set('waiting');
    this.set('pending');
    this.qemu.event('BLOCK_JOB_COMPLETED', this.data());
    this.conclude();
  }

  private abort(): void {
    if (this.concluded) return;
    const frozen = this.connection.server.thawed;
    // A forced cancel waits for what is in flight.
    if (frozen && !this.connection.broken && this.remainingBytes > 0) return void frozen.then(() => this.abort());
    this.error = 'Operation canceled';
    this.set('aborting');
    this.qemu.event('BLOCK_JOB_CANCELLED', this.data());
    this.conclude();
  }

  private fail(error: string, action = this.options['on-target-error'] === 'stop' && !this.ending ? 'stop' : 'report'): void {
    if (this.concluded) return;
    if (action === 'stop' && this.stopped) return;
    this.failures++;
    this.qemu.note('mirror-failed');
    this.qemu.event('BLOCK_JOB_ERROR', { device: this.id, operation: 'write', action });
    if (action === 'stop') {
      this.ioStatus = error.startsWith('No space') ? 'nospace' : 'failed';
      this.shown = { offset: Math.floor(this.copiedBytes), len: Math.floor(this.copiedBytes) + Math.ceil(this.remainingBytes), at: performance.now() };
      this.set(this.readyOnce ? 'standby' : 'paused');
      return;
    }
    this.error = error;
    this.set('aborting');
    this.qemu.event('BLOCK_JOB_COMPLETED', { ...this.data(), error });
    this.conclude();
  }

  private conclude(): void {
    this.disk.settle();
    this.disk.mirror = undefined;
    this.qemu.host.world.network.remove(this);
    this.set('concluded');
    this.qemu.jobEnded(this, this.options['auto-dismiss'] ?? true);
  }

  /** The job's end comes a moment after the command that asked for it. */
  private later(work: () => void): void {
    setTimeout(() => {
      if (!this.qemu.alive) return;
      this.qemu.host.world.network.advance();
      work();
    }, this.qemu.host.world.scaled(2)).unref();
  }

  private set(status: Status): void {
    if (status === 'running' && this.status === 'created') this.qemu.event('JOB_STATUS_CHANGE', { status: 'created', id: this.id });
    this.status = status;
    this.qemu.event('JOB_STATUS_CHANGE', { status, id: this.id });
  }

  private data(): object {
    return { device: this.id, len: this.shown.len, offset: this.shown.offset, speed: 0, type: 'mirror' };
  }
}
