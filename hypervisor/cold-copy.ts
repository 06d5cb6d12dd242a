import { statSync } from 'node:fs';
import { objectArguments, outgoingChannel } from './credentials';
import { allDisks, movingDisks } from './definition';
import type { SourceAttempt } from './guest-store';
import { GuestStateError, type Host } from './host';
import { imageInfo } from './images';
import type { MirrorTarget } from './mirrors';
import type { Findings, GuestPlan } from './preflight';
import { tlsFindings } from './tls-files';
import { transportOf } from './transport';

/** Copied at a time; what an agent that dies has to copy again is at most one of these a disk. */
const CHUNK_BYTES = 256 * 2 ** 20;

/** Everything at the source that could stop a guest that does not run from leaving, and what its destination must know. Changes nothing. */
export async function inspectStopped(host: Host, guest: string, attempt: string): Promise<{ plan?: GuestPlan } & Findings> {
  const definition = host.store.definition(guest);
  if (!definition) return { blockers: [`guest "${guest}" is not defined on ${host.name} (here are: ${host.store.names().join(', ') || 'none'})`], warnings: [] };
  const blockers: string[] = [];
  const ownership = host.store.ownership(guest);
  const here = host.store.attempt(guest);
  if (ownership?.state !== 'owner' && !(here?.attempt === attempt)) blockers.push(`guest "${guest}" is not ${host.name}'s to move: it is ${ownership?.state ?? 'owned by nobody'}`);
  if (host.process(guest)) blockers.push(`guest "${guest}" runs on ${host.name}: move it with "vmferry migrate"`);
  if (here && here.attempt !== attempt && !(here.role === 'source' && here.cold)) blockers.push(`an earlier move left traces of guest "${guest}" on ${host.name}: "vmferry repair ${guest}" brings order`);
  const disks: GuestPlan['disks'] = [];
  for (const disk of movingDisks(definition)) {
    try {
      const path = host.path(guest, disk.path);
      const info = await imageInfo(host, path, disk.format);
      if (info.snapshots.length > 0) blockers.push(`disk ${disk.id} has internal snapshots (${info.snapshots.join(', ')}), which are not copied: delete them (qemu-img snapshot -d)`);
      disks.push({ id: disk.id, path: disk.path, format: disk.format, cache: disk.cache, device: disk.id, sizeBytes: info.virtualSizeBytes, allocatedBytes: info.blockDevice ? info.virtualSizeBytes : statSync(path).blocks * 512, blockDevice: info.blockDevice });
    } catch (error) {
      blockers.push(`disk ${disk.id}: ${(error as Error).message}`);
    }
  }
  const tls = tlsFindings(host.config);
  blockers.push(...tls.blockers);
  const left = allDisks(definition).filter((disk) => !movingDisks(definition).includes(disk));
  return { blockers, warnings: [...tls.warnings, ...left.map(({ id, path }) => `disk ${id} (${path}) is read-only or removable: it is not copied`)], plan: { definition, disks, running: false, cold: true, features: { writeBlockingLive: false, rearm: false, ioThrottle: false }, memoryFeatures: [], defaults: {}, security: transportOf(host.config).mode, ...(ownership?.state === 'owner' && ownership.attempt !== undefined && { arrivedBy: ownership.attempt }) } };
}

/**
 * Copies the images of a guest that does not run to their exports, chunk by chunk; what is copied is on record, so that a later call goes on from there. While
 * it is on record that the guest leaves, it is not startable here. `progress` gets what remains of each disk, in bytes.
 */
export async function copyImages(host: Host, guest: string, plan: GuestPlan, targets: MirrorTarget[], to: string, signal: AbortSignal, progress: (disks: { id: string; remainingBytes: number; lengthBytes: number }[]) => void): Promise<void> {
  const channel = outgoingChannel(host.config, to);
  const copied = { ...coldRecord(host, guest).copiedBytes };
  const show = () => progress(plan.disks.map(({ id, sizeBytes }) => ({ id, remainingBytes: sizeBytes - (copied[id] ?? 0), lengthBytes: sizeBytes })));
  for (const disk of plan.disks) {
    const target = targets.find(({ id }) => id === disk.id)!;
    const path = host.path(guest, disk.path);
    const file = `driver=${disk.blockDevice ? 'host_device' : 'file'},filename=${path}`.split(',');
    const format = disk.format === 'raw' ? nested('file', file) : ['file.driver=qcow2', ...nested('file.file', file)];
    const nbd = ['file.driver=nbd', 'file.server.type=inet', `file.server.host=${target.host}`, `file.server.port=${target.port}`, `file.export=${target.exportName}`, ...(channel ? [`file.tls-creds=${channel.creds}`, `file.tls-hostname=${channel.hostname}`] : [])];
    for (let offset = copied[disk.id] ?? 0; offset < disk.sizeBytes; offset = copied[disk.id]!) {
      signal.throwIfAborted();
      show();
      const size = Math.min(CHUNK_BYTES, disk.sizeBytes - offset);
      // Not qemu-img's default for a target, which never flushes: a part that is on record must outlive the daemon that took it.
      // The last part has no size: an image of an odd one is rounded up to sectors at both ends alike.
      const window = ['driver=raw', `offset=${offset}`, ...(offset + size < disk.sizeBytes ? [`size=${size}`] : [])];
      await host.programs.run(host.config.binaries.qemuImg, ['convert', ...objectArguments(channel), '-n', '-t', 'writeback', '--image-opts', '--target-image-opts', [...window, ...format].join(','), [...window, ...nbd].join(',')], signal);
      copied[disk.id] = offset + size;
      await host.store.patchAttempt<SourceAttempt>(guest, { copiedBytes: copied });
    }
  }
  show();
}

const nested = (prefix: string, options: string[]) => options.map((option) => `${prefix}.${option}`);

/** The record of a guest that leaves this host without running. */
export function coldRecord(host: Host, guest: string): SourceAttempt {
  const record = host.store.attempt(guest);
  if (record?.role !== 'source' || !record.cold) throw new GuestStateError(`guest ${guest} is not on its way from ${host.name}: its move was undone`);
  return record;
}
