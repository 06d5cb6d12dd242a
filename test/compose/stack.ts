import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { identify, type ProcessIdentity } from '../../hypervisor/processes';

const ROOT = resolve(__dirname, '../..');
const PROJECT = 'vmt';

export type ComposeHost = 'host-a' | 'host-b';

/** docker-compose.yml, up with one of its profiles, by the commands that a person would type. */
export class ComposeStack {
  constructor(private readonly profile: 'dev' | 'cluster') {}

  /** `docker compose …`; its stdout. Throws with what it printed. */
  async compose(...args: string[]): Promise<string> {
    return await this.docker('compose', '--project-name', PROJECT, '--profile', this.profile, ...args);
  }

  async docker(...args: string[]): Promise<string> {
    const { stdout } = await promisify(execFile)('docker', args, { cwd: ROOT, maxBuffer: 2 ** 26 }).catch((error: Error & { stdout?: string; stderr?: string }) => {
      throw new Error(`docker ${args.join(' ')}:\n${error.stderr ?? ''}${error.stdout ?? ''}${error.message.split('\n')[0]}`);
    });
    return stdout.trim();
  }

  /** Everything up, and the demo guest made; our images are there already. Throws with the logs of what is not well. */
  async up(): Promise<void> {
    await this.compose('up', '--detach', '--no-build').catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await this.compose('logs', '--no-color', '--tail', '20')}`);
    });
    const code = await this.docker('wait', await this.container('demo-guest'));
    if (code !== '0') throw new Error(`demo-guest ended with ${code}:\n${await this.compose('logs', '--no-color', '--tail', '20')}`);
  }

  /** `docker compose run --rm cli …`, as the README has it. */
  async cli(...args: string[]): Promise<string> {
    return await this.compose('run', '--rm', '--no-TTY', 'cli', ...args);
  }

  async container(service: string): Promise<string> {
    return await this.compose('ps', '--all', '--quiet', service);
  }

  /** What Docker's health check of each service that stays says. */
  async health(): Promise<Record<string, string>> {
    const rows = (await this.compose('ps', '--format', '{{.Service}} {{.Health}}')).split('\n');
    return Object.fromEntries(rows.map((row) => row.split(' ') as [string, string]));
  }

  /** A file in a volume of a host, as this machine sees it. */
  async file(host: ComposeHost, volume: 'run' | 'images' | 'state', ...path: string[]): Promise<string> {
    return join(await this.docker('volume', 'inspect', '--format', '{{.Mountpoint}}', `${PROJECT}_${host}-${volume}`), ...path);
  }

  async down(): Promise<void> {
    await this.compose('down', '--volumes', '--timeout', '20');
  }

  /** What `down` should have taken along: containers, networks, volumes, processes of ours, mounts. */
  async left(): Promise<string[]> {
    const lists = await Promise.all([
      this.docker('ps', '--all', '--format', 'container {{.Names}}'),
      this.docker('network', 'ls', '--filter', 'type=custom', '--format', 'network {{.Name}}'),
      this.docker('volume', 'ls', '--format', 'volume {{.Name}}'),
    ]);
    const mounts = readFileSync('/proc/mounts', 'utf8').split('\n').filter((line) => /\/docker\/data\/(overlay2|volumes)\//.test(line)).map((line) => `mount ${line.split(' ')[1]}`);
    return [...lists.flatMap((list) => list.split('\n').filter(Boolean)), ...qemus().map(({ pid }) => `process ${pid}`), ...mounts];
  }
}

/** The QEMUs and storage daemons of this run: it has its process ids to itself. */
export function qemus(): ProcessIdentity[] {
  return readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).flatMap((entry) => {
    try {
      const [program] = readFileSync(`/proc/${entry}/cmdline`, 'utf8').split('\0');
      const identity = identify(Number(entry));
      return identity && /qemu-(system|storage)/.test(program!) ? [identity] : [];
    } catch {
      return [];
    }
  });
}
