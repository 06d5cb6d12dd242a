import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { outgoingChannel, objectArguments, folderBelow, TlsRefused } from '../../hypervisor/credentials';
import type { HostConfig } from '../../hypervisor/host-config';
import { ensureCertificates, ensureKeys } from '../../hypervisor/lab-certificates';
import { greet, Lease, LeaseServer } from '../../hypervisor/lease';
import { tlsOutOfReach } from '../../hypervisor/tls-access';
import { modesDiffer } from '../../hypervisor/transport';
import { deleteFolders, hostIn, temporaryFolder } from './fixtures';

/** Real sockets, no QEMU: what an agent's end of a connection says to whom. */
const folder = temporaryFolder();
let late: string;
let other: string;
const servers: LeaseServer[] = [];
beforeAll(async () => {
  await ensureCertificates(folder, ['host-a', 'host-b', 'host-c'].map((name) => ({ name })), 100);
  [late, other] = [temporaryFolder(), temporaryFolder()];
  // The same CA, so that only the date is wrong.
  for (const file of ['ca-cert.pem', 'ca-key.pem']) cpSync(join(folder, file), join(late, file));
  await ensureCertificates(late, ['host-a', 'host-b'].map((name) => ({ name })), 0);
  await ensureCertificates(other, ['host-a', 'host-b'].map((name) => ({ name })), 100);
  await ensureKeys(folder, [{ name: 'host-a' }, { name: 'host-b' }]);
});
afterEach(async () => await Promise.all(servers.splice(0).map((server) => server.close())));
afterAll(deleteFolders);

const host = (name: string, way: Record<string, unknown>): HostConfig => hostIn(join(temporaryFolder(), name), { name, insecure: undefined, ...way });
const tls = (dir: string) => ({ tls: { dir } });
async function listen(config: HostConfig): Promise<{ server: LeaseServer; at: { name: string; host: string; port: number } }> {
  const server = await LeaseServer.listen(config);
  servers.push(server);
  return { server, at: { name: 'host-b', host: '127.0.0.1', port: server.port } };
}

test.each<[string, () => Record<string, unknown>, () => Record<string, unknown>, RegExp | undefined]>([
  ['two hosts of one CA believe each other', () => tls(join(folder, 'host-a')), () => tls(join(folder, 'host-b')), undefined],
  ['a source does not believe a destination of another CA', () => tls(join(folder, 'host-a')), () => tls(join(other, 'host-b')), /host-a does not believe the certificate of host-b \(127.0.0.1 port \d+\).*certificates of one CA/],
  ['a source does not believe an expired destination', () => tls(join(folder, 'host-a')), () => tls(join(late, 'host-b')), /host-a does not believe the certificate of host-b.*server-cert.pem has expired: put a new one/],
  ['a source does not believe another host in the place of its destination', () => tls(join(folder, 'host-a')), () => tls(join(folder, 'host-c')), /certificate for another host \(DNS:host-c\): give host-b a server-cert.pem with its own name/],
  ['a destination does not believe an expired source, and says so', () => tls(join(late, 'host-a')), () => tls(join(folder, 'host-b')), /host-b refuses host-a: host-b does not believe its certificate: client-cert.pem has expired/],
  ['a destination does not believe a host by another name', () => tls(join(folder, 'host-c')), () => tls(join(folder, 'host-b')), /host-b refuses host-a: it is called host-a, and its certificate or key is for host-c/],
  ['TLS does not talk to plain text', () => tls(join(folder, 'host-a')), () => ({ insecure: true }), /host-b \(127.0.0.1 port \d+\) does not speak TLS as host-a does/],
  ['plain text does not talk to TLS', () => ({ insecure: true }), () => tls(join(folder, 'host-b')), /host-b on 127.0.0.1 port \d+ closed the connection of host-a/],
  ['hosts with the same keys believe each other', () => ({ psk: { dir: join(folder, 'host-a') } }), () => ({ psk: { dir: join(folder, 'host-b') } }), undefined],
  ['plain text talks to plain text', () => ({ insecure: true }), () => ({ insecure: true }), undefined],
])('%s', async (_case, source, destination, refusal) => {
  const { at } = await listen(host('host-b', destination()));
  const said = await greet(host('host-a', source()), at, 5_000);
  if (refusal) expect(said).toMatch(refusal);
  else expect(said).toBeUndefined();
});

test('a host is told who answers in the place of another', async () => {
  const { at } = await listen(host('host-z', { insecure: true }));
  expect(await greet(host('host-a', { insecure: true }), at, 5_000)).toMatch(/is host-z, not host-b: correct the address of host-b/);
});

test('renewed files are taken without a restart', async () => {
  const dir = join(temporaryFolder(), 'tls');
  cpSync(join(late, 'host-b'), dir, { recursive: true });
  const { at } = await listen(host('host-b', tls(dir)));
  const source = host('host-a', tls(join(folder, 'host-a')));
  expect(await greet(source, at, 5_000)).toMatch(/has expired/);
  cpSync(join(folder, 'host-b'), dir, { recursive: true });
  expect(await greet(source, at, 5_000)).toBeUndefined();
  rmSync(join(dir, 'server-key.pem'));
  expect(await greet(source, at, 5_000)).toMatch(/host-b/);
});

test('the lease of a guest is kept with its source host alone', async () => {
  const { server, at } = await listen(host('host-b', tls(join(folder, 'host-b'))));
  const armed: boolean[] = [];
  server.hold('attempt1', { from: 'host-a', ended: new Promise(() => undefined), probe: async () => undefined, arm: async (run) => void armed.push(run) });
  const stranger = new Lease(host('host-c', tls(join(folder, 'host-c'))), { ...at, attempt: 'attempt1' }, false);
  const source = new Lease(host('host-a', tls(join(folder, 'host-a'))), { ...at, attempt: 'attempt1' }, true);
  try {
    await source.arm(true, AbortSignal.timeout(5_000));
    await source.fresh(1_000, AbortSignal.timeout(5_000));
    await expect(stranger.arm(false, AbortSignal.timeout(700))).rejects.toThrow();
    expect(stranger.refused).toMatch(/host-b refuses host-c: the guest comes from host-a, not from host-c/);
    expect(new Set(armed)).toEqual(new Set([true]));
  } finally {
    source.close();
    stranger.close();
  }
});

test('a stranger who says nothing of TLS gets no word', async () => {
  const { at } = await listen(host('host-b', tls(join(folder, 'host-b'))));
  const heard = await new Promise<string>((resolve) => {
    let text = '';
    const socket = connect(at.port, at.host, () => socket.write('{"attempt":"attempt1"}\n'));
    socket.on('data', (data) => (text += data.toString('latin1'))).on('error', () => undefined).on('close', () => resolve(text));
  });
  expect(heard).not.toMatch(/beat|host|refused/);
});

test('hosts that do not say the same are told both and the fix; one that says nothing knows plain text only', () => {
  expect(modesDiffer({ name: 'a', mode: 'tls' }, { name: 'b', mode: 'tls' })).toBeUndefined();
  expect(modesDiffer({ name: 'a', mode: undefined }, { name: 'b', mode: 'insecure' })).toBeUndefined();
  expect(modesDiffer({ name: 'a', mode: undefined }, { name: 'b', mode: 'psk' })).toMatch(/^a sends its guests by plain text.*b takes them by TLS with shared keys.*give both configurations the same/);
});

test('no key is on a command line', () => {
  const key = readFileSync(join(folder, 'host-a/keys.psk'), 'utf8').split(/[:\n]/)[1]!;
  const said = objectArguments(outgoingChannel(host('host-a', { psk: { dir: join(folder, 'host-a') } }), 'host-b')).join(' ');
  expect(said).toMatch(/tls-creds-psk.*username=host-a/);
  expect(said).not.toContain(key);
});

test('a QEMU in a chroot finds the files below it, and nowhere else', () => {
  const inside = host('host-a', { ...tls(join(folder, 'host-a')), chroot: folder });
  expect(folderBelow(inside, folder)).toEqual({ dir: '/host-a', real: join(folder, 'host-a') });
  expect(tlsOutOfReach(inside, 'server')).toEqual([]);
  const outside = host('host-a', { ...tls(join(folder, 'host-a')), chroot: other });
  expect(() => folderBelow(outside, other)).toThrow(TlsRefused);
  expect(tlsOutOfReach(outside, 'server')).toEqual([expect.stringMatching(/a QEMU of host-a in the chroot .* cannot see the TLS files in .*: keep a copy of them in .*, or choose a folder below/)]);
  const copy = join(other, folder, 'host-a');
  cpSync(join(folder, 'host-a'), copy, { recursive: true });
  expect(folderBelow(outside, other)).toEqual({ dir: join(folder, 'host-a'), real: copy });
});

test('a QEMU that runs as a user of its own must be able to read the files', () => {
  const config = host('host-a', { ...tls(join(folder, 'host-a')), runAs: 'nobody' });
  expect(tlsOutOfReach(config, 'server')).toEqual([expect.stringMatching(/runs as nobody, and that user may not read .*server-key.pem.*: give the files its group \(chgrp, chmod 0640\)/)]);
  expect(tlsOutOfReach(host('host-a', { ...tls(join(folder, 'host-a')), runAs: 'no-such-user' }), 'server')).toEqual([expect.stringMatching(/there is no user no-such-user/)]);
});

test('a keys.psk that is gone is said', async () => {
  const dir = temporaryFolder();
  writeFileSync(join(dir, 'keys.psk'), 'host-x:00\n', { mode: 0o600 });
  const { at } = await listen(host('host-b', { insecure: true }));
  expect(await greet(host('host-a', { psk: { dir } }), at, 5_000)).toMatch(/keys.psk in .* on host-a has no line for host-a/);
});
