import { existsSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { Handler, SimulatedProgram } from './program';
import { Refused } from './qmp-server';
import type { Link } from './network';

/** QEMU's client of an NBD export, or what is left of it. */
export interface NbdConnection {
  server: SimulatedProgram;
  target: Node;
  throttle: Link | undefined;
  broken: boolean;
  /** It was yanked: QEMU's client never connects again. */
  yanked?: boolean;
}

export interface Node {
  name: string;
  driver: string;
  /** The node below. */
  file: Node | undefined;
  /** What `query-block` calls its file. */
  filename: string;
  sizeBytes: number;
  detectZeroes: string;
  direct: boolean;
  throttle?: Link;
  connection?: NbdConnection;
}

interface Export {
  id: string;
  node: Node;
  connections: Set<NbdConnection>;
}

const NBD_GREETING = Buffer.from('NBDMAGICIHAVEOPT\0\x03', 'latin1');

/** Nodes, exports and the NBD server of one program. */
export class BlockGraph {
  readonly nodes = new Map<string, Node>();
  readonly exports = new Map<string, Export>();
  readonly throttles = new Map<string, Link>();
  private server: { address: string; port: number; listener: Server | undefined } | undefined;

  constructor(readonly owner: SimulatedProgram, private readonly usedBy: (node: Node) => boolean = () => false) {}

  readonly handlers: Record<string, Handler> = {
    'blockdev-add': (options) => this.add(options),
    'blockdev-del': ({ 'node-name': name }) => this.remove(name as string),
    'query-named-block-nodes': () => [...this.nodes.values()].map((node) => describeNode(node)).reverse(),
    'nbd-server-start': ({ addr }) => this.startServer(addr as { type: string; data: { host?: string; port?: string; path?: string } }),
    'nbd-server-stop': () => {
      if (!this.server) throw new Refused('NBD server not running');
      this.stopServer();
    },
    'block-export-add': ({ id, 'node-name': name }) => {
      if (this.exports.has(id as string)) throw new Refused(`Block export id '${id as string}' is already in use`);
      const node = this.nodes.get(name as string);
      if (!node) throw new Refused(`Cannot find device='' nor node-name='${name as string}'`);
      if (!this.server) throw new Refused('NBD server not running');
      this.exports.set(id as string, { id: id as string, node, connections: new Set() });
    },
    'block-export-del': ({ id }) => {
      if (!this.exports.has(id as string)) throw new Refused(`Export '${id as string}' is not found`);
      this.removeExport(id as string);
    },
    'query-block-exports': () => [...this.exports.values()].map(({ id, node }) => ({ 'node-name': node.name, 'shutting-down': false, type: 'nbd', id })),
    'object-add': ({ 'qom-type': type, id, limits }) => {
      if (type !== 'throttle-group') throw new Refused(`invalid object type: ${type as string}`);
      if (this.throttles.has(id as string)) throw new Refused(`attempt to add duplicate property '${id as string}' to object (type 'container')`);
      this.throttles.set(id as string, { bytesPerSecond: (limits as Record<string, number> | undefined)?.['bps-write'] ?? 0 });
    },
    'object-del': ({ id }) => void this.throttles.delete(id as string),
    'qom-set': ({ path, value }) => {
      const group = this.throttles.get((path as string).replace('/objects/', ''));
      if (!group) throw new Refused(`Device '${path as string}' not found`, 'DeviceNotFound');
      group.bytesPerSecond = (value as Record<string, number>)['bps-write'] ?? 0;
    },
  };

  node(name: string): Node | undefined {
    return this.nodes.get(name);
  }

  /** The file at the bottom of a node. */
  static imageOf(node: Node): string {
    return node.file ? BlockGraph.imageOf(node.file) : node.filename;
  }

  add(options: Record<string, unknown>): unknown {
    const { driver, 'node-name': name } = options as { driver: string; 'node-name': string };
    if (this.nodes.has(name)) throw new Refused(`Duplicate nodes with node-name='${name}'`);
    const common = { name, driver, detectZeroes: (options['detect-zeroes'] as string | undefined) ?? 'off', direct: (options['cache'] as { direct?: boolean } | undefined)?.direct ?? false };
    if (driver === 'nbd') return this.connect(common, options);
    if (driver === 'file' || driver === 'host_device') {
      const filename = options['filename'] as string;
      if (!existsSync(filename)) throw new Refused(`Could not open '${filename}': No such file or directory`);
      this.nodes.set(name, { ...common, file: undefined, filename, sizeBytes: this.owner.host.world.images.virtualSize(filename) });
      return undefined;
    }
    const file = this.nodes.get(options['file'] as string);
    if (!file) throw new Refused(`Cannot find device='${options['file'] as string}' nor node-name='${options['file'] as string}'`);
    const throttle = driver === 'throttle' ? this.throttles.get(options['throttle-group'] as string) : undefined;
    this.nodes.set(name, { ...common, file, filename: driver === 'throttle' ? `json:{"driver": "throttle", "file": "${file.filename}"}` : file.filename, sizeBytes: (options['size'] as number | undefined) ?? file.sizeBytes, ...(throttle && { throttle }) });
    return undefined;
  }

  /** Ends everything: its clients notice with their next request. */
  close(): void {
    this.stopServer();
  }

  private connect(common: Pick<Node, 'name' | 'driver' | 'detectZeroes' | 'direct'>, options: Record<string, unknown>): unknown {
    const { host, port } = options['server'] as { host: string; port: string };
    const { world } = this.owner.host;
    const connect = () => {
      const graph = world.nbdServers.get(`${host}:${port}`);
      if (!graph) throw new Refused(`Failed to connect to '${host}:${port}': Connection refused`);
      const found = graph.exports.get(options['export'] as string);
      if (!found) throw new Refused('Requested export not available');
      const connection: NbdConnection = { server: graph.owner, target: found.node, throttle: found.node.throttle, broken: false };
      found.connections.add(connection);
      const filename = `nbd://${host}:${port}/${options['export'] as string}`;
      this.nodes.set(common.name, { ...common, file: undefined, filename, sizeBytes: found.node.sizeBytes, connection });
      return undefined;
    };
    // QEMU connects with its main loop held, and tries again and again until its timeout, whatever the reason.
    const until = performance.now() + ((options['open-timeout'] as number | undefined) ?? 0) * 1000;
    const persist = async (): Promise<undefined> => {
      for (;;) {
        try {
          if (!world.nbdServers.get(`${host}:${port}`)?.owner.thawed) return connect();
        } catch (error) {
          if (performance.now() >= until) throw error;
        }
        if (performance.now() >= until) throw new Refused(`Failed to connect to '${host}:${port}': Connection timed out`);
        await delay(10);
      }
    };
    return this.owner.holdLoop(persist());
  }

  private remove(name: string): void {
    const node = this.nodes.get(name);
    if (!node) throw new Refused(`Failed to find node with node-name='${name}'`);
    if ([...this.exports.values()].some((one) => one.node === node) || this.usedBy(node)) throw new Refused(`Node ${name} is in use`);
    if ([...this.nodes.values()].some((one) => one.file === node)) throw new Refused(`Block device ${name} is in use`);
    if (node.connection) node.connection.broken = true;
    this.nodes.delete(name);
  }

  private async startServer({ type, data }: { type: string; data: { host?: string; port?: string; path?: string } }): Promise<object> {
    if (this.server) throw new Refused('NBD server already running');
    const [address, port] = [data.host ?? data.path!, Number(data.port ?? 0)];
    let listener: Server | undefined;
    if (type === 'inet') {
      listener = createServer((socket) => {
        socket.on('error', () => socket.destroy());
        if (!this.owner.thawed) socket.write(NBD_GREETING);
      });
      const { host } = this.owner;
      if (host.world.incoming.has(`${address}:${port}`)) throw taken();
      await new Promise<void>((resolve, reject) => listener!.once('error', () => reject(taken())).listen(port, address, resolve));
      listener.unref();
      host.world.nbdServers.set(`${address}:${port}`, this);
    }
    this.server = { address, port, listener };
    return {};
  }

  private stopServer(): void {
    if (!this.server) return;
    for (const id of [...this.exports.keys()]) this.removeExport(id);
    this.owner.host.world.nbdServers.delete(`${this.server.address}:${this.server.port}`);
    this.server.listener?.close();
    this.server = undefined;
  }

  private removeExport(id: string): void {
    for (const connection of this.exports.get(id)!.connections) connection.broken = true;
    this.exports.delete(id);
    this.owner.event('BLOCK_EXPORT_DELETED', { id });
  }
}

export const taken = () => new Refused('Failed to find an available port: Address already in use');

export const NO_LIMITS = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };

export function describeNode(node: Node, below?: Node): Record<string, unknown> {
  const image = { 'virtual-size': node.sizeBytes, filename: node.filename, format: node.driver, ...(node.driver !== 'nbd' && { 'actual-size': 0, 'dirty-flag': false }) };
  return {
    ...NO_LIMITS,
    detect_zeroes: node.detectZeroes,
    image: below ? { ...image, 'backing-image': describeNode(below)['image'] } : image,
    ro: false,
    'node-name': node.name,
    backing_file_depth: below ? 1 : 0,
    drv: node.driver,
    write_threshold: 0,
    encrypted: false,
    cache: { 'no-flush': false, direct: node.direct, writeback: true },
    file: node.filename,
  };
}
