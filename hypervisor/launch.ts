import { realpathSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpError, QmpProtocolError } from '../qmp/errors';
import type { QmpMonitor } from '../qmp/monitor';
import { qemuArguments } from './command-line';
import { allDisks, type Definition } from './definition';
import { GuestGone, GuestStateError, type Host } from './host';
import { runFolder } from './host-config';
import { checkLayers } from './image-layers';
import { madeAtStart } from './import-command-line';
import { logTail } from './processes';
import { mayStart } from './startable';

/** The configured binary with this name. Only binaries that the host's configuration lists are ever run. */
export function emulatorPath(host: Host, emulator: string): string {
  const path = host.config.binaries.qemu.find((binary) => basename(binary) === emulator);
  if (!path) throw new GuestStateError(`host ${host.name} lists no ${emulator} (binaries.qemu: ${host.config.binaries.qemu.join(', ')})`);
  return realpathSync(path);
}

/**
 * Starts the guest's QEMU on this host, or finds it running. QEMU's lock on its pid file makes a second one impossible. `incoming`
 * gives one that waits for `migrate-incoming`. It outlives the agent. Throws `ProcessFailed` with QEMU's own words if it ends at start.
 */
export async function ensureQemu(host: Host, definition: Definition, incoming: boolean): Promise<QmpMonitor> {
  const guest = definition.name;
  if (!host.process(guest)) {
    await mkdir(runFolder(host.config, guest), { recursive: true, mode: 0o700 });
    const args = qemuArguments(host.config, definition, { incoming });
    for (const { path, format } of allDisks(definition)) if (format === 'qcow2') checkLayers(host.config, host.path(guest, path));
    const logFile = host.runFile(guest, 'qemu.log');
    await host.programs.start(emulatorPath(host, definition.emulator), args, logFile, (signal) => monitorReady(host, guest, signal)).catch(async (error: unknown) => {
      // A QEMU that dies at start leaves its sockets. An incoming one shares the folder with the storage daemon, and is undone with it.
      if (!incoming && !host.process(guest)) await rm(runFolder(host.config, guest), { recursive: true, force: true });
      throw error;
    });
  }
  const monitor = host.monitor(guest);
  await monitor.connection();
  return monitor;
}

/** QEMU makes its monitor before it opens its disks and writes its pid file; it is up when that file is there and QMP answers. */
async function monitorReady(host: Host, guest: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    signal.throwIfAborted();
    if (host.process(guest)) {
      try {
        await host.monitor(guest).execute('query-status', undefined, { timeoutMs: 20_000, signal });
        return;
      } catch (error) {
        // A QEMU that dies between our two looks at it tells why by its exit.
        const notYet = error instanceof GuestGone || (error instanceof QmpError && !(error instanceof QmpProtocolError));
        if (!notYet) throw error;
      }
    }
    await delay(5, undefined, { signal });
  }
}

/** Starts a guest that this host owns (R10). Throws `GuestStateError` if another host may run it. */
export async function startGuest(host: Host, guest: string): Promise<void> {
  const definition = host.definition(guest);
  const ownership = host.store.ownership(guest);
  if (ownership?.state === 'handed-over') {
    throw new GuestStateError(`guest "${guest}" was handed over to ${ownership.to} (attempt ${ownership.attempt}): ${ownership.to} owns it unless its migration says otherwise; starting it here could make two copies. If no migration is under way, vmferry repair ${guest} finds out who owns it`);
  }
  const attempt = host.store.attempt(guest);
  if (attempt?.role === 'source' && attempt.cold) throw new GuestStateError(`guest "${guest}" is being copied to ${attempt.to}: cancel that (vmferry cancel ${guest}), or start it there afterwards`);
  if (!mayStart(ownership)) throw new GuestStateError(`guest "${guest}" is on its way to ${host.name} and not startable before it has arrived. If no migration is under way, vmferry repair ${guest} finds out who owns it`);
  const monitor = await ensureQemu(host, definition, false);
  const { status } = await monitor.execute('query-status');
  if (status === 'prelaunch') await monitor.execute('cont');
}

/** Powers the guest off: asks its system for `graceMs`, then quits QEMU. Throws `GuestStateError` while it is being moved. */
export async function stopGuest(host: Host, guest: string, graceMs: number): Promise<void> {
  host.definition(guest);
  const attempt = host.store.attempt(guest);
  if (attempt) throw new GuestStateError(`guest "${guest}" is being moved ${attempt.role === 'source' ? `to ${attempt.to}` : `from ${attempt.from}`}: cancel its migration first; if there is none, vmferry repair ${guest} removes what a terminated one left`);
  const process = host.process(guest);
  if (!process) return;
  if (graceMs > 0) {
    await host.monitor(guest).execute('system_powerdown');
    await host.programs.exit(process, AbortSignal.timeout(graceMs)).catch(() => undefined);
  }
  await quitQemu(host, guest);
}

/** Ends the guest's QEMU on this host and removes its run folder; nothing happens if none runs. The caller knows that this copy is not needed. */
export async function quitQemu(host: Host, guest: string): Promise<void> {
  const process = host.process(guest);
  if (process) {
    const monitor = host.monitor(guest);
    // One that somebody else started in a chroot, or as another user, cannot remove its sockets itself.
    const made = host.store.adopted(guest)?.pid === process.pid ? madeAtStart(host.programs.commandLine(process.pid)) : [];
    // A QEMU whose main loop hangs does not answer: SIGTERM, then SIGKILL, end it all the same.
    await monitor.execute('quit', {}, { timeoutMs: 2_000 }).catch(() => undefined);
    await host.programs.exit(process, AbortSignal.timeout(3_000)).catch(() => host.programs.terminate(process, 2_000));
    host.monitors.forget(monitor.path);
    for (const path of made) await rm(path, { force: true });
  }
  await rm(runFolder(host.config, guest), { recursive: true, force: true });
}

/** Ends a QEMU that has nothing to lose, such as one that waits for a guest, at once. Its run folder, where a storage daemon may live, stays. */
export async function killQemu(host: Host, guest: string): Promise<void> {
  const process = host.process(guest);
  if (!process) return;
  const { path } = host.monitor(guest);
  await host.programs.terminate(process, 0);
  host.monitors.forget(path);
}

/** What QEMU printed last, for the message of an error about its end. */
export function qemuLastWords(host: Host, guest: string): string {
  return logTail(host.runFile(guest, 'qemu.log'));
}
