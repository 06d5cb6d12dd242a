import type { Duplex } from 'node:stream';
import { z } from 'zod';
import { LineDecoder } from '../qmp/line-decoder';

/** What the two ends of a lease say: JSON, one a line. Whoever reaches the port may say anything, so nothing else is taken. */
const handedOver = z.literal(true).optional();
export const toDestinationSchema = z.union([z.strictObject({ attempt: z.string().min(1).max(64) }), z.strictObject({ greet: z.string().max(64) }), z.strictObject({ run: z.boolean(), handedOver })]);
export const toSourceSchema = z.union([z.strictObject({ armed: z.boolean(), handedOver }), z.strictObject({ beat: z.int().min(0) }), z.strictObject({ gone: z.string().max(4_096) }), z.strictObject({ host: z.string().max(64) }), z.strictObject({ refused: z.string().max(4_096) })]);

export type ToDestination = z.output<typeof toDestinationSchema>;
export type ToSource = z.output<typeof toSourceSchema>;

const LONGEST_LINE = 8_192;

/** Hands on each message; the first line that is none, or is too long, ends the connection. */
export function onMessages<M>(socket: Duplex, schema: z.ZodType<M>, handle: (message: M) => void): void {
  const lines = new LineDecoder(LONGEST_LINE);
  socket.on('error', () => socket.destroy()).on('data', (chunk: Buffer) => {
    try {
      for (const line of lines.push(chunk)) {
        if (socket.destroyed) return;
        handle(schema.parse(JSON.parse(line.toString('utf8'))));
      }
    } catch {
      socket.destroy();
    }
  });
}
