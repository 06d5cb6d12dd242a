import { judgeConfiguration, judgeNode } from '../../client/doctor/examine';
import { judgeClock, judgeControlWorker, judgeHosts, judgeNamespace, judgeSearchAttributes, judgeServer, judgeUnfinished } from '../../client/doctor/temporal-checks';
import { judgeConfinement } from '../../hypervisor/doctor/confinement';
import { check, type Finding, ok, runChecks } from '../../hypervisor/doctor/findings';
import { type FolderFacts, judgeFolders, judgeSockets } from '../../hypervisor/doctor/folders';
import { judgeGuests, judgeLeftovers, type TraceFacts } from '../../hypervisor/doctor/guests';
import { judgeKvm } from '../../hypervisor/doctor/kvm';
import { judgeAddress, judgePorts } from '../../hypervisor/doctor/network';
import { judgeQemus, judgeStorageDaemon, judgeTools, type ProgramFacts } from '../../hypervisor/doctor/qemu';
import { judgeTls } from '../../hypervisor/doctor/tls';
import { QmpSchema } from '../../qmp/schema';
import { SPOKEN } from '../../qmp/spoken';
import { SEARCH_ATTRIBUTES } from '../../workflows/messages';

/** `problem: what was seen → the fix`, one line a finding. */
const told = (found: Finding[]) => found.map((one) => `${one.severity}: ${one.saw}${'fix' in one ? ` → ${one.fix}` : ''}`);

describe('running checks', () => {
  test('one that fails, and one that hangs, stop no other, and are findings themselves', async () => {
    const checks = [
      check('fails', '', 1_000, async () => Promise.reject(new Error('EACCES: no')), () => []),
      check('hangs', '', 30, () => new Promise<string>(() => undefined), () => []),
      check('judges badly', '', 1_000, async () => 1, () => { throw new Error('a fault of ours'); }),
      check('works', '', 1_000, async () => 7, (seven) => [ok(`saw ${seven}`)]),
    ];
    const found = await runChecks(checks, {});
    expect(found.map(({ check: name, severity, saw }) => [name, severity, saw])).toEqual([
      ['fails', 'problem', 'this cannot be checked: EACCES: no'],
      ['hangs', 'problem', 'this check did not come to an end within 0.03 s'],
      ['judges badly', 'problem', 'this cannot be checked: a fault of ours'],
      ['works', 'ok', 'saw 7'],
    ]);
  });

  test('a check whose time is over is told so', async () => {
    let told = false;
    await runChecks([check('waits', '', 20, (_context: object, signal) => new Promise((resolve) => signal.addEventListener('abort', () => resolve((told = true)))), () => [])], {});
    expect(told).toBe(true);
  });
});

describe('Temporal', () => {
  const where = { address: 'temporal.example:7233', namespace: 'prod' };
  const attributes = Object.fromEntries(Object.values(SEARCH_ATTRIBUTES).map(({ name }) => [name, 'Keyword']));

  test('a server that does not answer is a problem that names its address', () => {
    expect(told(judgeServer({ failure: 'ECONNREFUSED' }, where))[0]).toMatch(/^problem: no Temporal server answers at temporal\.example:7233 \(ECONNREFUSED\) → start one .*temporal\.address/);
    expect(told(judgeServer({ version: '1.29.1' }, where))).toEqual(['ok: Temporal 1.29.1 answers at temporal.example:7233']);
  });

  test.each([
    ['missing', { exists: false, updates: false, retentionHours: 0 }, /^problem: there is no namespace "prod" → temporal operator namespace create --retention 720h prod/],
    ['without updates', { exists: true, updates: false, retentionHours: 72 }, /^problem: .*no updates.* → upgrade/],
    ['forgetful', { exists: true, updates: true, retentionHours: 1 }, /^warning: .*after 1 h → temporal operator namespace update --retention 720h prod/],
    ['good', { exists: true, updates: true, retentionHours: 72 }, /^ok: /],
  ])('a namespace that is %s', (_what, facts, line) => {
    expect(told(judgeNamespace(facts, where))).toEqual([expect.stringMatching(line)]);
  });

  test('search attributes that are missing or of another type are problems with the command that makes them', () => {
    expect(told(judgeSearchAttributes(attributes))).toEqual([`ok: all ${Object.keys(attributes).length} search attributes are registered as Keyword`]);
    const rest = Object.fromEntries(Object.entries(attributes).filter(([name]) => name !== 'VmferryGuest'));
    const found = told(judgeSearchAttributes({ ...rest, VmferryPhase: 'Text' }));
    expect(found[0]).toMatch(/^problem: .*VmferryGuest: no migration can begin → start a control worker.*search-attribute create --name VmferryGuest --type Keyword$/);
    expect(found[1]).toMatch(/^problem: search attribute VmferryPhase is of type Text, not Keyword → temporal operator search-attribute remove --name VmferryPhase/);
  });

  test.each([
    [{ serverMs: 1_000, beforeMs: 990, afterMs: 1_020 }, /^ok: this machine's clock is the server's, within 30 ms$/],
    [{ serverMs: 5_000, beforeMs: 990, afterMs: 1_000 }, /^warning: this machine's clock is 4 s behind the server's → .*chrony/],
    [{ serverMs: 1_000, beforeMs: 41_000, afterMs: 41_010 }, /^problem: this machine's clock is 40 s ahead of the server's/],
  ])('a clock: %j', (facts, line) => expect(told(judgeClock(facts))).toEqual([expect.stringMatching(line)]));

  test('no control worker, no host, and a silent host each say what to start', () => {
    expect(told(judgeControlWorker({ agesMs: [] }))).toEqual([expect.stringMatching(/^problem: no control worker .* → start one: vmferry control/)]);
    expect(told(judgeControlWorker({ agesMs: [2_000, 40_000] }))).toEqual([expect.stringMatching(/^ok: 2 pollers .* 2 s ago/)]);
    expect(told(judgeHosts({ asked: false, hosts: [] }))[0]).toMatch(/^problem: .* → start one: vmferry control/);
    expect(told(judgeHosts({ asked: true, hosts: [] }))[0]).toMatch(/^warning: no host is known → start an agent/);
    const hosts = [{ name: 'a', silentMs: 3_000, polls: true }, { name: 'b', silentMs: 3_600_000, polls: true }, { name: 'c', silentMs: 1_000, polls: false }];
    expect(told(judgeHosts({ asked: true, hosts }))).toEqual(['ok: the agent of a answers', expect.stringMatching(/^problem: host b was heard of 60 min ago: .*terminate --workflow-id host\/b$/), expect.stringMatching(/^problem: host c .* no agent polls/)]);
  });

  test('what a host that is away has still to do is a warning', () => {
    const leftover = { vm: 'web', host: 'host-b', attempt: 'abc', step: 'retireSource', since: '2026-11-24T10:00:00Z', workflowId: 'leftover/web/abc/host-b' };
    expect(told(judgeUnfinished([leftover]))).toEqual([expect.stringMatching(/^warning: host host-b has still to do retireSource of guest web/)]);
  });
});

test('a configuration with wrong fields has a problem a field', () => {
  expect(told(judgeConfiguration({ file: 'a.yaml', wrong: ['adress: unknown field', 'ports.to: too small'] }))).toHaveLength(2);
  expect(told(judgeNode('18.19.0'))[0]).toMatch(/^problem: .* → install Node\.js 20/);
});

describe('programs', () => {
  const schema = (leave: (command: string) => boolean = () => false) => new QmpSchema([
    ...Object.keys(SPOKEN).filter((command) => !leave(command)).map((name) => ({ name, 'meta-type': 'command' as const, 'arg-type': `args of ${name}` })),
    ...Object.entries(SPOKEN).flatMap(([name, spoken]) => {
      const { arguments: known, more = {} } = spoken as { arguments: object; more?: object };
      // Nested names are members of objects of their own.
      const entities: { name: string; 'meta-type': 'object'; members: { name: string; type: string }[] }[] = [];
      const add = (type: string, paths: string[][]) => {
        const heads = [...new Set(paths.map(([head]) => head!))];
        entities.push({ name: type, 'meta-type': 'object', members: heads.map((head) => ({ name: head, type: `${type}.${head}` })) });
        for (const head of heads) add(`${type}.${head}`, paths.filter(([one, next]) => one === head && next !== undefined).map(([, ...rest]) => rest));
      };
      add(`args of ${name}`, Object.keys({ ...known, ...more }).map((path) => path.split('.')));
      return entities;
    }),
  ]);
  const good: ProgramFacts = { path: '/usr/bin/qemu', version: '9.2.0', oob: true, schema: schema(), capabilities: ['events', 'pause-before-switchover', 'late-block-activate', 'auto-converge', 'postcopy-ram'], refused: [] };

  test('a QEMU with all that we say to it is well, and what it lacks of the rest is said with what is lost', () => {
    expect(told(judgeQemus([good]))).toEqual([expect.stringMatching(/^ok: QEMU 9\.2\.0 at \/usr\/bin\/qemu has what a move needs; without tls-creds-x509: disks and memory cannot be encrypted$/)]);
    expect(told(judgeQemus([{ ...good, schema: schema((command) => command === 'block-job-change') }]))[0]).toMatch(/^ok: .*without block-job-change: a copy becomes write-blocking by a short stop/);
  });

  test.each<[string, Partial<ProgramFacts>, RegExp]>([
    ['is missing', { failure: 'there is no such file' }, /^problem: \/usr\/bin\/qemu: there is no such file → install QEMU 7\.2/],
    ['lacks a command', { schema: schema((command) => command === 'yank') }, /^problem: .* lacks what a move needs: yank → /],
    ['lacks a capability', { capabilities: ['events', 'late-block-activate'] }, /^problem: .*: the migration capability pause-before-switchover → /],
    ['has no out-of-band commands', { oob: false }, /^problem: .*: out-of-band commands → /],
  ])('a QEMU that %s is a problem', (_what, facts, line) => expect(told(judgeQemus([{ ...good, ...facts }]))).toEqual([expect.stringMatching(line)]));

  test('a storage daemon is judged by what it did with a disk, and needs only its own commands', () => {
    const daemon = { ...good, capabilities: [], schema: schema((command) => command === 'migrate') };
    expect(told(judgeStorageDaemon(daemon))).toEqual([expect.stringMatching(/^ok: /)]);
    expect(told(judgeStorageDaemon({ ...daemon, refused: ['block-export-add: no nbd'] }))).toEqual([expect.stringMatching(/^problem: .*cannot export a disk as a move does: block-export-add: no nbd → /)]);
  });

  test('a tool that is only for a message is a warning, one that every move needs a problem', () => {
    expect(told(judgeTools([{ path: 'ss', version: '?', failure: 'ENOENT', needed: 'to name who holds a monitor', package: 'iproute2' }]))[0]).toMatch(/^warning: .* → apt-get install iproute2$/);
    expect(told(judgeTools([{ path: '/opt/qemu-img', version: '?', failure: 'ENOENT', needed: 'always', package: 'qemu-utils' }]))[0]).toMatch(/^problem: .*binaries\.qemuImg$/);
  });
});

describe('KVM', () => {
  test.each([
    ['a guest that does not start', { device: 'usable' as const, guests: [], boot: { outcome: 'silent' as const, waitedMs: 5_000 } }, /^warning: KVM does not work: guest did not start within 5 s; use accel=tcg → /],
    ['no device', { device: 'missing' as const, guests: [] }, /^warning: there is no \/dev\/kvm/],
    ['no right', { device: 'forbidden' as const, guests: [] }, /^warning: .* → .*usermod -aG kvm/],
    ['a QEMU that ends', { device: 'usable' as const, guests: [], boot: { outcome: 'failed' as const, said: 'Assertion failed' } }, /^warning: KVM does not work: Assertion failed/],
    ['a guest that starts', { device: 'usable' as const, guests: ['web'], boot: { outcome: 'started' as const, ms: 90 } }, /^ok: KVM works/],
  ])('%s', (_what, facts, line) => expect(told(judgeKvm(facts))).toEqual([expect.stringMatching(line)]));

  test('that does not work is a problem as soon as a guest wants it', () => {
    expect(told(judgeKvm({ device: 'usable', guests: ['web', 'db'], boot: { outcome: 'silent', waitedMs: 5_000 } }))[0]).toMatch(/^problem: .*\(wanted by web, db\)/);
  });
});

describe('network', () => {
  const mine = ['127.0.0.1', '::1', '10.0.0.11', 'fe80::1'];
  test.each([
    ['10.0.0.11', /^ok: /],
    ['127.0.0.2', /^warning: .*from this machine only → address: 10\.0\.0\.11/],
    ['::1', /^warning: /],
    ['0.0.0.0', /^problem: .*no address that another host could connect to → address: 10\.0\.0\.11/],
    ['10.0.0.99', /^problem: address 10\.0\.0\.99 is none of this machine's \(it has 127\.0\.0\.1/],
  ])('address %s', (address, line) => expect(told(judgeAddress({ address, mine }))).toEqual([expect.stringMatching(line)]));

  test('ports are judged by how many guests may arrive at once', () => {
    const facts = (taken: number, code = 'EADDRINUSE') => ({ address: '::1', from: 5_000, to: 5_009, incoming: 2, taken: Array.from({ length: taken }, (_, index) => ({ port: 5_000 + index, code })) });
    expect(told(judgePorts(facts(1)))[0]).toMatch(/^ok: 9 of 10 ports 5000 to 5009 on ::1 are free \(not 5000: EADDRINUSE\)$/);
    expect(told(judgePorts(facts(6)))[0]).toMatch(/^warning: 4 of 10 .*2 guests that arrive at once need 5 → ss -ltnp/);
    expect(told(judgePorts(facts(9)))[0]).toMatch(/^problem: 1 of 10 .* needs 2 → .*ports: \{ from: 5000, to: 5265 \}/);
    expect(told(judgePorts(facts(10, 'EADDRNOTAVAIL')))[0]).toMatch(/^problem: .*that address is not this machine's → correct address/);
  });
});

describe('folders', () => {
  const at = { path: '/var/lib/vmferry', mode: 0o700, uid: 0, writable: true, readable: true, memoryOnly: false, freeBytes: 2 ** 33 };
  const folder = (fields: Partial<Omit<FolderFacts, 'at'>> & { at?: Partial<FolderFacts['at']> } = {}): FolderFacts => ({ field: 'stateDir', path: '/var/lib/vmferry', kind: 'folder', ...fields, at: { ...at, ...fields.at } });
  test.each<[string, FolderFacts, RegExp]>([
    ['a state folder as it should be', folder(), /^ok: stateDir \/var\/lib\/vmferry has mode 0700; 8 GiB free$/],
    ['a state folder that is still to be made', folder({ kind: 'missing' }), /^ok: .*will be made by the agent/],
    ['a state folder that could not be made', folder({ kind: 'missing', at: { writable: false } }), /^problem: .*cannot be made by this user → install -d -m 0700/],
    ['a state folder in memory', folder({ at: { memoryOnly: true } }), /^warning: .*a reboot forgets the guests, and whose they are → stateDir:/],
    ['a run folder in memory', folder({ field: 'runDir', at: { memoryOnly: true } }), /^ok: /],
    ['a state folder that others may read', folder({ at: { mode: 0o755 } }), /^warning: .*mode 0755.* → chmod 0700 \/var\/lib\/vmferry$/],
    ['a state folder of somebody else', folder({ at: { uid: 1_000 } }), /^problem: .*belongs to user 1000.* → chown 0 /],
    ['a full state folder', folder({ at: { freeBytes: 1_000 } }), /^problem: .*only 1000 B free/],
    ['a file', folder({ kind: 'no folder' }), /^problem: .*is no folder/],
    ['a root that is missing', folder({ field: 'roots.images', path: '/srv', kind: 'missing' }), /^problem: roots\.images \/srv does not exist → mkdir -p \/srv/],
    ['a root that can only be read', folder({ field: 'roots.boot', at: { writable: false, mode: 0o755 } }), /^ok: .*read-only, so no disk can come there/],
    ['a root that cannot be read', folder({ field: 'roots.boot', at: { readable: false } }), /^problem: .*cannot be read/],
  ])('%s', (_what, facts, line) => expect(told(judgeFolders({ uid: 0, folders: [facts] }))).toEqual([expect.stringMatching(line)]));

  test('a long run folder is judged by the names of guests', () => {
    expect(told(judgeSockets({ runDir: '/run/vmferry', guests: ['web'] }))[0]).toMatch(/^ok: /);
    const runDir = `/${'r'.repeat(79)}`;
    expect(told(judgeSockets({ runDir, guests: ['web'] }))[0]).toMatch(/^warning: runDir leaves 13 letters .* → runDir: \/run\/vmferry$/);
    expect(told(judgeSockets({ runDir, guests: ['web', 'a'.repeat(14)] }))[0]).toMatch(/^problem: .*the sockets of a{14} cannot be made/);
    expect(told(judgeSockets({ runDir: runDir.repeat(2), guests: [] }))[0]).toMatch(/^problem: .*too long for the sockets of any guest/);
  });
});

describe('confinement', () => {
  const jail = { path: '/var/empty', kind: 'folder' as const, uid: 0, mode: 0o755 };
  const qemus = [{ path: '/usr/bin/qemu', chroot: true, runas: true }];
  test('none at all, and one that is well, are ok', () => {
    expect(told(judgeConfinement({ uid: 1_000, qemus: [] }))).toEqual([expect.stringMatching(/^ok: neither/)]);
    expect(told(judgeConfinement({ uid: 0, qemus, chroot: jail, runAs: { name: 'qemu', uid: 64_055 } }))).toEqual(['ok: QEMUs are confined to /var/empty as user qemu (64055)']);
  });

  test('everything that is wrong with it is said at once', () => {
    const found = told(judgeConfinement({ uid: 1_000, chroot: { ...jail, mode: 0o777 }, runAs: { name: 'ghost' }, qemus: [{ path: '/usr/bin/qemu', chroot: false, runas: false }] }));
    expect(found).toEqual([/need an agent that runs as root/, /there is no user "ghost" → useradd/, /can be written by others than root.* → chown root \/var\/empty && chmod go-w/, /no option -chroot \(QEMU ≥ 9\.0/, /no option -runas \(QEMU ≥ 10\.0/].map((line): unknown => expect.stringMatching(line)));
    expect(found.every((line) => line.startsWith('problem: '))).toBe(true);
    expect(told(judgeConfinement({ uid: 0, qemus, chroot: { ...jail, kind: 'missing' } }))[0]).toMatch(/does not exist → install -d -m 0755/);
    expect(told(judgeConfinement({ uid: 0, qemus, runAs: { name: 'root', uid: 0 } }))[0]).toMatch(/^warning: .*confines nothing/);
  });
});

describe('TLS', () => {
  const well = { mode: 'tls' as const, dir: '/etc/vmferry/tls', findings: [], outOfReach: [] };

  test('files that are well are ok, plain text is a warning with the way out of it', () => {
    expect(told(judgeTls(well))).toEqual(["ok: the files in /etc/vmferry/tls are this host's, in date, and within reach (tls)"]);
    expect(told(judgeTls({ ...well, mode: 'insecure' }))[0]).toMatch(/^warning: .*plain text.* → vmferry certs init/);
  });

  test('what the files say is passed on: what stops moves as a problem, what will do so soon as a warning', () => {
    const one = { file: '/etc/vmferry/tls/server-cert.pem', problem: 'expires in 3 days', fix: 'renew it' };
    expect(told(judgeTls({ ...well, findings: [{ ...one, severity: 'warning' }, { ...one, severity: 'blocker', problem: 'expired' }] }))).toEqual(['warning: /etc/vmferry/tls/server-cert.pem expires in 3 days → renew it', 'problem: /etc/vmferry/tls/server-cert.pem expired → renew it']);
  });

  test('files out of reach of a QEMU in a chroot, or as another user, are problems', () => {
    expect(told(judgeTls({ ...well, outOfReach: ['a QEMU of host-a runs as qemu, and that user may not read /etc/x: give the files its group', 'ENOENT'] }))).toEqual(['problem: a QEMU of host-a runs as qemu, and that user may not read /etc/x → give the files its group', expect.stringMatching(/^problem: ENOENT → keep the files/)]);
  });
});

describe('guests', () => {
  const guest = (memory: number, accelerator: 'tcg' | 'kvm' = 'tcg', version: { major: number; minor: number } | undefined = { major: 7, minor: 2 }) => [{ name: 'web', definition: { accelerator, memory, emulator: 'qemu-system-x86_64' }, ...(version && { version }) }];
  test('memory that QEMU 7.2 under TCG corrupts is a warning with the size to take instead', () => {
    expect(told(judgeGuests(guest(256 * 2 ** 20)))[0]).toMatch(/^warning: guest web: .*multiple of 256 KiB.* → give it 8 KiB more \(memory: 262152K\)/);
    for (const fine of [guest(262_152 * 1024), guest(256 * 2 ** 20, 'kvm'), guest(256 * 2 ** 20, 'tcg', { major: 10, minor: 0 })]) expect(told(judgeGuests(fine))[0]).toMatch(/^ok: /);
  });
  test('a guest whose QEMU is not listed is a problem', () => expect(told(judgeGuests([{ name: 'web', definition: { accelerator: 'tcg', memory: 1, emulator: 'qemu-system-arm' } }]))[0]).toMatch(/^problem: guest web needs qemu-system-arm/));

  const trace = (fields: Partial<TraceFacts>): TraceFacts => ({ guest: 'web', defined: true, running: true, storageDaemon: false, guard: false, ...fields });
  const now = '2026-11-24T12:00:00Z';
  test.each<[string, TraceFacts, RegExp]>([
    ['an attempt', trace({ attempt: { role: 'source', attempt: 'abc', to: 'host-b', memoryTry: 0, wasRunning: true } }), /^warning: guest web is being moved to host-b.* → vmferry watch web .*vmferry repair web/],
    ['a storage daemon', trace({ storageDaemon: true }), /^warning: a storage daemon .* → vmferry repair web/],
    ['a guard', trace({ guard: true }), /^warning: a guard /],
    ['a copy that went away', trace({ ownership: { state: 'handed-over', attempt: 'abc', to: 'host-b' } }), /^warning: a copy of guest web is here that was handed over to host-b/],
    ['a folder of nobody', trace({ defined: false, running: false }), /^warning: there is a folder of guest web, which is not defined here/],
  ])('%s that was left is a warning', (_what, facts, line) => expect(told(judgeLeftovers({ traces: [facts], kept: [], now }))).toEqual([expect.stringMatching(line)]));

  test('images that are kept are well until their time is over', () => {
    const kept = (until: string) => [{ guest: 'web', attempt: 'abc', paths: ['/srv/web.raw.kept-abc'], until }];
    expect(told(judgeLeftovers({ traces: [trace({})], kept: kept('2026-11-25T12:00:00Z'), now }))[0]).toMatch(/^ok: nothing is left of earlier moves; images of 1 guests/);
    expect(told(judgeLeftovers({ traces: [], kept: kept('2026-11-23T12:00:00Z'), now }))[0]).toMatch(/^warning: images of guest web .* → start the agent/);
  });
});
