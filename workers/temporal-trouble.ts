import { connect } from 'node:tls';
import type { ConnectionOptions } from '@temporalio/client';

const PROBE_MS = 5_000;
/** A server that refuses our certificate says so after the handshake (TLS 1.3); one that takes it speaks first. */
const WORD_MS = 1_000;

/** OpenSSL's word → what is wrong, and which of the standard variables to correct. */
const TLS_TROUBLE: [RegExp, string][] = [
  [/ALTNAME/, 'its certificate is for another name: correct TEMPORAL_ADDRESS, or give the name as TEMPORAL_TLS_SERVER_NAME'],
  [/^CERT_(HAS_EXPIRED|NOT_YET_VALID)$/, 'its certificate is not valid now: renew it, and look at both clocks'],
  [/SELF_SIGNED|UNABLE_TO|CERT_|ISSUER/, 'its certificate is of another authority: name that one\'s file in TEMPORAL_TLS_SERVER_CA_CERT_PATH'],
  [/ALERT_CERTIFICATE_REQUIRED/, 'it asks for a certificate: name its files in TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH'],
  [/ALERT|HANDSHAKE_FAILURE|CLOSED_AFTER_HANDSHAKE/, 'it refuses our certificate: look at its authority and its dates (openssl x509 -in FILE -noout -issuer -dates), TEMPORAL_TLS_CLIENT_CERT_PATH'],
  [/WRONG_VERSION_NUMBER|ERR_SSL_PACKET/, 'it does not speak TLS: unset TEMPORAL_TLS, or correct TEMPORAL_ADDRESS'],
  [/KEY_VALUES_MISMATCH|PEM|ASN1|NO_START_LINE/, 'our certificate or key cannot be read, or do not belong together: TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_TLS_CLIENT_KEY_PATH'],
];

/**
 * Why TLS with Temporal's server cannot be, in words; undefined if it can, or if that is not the trouble. The SDK's own error is a missed deadline,
 * after 10 s, whatever is wrong.
 */
export async function tlsTrouble({ address = 'localhost:7233', tls }: ConnectionOptions): Promise<string | undefined> {
  // Through a proxy the server is not where its address says.
  if (!tls || ['grpc_proxy', 'https_proxy', 'http_proxy'].some((name) => process.env[name] ?? process.env[name.toUpperCase()])) return undefined;
  const code = await handshake(address, tls === true ? {} : tls);
  const known = code === undefined ? undefined : TLS_TROUBLE.find(([pattern]) => pattern.test(code));
  return known && `TLS with the Temporal server at ${address} fails (${code}): ${known[1]}`;
}

type TlsSettings = Exclude<ConnectionOptions['tls'], boolean | null | undefined>;

/** The code of the error with which a handshake ends; undefined if it does not, in time. */
async function handshake(address: string, { serverNameOverride, serverRootCACertificate, clientCertPair }: TlsSettings): Promise<string | undefined> {
  const url = new URL(`https://${address}`);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  return await new Promise((resolve) => {
    const done = (code?: string) => {
      clearTimeout(timer);
      socket?.destroy();
      resolve(code);
    };
    let timer = setTimeout(done, PROBE_MS);
    let socket: ReturnType<typeof connect> | undefined;
    let secure = false;
    try {
      const name = serverNameOverride ?? host;
      socket = connect({
        host,
        port: Number(url.port || 443),
        ALPNProtocols: ['h2'],
        ...(/^[\d.]+$|:/.test(name) ? {} : { servername: name }),
        ...(serverRootCACertificate && { ca: Buffer.from(serverRootCACertificate) }),
        ...(clientCertPair && { cert: Buffer.from(clientCertPair.crt), key: Buffer.from(clientCertPair.key) }),
      });
    } catch (error) {
      return done((error as NodeJS.ErrnoException).code);
    }
    socket
      .on('error', ({ code }: NodeJS.ErrnoException) => done(secure && code === 'ECONNRESET' ? 'CLOSED_AFTER_HANDSHAKE' : code))
      .once('data', () => done())
      .once('close', () => done(secure ? 'CLOSED_AFTER_HANDSHAKE' : undefined))
      .once('secureConnect', () => {
        secure = true;
        clearTimeout(timer);
        timer = setTimeout(done, WORD_MS);
      });
  });
}

/** Whether the server answered, and does not take our API key, or did not get one. */
export function isUnauthenticated(error: Error): boolean {
  const { cause } = error as { cause?: { code?: number; message?: string } };
  return cause?.code === 16 || cause?.code === 7 || /unauthenticated|permission.?denied|authentication credentials/i.test(`${error.message} ${cause?.message ?? ''}`);
}
