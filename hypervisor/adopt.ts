import { readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import type { QmpExecutor } from '../qmp/connection';
import { QmpCommandFailed } from '../qmp/errors';
import type { BlockInfo } from '../qmp/vocabulary';
import { findBlock } from './blocks';
import { qemuArguments } from './command-line';
import { type Definition, definitionSchema, InvalidDefinition, parseWith } from './definition';
import { GuestStateError } from './host';
import { type HostConfig, resolvePath } from './host-config';
import { findMonitor, findName, type Import, importCommandLine } from './import-command-line';
import { OURS } from './ours';
import { parseArguments, readFields } from './qemu-options';
import { commandLineOf, identify, type ProcessIdentity } from './processes';

export { importCommandLine } from './import-command-line';

/** A QEMU on this host, whoever started it. */
export interface QemuProcess extends ProcessIdentity {
  /** After `-daemonize` or `-chroot` this is `/`, wherever it started. */
  cwd: string;
  /** Real path of its binary, also of one that was replaced since. */
  executable: string;
  /** `/`, unless it runs in a container or a chroot. */
  root: string;
  uid: number;
  /** From `-name`. */
  name?: string;
  /** Its first QMP socket. */
  monitor?: string;
}

/** A guest that cannot be taken over as it runs; `reasons` are all that were found. */
export class AdoptionRefused extends GuestStateError {
  constructor(
    pid: number,
    readonly reasons: string[],
  ) {
    super(`the QEMU with pid ${pid} cannot be adopted:\n  ${reasons.join('\n  ')}`);
  }
}

/** What /proc knows about a process; undefined if it is gone, or is somebody's whom we may not look at. */
export function describeProcess(pid: number): (QemuProcess & { argv: string[] }) | undefined {
  try {
    const identity = identify(pid);
    if (!identity) return undefined;
    const [argv, cwd] = [commandLineOf(pid), readlinkSync(`/proc/${pid}/cwd`)];
    const [name, monitor] = [findName(argv), findMonitor(argv, cwd)];
    const executable = readlinkSync(`/proc/${pid}/exe`).replace(/ \(deleted\)$/, '');
    const uid = Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
    return { ...identity, argv, cwd, executable, root: readlinkSync(`/proc/${pid}/root`), uid, ...(name && { name }), ...(monitor && { monitor }) };
  } catch {
    return undefined;
  }
}

/** All QEMUs on this host that run a binary which its configuration lists. Without their arguments, which may hold secrets: the list leaves the host. */
export async function findQemuProcesses(config: HostConfig): Promise<QemuProcess[]> {
  const pids = readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).map(Number);
  const found = pids.flatMap((pid) => describeProcess(pid) ?? []).filter(({ executable }) => emulatorName(config, executable) !== undefined);
  return found.map(({ argv: _argv, ...process }) => process);
}

/** The name under which the configuration lists this binary. */
function emulatorName(config: HostConfig, executable: string): string | undefined {
  const binary = config.binaries.qemu.find((path) => {
    try {
      return realpathSync(path) === executable;
    } catch {
      return path === executable;
    }
  });
  return binary && basename(binary);
}

/**
 * Derives the definition of a QEMU that somebody else started, from its command line, and holds it against what QMP and /proc say:
 * whatever was changed since it started, and a definition would lose, is refused. Changes nothing. `connect` gives the monitor at a path.
 * Throws `AdoptionRefused` with all reasons.
 */
export async function adoptProcess(
  config: HostConfig,
  pid: number,
  connect: (path: string) => Pick<QmpExecutor, 'execute'>,
  name?: string,
): Promise<{ definition: Definition; monitor: string; blocks: BlockInfo[] }> {
  const found = describeProcess(pid);
  if (!found) throw new AdoptionRefused(pid, ['there is no such process, or this agent may not look at it']);
  const { argv, cwd, executable } = found;
  const emulator = emulatorName(config, executable);
  if (!emulator) throw new AdoptionRefused(pid, [`it runs ${executable}, which is none of ${config.binaries.qemu.join(', ')}: add it to binaries.qemu of host ${config.name}`]);
  const files = openFiles(pid);
  const context = { config, cwd, emulator, ...(name !== undefined && { name }), ...(files && { accelerator: files.kvm ? ('kvm' as const) : ('tcg' as const) }) };
  if (!found.monitor) throw new AdoptionRefused(pid, importCommandLine(argv, context).reasons);

  const qmp = connect(found.monitor);
  const machine = ((await qmp.execute('qom-get', { path: '/machine', property: 'type' })) as string).replace(/-machine$/, '');
  const blocks = await qmp.execute('query-block');
  const memory = await qmp.execute('query-memory-size-summary');
  const cpus = await qmp.execute('query-cpus-fast');
  const devices = (await qmp.execute('qom-list', { path: '/machine/peripheral' })).filter(({ type }) => type.startsWith('child<')).map((device) => device.name);

  const imported = importCommandLine(argv, { ...context, machine });
  const reasons = [...imported.reasons, ...changedBlocks(imported, blocks, cwd), ...changedDevices(argv, devices)];
  if (found.root !== '/' && !argv.some((word) => /^--?(chroot|run-with)$/.test(word))) reasons.push(`it runs in another root folder (${found.root}), as in a container: its paths are not this host's`);
  if (found.root !== '/' || found.uid !== process.getuid?.()) reasons.push(...(await closedImages(qmp, found, imported)));
  if (memory['plugged-memory']) reasons.push(`${memory['plugged-memory']} bytes of memory were plugged in since it started`);
  const { definition, monitor } = imported;
  if (!definition || !monitor) throw new AdoptionRefused(pid, reasons);
  if (cpus.length !== definition.cpu.count) reasons.push(`it has ${cpus.length} CPUs, and started with ${definition.cpu.count}`);
  const disks = definition.disks.map((disk) => {
    const block = findBlock(blocks, disk);
    if (files && !files.has(resolvePath(config, definition.name, disk.path))) reasons.push(`disk ${disk.id}: the process does not have ${disk.path} open: was it replaced, renamed or deleted since?`);
    return { ...disk, format: block?.format ?? disk.format, readOnly: block?.readOnly ?? disk.readOnly, removable: block?.removable ?? disk.removable };
  });
  try {
    const adopted = parseWith(definitionSchema, { ...definition, memory: memory['base-memory'], disks }, `the definition of guest "${definition.name}"`);
    // A definition that this host would not start again is refused now, not at the next move.
    qemuArguments(config, adopted, { incoming: true });
    if (reasons.length === 0) return { definition: adopted, monitor, blocks };
  } catch (error) {
    if (!(error instanceof InvalidDefinition)) throw error;
    reasons.push(error.message);
  }
  throw new AdoptionRefused(pid, reasons);
}

/** Disks that are not what the command line says: ejected, inserted, plugged in, or moved to another image by a snapshot. */
function changedBlocks({ disks }: Import, blocks: readonly BlockInfo[], cwd: string): string[] {
  const reasons: string[] = [];
  const known = new Set<string>();
  for (const disk of disks) {
    const block = findBlock(blocks, disk);
    if (!block) {
      reasons.push(`disk ${disk.id} of its command line is not in the running guest: it was ejected or unplugged`);
      continue;
    }
    known.add(block.device);
    if (!block.file.includes(':') && resolve(cwd, block.file) !== resolve(cwd, disk.file)) reasons.push(`disk ${disk.id} is on ${block.file} now, not on ${disk.file}: merge its snapshot (block-commit) first`);
  }
  for (const block of blocks) {
    const device = findBlock([block], { id: block.device || (block.inserted?.['node-name'] ?? '') })?.device;
    if (block.inserted && !known.has(device ?? '')) reasons.push(`${block.device || block.qdev} (${block.inserted.file}) is not of its command line: it was inserted or plugged in; eject or unplug it first`);
  }
  return reasons;
}

/**
 * Images that QEMU cannot open again from where it is (`-chroot`), or as who it is (`-runas`). With auto-read-only it must at the end of a
 * move, as it lets go of them: otherwise each try fails at its last moment ("bdrv_inactivate_all() failed (-1)", measured on 7.2). QEMU
 * itself is asked, since it knows its rights best: it opens each for a moment, unlocked, and reads and writes nothing.
 */
async function closedImages(qmp: Pick<QmpExecutor, 'execute'>, { root, uid, cwd }: QemuProcess, { disks }: Import): Promise<string[]> {
  const node = `${OURS}probe`;
  const reasons: string[] = [];
  await qmp.execute('blockdev-del', { 'node-name': node }).catch(() => undefined);
  for (const { id, file } of disks.filter(({ reopens }) => reopens)) {
    try {
      await qmp.execute('blockdev-add', { driver: statSync(resolve(cwd, file), { throwIfNoEntry: false })?.isBlockDevice() ? 'host_device' : 'file', 'node-name': node, filename: file, locking: 'off' });
      await qmp.execute('blockdev-del', { 'node-name': node });
    } catch (error) {
      if (!(error instanceof QmpCommandFailed)) throw error;
      reasons.push(`disk ${id}: QEMU cannot open its image again (${error.desc}), as it must when it hands the guest over: make ${file} the same file in its root folder ${root}, for user ${uid} to read and write`);
    }
  }
  return reasons;
}

/** Devices with an id that came or went since the start: `-device` says what the destination's machine has. */
function changedDevices(argv: readonly string[], present: string[]): string[] {
  const started = parseArguments(argv.slice(1)).filter(({ flag }) => flag === 'device').flatMap((option) => readFields(option)['id'] ?? []);
  return [
    ...present.filter((id) => !started.includes(id)).map((id) => `device ${id} was plugged in since it started: unplug it first`),
    ...started.filter((id) => !present.includes(id)).map((id) => `device ${id} was unplugged since it started`),
  ];
}

interface OpenFiles {
  kvm: boolean;
  has(path: string): boolean;
}

/** The files that a process has open, by identity; undefined if we may not look. */
function openFiles(pid: number): OpenFiles | undefined {
  try {
    const folder = `/proc/${pid}/fd`;
    const links = readdirSync(folder).map((fd) => `${folder}/${fd}`);
    const identity = (path: string) => {
      const stat = statSync(path, { throwIfNoEntry: false });
      return stat && `${stat.dev}:${stat.ino}`;
    };
    const open = new Set(links.map(identity));
    return { kvm: links.some((link) => readlinkSync(link) === 'anon_inode:kvm-vm'), has: (path) => open.has(identity(path) ?? 'missing') };
  } catch {
    return undefined;
  }
}
