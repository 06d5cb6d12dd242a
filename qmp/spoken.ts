import type { QmpArguments, QmpCommand, QmpEventName, QmpEvents } from './vocabulary';

/** `true`: in every QEMU that we support, 7.2 and newer. Otherwise ask `QmpSchema` before sending it. */
export type Availability = true | `since ${number}.${number}` | `until ${number}.${number}`;

type KnownKeys<T> = keyof { [K in keyof T as string extends K ? never : K]: T[K] };

interface Spoken<C extends QmpCommand> {
  /** Of the command itself; `true` if not given. */
  availability?: Availability;
  /** Also sent to `qemu-storage-daemon`, which lacks the others. */
  daemon?: true;
  oob?: true;
  arguments: { [A in KnownKeys<QmpArguments<C>>]-?: Availability };
  /** Those that the type leaves open, with dots when nested. */
  more?: Record<string, Availability>;
}

const NONE = { arguments: {} } as const;

/**
 * The vocabulary at run time, to be held against the schema of a live QEMU. The compiler keeps it complete: an argument that is added to
 * `QmpCommands` must be added here.
 */
export const SPOKEN: { readonly [C in QmpCommand]: Spoken<C> } = {
  qmp_capabilities: { daemon: true, arguments: { enable: true } },
  'query-version': { daemon: true, ...NONE },
  'query-commands': NONE,
  'query-qmp-schema': { daemon: true, ...NONE },
  quit: { daemon: true, ...NONE },
  'query-status': NONE,
  'query-name': NONE,
  'query-uuid': NONE,
  stop: NONE,
  cont: NONE,
  system_powerdown: NONE,
  'human-monitor-command': { arguments: { 'command-line': true } },
  'query-machines': NONE,
  'query-cpu-definitions': NONE,
  'query-cpus-fast': NONE,
  'query-memory-size-summary': NONE,
  'query-command-line-options': { arguments: { option: true } },
  'query-chardev': NONE,
  'qom-list': { daemon: true, arguments: { path: true } },
  'qom-get': { daemon: true, arguments: { path: true, property: true } },
  'qom-set': { daemon: true, arguments: { path: true, property: true, value: true } },
  'object-add': {
    daemon: true,
    arguments: { 'qom-type': true, id: true },
    more: { dir: true, endpoint: true, 'verify-peer': true, username: true, identity: true, 'limits.bps-write': true, 'x-bps-write': true },
  },
  'object-del': { daemon: true, arguments: { id: true } },
  'query-block': NONE,
  'query-named-block-nodes': { daemon: true, arguments: { flat: true } },
  'query-blockstats': { arguments: { 'query-nodes': true } },
  'blockdev-add': {
    daemon: true,
    arguments: { driver: true, 'node-name': true },
    more: {
      'read-only': true,
      discard: true,
      'detect-zeroes': true,
      'cache.direct': true,
      filename: true,
      file: true,
      size: true,
      'throttle-group': true,
      'server.type': true,
      'server.host': true,
      'server.port': true,
      export: true,
      'tls-creds': true,
      'tls-hostname': true,
      'open-timeout': true,
      'reconnect-delay': true,
    },
  },
  'blockdev-del': { daemon: true, arguments: { 'node-name': true } },
  block_set_io_throttle: { arguments: { id: true, bps: true, bps_rd: true, bps_wr: true, iops: true, iops_rd: true, iops_wr: true, group: true } },
  'blockdev-mirror': {
    arguments: {
      'job-id': true,
      device: true,
      target: true,
      sync: true,
      speed: true,
      granularity: true,
      'buf-size': true,
      'copy-mode': true,
      'on-source-error': true,
      'on-target-error': true,
      'filter-node-name': true,
      'auto-finalize': true,
      'auto-dismiss': true,
      'target-is-zero': 'since 10.1',
    },
  },
  'query-jobs': NONE,
  'query-block-jobs': NONE,
  'block-job-cancel': { arguments: { device: true, force: true } },
  'block-job-set-speed': { arguments: { device: true, speed: true } },
  'block-job-change': { availability: 'since 8.2', arguments: { id: true, type: true, 'copy-mode': true } },
  'job-resume': { arguments: { id: true } },
  'job-dismiss': { arguments: { id: true } },
  'nbd-server-start': { daemon: true, arguments: { addr: true, 'tls-creds': true, 'tls-authz': true, 'max-connections': true }, more: { 'addr.type': true, 'addr.data.host': true, 'addr.data.port': true, 'addr.data.path': true } },
  'nbd-server-stop': { daemon: true, ...NONE },
  'block-export-add': { daemon: true, arguments: { type: true, id: true, 'node-name': true, name: true, writable: true, writethrough: true, 'allow-inactive': 'since 10.0' } },
  'block-export-del': { daemon: true, arguments: { id: true, mode: true } },
  'query-block-exports': { daemon: true, ...NONE },
  'query-migrate': NONE,
  'query-migrate-capabilities': NONE,
  'query-migrate-parameters': NONE,
  'migrate-set-capabilities': { arguments: { capabilities: true }, more: { 'capabilities.capability': true, 'capabilities.state': true } },
  'migrate-set-parameters': {
    arguments: {
      'max-bandwidth': true,
      'downtime-limit': true,
      'max-postcopy-bandwidth': true,
      'throttle-trigger-threshold': true,
      'cpu-throttle-initial': true,
      'cpu-throttle-increment': true,
      'cpu-throttle-tailslow': true,
      'max-cpu-throttle': true,
      'xbzrle-cache-size': true,
      'multifd-channels': true,
      'multifd-compression': true,
      'compress-level': 'until 9.1',
      'compress-threads': 'until 9.1',
      'decompress-threads': 'until 9.1',
      'tls-creds': true,
      'tls-hostname': true,
      'tls-authz': true,
    },
  },
  'migrate-incoming': { arguments: { uri: true, 'exit-on-error': 'since 9.1' } },
  migrate: { arguments: { uri: true, resume: true } },
  'migrate-start-postcopy': NONE,
  'migrate-recover': { oob: true, arguments: { uri: true } },
  'migrate-pause': { oob: true, ...NONE },
  'migrate-continue': { arguments: { state: true } },
  migrate_cancel: NONE,
  'query-yank': { oob: true, ...NONE },
  yank: { oob: true, arguments: { instances: true }, more: { 'instances.type': true, 'instances.node-name': true, 'instances.id': true } },
};

const JOB_END = { type: true, device: true, len: true, offset: true, speed: true } as const;

/** The events that we read, with the members that we rely on. */
export const HEARD: { readonly [E in QmpEventName]: { readonly [M in KnownKeys<QmpEvents[E]>]-?: Availability } } = {
  STOP: {},
  RESUME: {},
  RESET: { guest: true, reason: true },
  POWERDOWN: {},
  SHUTDOWN: { guest: true, reason: true },
  GUEST_PANICKED: { action: true, info: true },
  MIGRATION: { status: true },
  MIGRATION_PASS: { pass: true },
  BLOCK_JOB_READY: JOB_END,
  BLOCK_JOB_COMPLETED: { ...JOB_END, error: true },
  BLOCK_JOB_CANCELLED: JOB_END,
  BLOCK_JOB_ERROR: { device: true, operation: true, action: true },
  BLOCK_JOB_PENDING: { type: true, id: true },
  JOB_STATUS_CHANGE: { id: true, status: true },
  BLOCK_IO_ERROR: { device: true, 'node-name': true, operation: true, action: true, nospace: true, reason: true },
  BLOCK_EXPORT_DELETED: { id: true },
};
