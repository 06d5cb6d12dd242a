import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { qemuArguments } from '../../hypervisor/command-line';
import { InvalidDefinition } from '../../hypervisor/definition';
import { checkLayers } from '../../hypervisor/image-layers';
import { readFields, parseArguments } from '../../hypervisor/qemu-options';
import { definitionOf, deleteFolders, hostIn, temporaryFolder } from './fixtures';

const folder = temporaryFolder();
const config = hostIn(folder);
const images = join(folder, 'images');
afterAll(deleteFolders);

const argv = (fields: Record<string, unknown>, host = config) => qemuArguments(host, definitionOf(fields), { incoming: false });
const refusal = (fields: Record<string, unknown>, host = config): string => {
  try {
    argv(fields, host);
  } catch (error) {
    if (error instanceof InvalidDefinition) return error.message;
    throw error;
  }
  throw new Error('was accepted');
};

test.each<[string, string[], string]>([
  ['an option that QEMU will have one day', ['-teleport', 'x'], 'add "teleport" to allow'],
  ['an incoming guest', ['-incoming', 'exec:sh'], 'vmferry says'],
  ['a saved state', ['-loadvm', 'x'], 'has its state from the source'],
  ['a plugin', ['-plugin', '${images}/x.so'], 'add "plugin"'],
  ['a trace file', ['-trace', 'file=${images}/x'], 'add "trace"'],
  ['a shared folder', ['-fsdev', 'local,id=f,path=${images},security_model=none'], 'add "fsdev"'],
  ['a shared folder in short', ['-virtfs', 'local,path=${images},mount_tag=x,security_model=none'], 'add "virtfs"'],
  ['a TPM', ['-tpmdev', 'emulator,id=t,chardev=c'], 'add "tpmdev"'],
  ['a SPICE screen', ['-spice', 'port=5900'], 'add "spice"'],
  ['its own sandbox', ['-sandbox', 'off'], 'add "sandbox"'],
  ['a list of files that looks like one', ['-acpitable', 'data=${images}/a:/etc/shadow'], 'add "acpitable"'],
  ['an iSCSI initiator', ['-iscsi', 'id=i'], 'add "iscsi"'],
  ['a host\'s USB device', ['-device', 'usb-host,hostbus=1'], 'device "usb-host"'],
  ['a PCI device of the host', ['-device', 'vfio-pci,host=01:00.0'], 'add "device=vfio-pci"'],
  ['a device in JSON', ['-device', '{"driver":"vhost-vsock-pci","guest-cid":3}'], 'device "vhost-vsock-pci"'],
  ['memory shared with others', ['-device', 'ivshmem-doorbell,chardev=c'], 'device "ivshmem-doorbell"'],
  ['a folder as a camera', ['-device', 'usb-mtp,rootdir=${images}'], 'device "usb-mtp"'],
  ['an object that reads input devices', ['-object', 'input-linux,id=i,evdev=x'], 'object "input-linux"'],
  ['an object that a socket commands', ['-object', 'x-remote-object,id=r'], 'object "x-remote-object"'],
  ['a secret in plain sight', ['-object', 'secret,id=s,data=hunter2'], 'give it as file='],
  ['a serial line on TCP', ['-serial', 'tcp::4444,server=on'], 'use unix:'],
  ['a serial line of the host', ['-serial', '/dev/null'], 'use unix:'],
  ['a character device on TCP', ['-chardev', 'socket,id=c,host=127.0.0.1,port=22'], 'socket on the network'],
  ['a character device on UDP', ['-chardev', 'udp,id=c,port=4444'], 'chardev "udp"'],
  ['a socket for everybody', ['-chardev', 'socket,id=c,path=x,abstract=on,server=on'], 'abstract'],
  ['VNC on the network', ['-vnc', ':0'], 'screen on the network'],
  ['VNC for browsers', ['-vnc', 'unix:${run}/vnc,websocket=5700'], 'screen on the network'],
  ['VNC as a display', ['-display', 'vnc=0.0.0.0:1'], 'screen on the network'],
  ['a display that opens a bus', ['-display', 'dbus'], 'display "dbus"'],
  ['sound of the host', ['-audiodev', 'pa,id=a,server=tcp:evil'], 'audiodev "pa"'],
  ['a network of sockets', ['-netdev', 'socket,id=n,listen=:1234'], 'netdev "socket"'],
  ['a network stream', ['-netdev', 'stream,id=n,addr.type=inet'], 'netdev "stream"'],
  ['a helper program', ['-netdev', 'bridge,id=n,helper=x'], 'helper runs a program'],
  ['a script below a root', ['-netdev', 'tap,id=n,script=${images}/x'], 'script is a program'],
  ['a file server', ['-nic', 'user,smb=${images}'], 'smb runs a program'],
  ['a way to another host', ['-netdev', 'user,id=n,guestfwd=tcp:10.0.2.100:80-tcp:10.0.0.1:80'], 'guestfwd may only'],
  ['a disk over NBD', ['-drive', 'file=nbd:unix:${run}/x,format=raw'], '"nbd:" is none of the protocols'],
  ['a disk over NBD, in JSON', ['-blockdev', '{"driver":"nbd","node-name":"n","server":{"type":"inet","host":"10.0.0.1","port":"1"}}'], 'driver "nbd"'],
  ['a disk over HTTP below a format', ['-blockdev', '{"driver":"raw","node-name":"n","file":{"driver":"http","url":"x"}}'], 'driver "http"'],
  ['a disk over SSH behind json:', ['-drive', 'file=json:{"driver":"raw"\\,,"file":{"driver":"ssh"}}'.replace('\\,,', ',,')], 'driver "ssh"'],
  ['a folder as a disk', ['-drive', 'file=fat:${images},format=raw'], '"fat:"'],
  ['a format that names other files', ['-drive', 'file=${images}/a,format=vmdk'], 'driver "vmdk"'],
  ['a disk whose format is guessed', ['-drive', 'file=${images}/a'], 'guest\'s own bytes'],
  ['a disk whose format is guessed, in short', ['-hda', '${images}/a'], 'guest\'s own bytes'],
  ['a disk whose format is guessed, by a node of the file', ['-drive', 'file.driver=file,file.filename=${images}/a'], 'guest\'s own bytes'],
  ['a keyboard that is a file', ['-k', '/etc/shadow'], 'named by its language'],
  ['a file as the firmware\'s words', ['-smbios', 'type=11,path=/etc/shadow'], '/etc/shadow is outside the roots'],
  ['a file that looks like a network', ['-device', 'loader,file=../1'], 'relative path'],
  ['a device tree written somewhere', ['-global', 'x.dumpdtb=dtb'], 'relative path'],
  ['a capability of the migration', ['-global', 'migration.return-path=on'], 'vmferry\'s own'],
])('%s is refused, by name', (_case, given, reason) => {
  expect(refusal({ arguments: given })).toContain(reason);
});

test('a host may allow what no list has, one thing at a time', () => {
  const host = hostIn(folder, { allow: ['device=usb-host', 'tpmdev', 'chardev=socket-network'] });
  expect(() => argv({ arguments: ['-device', 'usb-host,hostbus=1', '-tpmdev', 'passthrough,id=t', '-serial', 'tcp::1,server=on'] }, host)).not.toThrow();
  expect(refusal({ arguments: ['-device', 'vfio-pci'] }, host)).toContain('device "vfio-pci"');
  // A monitor on the network stays refused.
  expect(refusal({ arguments: ['-qmp', 'tcp::1,server=on'] }, host)).toContain('gives the guest');
});

test.each<[string, string[], string]>([
  ['-drive', ['-drive', 'file=${images}/q,if=virtio'], 'file=IMAGES/q,if=virtio,format=qcow2'],
  ['-drive of a raw disk', ['-drive', 'if=none,id=x,file.filename=${images}/r'], 'if=none,id=x,file.filename=IMAGES/r,format=raw'],
  ['-hda', ['-hda', '${images}/q'], 'file=IMAGES/q,index=0,media=disk,format=qcow2'],
  ['-cdrom', ['-cdrom', '${images}/cd'], 'file=IMAGES/cd,index=2,media=cdrom,format=raw'],
])('an adopted guest\'s %s is opened with the format that it was adopted with, whatever its guest has written there since', (_case, commandLine, expected) => {
  const disks = [{ id: 'q', path: '${images}/q', format: 'qcow2' }, { id: 'r', path: '${images}/r' }];
  const drives = parseArguments(argv({ commandLine, disks })).filter(({ flag }) => flag === 'drive');
  expect(drives.map(({ value }) => value)).toEqual([expected.replace('IMAGES', images)]);
});

describe('-sandbox', () => {
  const sandbox = (fields: Record<string, unknown>, host = config) => readFields(parseArguments(argv(fields, host)).find(({ flag }) => flag === 'sandbox') ?? { flag: 'sandbox', value: '' });
  const nic = (backend: string) => ({ nics: [{ id: 'n', mac: '52:54:00:12:34:56', backend }] });

  test('takes other programs and new privileges from every guest', () => {
    expect(sandbox({})).toEqual({ on: 'on', obsolete: 'deny', elevateprivileges: 'deny', spawn: 'deny', resourcecontrol: 'deny' });
    expect(sandbox({ commandLine: ['-sandbox', 'off'] })).toMatchObject({ spawn: 'deny' });
  });

  test('leaves QEMU the way to its user, and a bridge its helper', () => {
    expect(sandbox({}, hostIn(folder, { runAs: 'nobody' }))).toMatchObject({ elevateprivileges: 'allow', spawn: 'deny' });
    expect(sandbox(nic('bridge,br=br0'))).toMatchObject({ elevateprivileges: 'allow', spawn: 'allow' });
    expect(sandbox(nic('tap,ifname=t'))).toMatchObject({ elevateprivileges: 'deny', spawn: 'allow' });
    expect(sandbox(nic('tap,ifname=t,script=no,downscript=no'))).toMatchObject({ spawn: 'deny' });
  });

  test('can be turned off by the host', () => {
    expect(argv({}, hostIn(folder, { sandbox: 'off' }))).not.toContain('-sandbox');
  });
});

describe('the header of a qcow2 image', () => {
  const image = (name: string, ...args: string[]) => {
    const path = join(images, name);
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...args, path, ...(args.includes('-b') ? [] : ['1M'])], { cwd: images });
    return path;
  };
  const raw = (name: string) => writeFileSync(join(images, name), Buffer.alloc(1 << 20));
  beforeAll(() => {
    raw('base.raw');
    writeFileSync(join(folder, 'outside'), Buffer.alloc(1 << 20));
  });
  const named = (backing: string, format = 'raw', name = 'named.qcow2') => image(name, '-u', '-b', backing, '-F', format, '-o', 'size=1M');

  test('may name files below the roots, however deep', () => {
    image('middle.qcow2', '-b', 'base.raw', '-F', 'raw');
    expect(() => checkLayers(config, image('top.qcow2', '-b', 'middle.qcow2', '-F', 'qcow2'))).not.toThrow();
    expect(() => checkLayers(config, join(images, 'base.raw'))).not.toThrow();
  });

  test.each([
    ['a file outside the roots', () => named('/etc/shadow'), 'outside the roots'],
    ['a file outside the roots by its relative name', () => named('../outside'), 'outside the roots'],
    ['a network disk', () => named('nbd://10.0.0.1/x'), 'no local file'],
    ['a web server', () => named('http://169.254.169.254/latest'), 'no local file'],
    ['JSON', () => named('json:{"driver":"file","filename":"/etc/shadow"}'), 'no local file'],
    ['a format that names files itself', () => named('base.raw', 'vmdk'), 'only raw and qcow2'],
    ['another image that does so', () => (named('/etc/shadow', 'raw', 'lower.qcow2'), named('lower.qcow2', 'qcow2')), 'which is below'],
    ['itself', () => named('named.qcow2', 'qcow2'), 'in a circle'],
    ['a file for its data', () => image('data.qcow2', '-o', `data_file=${folder}/outside,data_file_raw=on`), 'keeps its data in another file'],
  ])('may not name %s, and is refused before QEMU or qemu-img opens it', (_case, make, reason) => {
    expect(() => checkLayers(config, make())).toThrow(reason);
  });

  test('must name its backing file\'s format, and where QEMU reads it', () => {
    const path = named('base.raw');
    const bytes = Buffer.from(execFileSync('cat', [path]));
    const at = bytes.indexOf('e2792aca', 0, 'hex');
    const without = Buffer.from(bytes);
    without.writeUInt32BE(0x12345678, at);
    writeFileSync(path, without);
    expect(() => checkLayers(config, path)).toThrow('does not say which format');
    // Behind the name QEMU reads no extension any more.
    const behind = Buffer.from(bytes);
    behind.writeBigUInt64BE(BigInt(at), 8);
    writeFileSync(path, behind);
    expect(() => checkLayers(config, path)).toThrow();
    // Nor may one be hidden behind what we read.
    const far = Buffer.from(bytes);
    far.writeUInt32BE(1 << 20, at + 4);
    writeFileSync(path, Buffer.concat([far, Buffer.alloc(1 << 20)]));
    expect(() => checkLayers(config, path)).toThrow();
  });

  test('means nothing in a raw disk: its first bytes are the guest\'s', () => {
    named('/etc/shadow');
    expect(() => argv({ disks: [{ id: 'd', path: '${images}/named.qcow2', format: 'raw' }] })).not.toThrow();
    expect(() => argv({ arguments: ['-drive', 'if=none,id=x,file=${images}/named.qcow2,format=raw'] })).not.toThrow();
    expect(refusal({ arguments: ['-drive', 'if=none,id=x,file=${images}/named.qcow2,format=qcow2'] })).toContain('outside the roots');
  });
});
