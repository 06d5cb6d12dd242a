import { truncateSync, writeFileSync } from 'node:fs';
import type { GuestOptions } from '../demo/guest/artifacts';
import type { TestGuest } from '../demo/guest/test-guest';

/** One of the two that are compared, with two hosts between which it moves a guest. */
export interface Side {
  readonly name: 'vmferry' | 'libvirt';
  /** Boots a guest with new disks on host a, and attaches to its console there. */
  boot(name: string, guest: TestGuest, options: GuestOptions): Promise<void>;
  /** Moves it to host b. False if it has not got there by the deadline: what was begun is then given up. Throws if the move fails otherwise. */
  move(name: string, guest: TestGuest, deadlineMs: number): Promise<boolean>;
  /** Ends the guest wherever it is, and removes its disks. */
  end(name: string): Promise<void>;
  close(): Promise<void>;
}

export const DISKS = 2;
export const DISK_MIB = 128;
/** Odd: QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB. */
export const MEMORY_KIB = 262_152;
export const MACHINE = 'pc-q35-7.2';
export const QEMU = '/usr/bin/qemu-system-x86_64';

/** Makes an empty disk. */
export function makeDisk(path: string): void {
  writeFileSync(path, '');
  truncateSync(path, DISK_MIB * 2 ** 20);
}
