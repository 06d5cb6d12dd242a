import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { monitorPath, qemuArguments } from '../../hypervisor/command-line';
import { InvalidDefinition } from '../../hypervisor/definition';
import { parseArguments, readFields } from '../../hypervisor/qemu-options';
import { definitionOf, deleteFolders, hostIn, temporaryFolder } from './fixtures';
import { LiveGuest, migrate } from './live-guest';

const folder = temporaryFolder();
const config = hostIn(folder);
const images = join(folder, 'images');
const started: LiveGuest[] = [];
afterEach(async () => void (await Promise.all(started.splice(0).map((guest) => guest.end()))));
afterAll(deleteFolders);

const disk = (id: string, fields: Record<string, unknown> = {}) => ({ id, path: `\${images}/${id}.raw`, ...fields });
const argv = (fields: Record<string, unknown>, incoming = false, host = config) => qemuArguments(host, definitionOf(fields), { incoming });
const options = (fields: Record<string, unknown>) => parseArguments(argv(fields));
const values = (fields: Record<string, unknown>, flag: string) => options(fields).filter((option) => option.flag === flag).map(({ value }) => value);
const refusal = (fields: Record<string, unknown>, host = config): string => {
  try {
    argv(fields, false, host);
  } catch (error) {
    if (error instanceof InvalidDefinition) return error.message;
    throw error;
  }
  throw new Error('was accepted');
};

describe('a definition of fields', () => {
  test('gives RAM in KiB, and never plugs any', () => {
    expect(values({ memory: '262152K' }, 'm')).toEqual(['size=262152K']);
  });

  test('gives the same machine twice', () => {
    const fields = { disks: [disk('d1'), disk('d2')], nics: [{ id: 'n1', mac: '52:54:00:12:34:56', backend: 'user' }] };
    expect(argv(fields)).toEqual(argv(fields));
  });

  test('keeps the place of its nics when a disk is added', () => {
    const nics = [{ id: 'n1', mac: '52:54:00:12:34:56', backend: 'user,restrict=on' }];
    expect(values({ nics }, 'netdev')).toEqual(['user,id=n1,restrict=on']);
    for (const disks of [[], [disk('d1')]]) expect(values({ nics, disks }, 'device')[0]).toMatch(/^virtio-net-pci,id=n1-device,netdev=n1,mac=52:54:00:12:34:56/);
  });

  test('numbers the disks of each bus on their own', () => {
    const disks = [disk('s1'), disk('a1', { bus: 'sata' }), disk('s2'), disk('b1', { bus: 'virtio-blk' }), disk('a2', { bus: 'sata', removable: true, readOnly: true })];
    expect(values({ disks }, 'device')).toEqual([
      'virtio-scsi-pci,id=scsi0',
      'scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun=0,id=s1-device,drive=s1,bootindex=1',
      'ide-hd,bus=ide.0,id=a1-device,drive=a1,bootindex=2',
      'scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun=1,id=s2-device,drive=s2,bootindex=3',
      'virtio-blk-pci,id=b1-device,drive=b1,bootindex=4',
      'ide-cd,bus=ide.1,id=a2-device,drive=a2,bootindex=5',
    ]);
  });

  test('opens a disk as it says', () => {
    const nodes = options({ disks: [disk('d1', { cache: 'none', aio: 'native', format: 'qcow2' }), disk('cd', { removable: true, path: '${images}/my cd.iso' })] }).filter(({ flag }) => flag === 'blockdev').map(readFields);
    expect(nodes).toEqual([
      { driver: 'file', 'node-name': 'd1-file', filename: join(images, 'd1.raw'), aio: 'native', 'read-only': 'off', 'cache.direct': 'on', 'cache.no-flush': 'off', discard: 'unmap' },
      { driver: 'qcow2', 'node-name': 'd1', file: 'd1-file', 'read-only': 'off', 'cache.direct': 'on', 'cache.no-flush': 'off', discard: 'unmap' },
      { driver: 'file', 'node-name': 'cd-file', filename: join(images, 'my cd.iso'), aio: 'threads', 'read-only': 'on', 'cache.direct': 'off', 'cache.no-flush': 'off' },
      { driver: 'raw', 'node-name': 'cd', file: 'cd-file', 'read-only': 'on', 'cache.direct': 'off', 'cache.no-flush': 'off' },
    ]);
  });

  test('starts stopped, and waits for its state only when it is incoming', () => {
    expect(argv({})).toContain('-S');
    expect(argv({})).not.toContain('-incoming');
    expect(argv({}, true).join(' ')).toContain('-S -incoming defer');
  });

  test('takes the root folder and the user from the host', () => {
    const host = hostIn(folder, { chroot: '/var/lib/empty', runAs: 'nobody' });
    expect(argv({}, false, host).join(' ')).toContain('-chroot /var/lib/empty -runas nobody');
    // Where an image cannot be opened again, it is opened once.
    const commandLine = ['-drive', 'file=${images}/a.raw,if=virtio', '-drive', 'if=none,id=empty'];
    expect(argv({ commandLine }, false, host)).toEqual(expect.arrayContaining([`file=${images}/a.raw,if=virtio,format=raw,auto-read-only=off`, 'if=none,id=empty']));
    expect(argv({ commandLine })).toContain(`file=${images}/a.raw,if=virtio,format=raw`);
    expect(argv({ commandLine: ['-hda', '${images}/a.raw'] }, false, host)).toContain(`file=${images}/a.raw,index=0,media=disk,format=raw,auto-read-only=off`);
    expect(refusal({ commandLine: ['-blockdev', 'file,node-name=n,filename=${images}/a.raw,auto-read-only=on'] }, host)).toMatch(/could not open it again.*chroot or runAs/);
  });

  test('names every file that is not in a root, not only the first', () => {
    symlinkSync('/etc', join(images, 'etc'));
    const message = refusal({ disks: [disk('d1', { path: '${images}/etc/shadow' }), disk('d2', { path: '${gold}/x' })], boot: { kernel: '${silver}/vmlinuz' } });
    ['outside the root "images"', 'no root "gold"', 'no root "silver"'].forEach((part) => expect(message).toContain(part));
  });
});

describe('a command line of its own', () => {
  const monitor = { commandLine: ['-qmp', 'unix:${run}/m.sock,server=on,wait=off'], monitor: '${run}/m.sock' };

  test('is used as it is, but for how it starts', () => {
    const commandLine = [...monitor.commandLine, '-daemonize', '-m', '32', '-pidfile', '/run/other.pid', '-S', '-incoming', 'tcp:0:4444', '-sandbox', 'off', '-drive', 'file=${images}/a b.raw,if=none,id=d'];
    const run = join(folder, 'run/vm1');
    expect(argv({ ...monitor, commandLine })).toEqual(['-qmp', `unix:${run}/m.sock,server=on,wait=off`, '-m', '32', '-drive', `file=${images}/a b.raw,if=none,id=d,format=raw`, '-pidfile', `${run}/qemu.pid`, '-S', '-sandbox', expect.stringMatching(/^on,/)]);
  });

  test('keeps its own monitor for the agent, or gets one', () => {
    expect(monitorPath(config, definitionOf(monitor))).toBe(join(folder, 'run/vm1/m.sock'));
    expect(monitorPath(config, definitionOf())).toBe(join(folder, 'run/vm1/qmp.sock'));
    expect(argv({ commandLine: [] }).join(' ')).toContain(`-chardev socket,id=vmferry-monitor,path=${folder}/run/vm1/qmp.sock,server=on,wait=off -mon chardev=vmferry-monitor,mode=control`);
  });

  test('must make the monitor that the definition names', () => {
    expect(refusal({ commandLine: ['-m', '32'], monitor: '${run}/m.sock' })).toContain('no argument makes ${run}/m.sock');
  });

  test.each([['chroot', '/x'], ['runas', 'nobody'], ['run-with', 'user=nobody'], ['readconfig', '${images}/x'], ['loadvm', 'x'], ['set', 'drive.x.file=y']])('may not bring -%s', (flag, value) => {
    expect(refusal({ commandLine: [`-${flag}`, value] })).toContain(`commandLine: -${flag} `);
  });
});

describe('arguments', () => {
  test.each<[string, string[]]>([
    ['a file elsewhere', ['-drive', 'file=/etc/shadow,format=raw']],
    ['a file elsewhere with a protocol', ['-drive', 'file=file:/etc/shadow']],
    ['a file elsewhere with slashes', ['-drive', 'file=file:///etc/shadow']],
    ['a file elsewhere in JSON', ['-blockdev', '{"driver":"file","node-name":"x","filename":"/etc/shadow"}']],
    ['a file elsewhere in escaped JSON', ['-blockdev', '{"driver":"file","node-name":"x","filename":"\\u002fetc/shadow"}']],
    ['a file elsewhere deep in JSON', ['-blockdev', '{"driver":"raw","node-name":"x","file":{"driver":"file","filename":"/etc/shadow"}}']],
    ['a file elsewhere behind json:', ['-drive', 'file=json:{"driver":"file"\\,,"filename":"\\u002fetc/shadow"}']],
    ['a folder elsewhere', ['-drive', 'file=fat:rw:/etc']],
    ['a socket elsewhere', ['-serial', 'unix:/tmp/x,server=on']],
    ['a pipe elsewhere', ['-serial', 'pipe:/tmp/x']],
    ['a path behind a space', ['-device', 'loader,file=${images}/a /etc/shadow,x=/etc/shadow']],
    ['a script', ['-netdev', 'tap,id=t,script=/etc/qemu-ifup']],
    ['a command', ['-netdev', 'user,id=u,guestfwd=tcp:10.0.2.100:80-cmd:netcat x 80']],
    ['a shared folder', ['-netdev', 'user,id=u,smb=/']],
    ['a log', ['-D', '/var/log/x']],
    ['a module', ['-plugin', '/tmp/x.so']],
    ['a kernel', ['-kernel', '/boot/vmlinuz']],
    ['a bare disk', ['/dev/sda']],
    ['a relative path, which is an absolute one in QEMU\'s working folder', ['-drive', 'file=etc/shadow']],
    ['a relative path with a protocol', ['-serial', 'unix:tmp']],
    ['a relative file', ['-object', 'secret,id=s,file=passwords']],
    ['a path that climbs', ['-drive', 'file=${images}/../x']],
    ['a link out of a root', ['-blockdev', '{"driver":"file","node-name":"x","filename":"${images}/out"}']],
    ['the run folder of another guest', ['-serial', 'unix:${run}/../vm2/qmp.sock,server=on']],
    ['JSON that is none', ['-blockdev', "{'driver':'file','filename':'/etc/shadow'}"]],
    ['an unknown root', ['-drive', 'file=${gold}/x']],
    ['an option behind one that takes no value', ['-unknown', '-daemonize']],
    ['a firmware elsewhere', ['-bios', '/etc/shadow']],
  ])('%s is refused', (_case, given) => {
    if (_case === 'a link out of a root') symlinkSync('/etc/shadow', join(images, 'out'));
    expect(refusal({ arguments: given })).toContain(`arguments: -${given[0]!.replace(/^-/, '').replace(/^\/dev.*/, 'hda')}`);
  });

  test.each<[string, string[]]>([
    ['a QMP monitor on TCP', ['-qmp', 'tcp::4444,server=on']],
    ['a QMP monitor on TCP, pretty', ['-qmp-pretty', 'tcp::4444,server=on']],
    ['a monitor on telnet', ['-monitor', 'telnet:127.0.0.1:4444,server=on']],
    ['a monitor on UDP', ['-monitor', 'udp:127.0.0.1:4444']],
    ['a monitor beside a serial line', ['-serial', 'mon:telnet::4444,server=on']],
    ['a monitor on a character device', ['-chardev', 'socket,id=m,port=4444,host=::1,server=on', '-mon', 'chardev=m']],
    ['a monitor on a character device by its name', ['-chardev', 'udp,id=m,port=4444', '-monitor', 'chardev:m']],
    ['a debugger', ['-gdb', 'tcp::1234']],
    ['a debugger in short', ['-s']],
  ])('%s is refused: whoever reaches it has the guest', (_case, given) => {
    expect(refusal({ arguments: given })).toMatch(/gives (control of )?the guest/);
  });

  test.each([
    ['name', 'x', 'name'], ['machine', 'pc', 'machine and accelerator'], ['M', 'pc', 'machine'], ['accel', 'kvm', 'accelerator'], ['m', '512', 'memory'], ['smp', '2', 'cpu.count'], ['cpu', 'max', 'cpu.model'],
    ['pidfile', '${run}/x', 'its own pid file'], ['incoming', 'defer', 'vmferry says'], ['chroot', '/', 'host\'s configuration'], ['runas', 'root', 'host\'s configuration'],
  ])('-%s is vmferry\'s own: the refusal names what to use', (flag, value, hint) => {
    expect(refusal({ arguments: [`-${flag}`, value] })).toContain(hint);
    expect(refusal({ arguments: [`--${flag}`, value] })).toContain(hint);
  });

  test.each([[['-daemonize']], [['-S']], [['-enable-kvm']], [['-chardev', 'null,id=vmferry-monitor']], [['-mon', 'chardev=vmferry-monitor']], [['-qmp', 'unix:${run}/qmp.sock,server=on']]])('%j is vmferry\'s own', (given) => {
    expect(refusal({ arguments: given })).toContain(`arguments: ${given[0]}`);
  });

  test.each<[string, string[]]>([
    ['sockets in the run folder', ['-serial', 'unix:${run}/serial.sock,server=on,wait=off']],
    ['a second monitor there', ['-qmp', 'unix:${run}/mine.sock,server=on,wait=off']],
    ['files in a root', ['-device', 'loader,file=${images}/blob', '-blockdev', '{"driver":"file","node-name":"x","filename":"${images}/x.raw"}']],
    ['devices that hold nothing', ['-object', 'rng-random,id=r,filename=/dev/urandom', '-serial', 'file:/dev/null']],
    ['networks, which look like paths', ['-netdev', 'user,id=u,net=10.0.2.0/24,ipv6-net=fd00::/64,hostfwd=tcp::2222-:22']],
    ['names, which look like paths', ['-fw_cfg', 'name=opt/org.example/x,string=/etc', '-smbios', 'type=1,product=A/B']],
    ['a block node that names another', ['-blockdev', 'driver=raw,node-name=x,file=y']],
    ['short forms', ['-chardev', 'socket,id=c,path=${run}/c,server,nowait', '-usb', '-no-reboot']],
  ])('%s are taken', (_case, given) => {
    expect(() => argv({ arguments: given })).not.toThrow();
  });

  test('and -append may say anything', () => {
    expect(argv({ boot: { kernel: '${images}/vmlinuz', append: 'root=/dev/sda init=/bin/sh,x' } })).toContain('root=/dev/sda init=/bin/sh,x');
  });

  test('are refused all at once, a line each', () => {
    expect(refusal({ arguments: ['-name', 'x', '-D', '/x', '-qmp', 'tcp::1'], nics: [{ id: 'n', mac: '52:54:00:12:34:56', backend: 'tap,helper=x' }] }).split('\n')).toHaveLength(5);
  });
});

describe('in QEMU', () => {
  const fields = {
    machine: 'q35', cpu: { model: 'qemu64', count: 2 }, nics: [{ id: 'n1', mac: '52:54:00:12:34:56', backend: 'user,restrict=on' }],
    firmware: { code: '${images}/code.fd', variables: '${images}/vars.fd' },
    disks: [disk('d1', { cache: 'none', aio: 'native' }), disk('d2', { bus: 'virtio-blk', aio: 'io_uring' }), disk('d3', { bus: 'sata' }), disk('cd', { bus: 'sata', removable: true, readOnly: true }), disk('d4')],
    arguments: ['-serial', 'unix:${run}/serial.sock,server=on,wait=off', '-device', 'virtio-rng-pci'],
  };
  const host = (name: string) => {
    const host = hostIn(join(folder, name));
    for (const [file, size] of [['d1', 1], ['d2', 2], ['d3', 3], ['cd', 1], ['d4', 4]] as const) {
      writeFileSync(join(folder, name, 'images', `${file}.raw`), '');
      truncateSync(join(folder, name, 'images', `${file}.raw`), size * 2 ** 20);
    }
    for (const file of ['code.fd', 'vars.fd']) writeFileSync(join(folder, name, 'images', file), Buffer.alloc(256 * 1024));
    return host;
  };

  test('one definition gives the same machine on two hosts, and one takes the other\'s state', async () => {
    mkdirSync(join(folder, 'b'), { recursive: true });
    const definition = definitionOf(fields);
    for (const name of ['a', 'b']) started.push(await LiveGuest.launch(host(name), definition));
    const [a, b] = started as [LiveGuest, LiveGuest];
    const machine = await a.machine();
    expect(JSON.stringify(machine)).toContain('d1-device');
    expect(await b.machine()).toEqual(machine);
    // A QEMU that is to send may not itself be waiting for a state.
    await a.end();
    started.push(await LiveGuest.start(qemuArguments(host('a'), definition, { incoming: false }), monitorPath(host('a'), definition)));
    await migrate(started.at(-1)!, b, join(folder, 'm.sock'));
    expect([...started.map(({ printed }) => printed)].join('')).toBe('');
  });
});
