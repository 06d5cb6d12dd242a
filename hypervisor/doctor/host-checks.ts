import { totalmem } from 'node:os';
import type { Host } from '../host';
import { formatBytes } from '../size';
import { judgeConfinement, lookAtConfinement } from './confinement';
import { type Check, check, type Finding, ok, warning } from './findings';
import { judgeFolders, judgeSockets, lookAtFolders, lookAtSockets } from './folders';
import { judgeGuests, judgeLeftovers, lookAtGuests, lookAtLeftovers } from './guests';
import { judgeKvm, lookAtKvm } from './kvm';
import { judgeAddress, judgePorts, lookAtAddress, lookAtPorts } from './network';
import { judgeQemus, judgeStorageDaemon, judgeTools, lookAtQemus, lookAtStorageDaemon, lookAtTools } from './qemu';
import { judgeTls, lookAtTls } from './tls';

/** What checks of a hypervisor look at. */
export interface HostContext {
  host: Host;
}

/** Long enough for a QEMU on a busy machine. */
const PROGRAM_MS = 20_000;
const FILES_MS = 10_000;

/** What `vmferry doctor --config FILE` looks at on the machine of an agent. None of it changes anything. */
export const HOST_CHECKS: readonly Check<HostContext>[] = [
  check('memory', 'the configured `memory` is not more than the machine has', FILES_MS, async ({ host }) => ({ configured: host.config.memory, total: totalmem() }), judgeMemory),
  check('qemu', 'each QEMU of `binaries.qemu` is there, runs, and has every command, argument and capability that a move uses: asked over QMP', PROGRAM_MS, lookAtQemus, judgeQemus),
  check('storage-daemon', '`binaries.storageDaemon` exports a disk over NBD behind a throttle: tried on a disk that is not there', PROGRAM_MS, lookAtStorageDaemon, judgeStorageDaemon),
  check('tools', '`binaries.qemuImg`, `blockdev`, `blkdiscard` and `ss` run, where they are needed', PROGRAM_MS, lookAtTools, judgeTools),
  check('kvm', 'a guest of one boot sector starts under KVM within 5 s; a problem only if a guest here wants KVM', PROGRAM_MS, lookAtKvm, judgeKvm),
  check('address', '`address` is this machine\'s, and other hosts could reach it', FILES_MS, lookAtAddress, judgeAddress),
  check('ports', 'enough ports of the range can be listened on', FILES_MS, lookAtPorts, judgePorts),
  check('folders', '`stateDir`, `runDir` and the roots: there, writable, mode 0700, free space; `stateDir` survives a reboot', FILES_MS, lookAtFolders, judgeFolders),
  check('sockets', 'paths of sockets below `runDir` are short enough', FILES_MS, lookAtSockets, judgeSockets),
  check('confinement', '`chroot` and `runAs` are there, safe, and known to each QEMU', PROGRAM_MS, lookAtConfinement, judgeConfinement),
  check('tls', '[TLS files](#tls-between-hosts): there, in date, for this host\'s name, of one CA, and within reach of a QEMU with `chroot` or `runAs`', FILES_MS, lookAtTls, judgeTls),
  check('guests', 'each guest has its QEMU here, and [no memory that a move corrupts](#qemu-72-under-tcg-corrupts-memory)', PROGRAM_MS, lookAtGuests, judgeGuests),
  check('leftovers', 'what earlier moves left in the state and run folders. No monitor is asked: the agent holds them', FILES_MS, lookAtLeftovers, judgeLeftovers),
];

function judgeMemory({ configured, total }: { configured: number | undefined; total: number }): Finding[] {
  if (configured === undefined) return [ok(`guests may have what the kernel says is available, of ${formatBytes(total)}`)];
  if (configured > total) return [warning(`memory says ${formatBytes(configured)}, and this machine has ${formatBytes(total)}: guests could be placed here that do not fit`, `memory: ${Math.floor((total * 0.9) / 2 ** 30)}G`)];
  return [ok(`${formatBytes(configured)} of ${formatBytes(total)} are for guests`)];
}
