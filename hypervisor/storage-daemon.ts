import { randomUUID } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpCommandFailed, QmpError } from '../qmp/errors';
import type { QmpMonitor } from '../qmp/monitor';
import { addCredentials, incomingChannel } from './credentials';
import type { Host } from './host';
import { runFolder } from './host-config';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';
import type { ProcessIdentity } from './processes';

/**
 * The process that receives a guest's disks at the destination. It is not the incoming QEMU, so that the copy outlives that QEMU:
 * an attempt to move the memory may fail and be repeated, and not a byte of disk is sent again (facts/qemu.md §2).
 */
export interface DiskToExport {
  id: string;
  /** Real path of the image on this host. */
  path: string;
  format: 'raw' | 'qcow2';
  blockDevice: boolean;
  sizeBytes: number;
  cache: 'none' | 'writeback';
}

export interface Exports {
  host: string;
  port: number;
  /** The export's name for each disk id. It cannot be guessed, so that a stray client of another migration never finds it. */
  names: Record<string, string>;
}

const THROTTLE_GROUP = 'bandwidth';
const SOCKET = 'storage.sock';
const PID_FILE = 'storage.pid';

/** Node names have 31 characters at most; ids may be longer, so nodes are numbered. */
const nodeNames = (index: number) => ({ file: `disk${index}-file`, format: `disk${index}-format`, throttle: `disk${index}-throttle` });

export function storageDaemonProcess(host: Host, guest: string): ProcessIdentity | undefined {
  return host.programs.ofPidFile(host.runFile(guest, PID_FILE));
}

function storageMonitor(host: Host, guest: string): QmpMonitor {
  return host.monitors.get(host.runFile(guest, SOCKET));
}

/** Starts the guest's storage daemon, or finds it running. */
async function ensureStorageDaemon(host: Host, guest: string): Promise<QmpMonitor> {
  const monitor = storageMonitor(host, guest);
  if (storageDaemonProcess(host, guest)) return monitor;
  await mkdir(runFolder(host.config, guest), { recursive: true, mode: 0o700 });
  await rm(monitor.path, { force: true });
  const args = ['--chardev', `socket,id=monitor,path=${monitor.path},server=on,wait=off`, '--monitor', 'chardev=monitor', '--pidfile', host.runFile(guest, PID_FILE)];
  await host.programs.start(host.config.binaries.storageDaemon, args, host.runFile(guest, 'storage.log'), async (signal) => {
    for (;;) {
      signal.throwIfAborted();
      if (storageDaemonProcess(host, guest)) {
        const up = await monitor.execute('query-block-exports', undefined, { signal }).then(() => true, (error: unknown) => {
          if (error instanceof QmpError) return false;
          throw error;
        });
        if (up) return;
      }
      await delay(5, undefined, { signal });
    }
  });
  return monitor;
}

/**
 * Ensures one writable NBD export a disk, all behind one bandwidth cap, on a port of this host's range that was free when it was bound.
 * Over TLS only the host `from` is let in. `known` is the port of an earlier try; `note` records the port durably.
 */
export async function ensureExports(
  host: Host,
  guest: string,
  from: string,
  disks: DiskToExport[],
  bandwidthBytesPerSecond: number | undefined,
  known: number | undefined,
  note: (port: number) => Promise<void>,
): Promise<Exports> {
  const alreadyUp = storageDaemonProcess(host, guest) !== undefined;
  const monitor = await ensureStorageDaemon(host, guest);
  let port = alreadyUp ? known : undefined;
  if (port === undefined) {
    await monitor.execute('nbd-server-stop').catch(ignore('NBD server not running'));
    port = await startNbdServer(host, monitor, from);
    await note(port);
  }
  await monitor
    .execute('object-add', { 'qom-type': 'throttle-group', id: THROTTLE_GROUP, limits: { 'bps-write': bandwidthBytesPerSecond ?? 0 } })
    .catch(ignore('duplicate property', 'already exists'));
  const existing = new Map((await monitor.execute('query-block-exports')).map((one) => [one.id, one['node-name']]));
  const nodes = new Set((await monitor.execute('query-named-block-nodes', { flat: true })).map((node) => node['node-name']));
  const names: Record<string, string> = {};
  for (const [index, disk] of disks.entries()) {
    const present = [...existing].find(([, node]) => node === nodeNames(index).throttle)?.[0];
    names[disk.id] = present ?? (await exportDisk(monitor, disk, index, nodes));
  }
  return { host: host.config.address, port, names };
}

async function startNbdServer(host: Host, monitor: QmpMonitor, from: string): Promise<number> {
  const channel = incomingChannel(host.config, from);
  await addCredentials(monitor, channel);
  const tls = channel && { 'tls-creds': channel.creds, ...(channel.authz !== undefined && { 'tls-authz': channel.authz }) };
  for (const port of portsInOrder(host.config.ports)) {
    try {
      // An IPv6 address has no brackets here: this is an address, not a URI.
      await monitor.execute('nbd-server-start', { addr: { type: 'inet', data: { host: host.config.address, port: String(port) } }, ...tls });
      return port;
    } catch (error) {
      if (!isAddressInUse(error)) throw error;
    }
  }
  throw noFreePort(host.config);
}

async function exportDisk(monitor: QmpMonitor, disk: DiskToExport, index: number, nodes: Set<string | undefined>): Promise<string> {
  const { file, format, throttle } = nodeNames(index);
  // Zeros that arrive stay holes: the copy of a sparse image is sparse.
  const sparse = { discard: 'unmap', 'detect-zeroes': 'unmap' };
  const add = async (options: { driver: string; 'node-name': string } & Record<string, unknown>) => {
    if (!nodes.has(options['node-name'])) await monitor.execute('blockdev-add', options);
  };
  await add({ driver: disk.blockDevice ? 'host_device' : 'file', 'node-name': file, filename: disk.path, discard: 'unmap', cache: { direct: disk.cache === 'none' } });
  // A larger block device is shown to the mirror with the source's size: the two must match to the byte.
  await add({ driver: disk.format, 'node-name': format, file, ...sparse, ...(disk.format === 'raw' && disk.blockDevice && { size: disk.sizeBytes }) });
  await add({ driver: 'throttle', 'node-name': throttle, file: format, 'throttle-group': THROTTLE_GROUP, ...sparse });
  const name = `${disk.id}-${randomUUID()}`;
  await monitor.execute('block-export-add', { type: 'nbd', id: name, 'node-name': throttle, name, writable: true });
  return name;
}

/** Changes the cap on a running copy; `undefined` lifts it. (A mirror's own `speed` is ignored once it is READY, facts/qemu.md §4.) */
export async function setBandwidth(host: Host, guest: string, bytesPerSecond: number | undefined): Promise<void> {
  await storageMonitor(host, guest).execute('qom-set', { path: `/objects/${THROTTLE_GROUP}`, property: 'limits', value: { 'bps-write': bytesPerSecond ?? 0 } });
}

/** How long the daemon may take to let the images go; it takes some milliseconds. */
const RELEASE_MS = 250;

/**
 * Takes the images away from the daemon, so that the arrived guest may lock them. Part of the downtime window: a few milliseconds. A daemon that hangs
 * is killed: a mirror that ended well has flushed what it wrote, also a qcow2 image's tables (block/mirror.c), and the guest has not written since.
 * Idempotent; nothing happens if no daemon runs.
 */
export async function releaseImages(host: Host, guest: string): Promise<void> {
  const process = storageDaemonProcess(host, guest);
  if (!process) return;
  const late = new AbortController();
  try {
    const released = letImagesGo(storageMonitor(host, guest)).then(() => true, () => false);
    if (!(await Promise.race([released, delay(RELEASE_MS, false, { signal: late.signal })]))) await host.programs.terminate(process, 0);
  } finally {
    late.abort();
  }
}

async function letImagesGo(monitor: QmpMonitor): Promise<void> {
  const exports = await monitor.execute('query-block-exports');
  await Promise.all(exports.map(({ id }) => monitor.execute('block-export-del', { id, mode: 'hard' }).catch(ignore('not found'))));
  await monitor.execute('nbd-server-stop').catch(ignore('NBD server not running'));
  const nodes = new Set((await monitor.execute('query-named-block-nodes', { flat: true })).map((node) => node['node-name']));
  for (const suffix of ['-throttle', '-format', '-file']) {
    const layer = [...nodes].filter((node): node is string => node?.endsWith(suffix) ?? false);
    await Promise.all(layer.map((node) => monitor.execute('blockdev-del', { 'node-name': node })));
  }
}

/** Ends the guest's storage daemon and removes its files. Idempotent. */
export async function stopStorageDaemon(host: Host, guest: string): Promise<void> {
  const process = storageDaemonProcess(host, guest);
  // SIGTERM makes it flush and close its images.
  if (process) await host.programs.terminate(process, 5_000);
  const monitor = storageMonitor(host, guest);
  host.monitors.forget(monitor.path);
  for (const file of [SOCKET, PID_FILE, 'storage.log']) await rm(host.runFile(guest, file), { force: true });
}

/** Lets an error pass whose text says that the step is done already (facts/qemu.md §6). */
function ignore(...texts: string[]): (error: unknown) => void {
  return (error) => {
    if (!(error instanceof QmpCommandFailed && texts.some((text) => error.desc.includes(text)))) throw error;
  };
}
