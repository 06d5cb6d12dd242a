import { isIP } from 'node:net';
import { z } from 'zod';
import { definitionSchema, guestNameSchema, InvalidDefinition, parseWith, portablePathSchema } from '../hypervisor/definition';
import { hostConfigSchema } from '../hypervisor/host-config';

/**
 * What an agent takes from Temporal, whoever put it there: a workflow of ours, or anybody who may schedule activities on the host's task queue. Names
 * become parts of paths, addresses parts of QEMU's and qemu-img's options; so each is what it says, whichever activity it comes with.
 */
const bytes = z.int().min(0);
const address = z.string().refine((text) => isIP(text) !== 0, 'this is no IP address');
const port = z.int().min(1).max(65_535);
/** In names of files, nodes and jobs. */
const attempt = z.string().regex(/^[A-Za-z0-9_-]{1,40}$/, 'an attempt is named by up to 40 letters, digits, "_" or "-"');
/** As QEMU shows it to us: it goes nowhere but into QMP's JSON. */
const device = z.string().max(1_024);

const target = z.looseObject({ id: z.string().max(64), device, sizeBytes: bytes, host: address, port, exportName: z.string().regex(/^[A-Za-z0-9_.-]{1,255}$/, 'this is no export of ours') });
const disk = z.looseObject({ id: z.string().max(64), path: portablePathSchema, format: z.enum(['raw', 'qcow2']), cache: z.enum(['none', 'writeback']), device, sizeBytes: bytes, allocatedBytes: bytes, blockDevice: z.boolean() });
const fields = z.looseObject({
  guest: guestNameSchema.optional(),
  attempt: attempt.optional(),
  from: hostConfigSchema.shape.name.optional(),
  to: hostConfigSchema.shape.name.optional(),
  host: address.optional(),
  port: port.optional(),
  leasePort: port.optional(),
  targets: z.array(target).max(1_000).optional(),
  plan: z.looseObject({ definition: definitionSchema, disks: z.array(disk).max(1_000) }).optional(),
  pid: z.int().min(2).optional(),
  bandwidthBytesPerSecond: bytes.optional(),
  bytesPerSecond: bytes.optional(),
});
const inputSchema = fields
  .extend({ handOver: fields.extend({ settings: fields, lease: fields }).optional() })
  .refine(({ guest, plan }) => plan === undefined || plan.definition.name === guest, { path: ['plan', 'definition', 'name'], message: 'this is not the guest that the request names' })
  .optional();

/** Throws `InvalidDefinition`, which names the activity, each field, its value and what it should be. */
export function checkInput(activity: string, input: unknown): void {
  if (input !== null && input !== undefined && typeof input !== 'object') throw new InvalidDefinition(`the input of ${activity} is no JSON object`);
  parseWith(inputSchema, input ?? undefined, `the input of ${activity}`);
}
