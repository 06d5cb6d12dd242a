import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed, QmpTimeout } from '../qmp/errors';
import type { MigrationParameters } from '../qmp/structures';
import { addCredentials, type Channel, NO_TLS } from './credentials';
import { downtimeLimit } from './downtime-steps';

export interface MigrationSettings {
  /** Where the destination's QEMU listens; an IPv6 address without brackets. */
  host: string;
  port: number;
  /** Bytes a second for memory; undefined: as fast as the link. */
  bandwidthBytesPerSecond?: number;
  /** QEMU pauses the guest when what remains can be sent in this time, in milliseconds; the first passes get less (`raiseDowntimeLimit`). */
  downtimeLimitMs: number;
  /** This try switches to post-copy once all of the memory was sent once. */
  postCopy?: true;
  /** Further capabilities and parameters by QEMU's names; what this QEMU lacks is left out. */
  capabilities?: Record<string, boolean>;
  parameters?: Record<string, number>;
}

/** `tcp:` needs a URI, so here, and only here, IPv6 has brackets. */
export function migrationUri(host: string, port: number): string {
  return `tcp:${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/**
 * Capabilities of the source. `return-path` stays off (R2): then a source that fails could not hand over the whole stream.
 * `pause-before-switchover` gives the window in which mirrors are finished; `events` says when it opens.
 */
const SOURCE_CAPABILITIES = { 'pause-before-switchover': true, events: true, 'return-path': false, 'postcopy-ram': false } as const;

/** `late-block-activate`: the images are not touched before `cont`, by when the exports are gone. */
const DESTINATION_CAPABILITIES = { events: true, 'late-block-activate': true, 'return-path': false } as const;

/** QEMU refuses it together with `compress`, and opens a return path with it, whatever `return-path` says: see `HandOver.awaitEnd`. */
export const POST_COPY = { 'postcopy-ram': true, compress: false } as const;

/** What an earlier migration of this QEMU may have left on. */
const OFF = { 'auto-converge': false, xbzrle: false, compress: false, 'zero-blocks': false } as const;

/** QEMU takes no 0 for "no limit", and its default of 128 MiB/s is one. */
const UNLIMITED = 2 ** 40;

async function setCapabilities(qmp: QmpConnection, wanted: Record<string, boolean>): Promise<void> {
  const known = new Set((await qmp.execute('query-migrate-capabilities')).map(({ capability }) => capability));
  const capabilities = Object.entries(wanted).filter(([capability]) => known.has(capability)).map(([capability, state]) => ({ capability, state }));
  await qmp.execute('migrate-set-capabilities', { capabilities });
}

/** Starts to send the guest's memory; without a channel as plain text. */
export async function beginMigration(qmp: QmpConnection, settings: MigrationSettings, channel: Channel | undefined): Promise<void> {
  await addCredentials(qmp, channel);
  await setCapabilities(qmp, { ...OFF, ...settings.capabilities, ...SOURCE_CAPABILITIES, ...(settings.postCopy && POST_COPY) });
  const known = await qmp.execute('query-migrate-parameters');
  await qmp.execute('migrate-set-parameters', {
    ...Object.fromEntries(Object.entries(settings.parameters ?? {}).filter(([name]) => name in known)),
    'max-bandwidth': settings.bandwidthBytesPerSecond ?? UNLIMITED,
    // A post-copy try that ended as a pre-copy would be given up (`switchesToPostCopy`): it gets as little room for that as there is.
    'downtime-limit': settings.postCopy ? 1 : downtimeLimit(settings.downtimeLimitMs, 0),
    // Until the last page has come the guest is in danger, and slow: no cap holds any more (0: as fast as the link).
    ...(settings.postCopy && { 'max-postcopy-bandwidth': 0 }),
    ...tlsParameters(channel),
  });
  await qmp.execute('migrate', { uri: migrationUri(settings.host, settings.port) }, { timeoutMs: 60_000 });
}

/** Prepares an incoming QEMU and lets it listen. Throws `QmpCommandFailed` if the port is taken. */
export async function listenForMigration(qmp: QmpConnection, host: string, port: number, channel: Channel | undefined, capabilities: Record<string, boolean> = {}): Promise<void> {
  await setCapabilities(qmp, { ...capabilities, ...DESTINATION_CAPABILITIES });
  await addCredentials(qmp, channel);
  // Only here: a QEMU that waits for a guest has no other's settings.
  if (channel) await qmp.execute('migrate-set-parameters', tlsParameters(channel));
  await qmp.execute('migrate-incoming', { uri: migrationUri(host, port) });
}

function tlsParameters(channel: Channel | undefined): MigrationParameters {
  if (!channel) return NO_TLS;
  return { 'tls-creds': channel.creds, ...(channel.hostname !== undefined && { 'tls-hostname': channel.hostname }), ...(channel.authz !== undefined && { 'tls-authz': channel.authz }) };
}

export type OutgoingState = 'none' | 'active' | 'pre-switchover' | 'continued' | 'post-copy' | 'post-copy-paused' | 'completed' | 'failed' | 'cancelled';

/** What a status means; one that a newer QEMU invented means "still going". */
export function outgoingState(status: string | undefined): OutgoingState {
  switch (status) {
    case undefined:
    case 'none':
      return 'none';
    case 'completed':
    case 'failed':
    case 'cancelled':
    case 'pre-switchover':
      return status;
    case 'device':
      return 'continued';
    case 'postcopy-active':
    case 'postcopy-device':
    case 'postcopy-recover':
    case 'postcopy-recover-setup':
      return 'post-copy';
    case 'postcopy-paused':
      return 'post-copy-paused';
    default:
      return 'active';
  }
}

/**
 * Where this QEMU's outgoing migration stands. A guest that *came* here by a migration reports that one's `completed`; only the run
 * state `postmigrate` says that this QEMU has handed its guest over.
 */
export async function migrationState(qmp: QmpConnection): Promise<OutgoingState> {
  const [{ status }, run] = await Promise.all([qmp.execute('query-migrate'), qmp.execute('query-status')]);
  return stateOf(status, run.status);
}

function stateOf(status: string | undefined, runState: string): OutgoingState {
  const state = outgoingState(status);
  if (state !== 'completed' || runState === 'postmigrate') return state;
  // QEMU says `completed` a moment before the run state follows.
  return runState === 'finish-migrate' ? 'continued' : 'none';
}

/**
 * Lets a guest run on that is this host's (R4), if QEMU is in `postmigrate`: a post-copy try that is cancelled in the pause ends so on QEMU 7.2, with nothing
 * handed over. QEMU leaves `postmigrate`, from which it can neither move nor be started, by `cont` alone: a paused guest runs for a moment.
 */
export async function leavePostmigrate(qmp: QmpConnection, wasRunning: boolean): Promise<void> {
  if ((await qmp.execute('query-status')).status !== 'postmigrate') return;
  await Promise.all([qmp.execute('cont'), ...(wasRunning ? [] : [qmp.execute('stop')])]);
}

/** How often the state is looked at while a migration ends: not all that matters has an event. */
const LOOK_MS = 20;
/** QEMU cancels in far less; one that takes longer has run into its own race. */
const STUCK_MS = 100;
const CANCELLED_MS = 20_000;

/**
 * Cancels the migration and gives the state in which it ended: `completed` if the cancel came too late. A QEMU that hangs, or is still pausing
 * its guest, for `hangMs` is freed out of band by `free`. Nothing happens if none is under way, or if it is a post-copy, which cannot be taken back.
 *
 * QEMU (7.2, migration_maybe_pause) takes a cancel that meets it between STOP and `pre-switchover` for nothing to wake up for: it stays
 * `cancelling` with the guest paused, for ever (seen in tests, as a command that waits for the drain is carried out just then). So a guest
 * that is being paused is let come to `pre-switchover` first; and a migration that is stuck is woken by `migrate-continue` with
 * `state: cancelling`, which QEMU takes only in that state, and from which nothing but the end of the migration follows.
 */
export async function cancelMigration(qmp: QmpConnection, hangMs: number, free: () => Promise<void> = () => yankMigration(qmp)): Promise<OutgoingState> {
  const events = qmp.listen('MIGRATION');
  const began = performance.now();
  let freed = false;
  const hangs = async (error?: unknown) => {
    if (error instanceof Error && !(error instanceof QmpTimeout)) throw error;
    if (!freed) await free();
    freed = true;
  };
  let askedAt: number | undefined;
  try {
    for (;;) {
      const [{ status }, run] = await Promise.all([qmp.execute('query-migrate', undefined, { timeoutMs: freed ? CANCELLED_MS : hangMs }), qmp.execute('query-status', undefined, { timeoutMs: freed ? CANCELLED_MS : hangMs })]).catch(async (error: unknown) => {
        await hangs(error);
        return [{ status: 'unknown' as const }, { status: 'unknown' }] as const;
      });
      const state = stateOf(status, run.status);
      if (status !== 'unknown' && state !== 'active' && state !== 'pre-switchover' && state !== 'continued') return state;
      const elapsed = performance.now() - began;
      const pausing = status === 'active' && run.status === 'finish-migrate';
      if (elapsed > CANCELLED_MS) throw new QmpTimeout(qmp.path, Math.round(elapsed), { what: 'end of the cancelled migration' });
      if (pausing && elapsed > hangMs) await hangs();
      if (askedAt === undefined && status !== 'unknown' && !pausing && state !== 'continued') {
        askedAt = performance.now();
        await qmp.execute('migrate_cancel', undefined, { timeoutMs: hangMs }).catch(hangs);
      } else if (status === 'cancelling' && run.status === 'finish-migrate' && askedAt !== undefined && performance.now() - askedAt > STUCK_MS) {
        askedAt = performance.now();
        await qmp.execute('migrate-continue', { state: 'cancelling' }, { timeoutMs: hangMs }).catch((error: unknown) => {
          if (!(error instanceof QmpCommandFailed)) return hangs(error);
        });
      }
      await events.next({ timeoutMs: LOOK_MS }).catch((error: unknown) => {
        if (!(error instanceof QmpTimeout)) throw error;
      });
    }
  } finally {
    events.close();
  }
}

/** Cuts the migration's connection out of band: works while QEMU's main loop hangs. */
export async function yankMigration(qmp: QmpConnection): Promise<void> {
  const instances = (await qmp.executeOob('query-yank')).filter(({ type }) => type === 'migration');
  if (instances.length > 0) await qmp.executeOob('yank', { instances });
}
