import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CertificatesRefused, ensureCertificates, ensureKeys } from '../../hypervisor/lab-certificates';
import { describeFinding, inspectTls } from '../../hypervisor/tls-files';
import { deleteFolders, temporaryFolder } from './fixtures';

const DAYS = 100;
let folder: string;
let other: string;
beforeAll(async () => {
  [folder, other] = [temporaryFolder(), temporaryFolder()];
  await ensureCertificates(folder, [{ name: 'host-a', addresses: ['10.0.0.11'] }, { name: 'host-b' }], DAYS);
  await ensureCertificates(other, [{ name: 'host-a' }], DAYS);
});
afterAll(deleteFolders);

/** host-a's folder, copied, with changes. */
function changed(change: (dir: string) => void): string {
  const dir = join(temporaryFolder(), 'tls');
  mkdirSync(dir);
  for (const file of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem', 'client-cert.pem', 'client-key.pem']) copyFileSync(join(folder, 'host-a', file), join(dir, file));
  change(dir);
  return dir;
}
const inspect = (dir: string, now?: Date) => inspectTls({ name: 'host-a', tls: { dir } }, now);
const inDays = (days: number) => new Date(Date.now() + days * 24 * 3600 * 1000);
const take = (from: string, file: string, as = file) => (dir: string) => copyFileSync(join(from, file), join(dir, as));
const both = (from: string, end: string) => (dir: string) => ['cert', 'key'].forEach((part) => copyFileSync(join(from, `${end}-${part}.pem`), join(dir, `${end}-${part}.pem`)));

test('files as they were made have no finding', () => {
  expect(inspect(join(folder, 'host-a'))).toEqual([]);
  expect(inspectTls({ name: 'host-b', tls: { dir: join(folder, 'host-b') } })).toEqual([]);
});

test.each<[string, (dir: string) => void, [string, RegExp, RegExp][]]>([
  ['a missing file', (dir) => rmSync(join(dir, 'server-key.pem')), [['server-key.pem', /is missing/, /copy this host's folder/]]],
  ['a file that is no certificate', (dir) => writeFileSync(join(dir, 'ca-cert.pem'), 'hello'), [['ca-cert.pem', /cannot be read as a certificate/, /certs init/]]],
  ['a key that is none', (dir) => writeFileSync(join(dir, 'client-key.pem'), 'hello', { mode: 0o600 }), [['client-key.pem', /private key/, /without a passphrase/]]],
  ['a key of another certificate', (dir) => take(join(folder, 'host-b'), 'server-key.pem')(dir), [['server-key.pem', /is not the key of server-cert.pem/, /from one folder/]]],
  ['the CA of somebody else', (dir) => take(other, 'ca-cert.pem')(dir), [['server-cert.pem', /not signed by the CA/, /one CA/], ['client-cert.pem', /not signed by the CA/, /one CA/]]],
  ['the server certificate of another host', (dir) => both(join(folder, 'host-b'), 'server')(dir), [['server-cert.pem', /is for DNS:host-b, not for the name host-a/, /another host's/]]],
  ['the client certificate of another host', (dir) => both(join(folder, 'host-b'), 'client')(dir), [['client-cert.pem', /is for O=vmferry,CN=host-b.*O=vmferry,CN=host-a/, /another host's/]]],
  ['client and server taken for each other', (dir) => ['cert', 'key'].forEach((part) => copyFileSync(join(folder, 'host-a', `client-${part}.pem`), join(dir, `server-${part}.pem`))), [['server-cert.pem', /may not be used as a server's/, /serverAuth/]]],
  ['a key that everybody may read', (dir) => chmodSync(join(dir, 'client-key.pem'), 0o644), [['client-key.pem', /may be read by everybody \(mode 0644\)/, /chmod 0600/]]],
  ["a host's certificate in place of the CA's", (dir) => take(dir, 'server-cert.pem', 'ca-cert.pem')(dir), [['ca-cert.pem', /no CA's/, /that signed/], ['server-cert.pem', /not signed/, /one CA/], ['client-cert.pem', /not signed/, /one CA/]]],
])('%s stops moves, and the fix is said', (_case, change, expected) => {
  const dir = changed(change);
  const found = inspect(dir);
  expect(found.map(({ file, severity }) => [file, severity])).toEqual(expected.map(([file]) => [join(dir, file), 'blocker']));
  expected.forEach(([, problem, fix], index) => {
    expect(found[index]!.problem).toMatch(problem);
    expect(found[index]!.fix).toMatch(fix);
  });
});

test('dates are looked at: not yet valid, soon over, over', () => {
  const dir = join(folder, 'host-a');
  const [early, soon, late] = [inspect(dir, inDays(-1)), inspect(dir, inDays(DAYS - 10.5)), inspect(dir, inDays(DAYS + 1))];
  expect(early.map(({ severity, problem }) => [severity, /is not valid before/.test(problem)])).toEqual([['blocker', true], ['blocker', true], ['blocker', true]]);
  expect(soon.map(({ severity, problem }) => [severity, /expires in 10 days/.test(problem)])).toEqual([['warning', true], ['warning', true]]);
  expect(late.map(({ severity, problem }) => [severity, /expired on \d{4}-\d\d-\d\d/.test(problem)])).toEqual([['blocker', true], ['blocker', true]]);
});

test('a finding names no secret', () => {
  const dir = changed((at) => writeFileSync(join(at, 'client-key.pem'), '-----BEGIN PRIVATE KEY-----\nplanted-secret\n-----END PRIVATE KEY-----\n', { mode: 0o604 }));
  const said = inspect(dir).map(describeFinding).join('\n');
  expect(said).toMatch(/client-key/);
  expect(said).not.toMatch(/planted/);
});

test('a host is added with the same CA, and nothing is overwritten', async () => {
  const dir = temporaryFolder();
  await ensureCertificates(dir, [{ name: 'host-a' }], DAYS);
  const files = ['ca-cert.pem', 'ca-key.pem', 'host-a/server-cert.pem', 'host-a/client-key.pem'].map((file) => join(dir, file));
  const before = files.map((file) => readFileSync(file, 'utf8'));
  expect(await ensureCertificates(dir, [{ name: 'host-a' }, { name: 'host-b' }], DAYS)).toEqual([{ host: 'host-a', folder: join(dir, 'host-a'), made: false }, { host: 'host-b', folder: join(dir, 'host-b'), made: true }]);
  expect(files.map((file) => readFileSync(file, 'utf8'))).toEqual(before);
  expect(inspectTls({ name: 'host-b', tls: { dir: join(dir, 'host-b') } })).toEqual([]);
  for (const file of ['ca-key.pem', 'host-b/server-key.pem', 'host-b/client-key.pem']) expect(statSync(join(dir, file)).mode & 0o777).toBe(0o600);
});

test('a CA that is half there is not replaced', async () => {
  const dir = temporaryFolder();
  await ensureCertificates(dir, [], DAYS);
  rmSync(join(dir, 'ca-key.pem'));
  await expect(ensureCertificates(dir, [{ name: 'host-a' }], DAYS)).rejects.toThrow(CertificatesRefused);
  await expect(ensureCertificates(dir, [{ name: 'host-a' }], DAYS)).rejects.toThrow(/ca-cert.pem without ca-key.pem: bring the other back/);
});

test('shared keys are made once a host, and every folder has them all', async () => {
  const dir = temporaryFolder();
  await ensureKeys(dir, [{ name: 'host-a' }]);
  const before = readFileSync(join(dir, 'keys.psk'), 'utf8');
  await ensureKeys(dir, [{ name: 'host-a' }, { name: 'host-b' }]);
  const after = readFileSync(join(dir, 'host-a', 'keys.psk'), 'utf8');
  expect(after.startsWith(before)).toBe(true);
  expect(after).toMatch(/^host-a:[0-9a-f]{64}\nhost-b:[0-9a-f]{64}\n$/);
  for (const name of ['host-a', 'host-b']) expect(inspectTls({ name, psk: { dir: join(dir, name) } })).toEqual([]);
  expect(inspectTls({ name: 'host-c', psk: { dir: join(dir, 'host-a') } }).map(describeFinding)).toEqual([expect.stringMatching(/keys.psk has no line for host-c \(it has host-a, host-b\): add a line host-c:KEY/)]);
});

test('a shared key that is short is refused, and not shown', () => {
  const dir = temporaryFolder();
  writeFileSync(join(dir, 'keys.psk'), 'host-a:beef\n', { mode: 0o600 });
  const said = inspectTls({ name: 'host-a', psk: { dir } }).map(describeFinding);
  expect(said).toEqual([expect.stringMatching(/key for host-a that is not hexadecimal, or shorter than 16 bytes/)]);
  expect(said.join()).not.toMatch(/beef/);
});
