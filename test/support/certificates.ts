import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface KeyPair {
  cert: string;
  key: string;
}

/** A certificate authority of a test, in a folder of its own, by openssl: what an operator's is made with, too. */
export class TestAuthority {
  readonly ca: string;

  constructor(
    private readonly folder: string,
    private readonly name: string,
  ) {
    this.ca = join(folder, `${name}.pem`);
    this.openssl('req', '-x509', '-nodes', ...CURVE, '-keyout', this.file('key'), '-out', this.ca, '-subj', `/CN=${name}`, '-days', '2');
  }

  /** Files of a certificate for a name; `days` below zero gives one that has expired. */
  issue(name: string, days = 2): KeyPair {
    const [cert, key, request, extensions] = ['crt', 'key', 'csr', 'ext'].map((ending) => join(this.folder, `${this.name}-${name}.${ending}`)) as [string, string, string, string];
    writeFileSync(extensions, `subjectAltName=DNS:${name}\n`);
    this.openssl('req', '-nodes', ...CURVE, '-keyout', key, '-out', request, '-subj', `/CN=${name}`);
    this.openssl('x509', '-req', '-in', request, '-CA', this.ca, '-CAkey', this.file('key'), '-CAcreateserial', '-out', cert, '-extfile', extensions, '-days', String(days));
    return { cert, key };
  }

  private file(ending: string): string {
    return join(this.folder, `${this.name}-ca.${ending}`);
  }

  private openssl(...args: string[]): void {
    execFileSync('openssl', args, { stdio: 'pipe' });
  }
}

const CURVE = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];
