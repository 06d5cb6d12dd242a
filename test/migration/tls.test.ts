import { execFile } from 'node:child_process';
import { chmodSync, chownSync, cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { TestGuest } from '../../demo/guest/test-guest';
import { ensureCertificates, ensureKeys } from '../../hypervisor/lab-certificates';
import { expectClean, expectRuns, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { QmpTap } from '../support/qmp-tap';

/** Two hosts with certificates, two with shared keys, and one with neither; each on real QEMUs. Files are read for each move: a test changes them as it likes. */
let lab: Lab;
const tap = new QmpTap();
const certs = (...path: string[]) => join(lab.folder, 'certs', ...path);
const other = (...path: string[]) => join(lab.folder, 'other', ...path);
const QUIET = { rate: '1M', disks: [{}] };
const run = promisify(execFile);

beforeAll(async () => {
  lab = await Lab.open({});
  await ensureCertificates(certs(), ['host-a', 'host-b', 'host-c'].map((name) => ({ name })), 100);
  await ensureCertificates(other(), [{ name: 'host-b' }], 100);
  await ensureKeys(join(lab.folder, 'keys'), [{ name: 'host-p' }, { name: 'host-q' }]);
  for (const [name, address] of [['host-a', '127.0.0.1'], ['host-b', '::1']] as const) {
    cpSync(certs(name), join(lab.folder, 'tls', name), { recursive: true });
    await lab.addHost(name, { address, tls: { dir: join(lab.folder, 'tls', name) } });
  }
  for (const name of ['host-p', 'host-q']) await lab.addHost(name, { psk: { dir: join(lab.folder, 'keys', name) } });
  await lab.addHost('host-i', { insecure: true });
}, 60_000);
afterAll(async () => {
  tap.restore();
  await lab?.close();
});

/** What a stranger hears who asks the storage daemon for a disk. */
async function knock(options: string[], port: number, name: string): Promise<string> {
  return await run('qemu-img', ['info', ...options, '--image-opts', `driver=nbd,server.type=inet,server.host=::1,server.port=${port},export=${name}${options.length > 0 ? ',tls-creds=t,tls-hostname=host-b' : ''}`]).then(({ stdout }) => stdout, ({ stderr }: { stderr: string }) => stderr);
}

describe('a guest moves', () => {
  afterEach(async () => {
    tap.reset();
    await lab.reset();
  });

  test('by TLS with every block and page; strangers are refused meanwhile, and a destination that dies at the last moment costs no copy', async () => {
    const guest = await lab.boot('host-a', 'safe', { disks: [{}, {}], rate: '1M' });
    const heard: Record<string, string> = {};
    let dismissals = 0;
    tap.once('host-a', 'migrate', async () => {
      const daemon = lab.agents.get('host-b')!.host.monitors.get(lab.runFile('host-b', 'safe', 'storage.sock'));
      const { id } = (await daemon.execute('query-block-exports'))[0]!;
      const { nbdPort, migrationPort } = JSON.parse(readFileSync(join(lab.config('host-b').stateDir, 'guests/safe/attempt.json'), 'utf8')) as { nbdPort: number; migrationPort: number };
      heard['plain'] = await knock([], nbdPort, id);
      heard['host-c'] = await knock(['--object', `tls-creds-x509,id=t,endpoint=client,dir=${certs('host-c')}`], nbdPort, id);
      heard['other CA'] = await knock(['--object', `tls-creds-x509,id=t,endpoint=client,dir=${other('host-b')}`], nbdPort, id);
      // Somebody who speaks plain text to the QEMU that waits for the memory.
      await new Promise((resolve) => connect({ host: '::1', port: migrationPort }).on('close', resolve).on('error', resolve).end('not TLS\n'));
    });
    tap.before('host-a', 'job-dismiss', async () => {
      if (++dismissals !== 2) return;
      const { closed } = await lab.agents.get('host-b')!.host.monitor('safe').connection();
      process.kill(Number.parseInt(readFileSync(lab.runFile('host-b', 'safe', 'qemu.pid'), 'utf8'), 10), 'SIGKILL');
      // Its agent sees that, and the lease tells the source before it goes on.
      await closed;
      await delay(50);
    });
    expect(await lab.move('safe', 'host-b', { maxDowntimeMs: 10_000 })).toMatchObject({ outcome: 'completed', memoryTries: 2 });
    expect(heard).toEqual({ plain: expect.stringMatching(/TLS negotiation required/), 'host-c': expect.stringMatching(/Cannot read from TLS channel/), 'other CA': expect.stringMatching(/certificate/i) });
    expect(tap.sent.filter(({ command }) => command === 'blockdev-mirror').map(({ args }) => args!['sync'])).toEqual(['full', 'full', 'none', 'none']);
    expect(tap.sent.filter(({ command, args }) => command === 'migrate-set-parameters' && Object.keys(args!).join() !== 'downtime-limit').map(({ args }) => args!['tls-creds'])).not.toContain(undefined);
    await expectWhole(guest);
    await expectClean(lab, { 'host-b': ['safe'] });
  }, 90_000);

  test('by TLS with shared keys, but not before they are the same', async () => {
    const guest = await lab.boot('host-p', 'keyed', QUIET, 60);
    const file = join(lab.folder, 'keys/host-q/keys.psk');
    const before = readFileSync(file, 'utf8');
    writeFileSync(file, before.replace(/^host-p:..../m, 'host-p:0000'));
    await expect(lab.move('keyed', 'host-q')).rejects.toThrow(/host-q .*does not know the key of host-p: keys\.psk must be the same on both/);
    await expectClean(lab, { 'host-p': ['keyed'] });
    writeFileSync(file, before);
    expect(await lab.move('keyed', 'host-q')).toMatchObject({ outcome: 'completed', memoryTries: 1 });
    await expectWhole(guest);
    await expectClean(lab, { 'host-q': ['keyed'] });
  }, 60_000);
});

const root = process.getuid!() === 0;
if (!root) console.log('skipped: the test with a host that runs guests in a chroot needs root');
(root ? test : test.skip)('a QEMU in a chroot, as a user of its own, must see and read the files: preflight says so, and then it comes and goes by TLS', async () => {
  const [NOBODY, jail, dir] = [65534, join(lab.folder, 'jail'), certs('host-j')];
  await ensureCertificates(certs(), [{ name: 'host-j' }], 100);
  mkdirSync(jail);
  await lab.addHost('host-j', { chroot: jail, runAs: 'nobody', tls: { dir } });
  const guest = await lab.boot('host-a', 'jailed', QUIET, 60);
  const refusal = async () => await lab.move('jailed', 'host-j').then(() => '', (error: Error) => error.message);
  expect(await refusal()).toMatch(/a QEMU of host-j is in a chroot and cannot see the files in tls\.dir: keep a copy of them below the chroot/);
  cpSync(dir, join(jail, dir), { recursive: true });
  expect(await refusal()).toMatch(/a QEMU of host-j runs as nobody, and that user may not read .*server-key\.pem/);
  await expectClean(lab, { 'host-a': ['jailed'] });
  for (let folder = join(jail, dir); folder !== jail; folder = join(folder, '..')) chmodSync(folder, 0o755);
  for (const file of readdirSync(join(jail, dir))) {
    chownSync(join(jail, dir, file), 0, NOBODY);
    chmodSync(join(jail, dir, file), 0o640);
  }
  await lab.move('jailed', 'host-j');
  await lab.move('jailed', 'host-a');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['jailed'] });
  await lab.reset();
}, 120_000);

describe('a move is refused, and nothing is changed,', () => {
  let guest: TestGuest;
  beforeAll(async () => {
    guest = await lab.boot('host-a', 'kept', QUIET, 60);
  }, 60_000);
  afterAll(async () => {
    await expectWhole(guest);
    await lab.reset();
  });
  const files = (host: string) => join(lab.folder, 'tls', host);
  const give = (from: string, host: string) => {
    rmSync(files(host), { recursive: true });
    cpSync(from, files(host), { recursive: true });
  };
  afterEach(() => ['host-a', 'host-b'].forEach((host) => give(certs(host), host)));

  test.each<[string, string, () => unknown, RegExp[]]>([
    ['by a destination whose certificates another CA signed', 'host-b', () => give(other('host-b'), 'host-b'), [/host-a does not believe the certificate of host-b \(::1 port \d+\)/, /ca-cert\.pem here: both hosts need certificates of one CA/]],
    ['by a destination that believes another CA', 'host-b', () => cpSync(other('ca-cert.pem'), join(files('host-b'), 'ca-cert.pem')), [/host-b: server-cert\.pem in tls\.dir is not signed by the CA in ca-cert\.pem/]],
    ['with an expired certificate', 'host-b', async () => {
      await ensureCertificates(join(lab.folder, 'late'), [{ name: 'host-b' }], 0);
      give(join(lab.folder, 'late', 'host-b'), 'host-b');
    }, [/host-b: server-cert\.pem in tls\.dir expired on \d{4}-\d\d-\d\d: put a new one in its place/]],
    ["with another host's server certificate", 'host-b', () => give(certs('host-c'), 'host-b'), [/host-b: server-cert\.pem in tls\.dir is for DNS:host-c, not for the name host-b: is it another host's\?/]],
    ["with another host's client certificate", 'host-b', () => give(certs('host-c'), 'host-a'), [/host-a: client-cert\.pem in tls\.dir is for O=vmferry,CN=host-c, and this host proves itself as O=vmferry,CN=host-a/]],
    ['without a key', 'host-b', () => rmSync(join(files('host-a'), 'client-key.pem')), [/host-a: client-key\.pem in tls\.dir is missing: copy this host's folder/]],
    ['to a host that knows plain text only', 'host-i', () => undefined, [/host-a sends its guests by TLS with certificates \(tls\), host-i takes them by plain text \(insecure: true\): give both configurations the same/]],
    ['to a host with shared keys', 'host-q', () => undefined, [/host-q takes them by TLS with shared keys \(psk\): give both configurations the same/]],
  ])('%s', async (_case, to, spoil, words) => {
    await spoil();
    const error = await lab.move('kept', to).then(() => { throw new Error('it moved'); }, (failure: Error & { type?: string }) => failure);
    expect(error.type).toBe('MigrationRefused');
    for (const one of words) expect(error.message).toMatch(one);
    // No path of a key travels.
    expect(error.message).not.toContain(lab.folder);
    await expectRuns(lab, 'host-a', 'kept');
    await expectClean(lab, { 'host-a': ['kept'] });
  });
});
