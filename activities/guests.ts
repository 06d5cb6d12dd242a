import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { adoptProcess, findQemuProcesses, type QemuProcess } from '../hypervisor/adopt';
import { qemuArguments } from '../hypervisor/command-line';
import { type Definition, definitionSchema, movingDisks, parseWith } from '../hypervisor/definition';
import { GuestStateError, type Host } from '../hypervisor/host';
import { runFolder } from '../hypervisor/host-config';
import { imageInfo } from '../hypervisor/images';
import { startGuest, stopGuest } from '../hypervisor/launch';
import { identify } from '../hypervisor/processes';
import { type HostDependencies, runStep } from './context';

export interface GuestSummary {
  name: string;
  /** QEMU's run state, or `stopped`, `arriving`, `handed over to …`. */
  state: string;
  memoryBytes: number;
  disks: number;
  moving?: string;
}

export interface GuestDetails extends GuestSummary {
  definition: Definition;
  pid?: number;
  images: { id: string; path: string; format: string; virtualSizeBytes?: number; problem?: string }[];
}

export type GuestActivities = ReturnType<typeof guestActivities>;

/** What a person or a program may ask a host to do with its guests. */
export function guestActivities(deps: HostDependencies) {
  const { host } = deps;
  const step = <T>(guest: string | undefined, work: () => Promise<T>) => runStep(deps, 'guest', guest === undefined ? {} : { guest }, work);
  return {
    /** Makes a guest known to this host. Its images must exist. Refuses a name that is taken by a running or moving guest. */
    async defineGuest({ definition: raw }: { definition: unknown }): Promise<GuestSummary> {
      const named = (raw as { name?: unknown } | null)?.name;
      return await step(typeof named === 'string' ? named : undefined, async () => {
        const definition = parseWith(definitionSchema, raw, 'the definition');
        const { name } = definition;
        if (host.store.attempt(name)) throw new GuestStateError(`guest "${name}" is being moved: define it again afterwards`);
        if (host.process(name)) throw new GuestStateError(`guest "${name}" runs on ${host.name}: stop it before it is defined anew`);
        const ownership = host.store.ownership(name);
        if (ownership && ownership.state !== 'owner') throw new GuestStateError(`guest "${name}" is known on ${host.name} as ${ownership.state}`);
        for (const disk of definition.disks) {
          const path = host.path(name, disk.path);
          if (!existsSync(path)) throw new GuestStateError(`disk ${disk.id}: ${path} does not exist on ${host.name}: make it first (qemu-img create)`);
        }
        // What this host would refuse at the start is refused now.
        qemuArguments(host.config, definition, { incoming: false });
        await host.store.setDefinition(definition);
        await host.store.setOwnership(name, { state: 'owner', since: new Date().toISOString() });
        await deps.announce();
        return await summary(host, name);
      });
    },

    async startGuest({ guest }: { guest: string }): Promise<GuestSummary> {
      return await step(guest, async () => {
        await startGuest(host, guest);
        await deps.announce();
        return await summary(host, guest);
      });
    },

    /** `graceMs` is how long the guest's own system may take to power off; then QEMU is ended. */
    async stopGuest({ guest, graceMs }: { guest: string; graceMs: number }): Promise<GuestSummary> {
      return await step(guest, async () => {
        await stopGuest(host, guest, graceMs);
        await deps.announce();
        return await summary(host, guest);
      });
    },

    /** Forgets a guest that does not run; its images stay. */
    async removeGuest({ guest }: { guest: string }): Promise<void> {
      await step(guest, async () => {
        host.definition(guest);
        if (host.store.attempt(guest)) throw new GuestStateError(`guest "${guest}" is being moved: cancel its migration first; if there is none, vmferry repair ${guest} removes what a terminated one left`);
        if (host.process(guest)) throw new GuestStateError(`guest "${guest}" runs on ${host.name}: stop it first`);
        await host.store.remove(guest);
        // What a QEMU that crashed has left.
        await rm(runFolder(host.config, guest), { recursive: true, force: true });
        await deps.announce();
      });
    },

    async listGuests(): Promise<GuestSummary[]> {
      return await step(undefined, () => Promise.all(host.store.names().map((name) => summary(host, name))));
    },

    async showGuest({ guest }: { guest: string }): Promise<GuestDetails> {
      return await step(guest, async () => {
        const definition = host.definition(guest);
        const images = await Promise.all(
          movingDisks(definition).map(async ({ id, path, format }) => {
            const real = host.path(guest, path);
            return await imageInfo(host, real, format).then(({ virtualSizeBytes }) => ({ id, path: real, format, virtualSizeBytes }), (error: Error) => ({ id, path: real, format, problem: error.message }));
          }),
        );
        const process = host.process(guest);
        return { ...(await summary(host, guest)), definition, images, ...(process && { pid: process.pid }) };
      });
    },

    /** QEMU processes on this host that are not ours yet. */
    async findGuests(): Promise<QemuProcess[]> {
      return await step(undefined, async () => {
        const ours = new Set(host.store.names().map((name) => host.process(name)?.pid));
        return (await findQemuProcesses(host.config)).filter(({ pid }) => !ours.has(pid));
      });
    },

    /** Takes a guest that somebody else started. With `dryRun` only shows the definition that would be stored. Refuses with all reasons at once. */
    async adoptGuest({ pid, guest, dryRun }: { pid: number; guest?: string; dryRun?: boolean }): Promise<{ definition: Definition; monitor: string }> {
      return await step(guest, async () => {
        const identity = identify(pid);
        if (!identity) throw new GuestStateError(`there is no process ${pid} on ${host.name}`);
        const { definition, monitor } = await adoptProcess(host.config, pid, (path) => host.monitors.get(path), guest);
        if (!dryRun) {
          if (host.store.definition(definition.name)) throw new GuestStateError(`a guest "${definition.name}" is defined on ${host.name} already: adopt it under another name (--name)`);
          await host.store.setDefinition(definition);
          await host.store.setAdopted(definition.name, { ...identity, monitor });
          await host.store.setOwnership(definition.name, { state: 'owner', since: new Date().toISOString() });
          await deps.announce();
        }
        return { definition, monitor };
      });
    },
  };
}

/** One line about a guest; a monitor that does not answer makes no other line wait long. */
export async function summary(host: Host, guest: string): Promise<GuestSummary> {
  const definition = host.definition(guest);
  const attempt = host.store.attempt(guest);
  return {
    name: guest,
    state: await guestState(host, guest),
    memoryBytes: definition.memory,
    disks: definition.disks.length,
    ...(attempt && { moving: attempt.role === 'source' ? `to ${attempt.to}` : `from ${attempt.from}` }),
  };
}

async function guestState(host: Host, guest: string): Promise<string> {
  const ownership = host.store.ownership(guest);
  if (ownership?.state === 'incoming') return `arriving from ${ownership.from}`;
  if (ownership?.state === 'handed-over') return `handed over to ${ownership.to}`;
  if (!host.process(guest)) return 'stopped';
  return await host.monitor(guest).execute('query-status', undefined, { timeoutMs: 2_000 }).then(({ status }) => status, () => 'monitor does not answer');
}
