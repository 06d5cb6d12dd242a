import type { Mirror } from './mirror';
import type { Node } from './block-graph';

/** What a guest does to one of its disks. It belongs to the guest, and goes on wherever that runs. Wall-clock bytes a second. */
export interface DiskBehaviour {
  /** What the guest writes, at random places of `workingSetBytes`: what is rewritten is copied once. */
  writeBytesPerSecond: number;
  workingSetBytes: number;
  /** What of its size the image holds: zeros cost no link. */
  dataBytes: number;
}

/** A drive of a running QEMU. */
export class GuestDisk {
  /** Bytes that the guest wrote here. */
  written = 0;
  limits: Record<string, number> & { group?: string } = {};
  mirror: Mirror | undefined;
  private at = performance.now();

  constructor(
    readonly device: string,
    readonly qdev: string,
    readonly node: Node,
    readonly removable: boolean,
    readonly readOnly: boolean,
    readonly behaviour: DiskBehaviour,
    /** What the guest may write in this time, by the limits of the group that this disk is in. */
    private readonly allowed: (disk: GuestDisk) => number,
    private readonly running: () => boolean,
    private readonly content: { write(bytes: number): void },
  ) {}

  /** What it writes a second now. */
  get rate(): number {
    return !this.running() || this.readOnly ? 0 : Math.min(this.behaviour.writeBytesPerSecond, this.allowed(this));
  }

  /** Counts what was written since the last call; gives it. Called before anything that its rate depends on changes. */
  settle(now = performance.now()): number {
    const ms = Math.max(0, now - this.at);
    this.at = now;
    const mirror = this.mirror;
    // A write-blocking mirror lets through what the link carries, and counts it itself.
    if (mirror?.writeBlocking) return 0;
    return this.write((this.rate * ms) / 1000);
  }

  write(bytes: number): number {
    if (bytes <= 0) return 0;
    this.written += bytes;
    this.content.write(bytes);
    this.mirror?.dirty(bytes);
    return bytes;
  }
}
