import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { definitionSchema, parseYamlWith, type Definition } from './definition';
import { readJson, removeDurably, writeDurably } from './durable';
import { folderName } from './host-config';
import type { ProcessIdentity } from './processes';
import type { IoThrottle } from '../qmp/vocabulary';

/**
 * Who may start this host's copy of a guest (R10). Before `migrate-continue` the source's copy becomes `handed-over`; the
 * destination's is `incoming` until the marker, which makes it `owner` just before `cont`. So whatever host reboots at whatever
 * moment, at most one copy is `owner`, and only an owner is started.
 */
export type Ownership =
  | {
      state: 'owner';
      since: string;
      /** Set by the marker "about to run": the attempt that brought it here. */
      attempt?: string;
      /** The copy that a host, confirmed fenced, may have of this attempt: this one runs instead, and that one never again. */
      instead?: Instead;
    }
  | { state: 'incoming'; attempt: string; from: string }
  | { state: 'handed-over'; attempt: string; to: string };

export interface Instead {
  host: string;
  attempt: string;
}

/** What an attempt to move a guest did on this host, kept so that a restarted agent can go on or undo it. */
export interface SourceAttempt {
  role: 'source';
  attempt: string;
  to: string;
  /** The try of the memory phase for which `migrate` may have been sent; 0 before the first. */
  memoryTry: number;
  /** Whether the guest's vCPUs ran when its memory began to move: a paused guest arrives paused. */
  wasRunning: boolean;
  /** That try goes by post-copy: from `migrate-continue` on this copy never runs by itself. */
  postCopy?: true | undefined;
  /** The limits that the guest's disks had before we throttled them; absent while we do not. */
  throttledFrom?: IoThrottle[] | undefined;
  /** Every guest write waits for the mirrors: a mirror that is made anew is made so. */
  writeBlocking?: boolean | undefined;
  /** The guest does not run, and only its images are copied; it is not startable meanwhile. */
  cold?: boolean | undefined;
  /** Of a cold copy: what each disk has at the destination. */
  copiedBytes?: Record<string, number> | undefined;
  /** Set while the guest is paused for a moment to switch its mirrors: whoever finds it lets the guest run. */
  pausedToSwitch?: boolean | undefined;
}

export interface DestinationAttempt {
  role: 'destination';
  attempt: string;
  from: string;
  memoryBytes: number;
  /** Real paths of images and folders that this attempt made, in order; undo deletes them in reverse. */
  made: string[];
  /** Block devices that were there before and are overwritten. */
  nbdPort?: number;
  migrationPort?: number | undefined;
  /** What the source said last about running the guest on arrival. */
  run?: boolean | undefined;
  /** The guest comes by post-copy: it may run as soon as the source has said so. */
  postCopy?: true | undefined;
  /** The source's word that it cannot run on any more. */
  handedOver?: true | undefined;
}

export type Attempt = SourceAttempt | DestinationAttempt;

/** A guest that somebody else started: its process and monitor are where they were, not in our run folder. */
export interface Adopted extends ProcessIdentity {
  /** Real path of its QMP socket. */
  monitor: string;
}

/** Source images kept aside after the guest left, deleted at `until`. */
export interface KeptImages {
  guest: string;
  attempt: string;
  paths: string[];
  until: string;
}

/** The durable state of one host: a folder a guest below `stateDir/guests`. Every write is complete or absent after a crash. */
export class GuestStore {
  constructor(private readonly stateDir: string) {}

  names(): string[] {
    const folder = join(this.stateDir, 'guests');
    return existsSync(folder) ? readdirSync(folder).filter((name) => existsSync(join(folder, name, 'definition.yaml'))).sort() : [];
  }

  definition(guest: string): Definition | undefined {
    const path = this.path(guest, 'definition.yaml');
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) return undefined;
    const known = this.definitions.get(path);
    // Each write makes another file: it is read, and checked, once.
    if (known?.inode === stat.ino && known.mtimeMs === stat.mtimeMs) return known.definition;
    const definition = parseYamlWith(definitionSchema, readFileSync(path, 'utf8'), path);
    this.definitions.set(path, { inode: stat.ino, mtimeMs: stat.mtimeMs, definition });
    return definition;
  }
  private readonly definitions = new Map<string, { inode: number; mtimeMs: number; definition: Definition }>();

  async setDefinition(definition: Definition): Promise<void> {
    await writeDurably(this.path(definition.name, 'definition.yaml'), stringify(definition));
  }

  ownership(guest: string): Ownership | undefined {
    return readJson(this.path(guest, 'ownership.json'));
  }

  async setOwnership(guest: string, ownership: Ownership): Promise<void> {
    await writeDurably(this.path(guest, 'ownership.json'), JSON.stringify(ownership));
  }

  attempt(guest: string): Attempt | undefined {
    return readJson(this.path(guest, 'attempt.json'));
  }

  async setAttempt(guest: string, attempt: Attempt | undefined): Promise<void> {
    const path = this.path(guest, 'attempt.json');
    await (attempt ? writeDurably(path, JSON.stringify(attempt)) : removeDurably(path));
  }

  /** Changes some fields of the attempt on record, one caller after the other. Throws if there is none. */
  async patchAttempt<A extends Attempt>(guest: string, fields: Partial<A>): Promise<void> {
    const path = this.path(guest, 'attempt.json');
    const before = this.patching.get(path) ?? Promise.resolve();
    const patch = before.then(async () => {
      const attempt = this.attempt(guest);
      if (!attempt) throw new Error(`the attempt to move guest ${guest} was undone`);
      await this.setAttempt(guest, { ...attempt, ...fields });
    });
    this.patching.set(path, patch.catch(() => undefined));
    await patch;
  }
  private readonly patching = new Map<string, Promise<void>>();

  adopted(guest: string): Adopted | undefined {
    return readJson(this.path(guest, 'adopted.json'));
  }

  async setAdopted(guest: string, adopted: Adopted): Promise<void> {
    await writeDurably(this.path(guest, 'adopted.json'), JSON.stringify(adopted));
  }

  /** Forgets the guest on this host. */
  async remove(guest: string): Promise<void> {
    await removeDurably(this.path(guest, ''));
  }

  kept(): KeptImages[] {
    return readJson<KeptImages[]>(join(this.stateDir, 'kept-images.json')) ?? [];
  }

  async setKept(kept: KeptImages[]): Promise<void> {
    const path = join(this.stateDir, 'kept-images.json');
    await (kept.length > 0 ? writeDurably(path, JSON.stringify(kept)) : removeDurably(path));
  }

  private path(guest: string, file: string): string {
    return join(this.stateDir, 'guests', folderName(guest), file);
  }
}
