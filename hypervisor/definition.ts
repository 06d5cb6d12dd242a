import { parse as parseYaml } from 'yaml';
import { z } from 'zod';
import { sizeSchema } from './size';

/**
 * What a guest is, independent of the host it lives on. Every path in it is `${root}/relative`, where `root` is a folder that the
 * host's configuration names (`roots`), or `${run}`, the guest's run folder on that host. So the same text is true on every host.
 */
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}$/;
const ID = /^[A-Za-z][A-Za-z0-9_.-]{0,63}$/;
const PORTABLE_PATH = /^\$\{[a-z][a-z0-9-]*\}(?!.*\/\.\.?(?:\/|$))\/[^\0\n,]+$/;

/** QEMU's node names have up to 31 bytes (`BlockDriverState.node_name`). */
const MAX_NODE_NAME = 31;
/** QEMU rounds RAM up to this (`set_memory_options`); what is defined is what the guest gets. */
const RAM_UNIT = 8192;

export const guestNameSchema = z.string().regex(NAME, 'a guest name has 1 to 48 letters, digits, ".", "_" or "-", and starts with a letter or a digit');
const idSchema = z.string().regex(ID, 'an id starts with a letter and has up to 64 letters, digits, ".", "_" or "-"');
export const portablePathSchema = z
  .string()
  .regex(PORTABLE_PATH, 'give a path as "${root}/relative/name", where root is one of the host configuration\'s roots; no "..", no comma');

export const diskSchema = z.strictObject({
  /** The name of the block device in QEMU and in every message, such as `drive-scsi-disk-0`. */
  id: idSchema,
  path: portablePathSchema,
  format: z.enum(['raw', 'qcow2']).default('raw'),
  bus: z.enum(['virtio-scsi', 'virtio-blk', 'sata', 'pflash']).default('virtio-scsi'),
  /** Read-only and removable media are not copied: they must exist at the destination. */
  readOnly: z.boolean().default(false),
  removable: z.boolean().default(false),
  /** `none` is O_DIRECT (QEMU's `cache.direct=on`); `writeback` goes through the host's page cache. */
  cache: z.enum(['none', 'writeback']).default('writeback'),
  aio: z.enum(['threads', 'native', 'io_uring']).default('threads'),
  /** Lets the guest's TRIM free space in the image. */
  discard: z.boolean().default(true),
});

export const nicSchema = z.strictObject({
  id: idSchema,
  model: z.string().regex(/^[a-z0-9-]+$/).default('virtio-net-pci'),
  mac: z.string().regex(/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i, 'a MAC address looks like 52:54:00:12:34:56'),
  /** QEMU's `-netdev` without the id, such as `user` or `tap,ifname=tap7,script=no,downscript=no`. */
  backend: z.string().regex(/^(user|tap|bridge)(,[^\0]*)?$/, 'a backend is user, tap,… or bridge,…'),
});

export const definitionSchema = z
  .strictObject({
    name: guestNameSchema,
    /** A versioned machine type (`pc-q35-7.2`): an alias such as `q35` means another machine on another QEMU. */
    machine: z.string().regex(/^[A-Za-z0-9_.-]+$/).default('q35'),
    /** The name of a QEMU binary; the host's configuration lists where it is. */
    emulator: z.string().regex(/^qemu-system-[a-z0-9_]+$/).default('qemu-system-x86_64'),
    accelerator: z.enum(['tcg', 'kvm']).default('tcg'),
    cpu: z.strictObject({ model: z.string().regex(/^[^\0\s]+$/), count: z.int().min(1).max(1024).default(1) }).default({ model: 'qemu64', count: 1 }),
    memory: sizeSchema,
    firmware: z.strictObject({ code: portablePathSchema, variables: portablePathSchema.optional() }).optional(),
    boot: z.strictObject({ kernel: portablePathSchema, initrd: portablePathSchema.optional(), append: z.string().default('') }).optional(),
    disks: z.array(diskSchema).max(64).default([]),
    nics: z.array(nicSchema).max(32).default([]),
    /** Further QEMU arguments; `${run}`, `${name}` and `${root}` are replaced. */
    arguments: z.array(z.string().regex(/^[^\0]*$/)).default([]),
    /** An adopted guest's own command line, without the binary, with placeholders: used as it is instead of one made from the fields above. */
    commandLine: z.array(z.string().regex(/^[^\0]*$/)).optional(),
    /** The monitor that the agent uses, where `commandLine` says which (default `${run}/qmp.sock`). */
    monitor: portablePathSchema.optional(),
    /** Started by its host's agent after the host has booted. */
    autostart: z.boolean().default(false),
    labels: z.record(z.string(), z.string()).default({}),
    /** Whether an evacuation may move it: `ask` only when it is named or approved. */
    migratable: z.enum(['never', 'ask', 'always']).default('always'),
    /** Guests of the same group do not share a host. */
    antiAffinity: z.array(z.string().min(1)).default([]),
    /** Labels of the hosts that it may live on, such as `rack in (r1, r2), gpu`; empty: any. */
    hostSelector: z.string().default(''),
  })
  .superRefine((definition, context) => {
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message });
    definition.disks.forEach((disk, index) => {
      if (disk.aio === 'native' && disk.cache !== 'none') issue(['disks', index, 'aio'], 'aio "native" needs cache "none" (O_DIRECT): QEMU refuses it otherwise');
      if (definition.commandLine) return;
      if (disk.id.length > MAX_NODE_NAME - '-file'.length) issue(['disks', index, 'id'], `an id has up to ${MAX_NODE_NAME - '-file'.length} letters here, since QEMU's node names have ${MAX_NODE_NAME}`);
      if (disk.id.startsWith('firmware-')) issue(['disks', index, 'id'], 'ids that start with "firmware-" are taken');
      if (disk.bus === 'pflash') issue(['disks', index, 'bus'], 'bus "pflash" is for adopted guests: use the field firmware');
      if (disk.bus === 'virtio-blk' && disk.removable) issue(['disks', index, 'bus'], 'removable media need the bus virtio-scsi or sata');
      if (disk.bus === 'sata' && !definition.machine.includes('q35')) issue(['disks', index, 'bus'], 'bus "sata" needs a q35 machine');
    });
    if (!definition.commandLine && definition.disks.filter(({ bus }) => bus === 'sata').length > 6) issue(['disks'], 'a q35 machine has six sata ports: put further disks on virtio-scsi');
    if (definition.memory % RAM_UNIT !== 0) issue(['memory'], `memory must be a multiple of 8 KiB, such as ${Math.ceil(definition.memory / RAM_UNIT) * (RAM_UNIT / 1024)}K`);
    const seen = new Set<string>();
    [...definition.disks, ...definition.nics].forEach(({ id }) => {
      if (seen.has(id)) context.addIssue({ code: 'custom', path: ['disks'], message: `the id "${id}" is used twice: give every disk and nic its own` });
      seen.add(id);
    });
    const paths = definition.disks.filter((disk) => !disk.readOnly).map((disk) => disk.path);
    paths.filter((path, index) => paths.indexOf(path) !== index).forEach((path) => context.addIssue({ code: 'custom', path: ['disks'], message: `${path} is used by two writable disks` }));
  });

export type Definition = z.output<typeof definitionSchema>;
export type Disk = Definition['disks'][number];

/** An invalid definition or configuration: `message` has one line a field, each with the value and the fix. */
export class InvalidDefinition extends Error {
  override readonly name = 'InvalidDefinition';
  constructor(
    message: string,
    /** Each on its own, where there are several. */
    readonly reasons: string[] = [message],
  ) {
    super(message);
  }
}

/** Checks a value against a schema. Throws `InvalidDefinition`, which names `what`, each field, its value and what it should be. */
export function parseWith<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const lines = result.error.issues.map((issue) => {
    const given = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], value);
    const unknown = issue.code === 'unrecognized_keys' ? issue.keys.map((key) => `"${key}"`).join(', ') : undefined;
    const field = issue.path.join('.') || (unknown ? 'top level' : 'the document');
    if (unknown) return `${field}: unknown field ${unknown}: remove it or correct its name`;
    return `${field}: ${issue.message}${given === undefined ? ' (it is missing)' : ` (got ${JSON.stringify(given)?.slice(0, 120)})`}`;
  });
  throw new InvalidDefinition(`${what} is not valid:\n  ${lines.join('\n  ')}`);
}

/** Reads YAML through a schema. Throws `InvalidDefinition`. */
export function parseYamlWith<S extends z.ZodType>(schema: S, text: string, what: string): z.output<S> {
  let value: unknown;
  try {
    value = parseYaml(text, { logLevel: 'error' });
    // A part that an alias puts into itself has no end.
    JSON.stringify(value);
  } catch (error) {
    throw new InvalidDefinition(`${what} is not YAML: ${(error as Error).message.split('\n')[0]}`);
  }
  return parseWith(schema, value, what);
}

/** Disks whose bytes move with the guest; the others must exist at the destination. The firmware's variables are one of them. */
export function movingDisks(definition: Definition): Disk[] {
  return allDisks(definition).filter((disk) => !disk.readOnly && !disk.removable);
}

/** The id of the block device that holds the firmware's variables. */
export const FIRMWARE_VARIABLES = 'firmware-variables';

/** All disks, the firmware's variable store included. */
export function allDisks(definition: Definition): Disk[] {
  const variables = definition.firmware?.variables;
  if (!variables || definition.commandLine) return definition.disks;
  return [...definition.disks, diskSchema.parse({ id: FIRMWARE_VARIABLES, path: variables, bus: 'pflash', discard: false })];
}
