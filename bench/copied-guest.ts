import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { guestKernelArguments, type GuestOptions } from '../demo/guest/artifacts';

const MIB = 2 ** 20;

/** A guest whose disks hold the same bytes whoever moves it. */
export interface GuestSpec {
  name: string;
  disks: number;
  /** Of each disk. */
  sizeMiB: number;
  dataMiB: number;
  /** Odd: QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB. */
  memoryKib: number;
  options: GuestOptions;
}

/** What a side saw of one move. Milliseconds since the epoch. */
export interface Moved {
  began: number;
  /** The first thing that was done for the mirrors. */
  copyBegan: number;
  /** When the last mirror was READY. */
  copied: number;
  /** `migrate` was sent. */
  memoryBegan: number;
  /** The destination's QEMU had all. */
  memoryMoved: number;
  stopped: number;
  resumed: number;
  /** The side has nothing more to do: for vmferry the migration's result, for the script the end of what it started. */
  ended: number;
  /** The guest's own downtime, in milliseconds. */
  gapMs: number;
  memoryTries: number;
}

export interface MoveSide {
  readonly name: string;
  /** Boots guests with new disks. */
  boot(specs: GuestSpec[]): Promise<void>;
  /** Moves all that were booted, at once. Throws if one does not arrive. */
  move(): Promise<Moved[]>;
  /** Where a guest's disks are after the move. */
  imagesThere(spec: GuestSpec): string[];
  /** Throws if a guest lost anything that it wrote. */
  verify(): Promise<void>;
  /** Ends the guests, and removes their disks. */
  end(): Promise<void>;
}

/** The guest as vmferry's definition, which both sides start QEMU from. */
export function definitionOf({ name, disks, memoryKib, options }: GuestSpec) {
  return {
    name,
    machine: 'pc-q35-7.2',
    cpu: { model: 'qemu64', count: 1 },
    memory: `${memoryKib}K`,
    boot: { kernel: '${boot}/vmlinuz', initrd: '${boot}/initramfs.img', append: guestKernelArguments({ ...options, dirtyBase: true }) },
    disks: Array.from({ length: disks }, (_, index) => ({ id: `disk-${index}`, path: `\${images}/${imageName(name, index)}`, format: 'raw', bus: 'virtio-scsi' })),
    arguments: ['-chardev', 'socket,id=serial0,path=${run}/serial.sock,server=on,wait=off', '-serial', 'chardev:serial0'],
  };
}

export const imageName = (guest: string, index: number) => `${guest}-${index}.raw`;

/** A raw image with this much data, in pieces of 1 MiB spread over it; everything else are holes. */
export function masterImage(folder: string, { sizeMiB, dataMiB }: Pick<GuestSpec, 'sizeMiB' | 'dataMiB'>): string {
  const path = join(folder, `master-${sizeMiB}-${dataMiB}.raw`);
  if (existsSync(path)) return path;
  const file = openSync(path, 'w');
  try {
    ftruncateSync(file, sizeMiB * MIB);
    const piece = randomBytes(MIB);
    for (let index = 0; index < dataMiB; index++) {
      piece.writeUInt32LE(index);
      writeSync(file, piece, 0, MIB, Math.floor((index * sizeMiB) / dataMiB) * MIB);
    }
  } finally {
    closeSync(file);
  }
  return path;
}

/** Gives the guest its disks in this folder. */
export function makeDisks(masters: string, folder: string, spec: GuestSpec): void {
  for (let index = 0; index < spec.disks; index++) execFileSync('cp', ['--sparse=auto', masterImage(masters, spec), join(folder, imageName(spec.name, index))]);
}

/** Throws if an image is not what the guest, which wrote nothing, had. */
export function assertSameImage(masters: string, spec: GuestSpec, image: string): void {
  execFileSync('qemu-img', ['compare', '-U', '-q', '-f', 'raw', '-F', 'raw', masterImage(masters, spec), image], { stdio: 'ignore' });
}
