import { InvalidDefinition } from '../../hypervisor/definition';
import { qemuArguments } from '../../hypervisor/command-line';
import { importCommandLine, type ImportContext } from '../../hypervisor/import-command-line';
import { deleteFolders, hostIn, temporaryFolder } from './fixtures';

const folder = temporaryFolder();
const config = hostIn(folder, {}, { firmware: '/usr/share/OVMF' });
const IMAGES = `${folder}/images`;
afterAll(deleteFolders);

const QMP = ['-qmp', `unix:${folder}/qmp.sock,server=on,wait=off`];
const NAMED = ['-name', 'vm1', ...QMP];
/** Without what every command line here has, and gets. */
const CARRIED = ['-name', 'vm1', '-qmp', 'unix:${run}/qmp.sock,server=on,wait=off'];
const SCREEN = ['-display', 'none'];

const read = (argv: string[], context: Partial<ImportContext> = {}) => importCommandLine(['/usr/bin/qemu-system-x86_64', ...argv], { config, cwd: IMAGES, machine: 'pc-q35-7.2', ...context });
const definition = (argv: string[], context: Partial<ImportContext> = {}) => {
  const { definition, reasons } = read([...NAMED, ...argv], context);
  if (!definition) throw new Error(reasons.join('\n'));
  return definition;
};
const disks = (argv: string[], context: Partial<ImportContext> = {}) => definition(argv, context).disks;

/** The command line of the report that this project began with. */
const REPORT = [
  '-daemonize', '-name', 'guest=web1,process=qemu-web1', '-machine', 'q35', '-cpu', 'qemu64', '-smp', '2', '-m', '256', '-chroot', '/var/empty', '-runas', 'nobody', '-pidfile', `${folder}/web1.pid`,
  '-kernel', `${IMAGES}/vmlinuz`, '-append', 'console=ttyS0 root=/dev/sda', '-nographic', '-serial', 'stdio',
  '-drive', `file=${IMAGES}/a.raw,if=none,id=drive-scsi-disk-0,aio=native,cache.direct=on,format=raw`,
  '-device', 'virtio-scsi-pci,id=scsi0', '-device', 'scsi-hd,drive=drive-scsi-disk-0,bus=scsi0.0',
  '-qmp', `unix:${folder}/sockets/qmp.sock,server,nowait`, '-monitor', `unix:${folder}/sockets/hmp.sock,server=on,wait=off`, '-S', '-incoming', 'defer',
];

test('the report\'s guest keeps its machine, option for option, and loses what belongs to its host', () => {
  expect(read(REPORT)).toEqual({
    reasons: [], monitor: `${folder}/sockets/qmp.sock`, disks: [expect.objectContaining({ id: 'drive-scsi-disk-0' })],
    definition: expect.objectContaining({
      name: 'web1', machine: 'pc-q35-7.2', emulator: 'qemu-system-x86_64', accelerator: 'tcg', cpu: { model: 'qemu64', count: 2 }, memory: 256 * 2 ** 20, monitor: '${run}/qmp.sock',
      boot: { kernel: '${images}/vmlinuz', append: 'console=ttyS0 root=/dev/sda' },
      disks: [{ id: 'drive-scsi-disk-0', path: '${images}/a.raw', format: 'raw', bus: 'virtio-scsi', readOnly: false, removable: false, cache: 'none', aio: 'native', discard: false }],
      commandLine: [
        '-name', 'guest=web1,process=qemu-web1', '-machine', 'pc-q35-7.2', '-cpu', 'qemu64', '-smp', '2', '-m', '256', '-kernel', '${images}/vmlinuz', '-append', 'console=ttyS0 root=/dev/sda',
        '-nographic', '-serial', 'unix:${run}/serial.sock,server=on,wait=off',
        '-drive', 'file=${images}/a.raw,if=none,id=drive-scsi-disk-0,aio=native,cache.direct=on,format=raw',
        '-device', 'virtio-scsi-pci,id=scsi0', '-device', 'scsi-hd,drive=drive-scsi-disk-0,bus=scsi0.0',
        '-qmp', 'unix:${run}/qmp.sock,server=on,wait=off', '-monitor', 'unix:${run}/hmp.sock,server=on,wait=off',
      ],
    }),
  });
});

test.each<[string, string[], string[]]>([
  ['the terminal of -nographic becomes a socket', ['-nographic'], ['-nographic', '-serial', 'unix:${run}/serial.sock,server=on,wait=off']],
  ['-nographic without default devices has no serial line', ['-nographic', '-nodefaults'], ['-nographic', '-nodefaults']],
  ['a serial line with its own device is not given a second one', ['-nographic', '-device', 'isa-serial,chardev=c', '-chardev', 'null,id=c'], ['-nographic', '-device', 'isa-serial,chardev=c', '-chardev', 'null,id=c']],
  ['a terminal that a monitor shares becomes a serial line\'s socket', ['-serial', 'mon:stdio'], ['-serial', 'unix:${run}/serial.sock,server=on,wait=off', ...SCREEN]],
  ['two sockets of one name get two names', ['-serial', `unix:${folder}/1/s.sock,server`, '-serial', `unix:${folder}/2/s.sock,server`], ['-serial', 'unix:${run}/s.sock,server=on,wait=off', '-serial', 'unix:${run}/s-2.sock,server=on,wait=off', ...SCREEN]],
  ['a socket that waits for a client does not', ['-serial', `unix:${folder}/s.sock,server=on`], ['-serial', 'unix:${run}/s.sock,server=on,wait=off', ...SCREEN]],
  ['a character device on the terminal becomes a socket', ['-chardev', 'stdio,id=con,mux=on,signal=off'], ['-chardev', 'socket,id=con,path=${run}/con.sock,server=on,wait=off,mux=on', ...SCREEN]],
  ['a character device on a socket moves to the run folder', ['-chardev', `socket,id=con,path=${folder}/c,server,nowait,logfile=${folder}/c.log`], ['-chardev', 'socket,id=con,path=${run}/c,server=on,wait=off,logfile=${run}/c.log', ...SCREEN]],
  ['a log beside the monitor moves to the run folder', ['-serial', `file:${folder}/serial.log`, '-D', `${folder}/qemu.log`], ['-serial', 'file:${run}/serial.log', '-D', '${run}/qemu.log', ...SCREEN]],
  ['a log in a root stays there', ['-serial', `file:${IMAGES}/serial.log`], ['-serial', 'file:${images}/serial.log', ...SCREEN]],
  ['a monitor on TCP becomes a socket', ['-monitor', 'telnet::4444,server,nowait'], ['-monitor', 'unix:${run}/monitor.sock,server=on,wait=off', ...SCREEN]],
  ['a monitor\'s character device on TCP becomes a socket', ['-chardev', 'socket,id=m,port=4444,host=::1,server=on', '-mon', 'chardev=m'], ['-chardev', 'socket,id=m,path=${run}/m.sock,server=on,wait=off', '-mon', 'chardev=m', ...SCREEN]],
  ['a debugger\'s port is left out', ['-s', '-gdb', 'tcp::1235'], SCREEN],
  ['VNC on a socket moves to the run folder', ['-vnc', `unix:${folder}/vnc.sock,share=ignore`], ['-vnc', 'unix:${run}/vnc.sock,share=ignore']],
  ['devices that hold nothing stay', ['-object', 'rng-random,id=r,filename=/dev/urandom', '-serial', 'null'], ['-object', 'rng-random,id=r,filename=/dev/urandom', '-serial', 'null', ...SCREEN]],
  ['a machine without a type is given its own', ['-machine', 'accel=tcg', '-usb'], ['-machine', 'accel=tcg', '-usb', ...SCREEN, '-machine', 'pc-q35-7.2']],
  ['an alias becomes the versioned type', ['-M', 'type=q35,accel=tcg'], ['-M', 'type=pc-q35-7.2,accel=tcg', ...SCREEN]],
  ['options of how it was started are left out', ['--daemonize', '-run-with', 'user=nobody', '-pidfile', '/run/x'], SCREEN],
  ['relative paths are those of its working folder', ['-kernel', 'vmlinuz', '-initrd', './sub/../initrd'], ['-kernel', '${images}/vmlinuz', '-initrd', '${images}/initrd', ...SCREEN]],
  ['names that look like paths stay', ['-fw_cfg', 'name=opt/x,string=/y', '-smbios', 'type=1,product=/A', '-netdev', 'user,id=u,net=10.0.2.0/24'], ['-fw_cfg', 'name=opt/x,string=/y', '-smbios', 'type=1,product=/A', '-netdev', 'user,id=u,net=10.0.2.0/24', ...SCREEN]],
])('%s', (_case, given, carried) => {
  const { commandLine = [] } = definition(given);
  expect(commandLine).toEqual([...CARRIED, ...carried, ...(given.some((word) => /^-(machine|M)$/.test(word)) ? [] : ['-machine', 'pc-q35-7.2'])]);
});

const raw = { format: 'raw', readOnly: false, removable: false, cache: 'writeback', aio: 'threads', discard: false };
test.each<[string, string[], object[]]>([
  ['a virtio disk in short', ['-drive', `file=${IMAGES}/a,if=virtio`], [{ ...raw, id: 'virtio0', path: '${images}/a', bus: 'virtio-blk' }]],
  ['disks without an interface, one a port on q35', ['-drive', `file=${IMAGES}/a,format=raw`, '-drive', `file=${IMAGES}/b,media=disk`], [{ id: 'ide0-hd0', bus: 'sata' }, { id: 'ide1-hd0' }]],
  ['-hda, -hdb and -cdrom', ['-hda', `${IMAGES}/a`, '-hdb', `${IMAGES}/b`, '-cdrom', `${IMAGES}/c.iso`], [{ id: 'ide0-hd0' }, { id: 'ide1-hd0' }, { id: 'ide2-cd0', readOnly: true, removable: true }]],
  ['a bare file', [`${IMAGES}/a`], [{ id: 'ide0-hd0', path: '${images}/a' }]],
  ['a SCSI disk in short', ['-drive', `file=${IMAGES}/a,if=scsi`], [{ id: 'scsi0-hd0', bus: 'virtio-scsi' }]],
  ['firmware', ['-drive', 'if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd', '-drive', `if=pflash,format=raw,file=${IMAGES}/vars.fd`], [{ id: 'pflash0', path: '${firmware}/OVMF_CODE.fd', bus: 'pflash', readOnly: true }, { id: 'pflash1', path: '${images}/vars.fd', bus: 'pflash', readOnly: false }]],
  ['qcow2 without O_DIRECT', ['-drive', `file=${IMAGES}/a,if=virtio,format=qcow2,cache=writeback,discard=unmap`], [{ format: 'qcow2', cache: 'writeback', discard: true }]],
  ['cache=none', ['-drive', `file=${IMAGES}/a,if=virtio,cache=none,aio=native`], [{ cache: 'none', aio: 'native' }]],
  ['dotted keys', ['-drive', `if=none,id=d,driver=qcow2,file.driver=file,file.filename=${IMAGES}/a,file.aio=io_uring`, '-device', 'virtio-blk-pci,drive=d'], [{ id: 'd', format: 'qcow2', aio: 'io_uring', path: '${images}/a' }]],
  ['a protocol', ['-drive', `file=file:${IMAGES}/a,if=virtio`], [{ path: '${images}/a' }]],
  ['JSON behind json:', ['-drive', `if=virtio,file=json:{"driver":"file",,"filename":"${IMAGES}/a"}`], [{ path: '${images}/a' }]],
  ['a CD', ['-drive', `file=${IMAGES}/c.iso,if=none,id=cd,media=cdrom`, '-device', 'scsi-cd,drive=cd'], [{ id: 'cd', readOnly: true, removable: true }]],
  ['an empty CD drive, which is no disk', ['-drive', 'media=cdrom,if=ide', '-device', 'ide-cd,bus=ide.1'], []],
  ['block nodes', ['-blockdev', `driver=file,node-name=f,filename=${IMAGES}/a,cache.direct=on`, '-blockdev', 'qcow2,node-name=d,file=f', '-device', '{"driver":"scsi-hd","drive":"d"}'], [{ id: 'd', format: 'qcow2', cache: 'none', path: '${images}/a' }]],
  ['a block node within another', ['-blockdev', `driver=raw,node-name=d,read-only=on,file.driver=file,file.filename=${IMAGES}/a`, '-device', 'virtio-blk-pci,drive=d'], [{ id: 'd', readOnly: true, path: '${images}/a' }]],
  ['block nodes in JSON', ['-blockdev', `{"driver":"raw","node-name":"d","file":{"driver":"file","filename":"${IMAGES}/a","cache":{"direct":true}}}`, '-device', 'virtio-blk-pci,drive=d'], [{ id: 'd', cache: 'none' }]],
  ['a block node of the firmware', ['-machine', 'q35,pflash0=fw', '-blockdev', 'driver=file,node-name=fw,read-only=on,filename=/usr/share/OVMF/OVMF_CODE.fd'], [{ id: 'fw', bus: 'pflash', readOnly: true, format: 'raw' }]],
])('reads %s', (_case, given, expected) => {
  expect(disks(given)).toEqual(expected.map((one) => expect.objectContaining(one) as object));
});

test('the made-up names of IDE disks are those of the machine', () => {
  expect(disks(['-hdb', `${IMAGES}/b`, '-cdrom', `${IMAGES}/c`], { machine: 'pc-i440fx-7.2' }).map(({ id }) => id)).toEqual(['ide0-hd1', 'ide1-cd0']);
});

test.each<[string, string[], unknown]>([
  ['MiB', ['-m', '256'], 2 ** 28], ['a unit', ['-m', '1G'], 2 ** 30], ['a key', ['-m', 'size=262152K'], 262152 * 1024], ['nothing', [], 128 * 2 ** 20], ['what QEMU rounds', ['-m', '100001K'], 100008 * 1024],
])('reads memory given as %s', (_case, given, bytes) => {
  expect(definition(given).memory).toBe(bytes);
});

test.each<[string[], number]>([[[], 1], [['-smp', '4,sockets=2'], 4], [['-smp', 'cpus=3'], 3], [['-smp', 'sockets=2,cores=3,threads=2'], 12]])('reads the number of CPUs of %j', (given, count) => {
  expect(definition(given).cpu.count).toBe(count);
});

test.each<[string[], string]>([[['-enable-kvm'], 'kvm'], [['-accel', 'kvm'], 'kvm'], [['-machine', 'pc,accel=kvm:tcg'], 'kvm'], [[], 'tcg']])('reads the accelerator of %j', (given, accelerator) => {
  expect(definition(given).accelerator).toBe(accelerator);
});

test.each<[string, string[], string]>([
  ['a disk outside the roots', ['-drive', 'file=/srv/vm/a.raw,if=virtio'], 'add a root for /srv/vm'],
  ['a kernel outside the roots', ['-kernel', '/boot/vmlinuz'], 'add a root for /boot'],
  ['any other path outside the roots', ['-device', 'x,whatever=/opt/x/y'], 'add a root for /opt/x'],
  ['memory in a file outside the roots', ['-object', 'memory-backend-file,id=m,mem-path=/dev/shm/x,share=on,size=1G'], 'add a root for /dev/shm'],
  ['a network disk', ['-drive', 'file=nbd:localhost:10809,if=virtio'], 'not nbd:'],
  ['a network disk by its driver', ['-drive', 'if=virtio,file.driver=nbd,file.filename=x'], 'is a nbd disk'],
  ['a network node', ['-blockdev', 'driver=nbd,node-name=n,server.type=inet', '-device', 'virtio-blk-pci,drive=n'], 'block node n (nbd)'],
  ['a folder as a disk', ['-drive', `file=fat:rw:${IMAGES},if=virtio`], 'not fat:'],
  ['a throwaway disk', ['-drive', `file=${IMAGES}/a,if=virtio,snapshot=on`], 'snapshot=on'],
  ['only throwaway disks', ['-snapshot'], 'temporary files'],
  ['a backing file', ['-drive', `file=${IMAGES}/a,if=virtio,backing.file.filename=${IMAGES}/b`], 'flatten it'],
  ['a part of an image', ['-blockdev', `driver=raw,node-name=d,size=512,file.driver=file,file.filename=${IMAGES}/a`, '-device', 'virtio-blk-pci,drive=d'], 'a part of its image'],
  ['another format', ['-drive', `file=${IMAGES}/a,if=virtio,format=vmdk`], 'format vmdk'],
  ['a filter', ['-blockdev', `driver=throttle,throttle-group=g,node-name=d,file.driver=file,file.filename=${IMAGES}/a`, '-device', 'virtio-blk-pci,drive=d'], '(throttle) cannot be carried'],
  ['a disk without a device', ['-drive', `file=${IMAGES}/a,if=none,id=d`], 'attached to no device'],
  ['two disks on one image', ['-drive', `file=${IMAGES}/a,if=virtio`, '-drive', 'file=a,if=virtio'], 'virtio0 and virtio1 are both on ${images}/a'],
  ['a disk on NVMe', ['-drive', `file=${IMAGES}/a,if=none,id=d`, '-device', 'nvme,drive=d,serial=x'], 'is a nvme'],
  ['a floppy', ['-fda', `${IMAGES}/a`], 'interface "floppy"'],
  ['a comma in a name', ['-drive', `file=${IMAGES}/a,,b.raw,if=virtio`], `${IMAGES}/a,b.raw has a comma`],
  ['a snapshot of the state', ['-loadvm', 'x'], 'not copied'],
  ['memory to plug in', ['-m', 'size=256M,slots=2,maxmem=1G'], 'slots or maxmem'],
  ['plugged memory', ['-device', 'pc-dimm,memdev=m'], 'memory besides -m'],
  ['a passed-through device', ['-device', 'vfio-pci,host=01:00.0'], 'a device of this host'],
  ['a passed-through USB device', ['-device', '{"driver":"usb-host","hostbus":1}'], 'a device of this host'],
  ['a TPM', ['-tpmdev', 'emulator,id=t,chardev=c'], 'TPM'],
  ['a shared folder', ['-virtfs', 'local,path=x,mount_tag=x,security_model=none'], 'shared with the guest'],
  ['a shared folder of another program', ['-device', 'vhost-user-fs-pci,chardev=c,tag=t'], 'outside of QEMU'],
  ['a network card of another program', ['-netdev', 'vhost-user,id=n,chardev=c'], 'outside of QEMU'],
  ['an inherited descriptor', ['-netdev', 'tap,id=n,fd=5'], 'inherited file descriptor'],
  ['a screen on TCP', ['-vnc', ':0'], 'TCP port'],
  ['a screen on TCP as a display', ['-display', 'vnc=127.0.0.1:0'], 'TCP port'],
  ['a window', ['-display', 'gtk'], 'on this host'],
  ['SPICE', ['-spice', 'port=5900'], 'SPICE'],
  ['a serial line on TCP', ['-serial', 'tcp::4444,server=on'], 'belongs to this host'],
  ['a serial line on a device', ['-serial', '/dev/ttyS0'], 'belongs to this host'],
  ['a socket of another program', ['-serial', `unix:${folder}/x`], 'another program'],
  ['a pipe', ['-chardev', 'pipe,id=p,path=x'], 'belongs to this host'],
  ['an accelerator that we do not know', ['-accel', 'xen'], 'xen is not supported'],
  ['a relative path after -daemonize', ['-daemonize', '-kernel', 'vmlinuz'], 'has left the folder'],
  ['text that a definition would replace', ['-append', 'x=${images}'], 'stands for a root'],
  ['JSON that QEMU reads and we do not', ['-blockdev', "{'driver':'file'}"], 'is not JSON'],
  ['options from a file', ['-readconfig', 'x'], 'give its options'],
])('%s is refused', (_case, given, reason) => {
  const { definition, reasons } = read([...NAMED, ...given]);
  expect(definition).toBeUndefined();
  expect(reasons.join('\n')).toContain(reason);
});

test('everything is refused at once, each thing once', () => {
  const { reasons } = read(['-drive', 'file=/srv/a,if=virtio', '-loadvm', 'x', '-vnc', ':1']);
  expect(reasons).toHaveLength(6);
  ['virtio0', '-drive file=/srv/a', '-loadvm', '-vnc', 'no QMP monitor', 'no name'].forEach((part) => expect(reasons.join('\n')).toContain(part));
});

test('a name may be given to a guest that has none, or one that cannot be used', () => {
  expect(read(QMP).reasons).toEqual([expect.stringContaining('--name')]);
  expect(read([...QMP, '-name', 'my guest']).reasons).toEqual([expect.stringContaining('"my guest" cannot be used')]);
  expect(read([...QMP, '-name', 'my guest'], { name: 'vm7' }).definition?.name).toBe('vm7');
});

test.each<[string, string[]]>([
  ['on TCP only', ['-qmp', 'tcp::4444,server=on']],
  ['of people only', ['-monitor', `unix:${folder}/hmp,server=on`]],
  ['that prints over several lines', ['-qmp-pretty', `unix:${folder}/q,server=on`]],
])('a guest with a monitor %s cannot be spoken to', (_case, given) => {
  expect(read(['-name', 'vm1', ...given]).reasons).toEqual([expect.stringContaining('no QMP monitor')]);
});

test('a monitor of its own character device is found', () => {
  const { monitor, definition } = read(['-name', 'vm1', '-chardev', `socket,id=q,path=${folder}/s/q,server=on,wait=off`, '-mon', 'chardev=q,mode=control']);
  expect([monitor, definition?.monitor]).toEqual([`${folder}/s/q`, '${run}/q']);
});

test('what is derived can be started here', () => {
  const { definition } = read(REPORT);
  expect(definition && qemuArguments(config, definition, { incoming: true }).join(' ')).toContain(`file=${IMAGES}/a.raw`);
  expect(() => qemuArguments(config, { ...definition!, commandLine: ['-bios', '/etc/x'] }, { incoming: true })).toThrow(InvalidDefinition);
});
