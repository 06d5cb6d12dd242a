import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import { parse as parseYaml } from 'yaml';
import { definitionSchema, parseYamlWith } from '../../hypervisor/definition';
import { readHostConfig } from '../../hypervisor/host-config';
import { DYNAMIC_CONFIG } from '../../workers/temporal-server';
import { convergencePolicySchema } from '../../workflows/messages';

/** What is deployed is read here by what will read it; test/compose runs it. */
const ROOT = resolve(__dirname, '../..');
const deploy = (...path: string[]) => join(ROOT, 'deploy', ...path);
const text = (path: string) => readFileSync(path, 'utf8');

interface Service {
  image: string;
  restart?: string;
  pid?: string;
  network_mode?: string;
  profiles?: string[];
  volumes?: string[];
  healthcheck?: object;
  networks?: { default?: { ipv4_address?: string } };
}
const compose = parseYaml(text(join(ROOT, 'docker-compose.yml')), { merge: true }) as { services: Record<string, Service> };

describe.each(['examples', 'compose'])('deploy/%s', (folder) => {
  test('has configurations and guests that an agent takes, and every guest has its roots on every host', () => {
    const hosts = ['host-a.yaml', 'host-b.yaml'].map((file) => readHostConfig(deploy(folder, file)));
    for (const { migration } of hosts) expect(convergencePolicySchema.partial().parse(migration)).toMatchObject(migration);
    expect(new Set(hosts.map(({ address }) => address)).size).toBe(hosts.length);
    const guest = text(deploy(folder, folder === 'examples' ? 'web.yaml' : 'demo.yaml'));
    parseYamlWith(definitionSchema, guest, 'the guest');
    for (const { roots } of hosts) expect([...Object.keys(roots), 'run']).toEqual(expect.arrayContaining([...guest.matchAll(/\$\{([a-z]+)\}/g)].map(([, root]) => root)));
  });
});

test('deploy/examples/control.env sets what the SDK reads, comments taken away', () => {
  const lines = text(deploy('examples/control.env')).split('\n').map((line) => line.replace(/^#(?=[A-Z_]+=)/, '')).filter((line) => /^[A-Z_]+=/.test(line));
  const env = Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
  for (const name of Object.keys(env)) if (name.endsWith('_PATH')) env[name] = __filename;
  const { connectionOptions, namespace } = loadClientConnectConfig({ overrideEnvVars: { ...env, TEMPORAL_API_KEY: 'key' } });
  expect({ ...connectionOptions, namespace }).toMatchObject({ address: 'temporal.example:7233', namespace: 'default', apiKey: 'key', tls: { serverRootCACertificate: expect.anything(), clientCertPair: expect.anything() } });
});

describe('docker-compose.yml', () => {
  test('pins every image, and gives every service that stays a restart policy', () => {
    for (const [name, { image, restart, profiles }] of Object.entries(compose.services)) {
      expect({ name, pinned: /:(\d[\w.-]*\d[\w.-]*|\$\{VMFERRY_VERSION:-dev\})$/.test(image) }).toEqual({ name, pinned: true });
      const ends = ['demo-guest', 'temporal-schema', 'temporal-namespace', 'certs'].includes(name) || profiles?.includes('cli');
      expect({ name, restart }).toEqual({ name, restart: ends ? undefined : 'unless-stopped' });
    }
  });

  test.each(['a', 'b'])('host-%s: the agent lives in its hypervisor\'s network and among its processes, with the same files, at the address that it says', (host) => {
    const [agent, hypervisor] = [compose.services[`agent-${host}`]!, compose.services[`hypervisor-${host}`]!];
    const config = readHostConfig(deploy(`compose/host-${host}.yaml`));
    expect(agent).toMatchObject({ pid: `service:hypervisor-${host}`, network_mode: `service:hypervisor-${host}`, volumes: expect.arrayContaining(hypervisor.volumes!) });
    expect(config).toMatchObject({ name: `host-${host}`, address: hypervisor.networks!.default!.ipv4_address, launcher: '/run/vmferry/launcher.sock' });
    const mounted = hypervisor.volumes!.map((volume) => volume.split(':')[1]);
    expect(mounted).toEqual(expect.arrayContaining([config.stateDir, config.runDir, config.roots['images']!.path]));
  });

  test('both profiles give Temporal the limits that our own servers have', () => {
    expect(compose.services['temporal']).toMatchObject({ profiles: ['dev'], command: expect.stringContaining(DYNAMIC_CONFIG.map((setting) => `--dynamic-config-value ${setting}`).join(' ')) });
    expect(parseYaml(text(deploy('compose/dynamic-config.yaml')))).toEqual(Object.fromEntries(DYNAMIC_CONFIG.map((setting) => [setting.split('=')[0], [{ value: Number(setting.split('=')[1]) }]])));
  });
});

describe('deploy/systemd', () => {
  const units = readdirSync(deploy('systemd'));

  test('guests outlive the agent: only it is told to stop, and their sockets stay', () => {
    const unit = text(deploy('systemd/vmferry-agent.service'));
    for (const line of ['KillMode=process', 'RuntimeDirectoryPreserve=yes', 'OOMPolicy=continue', 'Restart=always', 'Delegate=yes']) expect(unit.split('\n')).toContain(line);
    // Each would be taken from the guests when the agent stops, or from their QEMUs when they start.
    expect(unit).not.toMatch(/^(PrivateTmp|PrivateDevices|PrivateNetwork|MemoryDenyWriteExecute|DynamicUser)=yes/m);
  });

  const analyze = spawnSync('systemd-analyze', ['--version']).status === 0;
  if (!analyze) console.warn('skipped: systemd-analyze verify, since this machine has no systemd-analyze');
  (analyze ? test : test.skip).each(units)('%s has nothing that systemd does not understand', (unit) => {
    const folder = mkdtempSync(join(tmpdir(), 'vmu-'));
    try {
      const copy = join(folder, unit);
      // Where it will be there is nothing here.
      writeFileSync(copy, text(deploy('systemd', unit)).replaceAll('/opt/vmferry', ROOT));
      const { status, stderr } = spawnSync('systemd-analyze', ['verify', copy], { encoding: 'utf8' });
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

test('shell scripts that are deployed are such', () => {
  for (const script of ['container/hypervisor.sh', 'container/demo-guest.sh', 'compose/temporal-schema.sh', 'compose/temporal-namespace.sh']) execFileSync('sh', ['-n', deploy(script)]);
});

test('the image of a hypervisor has every file that its launcher needs', () => {
  const needed = new Set<string>();
  const follow = (name: string): void => {
    if (needed.has(name)) return;
    needed.add(name);
    for (const [, next] of text(join(ROOT, 'hypervisor', `${name}.ts`)).matchAll(/from '\.\/([a-z-]+)'/g)) follow(next!);
  };
  follow('launcher-main');
  expect(needed.size).toBeGreaterThan(2);
  const copied = [...text(join(ROOT, 'Dockerfile')).matchAll(/\/build\/dist\/hypervisor\/([a-z-]+)\.js/g)].map(([, name]) => name!);
  expect(copied.sort()).toEqual([...needed].sort());
});
