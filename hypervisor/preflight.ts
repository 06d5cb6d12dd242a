import { constants, existsSync, lstatSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { QmpConnection } from '../qmp/connection';
import { QmpMonitorBusy, QmpProtocolError } from '../qmp/errors';
import { findBlock } from './blocks';
import { qemuArguments } from './command-line';
import { allDisks, type Definition, InvalidDefinition, movingDisks } from './definition';
import type { Ownership } from './guest-store';
import { type Host } from './host';
import { resolvePath } from './host-config';
import { imageInfo, missingFolders } from './images';
import { emulatorPath } from './launch';
import { OURS } from './ours';
import { postCopyRefusal } from './post-copy';
import { formatBytes } from './size';
import { tlsOutOfReach } from './tls-access';
import { tlsFindings } from './tls-files';
import { modesDiffer, type SecurityMode, transportOf } from './transport';

/** One disk of a guest that is to move. */
export interface DiskPlan {
  id: string;
  /** Where it is, independent of the host: `${root}/name`. */
  path: string;
  format: 'raw' | 'qcow2';
  cache: 'none' | 'writeback';
  /** What the source's `blockdev-mirror` calls it. */
  device: string;
  sizeBytes: number;
  /** Bytes that its image takes on the source. */
  allocatedBytes: number;
  blockDevice: boolean;
}

/** What a destination must know of a guest; only portable paths, no secrets. */
export interface GuestPlan {
  definition: Definition;
  disks: DiskPlan[];
  running: boolean;
  /** It has no QEMU: only its images move. */
  cold?: boolean;
  /** What this QEMU can do about mirrors that do not converge: by what it says, never by its version. */
  features: { writeBlockingLive: boolean; rearm: boolean; ioThrottle: boolean };
  /** Names of the memory migration's settings that this QEMU has. */
  memoryFeatures: string[];
  /** The attempt that brought the guest to where it is: what proves a copy that this attempt left elsewhere to be out of date. */
  arrivedBy?: string;
  /** How the source sends it. An agent that does not say knows plain text only. */
  security?: SecurityMode;
  /** What the source's configuration gives for fields that a migration's input leaves out. */
  defaults: Record<string, unknown>;
}

export interface Findings {
  /** Each reason why the guest cannot move, with what to do. */
  blockers: string[];
  /** What the user should know, though it stops nothing. */
  warnings: string[];
}

/** Asks the source everything that could stop a move. Changes nothing. `attempt` is the one that asks: its own traces do not count. */
export async function inspectSource(host: Host, guest: string, attempt: string): Promise<{ plan?: GuestPlan } & Findings> {
  const blockers: string[] = [];
  const warnings: string[] = [];
  const definition = host.store.definition(guest);
  if (!definition) return { blockers: [`guest "${guest}" is not defined on ${host.name} (here are: ${host.store.names().join(', ') || 'none'})`], warnings };
  const ownership = host.store.ownership(guest);
  if (ownership?.state === 'handed-over' && ownership.attempt !== attempt) blockers.push(`guest "${guest}" was handed over to ${ownership.to} by attempt ${ownership.attempt}: vmferry repair ${guest} finds out which copy is the guest`);
  if (ownership?.state === 'incoming') blockers.push(`guest "${guest}" is still on its way from ${ownership.from} to ${host.name}`);
  if (!host.process(guest)) return { blockers: [...blockers, `guest "${guest}" does not run on ${host.name}: start it first (vmferry vm start ${guest})`], warnings };
  let qmp: QmpConnection;
  try {
    qmp = await host.monitor(guest).connection();
  } catch (error) {
    // Only a person can help here: it is not tried again.
    if (error instanceof QmpMonitorBusy || error instanceof QmpProtocolError) return { blockers: [...blockers, error.message], warnings };
    throw error;
  }
  const [commands, capabilities, parameters, status, migration, jobs, blocks, nodes, version] = await Promise.all([qmp.execute('query-commands'), qmp.execute('query-migrate-capabilities'), qmp.execute('query-migrate-parameters'), qmp.execute('query-status'), qmp.execute('query-migrate'), qmp.execute('query-jobs'), qmp.execute('query-block'), qmp.execute('query-named-block-nodes', { flat: true }), qmp.execute('query-version')]);
  if (!['running', 'paused'].includes(status.status) && ownership?.state === 'owner') blockers.push(`guest "${guest}" is in state "${status.status}": only a running or paused guest can move`);
  for (const reason of migration['blocked-reasons'] ?? []) blockers.push(`QEMU cannot migrate guest "${guest}": ${reason}`);
  jobs.filter(({ id }) => !id.startsWith(OURS)).forEach((job) => blockers.push(`another block job is under way: ${job.type} "${job.id}" (${job.status}): let it end, or cancel and dismiss it`));

  const disks: DiskPlan[] = [];
  for (const disk of movingDisks(definition)) {
    const block = findBlock(blocks, disk);
    if (!block) {
      blockers.push(`disk ${disk.id} of the definition is not attached to the running guest (it has ${blocks.map((one) => one.device || one.qdev || '?').join(', ')})`);
      continue;
    }
    // A mirror that an earlier attempt left is on top of the disk, and goes before the new one starts: what is behind it stays.
    const behind = nodes.filter((node) => node.file === block.file && node.drv === disk.format && !node['node-name']?.startsWith(OURS));
    const device = block.nodeName?.startsWith(OURS) ? behind[0]?.['node-name'] : block.device;
    if (device === undefined || (block.nodeName?.startsWith(OURS) && behind.length > 1)) {
      blockers.push(`a mirror that an earlier attempt left hides disk ${disk.id} (node ${block.nodeName}), and what is behind it cannot be told: cancel and dismiss the jobs that begin with ${OURS}`);
      continue;
    }
    const path = host.path(guest, disk.path);
    const info = await imageInfo(host, path, disk.format);
    if (info.snapshots.length > 0) blockers.push(`disk ${disk.id} has internal snapshots (${info.snapshots.join(', ')}), which a mirror does not carry: delete them (qemu-img snapshot -d)`);
    const allocatedBytes = info.blockDevice ? block.sizeBytes : statSync(path).blocks * 512;
    disks.push({ id: disk.id, path: disk.path, format: disk.format, cache: disk.cache, device, sizeBytes: block.sizeBytes, allocatedBytes, blockDevice: info.blockDevice });
  }
  const defined = new Set(allDisks(definition).map((disk) => findBlock(blocks, disk)?.device));
  for (const block of blocks) {
    if (block.inserted && !block.inserted.ro && !defined.has(findBlock([block], { id: block.device || (block.inserted['node-name'] ?? '') })?.device)) {
      blockers.push(`the running guest writes to ${block.device || block.qdev} (${block.inserted.file}), which its definition does not name: add it to disks`);
    }
  }
  const tls = tlsFindings(host.config);
  blockers.push(...tls.blockers, ...tlsOutOfReach(host.config, 'client', host.process(guest)));
  warnings.push(...tls.warnings);
  const machine = (await qmp.execute('qom-get', { path: '/machine', property: 'type' })) as string;
  const { major, minor } = version.qemu;
  if (definition.accelerator === 'tcg' && major === 7 && minor === 2 && definition.memory % (256 * 1024) === 0) {
    warnings.push(`QEMU 7.2 under TCG corrupts the memory of migrated guests whose RAM is a multiple of 256 KiB, as this one's ${formatBytes(definition.memory)} is: give it 8 KiB more (memory: ${definition.memory / 1024 + 8}K), or another QEMU`);
  }
  // An alias such as `q35` means another machine on another QEMU.
  const pinned: Definition = { ...definition, machine: machine.replace(/-machine$/, '') };
  const known = new Set(commands.map(({ name }) => name));
  const features = { writeBlockingLive: known.has('block-job-change'), rearm: known.has('blockdev-mirror'), ioThrottle: known.has('block_set_io_throttle') };
  const memoryFeatures = [...capabilities.map(({ capability }) => capability), ...Object.keys(parameters)];
  return { blockers, warnings, plan: { definition: pinned, disks, running: status.running, features, memoryFeatures, defaults: host.config.migration, security: transportOf(host.config).mode, ...(ownership?.state === 'owner' && ownership.attempt !== undefined && { arrivedBy: ownership.attempt }) } };
}

/** The copy that a guest left on this host when it moved to where it is now, if the migration that moved it was ended before it was retired. */
export function leftBehind(host: Host, { definition, arrivedBy }: GuestPlan): Ownership & { state: 'handed-over' } | undefined {
  const ownership = host.store.ownership(definition.name);
  return ownership?.state === 'handed-over' && ownership.attempt === arrivedBy ? ownership : undefined;
}

/** Asks the destination everything that could stop this guest from coming. Changes nothing. */
export async function inspectDestination(host: Host, plan: GuestPlan, { attempt, from, postCopy }: { attempt: string; from: string; postCopy?: true }): Promise<Findings> {
  const { definition, disks } = plan;
  const guest = definition.name;
  const blockers: string[] = [];
  const here = host.store.attempt(guest);
  const ownership = host.store.ownership(guest);
  const leftover = here?.role === 'destination' && ownership?.state !== 'owner' ? here : undefined;
  const behind = leftBehind(host, plan);
  const imagesBehind = behind ? movingDisks(host.definition(guest)).map((disk) => host.path(guest, disk.path)) : [];
  if (ownership && !leftover && !behind) blockers.push(`guest "${guest}" is defined on ${host.name} already (${ownership.state}): remove that copy first (vmferry vm remove ${guest} --host ${host.name})`);
  if (host.process(guest) && !leftover && !behind) blockers.push(`a QEMU of guest "${guest}" runs on ${host.name} already`);
  await collect(blockers, async () => {
    const emulator = emulatorPath(host, definition.emulator);
    const machines = await host.programs.run(emulator, ['-machine', 'help']);
    if (!machines.split('\n').some((line) => line.split(/\s/)[0] === definition.machine)) blockers.push(`${emulator} on ${host.name} has no machine type ${definition.machine}: it is older than the source's, upgrade QEMU there`);
    const model = definition.cpu.model.split(',')[0]!;
    const models = await host.programs.run(emulator, ['-cpu', 'help']);
    if (!models.split(/\s+/).some((word) => word.replace(/-x86_64-cpu$/, '') === model)) blockers.push(`${emulator} on ${host.name} has no CPU model ${model}`);
  });
  if (postCopy) {
    await collect(blockers, async () => {
      const refusal = plan.memoryFeatures.includes('postcopy-ram') ? await postCopyRefusal(host, definition.emulator) : "the source's QEMU has no capability postcopy-ram";
      if (refusal) blockers.push(`post-copy is asked for, and cannot be had: ${refusal}. Leave it out (--post-copy, field postCopy), or let ${host.name} have it`);
    });
  }
  const free = host.freeMemory(guest);
  if (!plan.cold && definition.memory > free) blockers.push(`${host.name} is ${formatBytes(definition.memory - free)} of memory short: guest "${guest}" needs ${formatBytes(definition.memory)}, ${formatBytes(Math.max(0, free))} are free`);

  const needed = new Map<number, { folder: string; bytes: number }>();
  for (const disk of disks) {
    await collect(blockers, async () => {
      const path = host.path(guest, disk.path);
      if (disk.blockDevice || statSync(path, { throwIfNoEntry: false })?.isBlockDevice()) {
        blockers.push(...(await blockDeviceProblems(host, disk, path)));
        return;
      }
      // A link to nowhere exists too: the image could not be made there.
      if (lstatSync(path, { throwIfNoEntry: false }) && !imagesBehind.includes(path) && !(leftover?.made.includes(path) || here?.attempt === attempt)) {
        blockers.push(`${path} exists on ${host.name} already: move or delete it if it is not needed (disk ${disk.id} goes there)`);
      }
      const folder = dirname(missingFolders(path)[0] ?? path);
      const device = statSync(folder).dev;
      const entry = needed.get(device) ?? { folder, bytes: 0 };
      needed.set(device, { folder, bytes: entry.bytes + disk.allocatedBytes });
    });
  }
  for (const { folder, bytes } of needed.values()) {
    const freeDisk = host.freeDisk(folder);
    if (bytes > freeDisk) blockers.push(`${host.name} is ${formatBytes(bytes - freeDisk)} of disk space short in ${folder}: the images hold ${formatBytes(bytes)}, ${formatBytes(freeDisk)} are free`);
  }
  const moving = new Set(disks.map(({ id }) => id));
  const mustExist = [
    ...allDisks(definition).filter((disk) => !moving.has(disk.id)).map((disk) => [`read-only or removable disk ${disk.id}`, disk.path]),
    ...[definition.boot?.kernel, definition.boot?.initrd, definition.firmware?.code].filter((path) => path !== undefined).map((path) => ['file', path]),
  ] as [string, string][];
  for (const [what, portable] of mustExist) {
    await collect(blockers, async () => {
      const path = resolvePath(host.config, guest, portable);
      if (!existsSync(path)) blockers.push(`${what} is not copied and must be on ${host.name}, but ${path} is missing`);
    });
  }
  // Whatever else its command line names: the incoming QEMU would be refused only after the disks were copied.
  if (!plan.running && !plan.cold && (host.config.chroot ?? host.config.runAs)) blockers.push(`guest "${guest}" is paused, and ${host.name} has chroot or runAs, where a guest that arrives paused cannot open its images for its next move: let it run (cont), or move it elsewhere`);
  await collect(blockers, async () => void qemuArguments(host.config, definition, { incoming: true }));
  const { mode } = transportOf(host.config);
  const differ = modesDiffer({ name: from, mode: plan.security }, { name: host.name, mode });
  const tls = tlsFindings(host.config);
  blockers.push(...(differ ? [differ] : []), ...tls.blockers, ...(plan.cold ? [] : tlsOutOfReach(host.config, 'server')));
  return { blockers: [...new Set(blockers)], warnings: tls.warnings };
}

/** A block device is overwritten: it must be there, be large enough and be used by nobody. */
async function blockDeviceProblems(host: Host, disk: DiskPlan, path: string): Promise<string[]> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) return [`disk ${disk.id} is a block device, and ${path} is missing on ${host.name}: make one of at least ${disk.sizeBytes} bytes`];
  if (!stat.isBlockDevice()) return [`disk ${disk.id} is a block device, but ${path} on ${host.name} is not`];
  // O_EXCL on a block device fails while it is mounted or held by anybody else (open(2)).
  const busy = await open(path, constants.O_RDONLY | constants.O_EXCL).then((file) => file.close().then(() => false), (error: NodeJS.ErrnoException) => error.code === 'EBUSY');
  if (busy) return [`${path} on ${host.name} is in use (mounted, or part of a volume): it would be overwritten`];
  const { virtualSizeBytes } = await imageInfo(host, path, 'raw');
  const fits = disk.format === 'raw' ? virtualSizeBytes >= disk.sizeBytes : virtualSizeBytes > disk.sizeBytes;
  return fits ? [] : [`${path} on ${host.name} has ${virtualSizeBytes} bytes, disk ${disk.id} needs ${disk.sizeBytes}`];
}

/** One look's failure is one more blocker, not the end of the others. */
async function collect(blockers: string[], look: () => Promise<void>): Promise<void> {
  try {
    await look();
  } catch (error) {
    blockers.push(...(error instanceof InvalidDefinition ? error.reasons : [(error as Error).message]));
  }
}
