import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { HostConfig } from './host-config';
import { certificateIdentity, FILES } from './transport';

/** Something about a host's TLS files that stops moves, or will soon. No key is ever in it. */
export interface TlsFinding {
  severity: 'blocker' | 'warning';
  /** Path on this host. */
  file: string;
  problem: string;
  fix: string;
}

/** A certificate that ends sooner is warned of. */
const SOON_DAYS = 30;
const DAY_MS = 24 * 3600 * 1000;

const AGAIN = 'copy this host\'s folder of "vmferry certs init" here, or get the file from your CA';
const USES = { server: { name: 'serverAuth', oid: '1.3.6.1.5.5.7.3.1' }, client: { name: 'clientAuth', oid: '1.3.6.1.5.5.7.3.2' } } as const;
/** Bytes; what GnuTLS calls a medium security level. */
const SHORTEST_KEY = 16;

/** A finding as one line. */
export function describeFinding({ file, problem, fix }: TlsFinding): string {
  return `${file} ${problem}: ${fix}`;
}

/** The findings as a preflight has them. */
export function tlsFindings(config: Pick<HostConfig, 'name' | 'tls' | 'psk'>): { blockers: string[]; warnings: string[] } {
  const found = inspectTls(config);
  const of = (severity: TlsFinding['severity']) => found.filter((one) => one.severity === severity).map((one) => `on ${config.name}, ${describeFinding(one)}`);
  return { blockers: of('blocker'), warnings: of('warning') };
}

/** Looks at everything about a host's TLS files that can be seen without a connection. Empty if all is well, or if the host is `insecure`. Changes nothing. */
export function inspectTls({ name, tls, psk }: Pick<HostConfig, 'name' | 'tls' | 'psk'>, now = new Date()): TlsFinding[] {
  if (tls) return new CertificateInspection(tls.dir, name, now).run();
  if (psk) return inspectKeys(join(psk.dir, 'keys.psk'), name);
  return [];
}

class CertificateInspection {
  private readonly found: TlsFinding[] = [];

  constructor(private readonly dir: string, private readonly host: string, private readonly now: Date) {}

  run(): TlsFinding[] {
    const authorities = this.certificates('ca-cert.pem');
    for (const authority of authorities) {
      if (!authority.ca) this.blocker('ca-cert.pem', `has a certificate that is no CA's (${oneLine(authority.subject)})`, 'put the certificate of the CA there that signed the others');
      this.dates('ca-cert.pem', authority);
    }
    for (const end of ['server', 'client'] as const) this.end(end, authorities);
    for (const file of FILES.tls.optional) if (statSync(join(this.dir, file), { throwIfNoEntry: false })) this.text(file);
    return this.found;
  }

  private end(end: 'server' | 'client', authorities: X509Certificate[]): void {
    const [file, keyFile] = [`${end}-cert.pem`, `${end}-key.pem`];
    const [leaf, ...chain] = this.certificates(file);
    const key = this.key(keyFile);
    if (!leaf) return;
    this.dates(file, leaf);
    if (key && !leaf.checkPrivateKey(key)) this.blocker(keyFile, `is not the key of ${file}`, `take both from one folder; ${AGAIN}`);
    if (authorities.length > 0 && !isSignedBy(leaf, chain, authorities)) this.blocker(file, `is not signed by the CA in ca-cert.pem (its issuer is ${oneLine(leaf.issuer)})`, 'all hosts need certificates of one CA, and that CA\'s ca-cert.pem');
    const identity = oneLine(leaf.subject);
    if (end === 'client' && identity !== certificateIdentity(this.host)) this.blocker(file, `is for ${identity}, and this host proves itself as ${certificateIdentity(this.host)}`, `is it another host's? ${AGAIN}`);
    if (end === 'server' && !leaf.checkHost(this.host)) this.blocker(file, `is for ${leaf.subjectAltName ?? identity}, not for the name ${this.host}`, `is it another host's? ${AGAIN}`);
    const use = USES[end];
    // Node's `keyUsage` is the extended one.
    if (leaf.keyUsage && !leaf.keyUsage.includes(use.oid)) this.blocker(file, `may not be used as a ${end}'s`, `its extended key usage needs ${use.name}`);
  }

  private dates(file: string, certificate: X509Certificate): void {
    const [from, to] = [new Date(certificate.validFrom), new Date(certificate.validTo)];
    const leftDays = Math.floor((to.getTime() - this.now.getTime()) / DAY_MS);
    if (this.now < from) this.blocker(file, `is not valid before ${day(from)}`, "set this host's clock, or get another certificate");
    else if (this.now > to) this.blocker(file, `expired on ${day(to)}`, RENEW);
    else if (leftDays < SOON_DAYS) this.found.push({ severity: 'warning', file: join(this.dir, file), problem: `expires in ${leftDays} days, on ${day(to)}`, fix: RENEW });
  }

  private certificates(file: string): X509Certificate[] {
    const text = this.text(file);
    if (text === undefined) return [];
    try {
      const blocks = text.match(/-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/g);
      if (!blocks) throw new Error('no PEM certificate is in it');
      return blocks.map((block) => new X509Certificate(block));
    } catch (error) {
      this.blocker(file, `cannot be read as a certificate (${(error as Error).message})`, AGAIN);
      return [];
    }
  }

  private key(file: string): KeyObject | undefined {
    const text = this.text(file);
    if (text === undefined) return undefined;
    const open = tooOpen(join(this.dir, file));
    if (open) this.found.push(open);
    try {
      return createPrivateKey(text);
    } catch {
      this.blocker(file, 'cannot be read as a private key', 'give it as PEM without a passphrase, which nobody could enter');
      return undefined;
    }
  }

  private text(file: string): string | undefined {
    return readOr(join(this.dir, file), (finding) => this.found.push(finding));
  }

  private blocker(file: string, problem: string, fix: string): void {
    this.found.push({ severity: 'blocker', file: join(this.dir, file), problem, fix });
  }
}

const RENEW = 'put a new one in its place, "vmferry certs init" makes it; agents need no restart';

function inspectKeys(file: string, host: string): TlsFinding[] {
  const found: TlsFinding[] = [];
  const text = readOr(file, (finding) => found.push(finding));
  if (text === undefined) return found;
  const blocker = (problem: string, fix: string) => found.push({ severity: 'blocker', file, problem, fix });
  const open = tooOpen(file);
  if (open) found.push(open);
  const keys = pskKeys(text);
  const own = keys.get(host);
  if (own === undefined) blocker(`has no line for ${host}${keys.size > 0 ? ` (it has ${[...keys.keys()].join(', ')})` : ''}`, `add a line ${host}:KEY in hexadecimal on every host; "vmferry certs init --psk" makes it`);
  for (const [name, key] of keys) if (!/^([0-9a-f]{2})+$/i.test(key) || key.length < 2 * SHORTEST_KEY) blocker(`has a key for ${name} that is not hexadecimal, or shorter than ${SHORTEST_KEY} bytes`, `replace it on every host; "vmferry certs init --psk" makes one`);
  return found;
}

/** The keys of a keys.psk by name. */
export function pskKeys(text: string): Map<string, string> {
  return new Map(text.split('\n').map((line) => line.trim().split(':')).filter((parts) => parts.length === 2) as [string, string][]);
}

function readOr(file: string, report: (finding: TlsFinding) => void): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') report({ severity: 'blocker', file, problem: 'is missing', fix: AGAIN });
    else report({ severity: 'blocker', file, problem: `cannot be read by the agent (${code ?? message})`, fix: 'let the user that the agent runs as read it' });
    return undefined;
  }
}

/** Who reads a key is that host. A group may: that of a QEMU's own user. */
function tooOpen(file: string): TlsFinding | undefined {
  const mode = statSync(file).mode & 0o777;
  if ((mode & 0o007) === 0) return undefined;
  return { severity: 'blocker', file, problem: `may be read by everybody (mode ${mode.toString(8).padStart(4, '0')})`, fix: `chmod 0600 ${file}, or 0640 with the group of QEMU's user` };
}

/** Whether a chain leads to one of the authorities. Certificates of a bundle may come in any order. */
function isSignedBy(leaf: X509Certificate, chain: X509Certificate[], authorities: X509Certificate[]): boolean {
  const issued = (issuer: X509Certificate) => leaf.checkIssued(issuer) && leaf.verify(issuer.publicKey);
  return authorities.some(issued) || chain.filter(issued).some((next) => isSignedBy(next, chain.filter((one) => one !== next), authorities));
}

/** A subject in the order of the certificate, as QEMU shows it. */
const oneLine = (name: string) => name.split('\n').join(',');
const day = (date: Date) => date.toISOString().slice(0, 10);
