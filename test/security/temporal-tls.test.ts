import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { MigrationClient } from '../../client/migration-client';
import { connectClient, connectWorker, TemporalUnreachable } from '../../workers/connection';
import { bundleWorkflows, startControlWorker } from '../../workers/control';
import { devHostConfig } from '../../workers/dev';
import { startHostAgent } from '../../workers/host-agent';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { deleteFolders, temporaryFolder } from '../hypervisor/fixtures';
import { type KeyPair, TestAuthority } from '../support/certificates';
import { TemporalProxy } from '../support/temporal-proxy';

const folder = temporaryFolder();
const API_KEY = 'planted-api-key-5f1d';
const before = { ...process.env };
let server: TemporalServer;
let proxy: TemporalProxy;
let ours: TestAuthority;
let strange: TestAuthority;
let client: KeyPair;

beforeAll(async () => {
  [ours, strange] = [new TestAuthority(folder, 'ours'), new TestAuthority(folder, 'strange')];
  server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(folder, 'temporal.log') });
  proxy = await TemporalProxy.listen(server.address, ours.issue('temporal.example'), ours.ca, API_KEY);
  client = ours.issue('agent');
}, 60_000);
afterEach(() => void (process.env = { ...before }));
afterAll(async () => {
  await proxy?.close();
  await server?.stop();
  deleteFolders();
});

/** The standard variables of Temporal's SDKs and command, and nothing of ours. */
function environment({ ca = ours.ca, pair = client, name = 'temporal.example', apiKey = API_KEY }: { ca?: string; pair?: KeyPair | undefined; name?: string; apiKey?: string } = {}): void {
  Object.assign(process.env, { TEMPORAL_ADDRESS: `127.0.0.1:${proxy.port}`, TEMPORAL_TLS: 'true', TEMPORAL_TLS_SERVER_CA_CERT_PATH: ca, TEMPORAL_TLS_SERVER_NAME: name, TEMPORAL_API_KEY: apiKey });
  Object.assign(process.env, { TEMPORAL_TLS_CLIENT_CERT_PATH: pair.cert, TEMPORAL_TLS_CLIENT_KEY_PATH: pair.key });
}

test('client, control worker and agent find Temporal by mutual TLS and an API key, all three by the standard variables', async () => {
  environment();
  const logger = pino({ level: 'silent' });
  const control = await startControlWorker({ logger, bundle: await bundleWorkflows() });
  // The configuration says only where, as one that is given to many hosts: certificates and key are the environment's.
  const config = devHostConfig(mkdirp('lab'), 'host-a', `127.0.0.1:${proxy.port}`, { insecure: true });
  const agent = await startHostAgent(config, logger);
  const operator = await MigrationClient.connect();
  try {
    expect(await operator.onHost('host-a', 'listGuests')).toEqual([]);
    expect(proxy.calls).toEqual({ withKey: expect.any(Number), withoutKey: 0 });
    expect(proxy.calls.withKey).toBeGreaterThan(10);
  } finally {
    await operator.close();
    await agent.stop();
    await control.stop();
  }
}, 60_000);

const mkdirp = (name: string) => {
  mkdirSync(join(folder, name), { recursive: true });
  return join(folder, name);
};

test.each<[string, () => Parameters<typeof environment>[0], string[]]>([
  ['a server of another authority', () => ({ ca: strange.ca }), ['TLS', 'TEMPORAL_TLS_SERVER_CA_CERT_PATH']],
  ['a server with another name', () => ({ name: 'other.example' }), ['TLS', 'TEMPORAL_TLS_SERVER_NAME']],
  ['a client that the server does not know', () => ({ pair: strange.issue('agent') }), ['TLS', 'TEMPORAL_TLS_CLIENT_CERT_PATH']],
  ['a client whose time is over', () => ({ pair: ours.issue('late', -1) }), ['TLS', 'TEMPORAL_TLS_CLIENT_CERT_PATH']],
  ['a wrong API key', () => ({ apiKey: 'wrong' }), ['API key', 'TEMPORAL_API_KEY']],
  ['a file that is not there', () => ({ pair: { cert: '/nowhere.crt', key: '/nowhere.key' } }), ['/nowhere.crt']],
])('%s is told in one line that names what to correct, to clients and workers alike, without a secret', async (_case, settings, parts) => {
  environment(settings());
  for (const connect of [() => connectClient(), () => connectWorker()]) {
    const error = await connect().then(() => undefined, (reason: Error) => reason);
    expect(error).toBeInstanceOf(TemporalUnreachable);
    for (const part of parts) expect(error!.message).toContain(part);
    expect(error!.message).not.toContain('\n');
    expect(error!.message).not.toContain(API_KEY);
  }
}, 60_000);
