import { readFileSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { connect, type SecureContextOptions, createServer as createTlsServer, type TlsOptions, type TLSSocket } from 'node:tls';
import { TlsRefused } from './credentials';
import type { HostConfig } from './host-config';
import { pskKeys } from './tls-files';
import { certificateIdentity, type Transport, transportOf } from './transport';

/** Who is at the other end of a connection between agents. */
export interface Peer {
  /** The host that it has proven to be; unset on plain text. */
  host?: string;
  /** Why it is not believed, for it to be told. */
  refused?: string;
}

/** TLS 1.3 between agents. OpenSSL's older kind of shared key goes with this one alone. */
const VERSION = { minVersion: 'TLSv1.3' } as const;
const PSK_CIPHER = 'TLS_AES_128_GCM_SHA256';
const HANDSHAKE_MS = 10_000;

/** A server for other hosts' agents, over TLS unless this host is `insecure`. Files are read for each connection: renewed ones need no restart. */
export function createPeerServer(config: HostConfig, accept: (socket: Socket, peer: Peer) => void): Server {
  const transport = transportOf(config);
  if (transport.mode === 'insecure') return createServer((socket) => accept(socket, {}));
  const proven = new WeakMap<object, string>();
  const secure = createTlsServer({ ...VERSION, handshakeTimeout: HANDSHAKE_MS, ...(transport.mode === 'tls' ? { requestCert: true, rejectUnauthorized: false } : pskServer(transport, proven)) }, (socket) =>
    accept(socket, transport.mode === 'psk' ? { host: proven.get(socket)! } : certifiedPeer(config, socket)),
  );
  // Whoever does not speak TLS, or has another key, is gone then.
  secure.on('tlsClientError', (_error, socket) => socket.destroy());
  return createServer((socket) => {
    try {
      if (transport.mode === 'tls') secure.setSecureContext(certificates(transport.dir, 'server'));
    } catch {
      // Preflight, and the doctor, say what is wrong with them.
      socket.destroy();
      return;
    }
    socket.on('error', () => socket.destroy());
    secure.emit('connection', socket);
  });
}

/** Connects to another host's agent; `open` is called when it has proven to be that host. Throws `TlsRefused` if this host's files cannot be read. */
export function connectToPeer(config: HostConfig, { host, port, name }: { host: string; port: number; name: string }, open: () => void): Socket {
  const transport = transportOf(config);
  if (transport.mode === 'insecure') return createConnection({ host, port }, open);
  const to = { host, port, servername: name, ...VERSION };
  if (transport.mode === 'tls') return connect({ ...to, ...certificates(transport.dir, 'client') }, open);
  const psk = readKeys(transport).get(config.name);
  if (!psk) throw new TlsRefused(`keys.psk in ${transport.dir} on ${config.name} has no line for ${config.name}`);
  return connect({ ...to, ciphers: PSK_CIPHER, checkServerIdentity: () => undefined, pskCallback: () => ({ psk: Buffer.from(psk, 'hex'), identity: config.name }) }, open);
}

function pskServer(transport: Transport & { mode: 'psk' | 'tls' }, proven: WeakMap<object, string>): TlsOptions {
  return {
    ciphers: PSK_CIPHER,
    pskCallback: (socket, identity) => {
      try {
        const key = readKeys(transport).get(identity);
        if (key === undefined) return null;
        proven.set(socket, identity);
        return Buffer.from(key, 'hex');
      } catch {
        return null;
      }
    },
  };
}

function certifiedPeer({ name }: HostConfig, socket: TLSSocket): Peer {
  const certificate = socket.getPeerX509Certificate();
  const reason = socket.authorizationError as unknown as string | null;
  if (!socket.authorized || !certificate) return { refused: `${name} does not believe its certificate: ${sayOf(reason ?? 'none was shown', 'client-cert.pem')}` };
  const identity = certificate.subject.split('\n').join(',');
  const host = identity.replace(certificateIdentity(''), '');
  if (certificateIdentity(host) !== identity) return { refused: `its certificate is for ${identity}, and a host's is for ${certificateIdentity('HOST')}: see client-cert.pem` };
  return { host };
}

/** Why a connection to another host's agent was refused, with the likely file and the fix; undefined if it failed for another reason than TLS. */
export function refusalOf(error: NodeJS.ErrnoException, config: HostConfig, to: { host: string; port: number; name: string }): string | undefined {
  const { code = '', message } = error;
  const at = `${to.name} (${to.host} port ${to.port})`;
  if (error instanceof TlsRefused) return message;
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') return `what answers as ${at} has a certificate for another host (${message.replace(/^.*altnames: /, '')}): give ${to.name} a server-cert.pem with its own name, or correct its address`;
  if (/^(CERT_|CRL_|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO|INVALID_CA|ERR_TLS)/.test(code)) return `${config.name} does not believe the certificate of ${at}: ${sayOf(code, 'server-cert.pem')}`;
  if (config.psk && /^ERR_SSL_/.test(code)) return `${at} does not know the key of ${config.name}: keys.psk must be the same on both`;
  if (/^ERR_SSL_|EPROTO/.test(code) || /before secure TLS connection/.test(message)) return `${at} does not speak TLS as ${config.name} does (${message.split(':').at(-1)?.trim() || code || message}): see its TLS files, and that both configurations say the same`;
  return undefined;
}

/** OpenSSL's name for what is wrong with a certificate, in words. */
function sayOf(code: string, file: string): string {
  if (/EXPIRED/.test(code)) return `${/^CRL/.test(code) ? 'ca-crl.pem' : file} has expired: put a new one in its place`;
  if (/NOT_YET/.test(code)) return `${file} is not valid yet: compare the clocks of both hosts`;
  if (/REVOKED/.test(code)) return `${file} was revoked by ca-crl.pem: get a new one`;
  if (/SELF_SIGNED|DEPTH_ZERO|UNABLE_TO|SIGNATURE_FAILURE|INVALID_CA/.test(code)) return `it is not signed by the CA in ca-cert.pem here: both hosts need certificates of one CA, and its ca-cert.pem (${code})`;
  return `${code}: see ${file}`;
}

function certificates(dir: string, end: 'server' | 'client'): SecureContextOptions {
  const read = (file: string) => readFileSync(join(dir, file));
  try {
    return { ca: read('ca-cert.pem'), cert: read(`${end}-cert.pem`), key: read(`${end}-key.pem`), ...revoked(dir) };
  } catch (error) {
    throw new TlsRefused(`the TLS files of this host cannot be read: ${(error as Error).message}`);
  }
}

function revoked(dir: string): { crl?: Buffer } {
  try {
    return { crl: readFileSync(join(dir, 'ca-crl.pem')) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw error;
  }
}

const readKeys = ({ dir }: Transport & { mode: 'psk' | 'tls' }) => pskKeys(readFileSync(join(dir, 'keys.psk'), 'utf8'));
