import type { SchemaEntity } from './schema';

/** Values that newer QEMUs add to. A `switch` over one needs a `default`. */
export type Open<Known extends string> = Known | (string & Record<never, never>);

export interface VersionInfo {
  qemu: { major: number; minor: number; micro: number };
  package: string;
}

export interface StatusInfo {
  running: boolean;
  /**
   * `prelaunch`: never ran (`-S`). `finish-migrate`: paused for the switchover. `postmigrate`: handed over, yet QMP's `cont` would run a
   * second copy. `inmigrate`: waits for a guest.
   */
  status: Open<
    | 'debug' | 'inmigrate' | 'internal-error' | 'io-error' | 'paused' | 'postmigrate' | 'prelaunch' | 'finish-migrate' | 'restore-vm' | 'running'
    | 'save-vm' | 'shutdown' | 'suspended' | 'watchdog' | 'guest-panicked' | 'colo'
  >;
}

/** An image file as QEMU opened it. Sizes in bytes. */
export interface ImageInfo {
  filename: string;
  format: string;
  'virtual-size': number;
  'actual-size'?: number;
  'cluster-size'?: number;
  'dirty-flag'?: boolean;
  encrypted?: boolean;
  compressed?: boolean;
  'backing-filename'?: string;
  'full-backing-filename'?: string;
  'backing-filename-format'?: string;
  'backing-image'?: ImageInfo;
  /** Internal snapshots: a mirror does not carry them. */
  snapshots?: { id: string; name: string; 'vm-state-size': number }[];
  'format-specific'?: { type: string; data: Record<string, unknown> };
}

/** A node of the block graph. Throttle values are bytes or operations a second; 0: none. */
export interface BlockNodeInfo {
  file: string;
  'node-name'?: string;
  ro: boolean;
  drv: string;
  backing_file?: string;
  backing_file_depth: number;
  encrypted: boolean;
  detect_zeroes: Open<'off' | 'on' | 'unmap'>;
  /** False in the destination's QEMU until it owns the image; from 10.0 on. */
  active?: boolean;
  bps: number;
  bps_rd: number;
  bps_wr: number;
  iops: number;
  iops_rd: number;
  iops_wr: number;
  group?: string;
  image: ImageInfo;
  cache: { writeback: boolean; direct: boolean; 'no-flush': boolean };
  'dirty-bitmaps'?: { name?: string; count: number; recording: boolean; busy: boolean; persistent: boolean }[];
}

/** What the guest sees as one drive. Without `inserted`: an empty tray. `device` is empty for drives made with `-blockdev`; `qdev` names those. */
export interface BlockInfo {
  device: string;
  qdev?: string;
  type: string;
  removable: boolean;
  locked: boolean;
  inserted?: BlockNodeInfo;
  tray_open?: boolean;
  'io-status'?: Open<'ok' | 'failed' | 'nospace'>;
}

/** Counters since QEMU's start: bytes, operations, nanoseconds. */
export interface BlockStats {
  device?: string;
  qdev?: string;
  'node-name'?: string;
  stats: {
    rd_bytes: number;
    wr_bytes: number;
    rd_operations: number;
    wr_operations: number;
    flush_operations: number;
    rd_total_time_ns: number;
    wr_total_time_ns: number;
    flush_total_time_ns: number;
    wr_highest_offset: number;
    failed_rd_operations?: number;
    failed_wr_operations?: number;
  };
}

export type JobType = Open<'commit' | 'stream' | 'mirror' | 'backup' | 'create' | 'amend' | 'snapshot-load' | 'snapshot-save' | 'snapshot-delete'>;
export type JobStatus = Open<'undefined' | 'created' | 'running' | 'paused' | 'ready' | 'standby' | 'waiting' | 'pending' | 'aborting' | 'concluded' | 'null'>;

/** A job, also one that has concluded, until it is dismissed. Progress in bytes for a mirror; the total grows as the guest writes. */
export interface JobInfo {
  id: string;
  type: JobType;
  status: JobStatus;
  'current-progress': number;
  'total-progress': number;
  error?: string;
}

/** A block job. Bytes, and bytes a second. */
export interface BlockJobInfo {
  type: JobType;
  device: string;
  len: number;
  offset: number;
  busy: boolean;
  paused: boolean;
  speed: number;
  'io-status': Open<'ok' | 'failed' | 'nospace'>;
  /** A latch: says that the mirror *once* caught up, nothing about now (R1). */
  ready: boolean;
  status: JobStatus;
  'auto-finalize': boolean;
  'auto-dismiss': boolean;
  error?: string;
  /** Mirrors from 8.2 on: every guest write waits for the target. */
  'actively-synced'?: boolean;
}

export interface BlockExportInfo {
  id: string;
  type: Open<'nbd' | 'vhost-user-blk' | 'fuse' | 'vduse-blk'>;
  'node-name': string;
  'shutting-down': boolean;
}

/** Open: treat a status that is not in `MIGRATION_FINAL` as "still going". */
export type MigrationStatus = Open<
  | 'none' | 'setup' | 'active' | 'pre-switchover' | 'device' | 'completed' | 'failed' | 'cancelling' | 'cancelled' | 'wait-unplug' | 'colo' | 'postcopy-active' | 'postcopy-device'
  | 'postcopy-paused' | 'postcopy-recover' | 'postcopy-recover-setup'
>;

/** Of memory, in bytes; `mbps` in megabits a second, `dirty-pages-rate` in pages a second. */
export interface MigrationStats {
  transferred: number;
  remaining: number;
  total: number;
  duplicate: number;
  normal: number;
  'normal-bytes': number;
  'dirty-pages-rate': number;
  mbps: number;
  'dirty-sync-count': number;
  'page-size': number;
  'pages-per-second': number;
  /** Sent after the switch to post-copy. QEMU ≥ 7.0. */
  'postcopy-bytes'?: number;
}

/** Times in ms. Without `status` nothing was ever migrated. At the destination only `status` and, there, an error are of use. */
export interface MigrationInfo {
  status?: MigrationStatus;
  ram?: MigrationStats;
  'total-time'?: number;
  'expected-downtime'?: number;
  downtime?: number;
  'setup-time'?: number;
  'cpu-throttle-percentage'?: number;
  'error-desc'?: string;
  /** Why this guest can't be migrated at all, in QEMU's words; present while a blocker is, whatever the status. */
  'blocked-reasons'?: string[];
  'socket-address'?: Record<string, unknown>[];
}

/** `downtime-limit` in ms, from 1 to 2,000,000 (0 is a trap: facts/qemu.md §3); bandwidths in bytes a second, and QEMU takes no 0 for "none". */
export interface MigrationParameters {
  'max-bandwidth'?: number;
  'downtime-limit'?: number;
  'max-postcopy-bandwidth'?: number;
  'throttle-trigger-threshold'?: number;
  'cpu-throttle-initial'?: number;
  'cpu-throttle-increment'?: number;
  'cpu-throttle-tailslow'?: boolean;
  'max-cpu-throttle'?: number;
  'xbzrle-cache-size'?: number;
  'multifd-channels'?: number;
  'multifd-compression'?: Open<'none' | 'zlib' | 'zstd'>;
  'compress-level'?: number;
  'compress-threads'?: number;
  'decompress-threads'?: number;
  'tls-creds'?: string;
  'tls-hostname'?: string;
  'tls-authz'?: string;
}

/** `dirty-rate` in MiB a second, once it was measured. */
export interface DirtyRateInfo {
  status: Open<'unstarted' | 'measuring' | 'measured'>;
  'dirty-rate'?: number;
  'calc-time': number;
}

export interface MigrationCapability {
  capability: string;
  state: boolean;
}

export interface MachineInfo {
  name: string;
  alias?: string;
  'is-default'?: boolean;
  'cpu-max': number;
  'hotpluggable-cpus': boolean;
  deprecated: boolean;
  'default-cpu-type'?: string;
}

/** `unavailable-features`, where this host can't run the model; it is absent if QEMU can't tell. */
export interface CpuDefinitionInfo {
  name: string;
  typename: string;
  'migration-safe'?: boolean;
  static: boolean;
  'unavailable-features'?: string[];
  'alias-of'?: string;
  deprecated: boolean;
}

export interface CpuInfoFast {
  'cpu-index': number;
  'qom-path': string;
  'thread-id': number;
  target: string;
}

/** What a `yank` can cut. Never the chardev of one's own monitor. */
export type YankInstance = { type: 'block-node'; 'node-name': string } | { type: 'chardev'; id: string } | { type: 'migration' };

export interface ChardevInfo {
  label: string;
  filename: string;
  'frontend-open': boolean;
}

export interface CommandLineOptionInfo {
  option: string;
  parameters: { name: string; type: string; help?: string; default?: string }[];
}

export interface QomProperty {
  name: string;
  type: string;
  description?: string;
}

/** An address, not a URI: IPv6 has no brackets, and the port is a string. NBD goes over TCP, which a `yank` can cut. */
export type SocketAddress = { type: 'inet'; host: string; port: string } | { type: 'unix'; path: string };

/** Depends on the driver. Give every node a name (31 characters at most): only named ones can be yanked and deleted. */
export type BlockdevOptions = { driver: string; 'node-name': string; [option: string]: unknown };

export type ObjectOptions = { 'qom-type': string; id: string; [property: string]: unknown };

/** Bytes or operations a second; 0 lifts a limit. All six must be given, the others are reset to none. `id` is the qdev's. */
export interface IoThrottle {
  id: string;
  bps: number;
  bps_rd: number;
  bps_wr: number;
  iops: number;
  iops_rd: number;
  iops_wr: number;
  group?: string;
}

export type QmpSchemaReply = SchemaEntity[];
