import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { HostConfig } from '../../hypervisor/host-config';
import { QmpConnection } from '../../qmp/connection';

type Place = Pick<HostConfig, 'runDir' | 'stateDir' | 'ports'>;

/** Files of a guest's run folder that are there while it runs. */
const RUN_FILES = ['qmp.sock', 'look.sock', 'hmp.sock', 'serial.sock', 'qemu.pid', 'qemu.log'];

/** All processes whose command line names something in this folder, and of whom `program` is true: `pid program`. */
function processesBelow(folder: string, program: (argv: string[]) => boolean): string[] {
  return readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).flatMap((pid) => {
    try {
      const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
      return program(argv) && argv.some((argument) => argument.includes(`${folder}/`)) ? [`${pid} ${argv[0]}`] : [];
    } catch {
      return [];
    }
  });
}

/** All QEMUs and storage daemons of the host whose folder this is. */
export function qemuProcesses(folder: string): string[] {
  return processesBelow(folder, ([program]) => program!.includes('qemu'));
}

/** All guards of the host whose folder this is. */
export function guardProcesses(folder: string): string[] {
  return processesBelow(folder, (argv) => argv.some((argument) => argument.endsWith('guard-main.js')));
}

/**
 * Everything on a host, found by looking at processes, files, ports and QEMU itself, that should not be there when `guests` live there and
 * no migration is under way. Empty if all is well. `folder` holds all of the host's things, with its images in `images`.
 */
export async function leftovers(folder: string, { runDir, stateDir, ports }: Place, guests: string[]): Promise<string[]> {
  const found: string[] = [];
  const processes = qemuProcesses(folder);
  if (processes.length !== guests.length) found.push(`${processes.length} QEMU processes instead of ${guests.length}: ${processes.join(', ')}`);
  for (const guard of guardProcesses(folder)) found.push(`a guard: ${guard}`);
  const list = (path: string) => (existsSync(path) ? readdirSync(path) : []);
  for (const name of list(runDir)) if (!guests.includes(name)) found.push(`run folder ${name}: ${list(join(runDir, name)).join(', ')}`);
  for (const name of guests) for (const file of list(join(runDir, name))) if (!RUN_FILES.includes(file)) found.push(`run file ${name}/${file}`);
  for (const name of list(join(stateDir, 'guests'))) {
    if (!guests.includes(name)) found.push(`state of guest ${name}`);
    else if (existsSync(join(stateDir, 'guests', name, 'attempt.json'))) found.push(`an attempt of ${name} is still on record`);
  }
  for (const image of list(join(folder, 'images'))) if (!guests.some((name) => image.startsWith(`${name}-`) && !/\.(vmferry|kept)-/.test(image))) found.push(`image ${image}`);
  const listening = execFileSync('ss', ['-ltnpH'], { encoding: 'utf8' }).split('\n').filter((line) => processes.some((one) => line.includes(`pid=${one.split(' ')[0]},`)));
  listening.forEach((line) => found.push(`listening: ${line.trim().replace(/\s+/g, ' ')} (ports ${ports.from}-${ports.to})`));
  for (const name of guests) {
    const qmp = await QmpConnection.connect(join(runDir, name, 'look.sock'));
    try {
      for (const job of await qmp.execute('query-jobs')) found.push(`job ${job.id} in ${name}`);
      for (const one of await qmp.execute('query-block-exports')) found.push(`export ${one.id} in ${name}`);
      const tops = (await qmp.execute('query-block')).map(({ inserted }) => inserted?.['node-name']);
      for (const node of await qmp.execute('query-named-block-nodes', { flat: true })) if (/vmferry/.test(node['node-name'] ?? '') || /^nbd/.test(node.drv)) found.push(`node ${node['node-name']} in ${name}${tops.includes(node['node-name']) ? ', on top of a disk' : ''}`);
      for (const object of await qmp.execute('qom-list', { path: '/objects' })) if (/vmferry/.test(object.name)) found.push(`object ${object.name} in ${name}`);
      const { 'tls-creds': creds } = await qmp.execute('query-migrate-parameters');
      if (creds) found.push(`tls-creds ${creds} of the migration of ${name}`);
      for (const { inserted, qdev } of await qmp.execute('query-block')) if (inserted && (inserted.bps_wr > 0 || inserted.group === 'vmferry')) found.push(`a throttle on ${qdev} of ${name}`);
    } finally {
      qmp.close();
    }
  }
  return found;
}
