import type { HostConfig } from './host-config';

/** How disks, memory and the lease travel between hosts: both ends must say the same. */
export type SecurityMode = 'tls' | 'psk' | 'insecure';

export type Transport = { mode: 'tls' | 'psk'; dir: string } | { mode: 'insecure' };

/** What a host's configuration says; exactly one of the three fields is given. */
export function transportOf({ tls, psk }: Pick<HostConfig, 'tls' | 'psk'>): Transport {
  if (tls) return { mode: 'tls', dir: tls.dir };
  if (psk) return { mode: 'psk', dir: psk.dir };
  return { mode: 'insecure' };
}

/** The subject of a host's certificates, as QEMU's `authz-simple` compares it (facts/qemu.md §2). A key of keys.psk goes by the host's name alone. */
export const certificateIdentity = (host: string): string => `O=vmferry,CN=${host}`;

/** The files that each end of a connection reads, by QEMU's names. */
export const FILES = {
  tls: {
    server: ['ca-cert.pem', 'server-cert.pem', 'server-key.pem'],
    client: ['ca-cert.pem', 'client-cert.pem', 'client-key.pem'],
    optional: ['ca-crl.pem', 'dh-params.pem'],
  },
  psk: { server: ['keys.psk'], client: ['keys.psk'], optional: ['dh-params.pem'] },
} as const;

const SAID: Record<SecurityMode, string> = { tls: 'TLS with certificates (tls)', psk: 'TLS with shared keys (psk)', insecure: 'plain text (insecure: true)' };

/** Why two hosts cannot talk, if so. A host that says nothing is older than TLS here, and knows plain text only. */
export function modesDiffer(source: { name: string; mode: SecurityMode | undefined }, destination: { name: string; mode: SecurityMode | undefined }): string | undefined {
  const [here, there] = [source.mode ?? 'insecure', destination.mode ?? 'insecure'];
  if (here === there) return undefined;
  return `${source.name} sends its guests by ${SAID[here]}, ${destination.name} takes them by ${SAID[there]}: give both configurations the same of tls, psk and insecure, and restart the agent`;
}
