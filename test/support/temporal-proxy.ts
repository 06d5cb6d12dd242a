import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { type ClientHttp2Session, connect, createSecureServer, type Http2SecureServer, type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import type { KeyPair } from './certificates';

const UNAUTHENTICATED = '16';

/** Stands before a development server, which has neither: mutual TLS, and an API key. */
export class TemporalProxy {
  /** Calls that were let through, by what they authenticated with. */
  readonly calls = { withKey: 0, withoutKey: 0 };
  private readonly upstream: ClientHttp2Session;
  private readonly sessions = new Set<ServerHttp2Session>();

  private constructor(private readonly server: Http2SecureServer, upstream: string, private readonly apiKey: string | undefined) {
    this.upstream = connect(`http://${upstream}`);
    this.upstream.on('error', () => undefined).setMaxListeners(0);
    server.on('session', (session) => {
      this.sessions.add(session);
      session.on('error', () => undefined).once('close', () => this.sessions.delete(session));
    });
    server.on('stream', (stream, headers) => this.forward(stream, headers));
    server.on('tlsClientError', () => undefined).on('sessionError', () => undefined);
  }

  static async listen(upstream: string, { cert, key }: KeyPair, clientCa: string, apiKey?: string): Promise<TemporalProxy> {
    const server = createSecureServer({ cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(clientCa), requestCert: true, rejectUnauthorized: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new TemporalProxy(server, upstream, apiKey);
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    this.sessions.forEach((session) => session.destroy());
    this.upstream.destroy();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }

  private forward(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    stream.on('error', () => undefined);
    if (this.apiKey !== undefined && headers.authorization !== `Bearer ${this.apiKey}`) {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'grpc-status': UNAUTHENTICATED, 'grpc-message': 'wrong API key' }, { endStream: true });
      return;
    }
    this.calls[headers.authorization === undefined ? 'withoutKey' : 'withKey']++;
    const request = this.upstream.request({ ...headers, ':authority': 'temporal' });
    let trailers: IncomingHttpHeaders = {};
    request.on('error', () => stream.destroy()).on('trailers', (received: IncomingHttpHeaders) => {
      trailers = received;
    });
    request.on('response', (response, flags) => {
      const over = (flags & 1) !== 0;
      stream.respond(response, { endStream: over, waitForTrailers: !over });
      if (!over) request.pipe(stream);
    });
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    stream.on('close', () => request.close());
    stream.pipe(request);
  }
}
