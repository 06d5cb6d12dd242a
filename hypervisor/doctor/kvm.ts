import { constants } from 'node:fs';
import { access, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '../host';
import { type Finding, ok, problem, warning } from './findings';

export interface KvmFacts {
  device: 'usable' | 'missing' | 'forbidden';
  /** Guests of this host whose definition says `accelerator: kvm`. */
  guests: string[];
  /** Absent where it could not be tried. */
  boot?: { outcome: 'started'; ms: number } | { outcome: 'silent'; waitedMs: number } | { outcome: 'failed'; said: string };
}

/** A guest of one sector starts within 0.3 s under TCG. */
export const KVM_MS = 5_000;
/** A QEMU that hangs in the kernel may not end even by SIGKILL. */
const KILL_MS = 1_000;
/** The firmware boots from no disk of a single sector. */
const DISK_BYTES = 2 ** 20;
const DEVICE = '/dev/kvm';
const SIGN = 'V';

/**
 * A boot sector that writes `SIGN` to the debug console (port 0xe9), ends QEMU through isa-debug-exit (port 0xf4), and halts. It comes after the
 * firmware on purpose: a guest that starts without one runs even where KVM hangs every other (seen under nested virtualization).
 */
const SECTOR = Buffer.alloc(512);
SECTOR.set([0xba, 0xe9, 0x00, 0xb0, SIGN.charCodeAt(0), 0xee, 0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd]);
SECTOR.set([0x55, 0xaa], 510);

export async function lookAtKvm({ host }: { host: Host }): Promise<KvmFacts> {
  const device = await access(DEVICE, constants.R_OK | constants.W_OK).then(() => 'usable' as const, (error: NodeJS.ErrnoException) => (error.code === 'ENOENT' ? ('missing' as const) : ('forbidden' as const)));
  const guests = host.store.names().filter((name) => host.store.definition(name)?.accelerator === 'kvm');
  const emulator = host.config.binaries.qemu.find((path) => /x86_64|i386/.test(basename(path)));
  return { device, guests, ...(device === 'usable' && emulator && { boot: await bootTinyGuest(host, emulator, 'kvm') }) };
}

/** Boots a guest of one sector and waits until it has said that it runs, or for `deadlineMs`. Leaves nothing behind. */
export async function bootTinyGuest({ programs }: Pick<Host, 'programs'>, emulator: string, accelerator: 'kvm' | 'tcg', deadlineMs = KVM_MS): Promise<KvmFacts['boot'] & object> {
  const folder = await mkdtemp(join(tmpdir(), 'vmferry-doctor-'));
  const over = new AbortController();
  try {
    const image = join(folder, 'sector');
    await writeFile(image, SECTOR);
    await truncate(image, DISK_BYTES);
    const args = ['-machine', `q35,accel=${accelerator}`, '-m', '16', '-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-drive', `if=ide,format=raw,file=${image}`, '-device', 'isa-debug-exit,iobase=0xf4,iosize=4', '-debugcon', 'stdio'];
    const began = performance.now();
    const stuck = delay(deadlineMs + KILL_MS, { stdout: '', stderr: '' }, { signal: over.signal });
    stuck.catch(() => undefined);
    const { stdout, stderr } = await Promise.race([programs.converse(emulator, args, '', deadlineMs), stuck]);
    const ms = Math.round(performance.now() - began);
    if (stdout.includes(SIGN)) return { outcome: 'started', ms };
    return ms >= deadlineMs ? { outcome: 'silent', waitedMs: deadlineMs } : { outcome: 'failed', said: stderr.trim().split('\n').at(-1) || 'it said nothing' };
  } finally {
    over.abort();
    await rm(folder, { recursive: true, force: true });
  }
}

export function judgeKvm({ device, guests, boot }: KvmFacts): Finding[] {
  const wanted = guests.length > 0;
  // Whoever has no guest for it may well do without.
  const found = (saw: string, fix: string) => [wanted ? problem(`${saw} (wanted by ${guests.join(', ')})`, fix) : warning(saw, fix)];
  if (device === 'missing') return found(`there is no ${DEVICE}: guests can only run with accelerator tcg, some ten times slower`, 'turn on virtualization in the firmware and load kvm_intel or kvm_amd, or give guests accelerator: tcg');
  if (device === 'forbidden') return found(`${DEVICE} may not be opened by this user`, 'let the user of the agent be in the group of it (usermod -aG kvm USER)');
  if (!boot) return [warning(`KVM was not tried: no QEMU for x86 is listed`, 'list one in binaries.qemu')];
  switch (boot.outcome) {
    case 'started':
      return [ok(`KVM works: a tiny guest started within ${boot.ms} ms`)];
    case 'silent':
      return found(`KVM does not work: guest did not start within ${boot.waitedMs / 1000} s; use accel=tcg`, 'give guests accelerator: tcg. On a virtual machine, turn on nested virtualization outside');
    case 'failed':
      return found(`KVM does not work: ${boot.said}; use accel=tcg`, 'give guests accelerator: tcg, or correct what QEMU says');
  }
}
