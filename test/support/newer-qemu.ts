import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

/** A host's `binaries`. */
export interface Binaries {
  qemu: [string];
  storageDaemon: string;
  qemuImg: string;
}

let found: { bin: string } | { reason: string } | undefined;

/** Where the programs of a newer QEMU than this machine's are, or why there is none. Installs it the first time, which takes seconds. */
export function newerQemu(): { bin: string } | { reason: string } {
  return (found ??= install());
}

function install(): { bin: string } | { reason: string } {
  const { stdout, stderr, error } = spawnSync(join(__dirname, '../../scripts/newer-qemu.sh'), { encoding: 'utf8' });
  const bin = stdout?.trim();
  return bin ? { bin } : { reason: error?.message ?? stderr.trim().split('\n').at(-1)! };
}

/** Throws the reason why there is none. */
export function newerBinaries(): Binaries {
  const newer = newerQemu();
  if ('reason' in newer) throw new Error(newer.reason);
  const [qemu, storageDaemon, qemuImg] = ['qemu-system-x86_64', 'qemu-storage-daemon', 'qemu-img'].map((program) => join(newer.bin, program)) as [string, string, string];
  return { qemu: [qemu], storageDaemon, qemuImg };
}

/** A `describe` of what needs a newer QEMU. Where there is none, its tests are not even declared: one that is skipped says why. */
export function describeWithNewerQemu(name: string, declare: (binaries: Binaries) => void): void {
  const newer = newerQemu();
  if ('bin' in newer) {
    describe(name, () => declare(newerBinaries()));
    return;
  }
  console.log(`skipped: ${name}: ${newer.reason}`);
  describe(name, () => test.skip(newer.reason, () => undefined));
}
