import { createDiffieHellmanGroup, createPrivateKey, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';

import { join } from 'node:path';
import type * as X509 from '@peculiar/x509';
import { pskKeys } from './tls-files';

/** What was made for a host, or found there: `vmferry certs init` overwrites nothing. */
export interface HostFolder {
  host: string;
  folder: string;
  made: boolean;
}

/** A folder that cannot be added to; the message says what to do. */
export class CertificatesRefused extends Error {
  override readonly name = 'CertificatesRefused';
}

export interface LabHost {
  name: string;
  /** Further names of its certificate. Hosts check each other by name alone. */
  addresses?: string[];
}

const DAY_MS = 24 * 3600 * 1000;
/** The CA outlives the certificates that it signs. */
const CA_DAYS = 3650;
/** Clocks differ. */
const EARLIER_MS = 3600 * 1000;
/** Small, quick to make, and taken by GnuTLS and OpenSSL of all QEMUs that we know. */
const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const PSK_BYTES = 32;

/** The library needs a polyfill that is global: it is loaded by those who make certificates, not by an agent. */
async function library(): Promise<typeof X509> {
  await import('reflect-metadata');
  const x509 = await import('@peculiar/x509');
  x509.cryptoProvider.set(webcrypto);
  return x509;
}

interface Authority {
  x509: typeof X509;
  certificate: X509.X509Certificate;
  privateKey: webcrypto.CryptoKey;
}

/**
 * Ensures a CA in `dir` (ca-cert.pem, and ca-key.pem with mode 0600), and for each host a folder `dir/NAME` with all that its `tls.dir` needs. What is there
 * stays as it is. Throws `CertificatesRefused` if the CA is half there or has expired.
 */
export async function ensureCertificates(dir: string, hosts: LabHost[], days: number): Promise<HostFolder[]> {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const authority = await ensureAuthority(dir);
  const folders: HostFolder[] = [];
  for (const host of hosts) {
    const folder = join(dir, host.name);
    const made = !existsSync(folder);
    if (made) await makeWhole(folder, (into) => issueFor(authority, dir, into, host, days));
    folders.push({ host: host.name, folder, made });
  }
  return folders;
}

/** Ensures a key for each host in `dir/keys.psk`, and a copy of that file in `dir/NAME` of every host in it. Keys that are there stay. */
export async function ensureKeys(dir: string, hosts: LabHost[]): Promise<HostFolder[]> {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const file = join(dir, 'keys.psk');
  const keys = pskKeys(existsSync(file) ? readFileSync(file, 'utf8') : '');
  const folders = hosts.map(({ name }) => ({ host: name, folder: join(dir, name), made: !keys.has(name) }));
  for (const { host, made } of folders) if (made) keys.set(host, randomBytes(PSK_BYTES).toString('hex'));
  const text = [...keys].map(([name, key]) => `${name}:${key}\n`).join('');
  for (const folder of [dir, ...[...keys.keys()].map((name) => join(dir, name))]) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    writeWhole(join(folder, 'keys.psk'), text, 0o600);
    writeWhole(join(folder, 'dh-params.pem'), diffieHellmanParameters(), 0o644);
  }
  return folders;
}

async function ensureAuthority(dir: string): Promise<Authority> {
  const x509 = await library();
  const [certFile, keyFile] = [join(dir, 'ca-cert.pem'), join(dir, 'ca-key.pem')];
  if (existsSync(certFile) !== existsSync(keyFile)) throw new CertificatesRefused(`${dir} has ${existsSync(certFile) ? 'ca-cert.pem without ca-key.pem' : 'ca-key.pem without ca-cert.pem'}: bring the other back, or give an empty folder for a new CA`);
  if (!existsSync(certFile)) {
    const keys = await generateKeys();
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: serialNumber(),
      name: [{ O: ['vmferry'] }, { CN: [`vmferry CA ${randomBytes(4).toString('hex')}`] }],
      ...validity(CA_DAYS),
      signingAlgorithm: ALGORITHM,
      keys: keys,
      extensions: [new x509.BasicConstraintsExtension(true, undefined, true), new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true), await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)],
    });
    writeWhole(keyFile, await privatePem(keys.privateKey), 0o600);
    writeWhole(certFile, pem(certificate), 0o644);
  }
  const known = new X509Certificate(readFileSync(certFile));
  if (new Date(known.validTo) <= new Date()) throw new CertificatesRefused(`the CA in ${certFile} expired on ${known.validTo}: give an empty folder for a new CA, and copy its files to every host`);
  const key = createPrivateKey(readFileSync(keyFile));
  if (!known.checkPrivateKey(key)) throw new CertificatesRefused(`${keyFile} is not the key of ca-cert.pem beside it: bring back the two that belong together`);
  return { x509, certificate: new x509.X509Certificate(new Uint8Array(known.raw)), privateKey: await webcrypto.subtle.importKey('pkcs8', key.export({ type: 'pkcs8', format: 'der' }), ALGORITHM, false, ['sign']) };
}

async function issueFor({ x509, certificate: ca, privateKey }: Authority, dir: string, folder: string, { name, addresses = [] }: LabHost, days: number): Promise<void> {
  writeFileSync(join(folder, 'ca-cert.pem'), readFileSync(join(dir, 'ca-cert.pem')), { mode: 0o644 });
  // Without it QEMU 7.2 makes parameters of its own each time, which takes it up to seconds (measured 0.1 to 3.8 s).
  writeFileSync(join(folder, 'dh-params.pem'), diffieHellmanParameters(), { mode: 0o644 });
  for (const [end, use] of [['server', x509.ExtendedKeyUsage.serverAuth], ['client', x509.ExtendedKeyUsage.clientAuth]] as const) {
    const keys = await generateKeys();
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      // In this order: QEMU compares the whole text (`certificateIdentity`).
      subject: [{ O: ['vmferry'] }, { CN: [name] }],
      issuer: ca.subject,
      ...validity(days, ca.notAfter),
      signingAlgorithm: ALGORITHM,
      publicKey: keys.publicKey,
      signingKey: privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment, true),
        new x509.ExtendedKeyUsageExtension([use]),
        new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }, ...addresses.map((value) => ({ type: 'ip', value }) as const)]),
        await x509.AuthorityKeyIdentifierExtension.create(ca),
      ],
    });
    writeFileSync(join(folder, `${end}-key.pem`), await privatePem(keys.privateKey), { mode: 0o600 });
    writeFileSync(join(folder, `${end}-cert.pem`), pem(certificate), { mode: 0o644 });
  }
}

/** A folder that is there is whole, whatever happens meanwhile. */
async function makeWhole(folder: string, fill: (into: string) => Promise<void>): Promise<void> {
  const temporary = `${folder}.new-${process.pid}`;
  mkdirSync(temporary, { mode: 0o700 });
  try {
    await fill(temporary);
    renameSync(temporary, folder);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

function writeWhole(file: string, text: string, mode: number): void {
  const temporary = `${file}.new-${process.pid}`;
  writeFileSync(temporary, text, { mode });
  chmodSync(temporary, mode);
  renameSync(temporary, file);
}

const generateKeys = async () => (await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']));
const privatePem = async (key: webcrypto.CryptoKey) => createPrivateKey({ key: Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key)), format: 'der', type: 'pkcs8' }).export({ type: 'pkcs8', format: 'pem' }) as string;
const pem = (certificate: X509.X509Certificate) => `${certificate.toString('pem')}\n`;
/** Positive, as RFC 5280 wants it. */
const serialNumber = () => `01${randomBytes(15).toString('hex')}`;

function validity(days: number, latest?: Date): { notBefore: Date; notAfter: Date } {
  const end = Date.now() + days * DAY_MS;
  return { notBefore: new Date(Date.now() - EARLIER_MS), notAfter: new Date(latest ? Math.min(end, latest.getTime()) : end) };
}

/** The 2048-bit group of RFC 3526 in PKCS #3, as GnuTLS reads it. Everybody may know it. */
function diffieHellmanParameters(): string {
  const group = createDiffieHellmanGroup('modp14');
  const integer = (value: Buffer) => tagged(0x02, value[0]! >= 0x80 ? Buffer.concat([Buffer.from([0]), value]) : value);
  const text = tagged(0x30, Buffer.concat([integer(group.getPrime()), integer(group.getGenerator())])).toString('base64');
  return `-----BEGIN DH PARAMETERS-----\n${text.match(/.{1,64}/g)!.join('\n')}\n-----END DH PARAMETERS-----\n`;
}

function tagged(tag: number, value: Buffer): Buffer {
  const { length } = value;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), value]);
}

