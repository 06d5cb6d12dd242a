import type * as q from './structures';

export type * from './structures';

type None = Record<string, never>;

/** Every command that we send: its arguments, what it returns, what it is to us. A trap's source is facts/qemu.md unless said. */
export interface QmpCommands {
  /** Ends the negotiation; nothing else is accepted before. `QmpConnection.connect` sends it. */
  qmp_capabilities: { arguments: { enable?: 'oob'[] }; returns: None };
  'query-version': { arguments: None; returns: q.VersionInfo };
  'query-commands': { arguments: None; returns: { name: string }[] };
  /** 207 KB and 120 ms on 7.2: ask once per QEMU, and read it with `QmpSchema`. */
  'query-qmp-schema': { arguments: None; returns: q.QmpSchemaReply };
  quit: { arguments: None; returns: None };

  /** Whether the guest runs. The only place that says `postmigrate`: it came to an end *here*. */
  'query-status': { arguments: None; returns: q.StatusInfo };
  'query-name': { arguments: None; returns: { name?: string } };
  'query-uuid': { arguments: None; returns: { UUID: string } };
  /** Waits for I/O in flight: hangs while a block peer does. */
  stop: { arguments: None; returns: None };
  /** Runs the guest. QEMU lets a source run again after it was handed over: that nobody does so is up to us (R4, R10). */
  cont: { arguments: None; returns: None };
  /** Asks the guest's system to power off; it may ignore that. */
  system_powerdown: { arguments: None; returns: None };
  'human-monitor-command': { arguments: { 'command-line': string }; returns: string };

  'query-machines': { arguments: None; returns: q.MachineInfo[] };
  /** What the model lacks here depends on the accelerator that this QEMU was started with. */
  'query-cpu-definitions': { arguments: None; returns: q.CpuDefinitionInfo[] };
  'query-cpus-fast': { arguments: None; returns: q.CpuInfoFast[] };
  /** Bytes. */
  'query-memory-size-summary': { arguments: None; returns: { 'base-memory': number; 'plugged-memory'?: number } };
  'query-command-line-options': { arguments: { option?: string }; returns: q.CommandLineOptionInfo[] };
  'query-chardev': { arguments: None; returns: q.ChardevInfo[] };
  'qom-list': { arguments: { path: string }; returns: q.QomProperty[] };
  'qom-get': { arguments: { path: string; property: string }; returns: unknown };
  /** At the daemon: changes a throttle group's `limits` while the copy runs. */
  'qom-set': { arguments: { path: string; property: string; value: unknown }; returns: None };
  'object-add': { arguments: q.ObjectOptions; returns: None };
  /** Refused while something uses the object. */
  'object-del': { arguments: { id: string }; returns: None };

  /** The drives as the guest sees them. */
  'query-block': { arguments: None; returns: q.BlockInfo[] };
  /** Every node. With `flat`, without the images behind each, which would repeat whole backing chains. */
  /**
   * Compares samples of the memory for `calc-time` seconds; what was counted stays until the next time, and nothing else. Refused while one is under way. The
   * only mode that asks nothing of the guest: the others turn on its dirty log.
   */
  'calc-dirty-rate': { arguments: { 'calc-time': number; /** A GiB, from 128 to 4096. */ 'sample-pages'?: number; mode?: 'page-sampling' }; returns: None };
  'query-dirty-rate': { arguments: None; returns: q.DirtyRateInfo };
  'query-named-block-nodes': { arguments: { flat?: boolean }; returns: q.BlockNodeInfo[] };
  'query-blockstats': { arguments: { 'query-nodes'?: boolean }; returns: q.BlockStats[] };
  /** Blocks QMP while an NBD driver connects: set its `open-timeout`. "Duplicate nodes with node-name" means that it is there already. */
  'blockdev-add': { arguments: q.BlockdevOptions; returns: None };
  /** Flushes, so hangs with a hanging peer. "Node … is in use" while a job or export has it. */
  'blockdev-del': { arguments: { 'node-name': string }; returns: None };
  /** Takes effect at once, bytes and operations a second; 0 lifts it. Lift it whatever happens. */
  block_set_io_throttle: { arguments: q.IoThrottle; returns: None };

  /**
   * Copies a drive onto a node, and then keeps it equal. `sync: 'none'` copies only what is written from now on. Set `auto-dismiss: false`,
   * or an end while nobody listens, good or bad, leaves no trace; and `filter-node-name`, to find the filter if it is left behind. A
   * target of another size is accepted, and only ends the job later.
   */
  'blockdev-mirror': {
    arguments: {
      'job-id': string;
      device: string;
      target: string;
      sync: 'full' | 'top' | 'none';
      speed?: number;
      granularity?: number;
      'buf-size'?: number;
      'copy-mode'?: 'background' | 'write-blocking';
      'on-source-error'?: 'report' | 'ignore' | 'enospc' | 'stop';
      'on-target-error'?: 'report' | 'ignore' | 'enospc' | 'stop';
      'filter-node-name'?: string;
      'auto-finalize'?: boolean;
      'auto-dismiss'?: boolean;
      'target-is-zero'?: boolean;
    };
    returns: None;
  };
  /** Every job, also concluded ones; the truth when events were missed. */
  'query-jobs': { arguments: None; returns: q.JobInfo[] };
  'query-block-jobs': { arguments: None; returns: q.BlockJobInfo[] };
  /**
   * On a READY mirror and without `force`: drains it, then ends it with BLOCK_JOB_COMPLETED: the way to finish a copy (R1). With `force`
   * it drains nothing, and data is lost. `job-cancel` always forces, and `block-job-complete` pivots the guest onto the target: neither is
   * in this vocabulary. Answers at once; with a hanging peer the end never comes. `DeviceNotActive`: there is no such job.
   */
  'block-job-cancel': { arguments: { device: string; force?: boolean }; returns: None };
  /** Bytes a second, 0 for no limit. Not applied once the mirror is READY. */
  'block-job-set-speed': { arguments: { device: string; speed: number }; returns: None };
  /** From 8.2 on. Makes a background mirror write-blocking, so that it converges. There is no way back. */
  'block-job-change': { arguments: { id: string; type: 'mirror'; 'copy-mode': 'write-blocking' }; returns: None };
  /** Forgets a concluded job. */
  /** Lets a job go on that was stopped by an error of its target; harmless if that is still so: it stops again. */
  'job-resume': { arguments: { id: string }; returns: None };
  'job-dismiss': { arguments: { id: string }; returns: None };

  /** "NBD server already running" if there is one. */
  'nbd-server-start': { arguments: { addr: { type: 'inet'; data: { host: string; port: string } } | { type: 'unix'; data: { path: string } }; 'tls-creds'?: string; 'tls-authz'?: string; 'max-connections'?: number }; returns: None };
  /** Disconnects every client; a mirror that writes through it ends with an error. */
  'nbd-server-stop': { arguments: None; returns: None };
  'block-export-add': { arguments: { type: 'nbd'; id: string; 'node-name': string; name?: string; writable?: boolean; writethrough?: boolean; 'allow-inactive'?: boolean }; returns: None };
  /** `hard` disconnects the clients. Answers before it is done: BLOCK_EXPORT_DELETED says when. */
  'block-export-del': { arguments: { id: string; mode?: 'safe' | 'hard' }; returns: None };
  'query-block-exports': { arguments: None; returns: q.BlockExportInfo[] };

  /** Hangs in state `device` with a hanging destination. A guest that came by a migration still shows that one's `completed`. */
  'query-migrate': { arguments: None; returns: q.MigrationInfo };
  'query-migrate-capabilities': { arguments: None; returns: q.MigrationCapability[] };
  'query-migrate-parameters': { arguments: None; returns: q.MigrationParameters & Record<string, unknown> };
  /** Sets only those given. Refused as a whole if one is unknown: ask `query-migrate-capabilities` first. */
  'migrate-set-capabilities': { arguments: { capabilities: q.MigrationCapability[] }; returns: None };
  'migrate-set-parameters': { arguments: q.MigrationParameters; returns: None };
  /** Lets a QEMU started with `-incoming defer` listen; once only per process. `exit-on-error` from 9.1 on. */
  'migrate-incoming': { arguments: { uri: string; 'exit-on-error'?: boolean }; returns: None };
  /** Answers at once; MIGRATION events and `query-migrate` tell the rest. In the URI, and only there, IPv6 has brackets. */
  migrate: { arguments: { uri: string; /** Goes on with a post-copy whose connection broke; only in `postcopy-paused`. */ resume?: true }; returns: None };
  /** Taken only with the capability `postcopy-ram`; has its effect at the next look of the migration thread, with `pre-switchover` in between. */
  'migrate-start-postcopy': { arguments: None; returns: None };
  /** At a destination in `postcopy-paused`: listens for the source's `migrate` with `resume`. May be repeated, the last one counts. Out of band: its main loop may wait for a page. */
  'migrate-recover': { arguments: { uri: string }; returns: None };
  /** Cuts a post-copy, so that it can be recovered. Out of band. */
  'migrate-pause': { arguments: None; returns: None };
  /** The point of no return (§5). QEMU dies, or blocks get lost, if a mirror is dirty: none may exist. */
  'migrate-continue': { arguments: { state: 'pre-switchover' | 'cancelling' }; returns: None };
  /** The guest runs on at the source if it ran before. Does nothing if none is under way. */
  migrate_cancel: { arguments: None; returns: None };

  /** What can be yanked. Out of band. */
  'query-yank': { arguments: None; returns: q.YankInstance[] };
  /** Cuts connections, even while the main loop hangs on them: send it with `executeOob`. Over UNIX sockets with a full buffer it does not help. */
  yank: { arguments: { instances: q.YankInstance[] }; returns: None };
}

export type QmpCommand = keyof QmpCommands;
export type QmpArguments<C extends QmpCommand> = QmpCommands[C]['arguments'];
export type QmpReturns<C extends QmpCommand> = QmpCommands[C]['returns'];
/** The commands of ours that QEMU lets pass the queue. */
export type QmpOobCommand = 'query-yank' | 'yank' | 'migrate-recover' | 'migrate-pause';

/** `device` is the job's id. Bytes, and bytes a second. */
interface BlockJobEnd {
  type: q.JobType;
  device: string;
  len: number;
  offset: number;
  speed: number;
}

/** Every event that we read, and its data. */
export interface QmpEvents {
  /** The guest stopped, after I/O in flight was drained: QMP may have been silent before. */
  STOP: None;
  RESUME: None;
  RESET: { guest: boolean; reason: string };
  POWERDOWN: None;
  SHUTDOWN: { guest: boolean; reason: string };
  GUEST_PANICKED: { action: q.Open<'pause' | 'poweroff' | 'run'>; info?: Record<string, unknown> };
  /** Only with the migration capability `events`. */
  MIGRATION: { status: q.MigrationStatus };
  MIGRATION_PASS: { pass: number };
  BLOCK_JOB_READY: BlockJobEnd;
  /** Success only without `error` and with offset = len. */
  BLOCK_JOB_COMPLETED: BlockJobEnd & { error?: string };
  /** Ended by force: the target is incomplete. */
  BLOCK_JOB_CANCELLED: BlockJobEnd;
  BLOCK_JOB_ERROR: { device: string; operation: 'read' | 'write'; action: q.Open<'ignore' | 'report' | 'stop'> };
  BLOCK_JOB_PENDING: { type: q.JobType; id: string };
  JOB_STATUS_CHANGE: { id: string; status: q.JobStatus };
  BLOCK_IO_ERROR: { device: string; 'node-name'?: string; operation: 'read' | 'write'; action: q.Open<'ignore' | 'report' | 'stop'>; nospace?: boolean; reason: string };
  BLOCK_EXPORT_DELETED: { id: string };
}

export type QmpEventName = keyof QmpEvents;

/** An event; comparing `event` tells the type of `data`. Times are those of QEMU's host: see `eventTimeMs`. */
export type QmpEvent<N extends QmpEventName = QmpEventName> = {
  [E in N]: { event: E; data: QmpEvents[E]; timestamp: { seconds: number; microseconds: number } };
}[N];

/** A migration in any other status, known to us or not, is still going. */
export const MIGRATION_FINAL: ReadonlySet<string> = new Set(['completed', 'failed', 'cancelled'] satisfies q.MigrationStatus[]);
