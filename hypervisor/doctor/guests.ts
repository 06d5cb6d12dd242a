import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Definition } from '../definition';
import { guardJob } from '../guard';
import type { Attempt, KeptImages, Ownership } from '../guest-store';
import type { Host } from '../host';
import { storageDaemonProcess } from '../storage-daemon';
import { memoryTrap } from '../tcg-memory';
import { type Finding, ok, problem, warning } from './findings';

export interface GuestFacts {
  name: string;
  definition: Pick<Definition, 'accelerator' | 'memory' | 'emulator'>;
  /** Of its emulator on this host; absent if it is not listed, or does not say. */
  version?: { major: number; minor: number };
}

export async function lookAtGuests({ host }: { host: Host }): Promise<GuestFacts[]> {
  const versions = new Map(await Promise.all(host.config.binaries.qemu.map(async (path) => [basename(path), await versionOf(host, path)] as const)));
  return host.store.names().flatMap((name) => {
    const definition = host.store.definition(name);
    const version = definition && versions.get(definition.emulator);
    return definition ? [{ name, definition, ...(version && { version }) }] : [];
  });
}

async function versionOf({ programs }: Host, path: string): Promise<GuestFacts['version']> {
  const said = await programs.run(path, ['--version']).catch(() => '');
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(said) ?? [];
  return major === undefined ? undefined : { major: Number(major), minor: Number(minor) };
}

export function judgeGuests(guests: GuestFacts[]): Finding[] {
  const found = guests.flatMap(({ name, definition, version }): Finding[] => {
    if (!version) return [problem(`guest ${name} needs ${definition.emulator}, which binaries.qemu does not list, or which does not run`, `add it to binaries.qemu`)];
    const trap = memoryTrap(definition, version);
    return trap ? [warning(`guest ${name}: ${trap.saw}`, trap.fix)] : [];
  });
  return found.length > 0 ? found : [ok(guests.length === 0 ? 'no guest is defined here' : `${guests.length} guests are defined here, none with memory that a move could corrupt`)];
}

/** What state and run folders say of one guest. The monitors are not asked: the agent holds them. */
export interface TraceFacts {
  guest: string;
  defined: boolean;
  ownership?: Ownership;
  attempt?: Attempt;
  /** Its QEMU runs. */
  running: boolean;
  storageDaemon: boolean;
  guard: boolean;
}

export interface LeftoverFacts {
  traces: TraceFacts[];
  kept: KeptImages[];
  /** ISO 8601. */
  now: string;
}

export async function lookAtLeftovers({ host }: { host: Host }): Promise<LeftoverFacts> {
  const list = async (folder: string) => await readdir(folder).catch(() => []);
  const names = new Set([...host.store.names(), ...(await list(join(host.config.stateDir, 'guests'))), ...(await list(host.config.runDir))]);
  const traces = [...names].sort().map((guest): TraceFacts => {
    const [ownership, attempt] = [host.store.ownership(guest), host.store.attempt(guest)];
    const defined = host.store.definition(guest) !== undefined;
    const storageDaemon = storageDaemonProcess(host, guest) !== undefined;
    return { guest, defined, ...(ownership && { ownership }), ...(attempt && { attempt }), running: host.process(guest) !== undefined, storageDaemon, guard: guardJob(host, guest) !== undefined };
  });
  return { traces, kept: host.store.kept(), now: new Date().toISOString() };
}

export function judgeLeftovers({ traces, kept, now }: LeftoverFacts): Finding[] {
  const found = traces.flatMap((trace): Finding[] => {
    const { guest, attempt, ownership } = trace;
    const repair = `vmferry repair ${guest}`;
    if (attempt) return [warning(`guest ${guest} is being moved ${attempt.role === 'source' ? `to ${attempt.to}` : `from ${attempt.from}`} (attempt ${attempt.attempt}), or a migration that was terminated left it so`, `vmferry watch ${guest} says which; if none is under way: ${repair}`)];
    if (trace.storageDaemon) return [warning(`a storage daemon of guest ${guest} runs, and no move is on record`, repair)];
    if (trace.guard) return [warning(`a guard of guest ${guest} was told to watch, and no move is on record`, `${repair}; or start the agent, which ends it`)];
    if (ownership?.state === 'handed-over') return [warning(`a copy of guest ${guest} is here that was handed over to ${ownership.to}, and was not retired`, repair)];
    if (ownership?.state === 'incoming') return [warning(`guest ${guest} is on its way here from ${ownership.from}, and no attempt is on record`, repair)];
    if (!trace.defined) return [warning(`there is a folder of guest ${guest}, which is not defined here`, trace.running ? 'find out what its QEMU is for before you end it' : `vmferry vm list says where the guest is; if nothing of it runs here, delete its folder below runDir and stateDir/guests`)];
    return [];
  });
  found.push(...kept.filter(({ until }) => until < now).map(({ guest, paths, until }) => warning(`images of guest ${guest} that were kept until ${until} are here still: ${paths.join(', ')}`, 'start the agent: it deletes them')));
  return found.length > 0 ? found : [ok(`nothing is left of earlier moves${kept.length > 0 ? `; images of ${kept.length} guests that left are kept for a while` : ''}`)];
}
