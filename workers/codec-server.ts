import { createHash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Payload, PayloadCodec } from '@temporalio/common';
import { z } from 'zod';

export interface CodecServerOptions {
  codec: PayloadCodec;
  port: number;
  address: string;
  /** Pages that may ask, such as `http://localhost:8233`: Temporal's UI. */
  origins: string[];
  /** Who asks must know it: `Authorization: Bearer TOKEN`. */
  token?: string;
}

export interface CodecServer {
  url: string;
  close(): Promise<void>;
}

/** Temporal takes payloads of 2 MiB; a page of the UI asks for many at once. */
const LARGEST_BODY = 64 * 2 ** 20;
const base64 = z.base64();
/** Payloads as JSON has them: bytes are base64 (temporal.api.common.v1.Payloads). */
const bodySchema = z.object({ payloads: z.array(z.object({ metadata: z.record(z.string(), base64).optional(), data: base64.optional() })) });

/**
 * Temporal's codec server protocol (docs.temporal.io/codec-server): `POST /decode` and `/encode`, by which the UI and the `temporal` command show
 * payloads in plain text. Who may ask it reads everything, so browsers may only from the given pages.
 */
export async function startCodecServer(options: CodecServerOptions): Promise<CodecServer> {
  const server = createServer((request, response) => {
    answer(options, request, response).catch((error: Error) => end(response, error instanceof BadRequest ? error.status : 400, { message: error.message }));
  });
  server.listen(options.port, options.address);
  await once(server, 'listening');
  const { address, port, family } = server.address() as AddressInfo;
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

class BadRequest extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function answer({ codec, origins, token }: CodecServerOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { origin, authorization } = request.headers;
  if (origin !== undefined) {
    response.setHeader('vary', 'origin');
    if (!origins.includes(origin)) throw new BadRequest(403, `pages of ${origin} may not ask: start vmferry codec-server with --ui-origin ${origin}`);
    response.setHeader('access-control-allow-origin', origin);
    response.setHeader('access-control-allow-credentials', 'true');
    response.setHeader('access-control-allow-methods', 'POST, OPTIONS');
    response.setHeader('access-control-allow-headers', 'content-type, x-namespace, authorization');
  }
  if (request.method === 'OPTIONS') return end(response, 204);
  if (request.method !== 'POST') throw new BadRequest(405, 'POST to /decode or /encode');
  if (token !== undefined && !sameText(authorization ?? '', `Bearer ${token}`)) throw new BadRequest(401, 'the token is missing or wrong');
  const { pathname } = new URL(request.url ?? '/', 'http://x');
  if (pathname !== '/decode' && pathname !== '/encode') throw new BadRequest(404, 'POST to /decode or /encode');
  const payloads = bodySchema.parse(JSON.parse(await read(request))).payloads.map(({ metadata, data }): Payload => ({ metadata: mapValues(metadata ?? {}, (text) => Buffer.from(text, 'base64')), data: Buffer.from(data ?? '', 'base64') }));
  const done = await (pathname === '/decode' ? codec.decode(payloads) : codec.encode(payloads));
  end(response, 200, { payloads: done.map(({ metadata, data }) => ({ metadata: mapValues(metadata ?? {}, toBase64), data: toBase64(data ?? new Uint8Array()) })) });
}

async function read(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > LARGEST_BODY) throw new BadRequest(413, `a request has at most ${LARGEST_BODY} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function end(response: ServerResponse, status: number, body?: object): void {
  response.writeHead(status, body ? { 'content-type': 'application/json' } : {});
  response.end(body && JSON.stringify(body));
}

/** In a time that says nothing about either. */
function sameText(one: string, other: string): boolean {
  const [a, b] = [one, other].map((text) => createHash('sha256').update(text).digest());
  return timingSafeEqual(a!, b!);
}

const toBase64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');
const mapValues = <A, B>(record: Record<string, A>, change: (value: A) => B) => Object.fromEntries(Object.entries(record).map(([key, value]) => [key, change(value)]));
