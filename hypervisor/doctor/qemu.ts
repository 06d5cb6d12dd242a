import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { QmpSchema, type SchemaEntity } from '../../qmp/schema';
import { SPOKEN } from '../../qmp/spoken';
import type { Host } from '../host';
import type { Programs } from '../programs';
import { type Finding, ok, problem, warning } from './findings';

/** One QEMU program, as it describes itself over QMP. */
export interface ProgramFacts {
  path: string;
  /** Why it cannot be run, or asked. */
  failure?: string;
  /** Of QEMU's own words: `7.2.22`. */
  version: string;
  /** Out-of-band commands are offered. */
  oob: boolean;
  schema: QmpSchema;
  /** The names of the migration's capabilities; of a QEMU only. */
  capabilities: string[];
  /** Commands of a trial that it refused, in its words; of a storage daemon only. */
  refused: string[];
}

const ANSWER_MS = 15_000;
/** By a machine that is not there: no guest, no device, no KVM. */
const QEMU_ARGUMENTS = ['-machine', 'none', '-nodefaults', '-no-user-config', '-display', 'none', '-S', '-qmp', 'stdio'];
const DAEMON_ARGUMENTS = ['--chardev', 'stdio,id=doctor', '--monitor', 'chardev=doctor'];

/** What a move does with a storage daemon, on a disk that is not there and a port that the kernel gives. */
const DAEMON_TRIAL: [string, object][] = [
  ['object-add', { 'qom-type': 'throttle-group', id: 'cap', limits: { 'bps-write': 0 } }],
  ['blockdev-add', { driver: 'null-co', 'node-name': 'disk', size: 2 ** 20 }],
  ['blockdev-add', { driver: 'throttle', 'node-name': 'capped', file: 'disk', 'throttle-group': 'cap' }],
  ['nbd-server-start', { addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } } }],
  ['block-export-add', { type: 'nbd', id: 'export', 'node-name': 'capped', name: 'export', writable: true }],
];

/** Asks every configured QEMU; each by a process of its own that ends with the question. */
export async function lookAtQemus({ host: { config, programs } }: { host: Host }): Promise<ProgramFacts[]> {
  return await Promise.all(config.binaries.qemu.map((path) => askProgram(programs, path, QEMU_ARGUMENTS, [['query-migrate-capabilities', {}]])));
}

export async function lookAtStorageDaemon({ host: { config, programs } }: { host: Host }): Promise<ProgramFacts> {
  return await askProgram(programs, config.binaries.storageDaemon, DAEMON_ARGUMENTS, DAEMON_TRIAL);
}

async function askProgram(programs: Programs, path: string, args: string[], trial: [string, object][]): Promise<ProgramFacts> {
  const nothing: ProgramFacts = { path, version: '?', oob: false, schema: new QmpSchema([]), capabilities: [], refused: [] };
  try {
    await access(path, constants.X_OK);
  } catch (error) {
    return { ...nothing, failure: (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : 'it is not executable' };
  }
  const commands: [string, object][] = [['qmp_capabilities', {}], ['query-qmp-schema', {}], ...trial, ['quit', {}]];
  const asked = commands.map(([execute, given], id) => `${JSON.stringify({ execute, arguments: given, id })}\n`).join('');
  const { stdout, stderr } = await programs.converse(path, args, asked, ANSWER_MS);
  try {
    return { ...nothing, ...readAnswers(stdout, commands.map(([command]) => command)) };
  } catch (error) {
    return { ...nothing, failure: `it does not answer over QMP (${stderr.trim().split('\n').at(-1) || (error as Error).message})` };
  }
}

interface Answer {
  QMP?: { version: { qemu: { major: number; minor: number; micro: number } }; capabilities: string[] };
  id?: number;
  return?: unknown;
  error?: { desc: string };
}

function readAnswers(stdout: string, commands: string[]): Omit<ProgramFacts, 'path'> {
  const lines = stdout.split('\n').filter(Boolean).map((line) => JSON.parse(line) as Answer);
  const greeting = lines.find(({ QMP }) => QMP)?.QMP;
  if (!greeting) throw new Error('it prints no greeting');
  const answers = lines.filter(({ id }) => id !== undefined);
  const returned = (command: string) => answers.find(({ id }) => commands[id!] === command)?.return;
  const { major, minor, micro } = greeting.version.qemu;
  return {
    version: `${major}.${minor}.${micro}`,
    oob: greeting.capabilities.includes('oob'),
    schema: new QmpSchema(returned('query-qmp-schema') as SchemaEntity[]),
    capabilities: ((returned('query-migrate-capabilities') ?? []) as { capability: string }[]).map(({ capability }) => capability),
    refused: answers.filter(({ error }) => error).map(({ id, error }) => `${commands[id!]}: ${error!.desc}`),
  };
}

/** Without these no guest moves. */
const NEEDED_CAPABILITIES = ['events', 'pause-before-switchover', 'late-block-activate'];

/** What some QEMUs lack, and what is lost there. */
const WELCOME: { name: string; has: (facts: ProgramFacts) => boolean; without: string }[] = [
  { name: 'block-job-change', has: ({ schema }) => schema.hasCommand('block-job-change'), without: 'a copy becomes write-blocking by a short stop of the guest (QEMU ≥ 8.2 needs none)' },
  { name: 'auto-converge', has: ({ capabilities }) => capabilities.includes('auto-converge'), without: 'memory that is dirtied too fast is not slowed down' },
  { name: 'postcopy-ram', has: ({ capabilities }) => capabilities.includes('postcopy-ram'), without: '--post-copy is refused' },
  { name: 'tls-creds-x509', has: ({ schema }) => schema.hasArgument('object-add', 'sanity-check'), without: 'disks and memory cannot be encrypted' },
];

const UPGRADE = 'install QEMU 7.2 or newer (Debian: apt-get install qemu-system-x86 qemu-utils), or name another one in binaries of the configuration';

/** Commands and arguments that we send to every QEMU, or storage daemon, and this one lacks. */
function unspoken({ schema }: ProgramFacts, daemon: boolean): string[] {
  return Object.entries(SPOKEN).flatMap(([command, spoken]) => {
    const { availability = true, arguments: known, more = {} } = spoken as { availability?: unknown; arguments: object; more?: object };
    if (availability !== true || (daemon && !('daemon' in spoken))) return [];
    if (!schema.hasCommand(command)) return [command];
    // A storage daemon has not all drivers of a QEMU: the trial says what counts.
    const given = Object.entries({ ...known, ...(!daemon && more) }).filter(([, since]) => since === true);
    return given.filter(([argument]) => !schema.hasArgument(command, argument)).map(([argument]) => `${command} ${argument}`);
  });
}

export function judgeQemus(found: ProgramFacts[]): Finding[] {
  return found.map((facts) => {
    const { path, version, failure, oob, capabilities } = facts;
    if (failure !== undefined) return problem(`${path}: ${failure}`, UPGRADE);
    const lacks = [...unspoken(facts, false), ...NEEDED_CAPABILITIES.filter((name) => !capabilities.includes(name)).map((name) => `the migration capability ${name}`), ...(oob ? [] : ['out-of-band commands'])];
    if (lacks.length > 0) return problem(`${path} is QEMU ${version} and lacks what a move needs: ${some(lacks)}`, UPGRADE);
    const without = WELCOME.filter(({ has }) => !has(facts));
    return ok(`QEMU ${version} at ${path} has what a move needs${without.map((one) => `; without ${one.name}: ${one.without}`).join('')}`);
  });
}

export function judgeStorageDaemon(facts: ProgramFacts): Finding[] {
  const { path, version, failure, refused } = facts;
  if (failure !== undefined) return [problem(`${path}: ${failure}: no guest can come to this host`, UPGRADE)];
  const lacks = unspoken(facts, true);
  if (lacks.length > 0) return [problem(`${path} is version ${version} and lacks what receives disks: ${some(lacks)}`, UPGRADE)];
  if (refused.length > 0) return [problem(`${path} ${version} cannot export a disk as a move does: ${some(refused)}`, UPGRADE)];
  return [ok(`${path} ${version} exports a disk over NBD, behind a throttle`)];
}

const some = (names: string[]) => `${names.slice(0, 4).join(', ')}${names.length > 4 ? ` and ${names.length - 4} more` : ''}`;

/** What `qemu-img`, and further programs that the agent runs, answer. */
export interface ToolFacts {
  path: string;
  /** Why it cannot be run. */
  failure?: string;
  version: string;
  /** What fails without it. */
  needed: 'always' | 'for roots with blockDevices' | 'to name who holds a monitor';
  package: string;
}

export async function lookAtTools({ host: { config, programs } }: { host: Host }): Promise<ToolFacts[]> {
  const devices = Object.values(config.roots).some(({ blockDevices }) => blockDevices);
  const tools: Pick<ToolFacts, 'path' | 'needed' | 'package'>[] = [
    { path: config.binaries.qemuImg, needed: 'always', package: 'qemu-utils' },
    ...(devices ? ['/sbin/blockdev', '/sbin/blkdiscard'].map((path) => ({ path, needed: 'for roots with blockDevices' as const, package: 'util-linux' })) : []),
    { path: 'ss', needed: 'to name who holds a monitor', package: 'iproute2' },
  ];
  return await Promise.all(tools.map(async (tool) => {
    try {
      return { ...tool, version: (await programs.run(tool.path, ['--version'])).split('\n')[0]!.trim() };
    } catch (error) {
      return { ...tool, version: '?', failure: (error as Error).message };
    }
  }));
}

export function judgeTools(tools: ToolFacts[]): Finding[] {
  return tools.map(({ path, failure, version, needed, package: from }) => {
    if (failure === undefined) return ok(`${path}: ${version}`);
    const fix = `apt-get install ${from}${needed === 'always' ? ', or name another one in binaries.qemuImg' : ''}`;
    const saw = `${path} cannot be run, and is needed ${needed} (${failure})`;
    return needed === 'to name who holds a monitor' ? warning(saw, fix) : problem(saw, fix);
  });
}
