import type { Definition } from './definition';
import { formatBytes } from './size';

/**
 * QEMU 7.2 under TCG corrupts the memory of a guest that migrates when its RAM is a multiple of 256 KiB, and says that all went well (facts/qemu.md §0).
 * What a person should know of such a guest, and undefined of any other.
 */
export function memoryTrap({ accelerator, memory }: Pick<Definition, 'accelerator' | 'memory'>, { major, minor }: { major: number; minor: number }): { saw: string; fix: string } | undefined {
  if (accelerator !== 'tcg' || major !== 7 || minor !== 2 || memory % (256 * 1024) !== 0) return undefined;
  return {
    saw: `QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB, as this one's ${formatBytes(memory)} is`,
    fix: `give it 8 KiB more (memory: ${memory / 1024 + 8}K), or another QEMU`,
  };
}
