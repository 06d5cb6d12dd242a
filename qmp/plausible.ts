import { z } from 'zod';
import type { QmpCommand } from './vocabulary';

/**
 * What a number from QEMU may be. We wait, divide and decide by these; a QEMU that was taken over could otherwise have us wait for ever, or show
 * people and metrics nonsense. Sizes are QEMU's int64, as far as JavaScript counts them exactly (8 PiB). Nothing else of a reply is looked at.
 */
const bytes = z.int().min(0);
/** Megabits or pages a second; QEMU says -1 for one that it does not know yet. */
const rate = z.number().min(-1).max(2 ** 53);
const image = z.looseObject({ 'virtual-size': bytes });
const memory = z.looseObject({ total: bytes, remaining: bytes, 'page-size': bytes.optional(), 'dirty-pages-rate': rate.optional(), mbps: rate.optional() });

const PLAUSIBLE: Partial<Record<QmpCommand, z.ZodType>> = {
  'query-jobs': z.array(z.looseObject({ id: z.string(), status: z.string(), 'current-progress': bytes, 'total-progress': bytes })),
  'query-block-jobs': z.array(z.looseObject({ device: z.string(), len: bytes, offset: bytes, speed: bytes.optional() })),
  'query-block': z.array(z.looseObject({ device: z.string().optional(), inserted: z.looseObject({ file: z.string(), image }).optional() })),
  'query-migrate': z.looseObject({ status: z.string().optional(), ram: memory.optional(), 'blocked-reasons': z.array(z.string()).optional() }),
  'query-memory-size-summary': z.looseObject({ 'base-memory': bytes, 'plugged-memory': bytes.optional() }),
  'query-status': z.looseObject({ status: z.string(), running: z.boolean() }),
};

/** What is wrong with a reply, in words; undefined if nothing that we look at is. */
export function implausible(command: string, value: unknown): string | undefined {
  const issue = PLAUSIBLE[command as QmpCommand]?.safeParse(value).error?.issues[0];
  return issue && `its answer to ${command} has an impossible ${issue.path.join('.') || 'value'} (${issue.message})`;
}
