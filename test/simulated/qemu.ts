import { parseArguments, readFields } from '../../hypervisor/qemu-options';
import { BlockGraph, describeNode, NO_LIMITS, type Node, taken } from './block-graph';
import { GuestDisk } from './guest-disk';
import type { Entry } from './ledger';
import type { GuestBehaviour, SimulatedHost } from './hypervisor';
import { OutgoingMigration } from './migration';
import { Mirror, type MirrorOptions } from './mirror';
import { type Handler, SimulatedProgram } from './program';
import { Refused, VERSION } from './qmp-server';

export type RunState = 'prelaunch' | 'inmigrate' | 'running' | 'paused' | 'finish-migrate' | 'postmigrate';

/** In QEMU 7.2's order. */
const CAPABILITIES = ['xbzrle', 'rdma-pin-all', 'auto-converge', 'zero-blocks', 'compress', 'events', 'postcopy-ram', 'x-colo', 'release-ram', 'block', 'return-path', 'pause-before-switchover', 'multifd', 'dirty-bitmaps', 'postcopy-blocktime', 'late-block-activate', 'x-ignore-shared', 'validate-uuid', 'background-snapshot', 'zero-copy-send', 'postcopy-preempt'];

const PARAMETERS = {
  'cpu-throttle-tailslow': false, 'xbzrle-cache-size': 67108864, 'cpu-throttle-initial': 20, 'announce-max': 550, 'decompress-threads': 2, 'compress-threads': 8, 'compress-level': 1, 'multifd-channels': 2, 'multifd-zstd-level': 1, 'announce-initial': 50, 'block-incremental': false, 'compress-wait-thread': true,
  'downtime-limit': 300, 'tls-authz': '', 'multifd-compression': 'none', 'announce-rounds': 5, 'announce-step': 100, 'tls-creds': '', 'multifd-zlib-level': 1, 'max-cpu-throttle': 99, 'max-postcopy-bandwidth': 0, 'tls-hostname': '', 'throttle-trigger-threshold': 50, 'max-bandwidth': 134217728, 'x-checkpoint-delay': 20000, 'cpu-throttle-increment': 10,
};

const COUNTERS = ['rd_bytes', 'rd_operations', 'rd_total_time_ns', 'rd_merged', 'wr_merged', 'wr_total_time_ns', 'wr_highest_offset', 'flush_operations', 'flush_total_time_ns', 'unmap_bytes', 'unmap_operations', 'unmap_merged', 'unmap_total_time_ns', 'failed_rd_operations', 'failed_wr_operations', 'failed_flush_operations', 'failed_unmap_operations', 'invalid_rd_operations', 'invalid_wr_operations', 'invalid_flush_operations', 'invalid_unmap_operations'];

const NBD_NAME = 31;

/** A QEMU 7.2 as far as vmferry talks to it: its disks, mirrors and migration, and the guest's writes to disks and memory. */
export class SimulatedQemu extends SimulatedProgram {
  readonly guest: string;
  readonly memoryBytes: number;
  readonly behaviour: GuestBehaviour;
  readonly disks: GuestDisk[] = [];
  readonly jobs = new Map<string, Mirror>();
  readonly capabilities = new Map(CAPABILITIES.map((name) => [name, false]));
  readonly parameters: Record<string, unknown> = { ...PARAMETERS };
  runState: RunState;
  readonly blocks: BlockGraph = new BlockGraph(this, (node) => this.disks.some((disk) => disk.node === node) || [...this.jobs.values()].some((job) => !job.concluded && job.target === node));
  private readonly machine: string;
  private readonly startsStopped: boolean;
  private readonly chardevs = new Map<string, string>();
  readonly sockets: string[] = [];
  private outgoing: OutgoingMigration | undefined;
  private incomingState: string | undefined;
  private listensAt: string | undefined;
  private streaming = false;

  constructor(host: SimulatedHost, argv: string[], pidFile: string | undefined) {
    super(host, argv, pidFile);
    const options = parseArguments(argv);
    const of = (flag: string) => options.filter((option) => option.flag === flag).map(readFields);
    this.guest = of('name')[0]?.['guest'] ?? '';
    this.memoryBytes = Number.parseInt(of('m')[0]?.['size'] ?? '131072K', 10) * 1024;
    this.machine = (of('machine')[0]?.['type'] ?? 'pc-q35-7.2').replace(/^q35$/, 'pc-q35-7.2');
    this.startsStopped = options.some(({ flag }) => flag === 'S');
    this.behaviour = host.world.behaviourOf(this.guest);
    this.runState = options.some(({ flag }) => flag === 'incoming') ? 'inmigrate' : 'prelaunch';
    for (const { value } of options.filter(({ flag }) => flag === 'blockdev')) this.blocks.add(JSON.parse(value!) as Record<string, unknown>);
    for (const { id, path } of of('chardev')) if (id && path) this.chardevs.set(id, path);
    for (const { chardev } of of('mon')) this.sockets.push(this.chardevs.get(chardev!)!);
    for (const { value } of options.filter(({ flag }) => flag === 'qmp')) this.sockets.push(value!.replace(/^unix:/, '').split(',')[0]!);
    for (const { driver, id, drive } of of('device')) {
      const node = drive === undefined ? undefined : this.blocks.node(drive);
      if (!node) continue;
      const image = host.world.images.of(BlockGraph.imageOf(node));
      const disk = host.world.diskBehaviour(this.guest, node.sizeBytes);
      this.disks.push(new GuestDisk('', driver!.startsWith('virtio-blk') ? `/machine/peripheral/${id}/virtio-backend` : id!, node, /-cd$/.test(driver!), /-cd$/.test(driver!), disk, (one) => this.allowed(one), () => this.running, { write: (bytes) => (image.version += bytes) }));
    }
  }

  get running(): boolean {
    return this.alive && this.runState === 'running';
  }

  note(what: Entry['what'], mirrors?: Entry['mirrors']): void {
    this.host.world.ledger.note({ guest: this.guest, host: this.host.name, what, ...(mirrors && { mirrors }) });
  }

  takeFault(fault: 'migrationFails'): boolean {
    return this.host.world.takeFault(this.guest, fault);
  }

  /** Lets the guest run: the moment at which everything that must be true of its disks is looked at. */
  run(): void {
    if (this.running) return;
    const { ledger, images } = this.host.world;
    this.settle();
    this.runState = 'running';
    ledger.runs(this.guest, this.host.name, this);
    for (const disk of this.disks) {
      const path = BlockGraph.imageOf(disk.node);
      const image = images.of(path);
      const newest = this.host.world.newestVersion(this.guest, this.disks.indexOf(disk));
      if (image.version < newest) ledger.violation(`guest ${this.guest} runs on ${this.host.name} with a disk that lacks ${image.version < 0 ? 'blocks' : `${newest - image.version} bytes`}: ${path}`);
      this.host.world.watchVersion(this.guest, this.disks.indexOf(disk), image);
    }
    this.event('RESUME');
  }

  /** Stops the vCPUs; QEMU then drains its disks, with QMP silent. */
  async pause(state: RunState): Promise<void> {
    const ran = this.running;
    this.settle();
    this.runState = state;
    this.host.world.ledger.stops(this.guest, this.host.name, this);
    if (!ran) return;
    this.event('STOP');
    await this.holdLoop(this.drain());
  }

  jobEnded(job: Mirror, dismiss: boolean): void {
    if (dismiss) this.dismiss(job.id);
  }

  /** The other end took our stream: a destination in 7.2 listens once. */
  acceptStream(): boolean {
    if (!this.alive || this.streaming || this.incomingState === undefined) return false;
    this.streaming = true;
    this.incoming('active');
    return true;
  }

  /** The stream broke off: 7.2 exits. */
  streamEnded(): void {
    if (!this.alive || this.runState !== 'inmigrate') return;
    this.incoming('failed');
    this.printed.push('load of migration failed: Invalid argument');
    this.kill(1);
  }

  streamCompleted(ms: number): void {
    setTimeout(() => {
      if (!this.alive) return;
      this.incoming('completed');
      this.runState = 'paused';
      if (!this.startsStopped) this.run();
    }, this.host.world.scaled(ms)).unref();
  }

  protected override ended(): void {
    const { world, name } = this.host;
    this.settle();
    world.ledger.stops(this.guest, name, this);
    this.note('ended');
    for (const job of this.jobs.values()) world.network.remove(job);
    if (this.outgoing) world.network.remove(this.outgoing);
    if (this.listensAt) world.incoming.delete(this.listensAt);
    this.blocks.close();
    super.ended();
  }

  override terminate(): void {
    this.event('SHUTDOWN', { guest: false, reason: 'host-signal' });
    super.terminate();
  }

  protected readonly oobHandlers: Record<string, Handler> = {
    'query-yank': () => [
      ...[...this.chardevs].filter(([, path]) => this.sockets.includes(path)).map(([id]) => ({ type: 'chardev', id })),
      ...[...this.blocks.nodes.values()].filter(({ connection }) => connection).map(({ name }) => ({ 'node-name': name, type: 'block-node' })),
      ...(this.outgoing?.connected || (this.listensAt && this.runState === 'inmigrate') ? [{ type: 'migration' }] : []),
    ],
    yank: ({ instances }) => {
      for (const one of instances as { type: string; 'node-name'?: string }[]) {
        if (one.type === 'migration') this.outgoing?.yank();
        const node = one['node-name'] === undefined ? undefined : this.blocks.node(one['node-name']);
        if (node?.connection) node.connection.broken = node.connection.yanked = true;
        [...this.jobs.values()].filter((job) => job.target === node).forEach((job) => job.yank());
      }
    },
  };

  protected readonly handlers: Record<string, Handler> = {
    ...this.blocks.handlers,
    ...this.oobHandlers,
    'query-version': () => VERSION,
    'query-commands': () => Object.keys(this.handlers).map((name) => ({ name })),
    'query-status': () => ({ status: this.runState, singlestep: false, running: this.running }),
    'query-name': () => ({ name: this.guest }),
    'qom-get': ({ path, property }) => {
      if (path === '/machine' && property === 'type') return `${this.machine}-machine`;
      throw new Refused(`Property '${property as string}' not found`);
    },
    'qom-list': () => [{ name: 'type', type: 'string' }],
    'query-memory-size-summary': () => ({ 'base-memory': this.memoryBytes, 'plugged-memory': 0 }),
    quit: () => {
      this.event('SHUTDOWN', { guest: false, reason: 'host-qmp-quit' });
      setImmediate(() => this.kill(0));
    },
    system_powerdown: () => this.event('POWERDOWN'),
    stop: async () => {
      if (this.running) await this.pause('paused');
      else if (this.runState === 'prelaunch') this.runState = 'paused';
      return {};
    },
    cont: () => {
      // QEMU takes it in any state but this; nothing in it prevents a second copy (facts/qemu.md §3).
      if (this.runState === 'inmigrate') return;
      const images = this.disks.map(({ node }) => BlockGraph.imageOf(node));
      if (!this.running && this.host.opensElsewhere(images, this)) throw new Refused('Failed to get shared "write" lock');
      this.run();
    },
    'human-monitor-command': ({ 'command-line': line }) => {
      const write = /^qemu-io -d (\S+) "write (?:-P \d+ )?\S+ (\d+)([kM]?)"$/.exec(line as string);
      const disk = this.disks.find(({ qdev }) => qdev === write?.[1]);
      if (!write || !disk) throw new Refused(`the simulation knows no ${line as string}`);
      this.settle();
      disk.write(Number(write[2]) * (write[3] === 'M' ? 2 ** 20 : write[3] === 'k' ? 1024 : 1));
      return '';
    },

    'query-block': () => this.disks.map((disk) => this.describeDisk(disk)),
    'query-named-block-nodes': () => [
      ...(this.blocks.handlers['query-named-block-nodes']!({}) as object[]),
      ...[...this.jobs.values()].filter((job) => !job.concluded).map((job) => ({ ...describeNode({ ...job.disk.node, name: job.filterName, driver: 'mirror_top' }) })),
    ],
    'query-blockstats': () => {
      this.settle();
      return this.disks.map(({ device, qdev, node, written }) => ({
        device, qdev, 'node-name': node.name, ...(node.file && { parent: { 'node-name': node.file.name, stats: counters(0), 'driver-specific': { driver: 'file', 'discard-bytes-ok': 0, 'discard-nb-ok': 0, 'discard-nb-failed': 0 } } }),
        stats: { ...counters(Math.round(written)), timed_stats: [], account_invalid: true, account_failed: true },
      }));
    },
    block_set_io_throttle: ({ id, ...limits }) => {
      const disk = this.disks.find(({ qdev }) => qdev === id);
      if (!disk) throw new Refused(`Device '${id as string}' not found`, 'DeviceNotFound');
      const { bps = 0, bps_rd = 0, bps_wr = 0 } = limits as Record<string, number>;
      if (bps > 0 && (bps_rd > 0 || bps_wr > 0)) throw new Refused('bps/iops/max total values and read/write values cannot be used at the same time');
      this.settle();
      const set = Object.entries(limits).some(([name, value]) => name !== 'group' && (value as number) > 0);
      disk.limits = (set ? { group: id, ...limits } : {}) as GuestDisk['limits'];
      if (disk.mirror) disk.mirror.drained();
    },

    'blockdev-mirror': (options) => this.startMirror(options as unknown as MirrorOptions & { device: string }),
    'query-jobs': () => [...this.jobs.values()].map((job) => job.describeJob()),
    'query-block-jobs': () => [...this.jobs.values()].map((job) => job.describe()),
    'block-job-cancel': ({ device, force }) => this.blockJob(device as string).cancel(force === true),
    'block-job-set-speed': ({ device }) => void this.blockJob(device as string),
    'block-job-resume': ({ device }) => this.blockJob(device as string).resume(),
    'job-resume': ({ id }) => this.job(id as string).resume(),
    'job-cancel': ({ id }) => this.job(id as string).cancel(true),
    'job-dismiss': ({ id }) => {
      const job = this.job(id as string);
      if (!job.concluded) throw new Refused(`Job '${job.id}' in state '${job.status}' cannot accept command verb 'dismiss'`);
      this.dismiss(job.id);
    },

    'query-migrate-capabilities': () => [...this.capabilities].map(([capability, state]) => ({ state, capability })),
    'query-migrate-parameters': () => this.parameters,
    'migrate-set-capabilities': ({ capabilities }) => {
      const wanted = capabilities as { capability: string; state: boolean }[];
      const unknown = wanted.find(({ capability }) => !this.capabilities.has(capability));
      if (unknown) throw new Refused(`Parameter 'capability' does not accept value '${unknown.capability}'`);
      if (this.outgoing && !this.outgoing.over) throw new Refused("There's a migration process in progress");
      for (const { capability, state } of wanted) this.capabilities.set(capability, state);
    },
    'migrate-set-parameters': (wanted) => {
      const limit = wanted['downtime-limit'] as number | undefined;
      if (limit !== undefined && (limit < 0 || limit > 2_000_000)) throw new Refused("Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms");
      Object.assign(this.parameters, wanted);
    },
    'query-migrate': () => {
      if (this.outgoing) return this.outgoing.describe();
      const address = this.listensAt?.split(/:(?=\d+$)/);
      return { ...(this.streaming && { status: this.incomingState }), ...(address && this.incomingState !== 'completed' && { 'socket-address': [{ port: address[1], ...(address[0]!.includes(':') ? { ipv6: true } : { ipv4: true }), host: address[0], type: 'inet' }] }) };
    },
    'migrate-incoming': ({ uri }) => {
      if (this.runState !== 'inmigrate') throw new Refused("'-incoming' was not specified on the command line");
      if (this.listensAt) throw new Refused('The incoming migration has already been started');
      const place = (uri as string).replace(/^tcp:/, '').replace(/[[\]]/g, '');
      this.incoming('setup');
      const { incoming, nbdServers } = this.host.world;
      if (incoming.has(place) || nbdServers.has(place)) throw taken();
      incoming.set(place, this);
      this.listensAt = place;
    },
    migrate: ({ uri }) => {
      if (this.outgoing && !this.outgoing.over) throw new Refused("There's a migration process in progress");
      if (this.runState === 'postmigrate') throw new Refused("Can't migrate the vm that was paused due to previous migration");
      if (this.runState === 'inmigrate') throw new Refused('Guest is waiting for an incoming migration');
      this.outgoing = new OutgoingMigration(this, uri as string);
    },
    'migrate-continue': ({ state }) => {
      if (!this.outgoing) throw new Refused('Migration not in expected state: none');
      this.outgoing.continue(state as string);
    },
    migrate_cancel: () => this.outgoing?.cancel(),
  };

  private incoming(state: string): void {
    this.incomingState = state;
    if (this.capabilities.get('events')) this.event('MIGRATION', { status: state });
  }

  private settle(): void {
    this.disks.forEach((disk) => disk.settle());
  }

  /** Drains what is in flight to the mirrors' targets: a peer that takes nothing is waited for, until it does or is cut off. */
  private async drain(): Promise<void> {
    const { world } = this.host;
    const live = [...this.jobs.values()].filter((job) => !job.concluded);
    const ms = Math.max(0, ...live.map((job) => job.drainMs));
    if (ms > 1) await new Promise((resolve) => setTimeout(resolve, ms));
    for (const job of live) while (job.hangsOn) await Promise.race([job.hangsOn, world.sleep(20)]);
    world.network.advance();
    live.forEach((job) => job.drained());
  }

  private startMirror(options: MirrorOptions & { device: string }): void {
    const { device, target, 'job-id': id } = options;
    const node = this.blocks.node(device);
    const filtered = [...this.jobs.values()].some((job) => !job.concluded && (job.disk.node === node || job.target.name === target));
    const disk = this.disks.find((one) => one.node === node);
    if (!node || !disk) throw new Refused(`Cannot find device='${device}' nor node-name='${device}'`);
    if (filtered) throw new Refused('Need a root block node');
    const onto: Node | undefined = this.blocks.node(target);
    if (!onto) throw new Refused(`Cannot find device='${target}' nor node-name='${target}'`);
    if (this.jobs.has(id)) throw new Refused(`Job ID '${id}' already in use`);
    if ((options['filter-node-name'] ?? '').length > NBD_NAME) throw new Refused(`Invalid node-name: '${options['filter-node-name']}'`);
    this.settle();
    const mirror = new Mirror(this, disk, onto, options);
    this.jobs.set(id, mirror);
  }

  private blockJob(id: string): Mirror {
    const job = this.jobs.get(id);
    if (!job) throw new Refused(`Block job '${id}' not found`, 'DeviceNotActive');
    return job;
  }

  private job(id: string): Mirror {
    const job = this.jobs.get(id);
    if (!job) throw new Refused('Job not found');
    return job;
  }

  private dismiss(id: string): void {
    this.jobs.delete(id);
    this.event('JOB_STATUS_CHANGE', { status: 'null', id });
  }

  private allowed({ limits }: GuestDisk): number {
    const limit = limits['bps_wr'] || limits['bps'] || 0;
    return limit === 0 ? Infinity : limit / this.disks.filter((one) => one.limits.group === limits.group).length;
  }

  private describeDisk({ device, qdev, node, removable, readOnly, limits, mirror }: GuestDisk): Record<string, unknown> {
    const top = mirror ? describeNode({ ...node, name: mirror.filterName, driver: 'mirror_top' }, node) : describeNode(node);
    return { 'io-status': 'ok', device, locked: false, removable, ...(removable && { tray_open: false }), inserted: { ...top, ...NO_LIMITS, ...limits, ro: readOnly }, qdev, type: 'unknown' };
  }
}

function counters(written: number): Record<string, unknown> {
  return { ...Object.fromEntries(COUNTERS.map((name) => [name, 0])), wr_bytes: written, wr_operations: Math.round(written / 4096), timed_stats: [], account_invalid: false, account_failed: false };
}
