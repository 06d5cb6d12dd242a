import { randomBytes } from 'node:crypto';
import { chmodSync, chownSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { temporal } from '@temporalio/proto';
import { ensureCertificates } from '../../hypervisor/lab-certificates';
import { startCodecServer } from '../../workers/codec-server';
import { bundleWorkflows, type RunningWorker, startControlWorker } from '../../workers/control';
import { PayloadEncryption, readKeys } from '../../workers/payload-codec';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import { TestAuthority } from '../support/certificates';
import { confinement } from '../support/confinement';
import { expectClean, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';
import { TemporalProxy } from '../support/temporal-proxy';

/**
 * A whole move with every secret that there is: TLS between the hosts, payloads that are encrypted, Temporal by mutual TLS and an API key. Then the secrets,
 * and words that are only in payloads, are looked for wherever somebody could read them.
 */
const folder = mkdtempSync(join(tmpdir(), 'vs-'));
const before = { ...process.env };
const keyFile = join(folder, 'payload.keys');
const key = randomBytes(32);
const API_KEY = 'planted-api-key-90b1c2';
/** In the guest's definition, and so in payloads. */
const IN_PAYLOADS = 'planted-label-77e1';
const root = process.getuid!() === 0;
const NOBODY = 65_534;

let server: TemporalServer;
let proxy: TemporalProxy;
let control: RunningWorker;
let lab: Lab;
let secrets: [string, string][];

beforeAll(async () => {
  writeFileSync(keyFile, `planted-key-id ${key.toString('base64')}\n`, { mode: 0o600 });
  const authority = new TestAuthority(folder, 'ca');
  const client = authority.issue('agent');
  const lines = (file: string) => readFileSync(file, 'utf8').split('\n').filter((line) => line.length > 40);
  secrets = [
    ['the payload key', key.toString('base64')],
    ['the payload key, raw', key.toString('latin1')],
    ['the payload key in hex', key.toString('hex')],
    ['the API key', API_KEY],
    ...lines(client.key).map((line): [string, string] => ['the TLS key', line]),
  ];
  server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(folder, 'temporal.log') });
  proxy = await TemporalProxy.listen(server.address, authority.issue('temporal.example'), authority.ca, API_KEY);
  Object.assign(process.env, { VMFERRY_PAYLOAD_KEY_FILE: keyFile, TEMPORAL_API_KEY: API_KEY, TEMPORAL_TLS: 'true', TEMPORAL_TLS_SERVER_CA_CERT_PATH: authority.ca, TEMPORAL_TLS_SERVER_NAME: 'temporal.example' });
  // The key as the variable's own value: what a child would inherit.
  Object.assign(process.env, { TEMPORAL_TLS_CLIENT_CERT_DATA: readFileSync(client.cert, 'utf8'), TEMPORAL_TLS_CLIENT_KEY_DATA: readFileSync(client.key, 'utf8') });
  lab = await Lab.open({}, undefined, `127.0.0.1:${proxy.port}`);
  control = await startControlWorker({ temporal: lab.temporal, logger: lab.logger, bundle: await bundleWorkflows(true) });
  // Between the hosts by TLS too; a QEMU reads the files itself, as its own user.
  const certificates = join(lab.folder, 'certs');
  await ensureCertificates(certificates, [{ name: 'host-a' }, { name: 'host-b' }], 10);
  for (const path of ['', 'certs', 'certs/host-a', 'certs/host-b']) chmodSync(join(lab.folder, path), 0o711);
  for (const name of ['host-a', 'host-b']) {
    const dir = join(certificates, name);
    for (const file of readdirSync(dir)) {
      if (/key/.test(file)) secrets.push(...lines(join(dir, file)).map((line): [string, string] => [`${file} of ${name}`, line]));
      if (root) chownSync(join(dir, file), 0, NOBODY);
      if (root) chmodSync(join(dir, file), 0o640);
    }
    await lab.addHost(name, { tls: { dir }, ...(root && { runAs: 'nobody' }) });
  }
}, 90_000);

afterAll(async () => {
  await lab?.close();
  await control?.stop();
  await proxy?.close();
  await server?.stop();
  process.env = { ...before };
  rmSync(folder, { recursive: true, force: true });
});

/** Command line and environment of every process that works below the lab's folder, until it is told to stop; none of them is this one. */
async function watchProcesses(over: AbortSignal): Promise<Map<string, string>> {
  const seen = new Map<string, string>();
  while (!over.aborted) {
    for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)) {
      try {
        const [line, environ] = ['cmdline', 'environ'].map((file) => readFileSync(`/proc/${pid}/${file}`, 'latin1')) as [string, string];
        if (line.includes(lab.folder)) seen.set(`${basename(line.split('\0')[0]!)} ${pid}`, `${line}\n${environ}`);
      } catch {
        // It has ended.
      }
    }
    await delay(10);
  }
  return seen;
}

function filesBelow(path: string): string[] {
  return readdirSync(path, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? filesBelow(join(path, entry.name)) : entry.isFile() ? [join(path, entry.name)] : []));
}

const found = (text: string, wanted: [string, string][]) => [...new Set(wanted.filter(([, secret]) => text.includes(secret)).map(([what]) => what))];

/** All of each history as it lies in Temporal: bytes of payloads are not decoded, and would show a text that is in them. */
async function histories(): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for await (const { workflowId, runId } of lab.client.temporal.workflow.list()) {
    const history = await lab.client.temporal.workflow.getHandle(workflowId, runId).fetchHistory();
    all.set(workflowId, Buffer.from(temporal.api.history.v1.History.encode(history).finish()).toString('latin1'));
  }
  return all;
}

test('a guest moves between unprivileged QEMUs, and no secret is in any history, log, file, command line or environment', async () => {
  if (!root) console.log('not as root: QEMUs run as this user, -runas is not tried');
  const over = new AbortController();
  const processes = watchProcesses(over.signal);
  const guest = await lab.boot('host-a', 'sealed', { extra: { labels: { note: IN_PAYLOADS } } });
  const confined = (host: string) => confinement(lab.agents.get(host)!.host.process('sealed')!.pid);
  const nobody = { seccomp: 'filter', noNewPrivileges: true, ...(root && { capabilities: 0n, uids: [NOBODY] }) };
  expect(confined('host-a')).toMatchObject(nobody);
  await lab.move('sealed', 'host-b');
  expect(confined('host-b')).toMatchObject(nobody);
  // And back: one that has come can leave again as the same user.
  await lab.move('sealed', 'host-a');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['sealed'] });

  // Whatever QEMU and the agent made is for the agent's user alone.
  const run = join(lab.config('host-a').runDir, 'sealed');
  const modes = Object.fromEntries(['.', ...readdirSync(run)].map((name) => [name, (statSync(join(run, name)).mode & 0o777).toString(8)]));
  expect(modes).toEqual({ '.': '700', 'qmp.sock': '600', 'look.sock': '600', 'serial.sock': '600', 'qemu.pid': '600', 'qemu.log': '600' });
  for (const file of filesBelow(lab.config('host-a').stateDir)) expect([file, statSync(file).mode & 0o077]).toEqual([file, 0]);

  // A failure's words are payloads too.
  await expect(lab.client.onHost('host-a', 'defineGuest', { definition: { name: IN_PAYLOADS } })).rejects.toThrow(IN_PAYLOADS);

  over.abort();
  const seen = await processes;
  expect([...new Set([...seen.keys()].map((name) => name.split(' ')[0]!))]).toEqual(expect.arrayContaining(['qemu-system-x86_64', 'qemu-storage-daemon', 'node']));
  for (const [name, text] of seen) expect([name, found(text, secrets), /TEMPORAL_|PAYLOAD/.test(text)]).toEqual([name, [], false]);

  const all = await histories();
  expect([...all.keys()]).toEqual(expect.arrayContaining(['migrate/sealed', 'host/host-a']));
  for (const [workflow, text] of all) expect([workflow, found(text, [...secrets, ['a word of a payload', IN_PAYLOADS]])]).toEqual([workflow, []]);

  for (const file of [...filesBelow(lab.folder).filter((path) => !/\/(images|certs)\//.test(path)), join(folder, 'temporal.log')]) expect([file, found(readFileSync(file, 'latin1'), secrets)]).toEqual([file, []]);
}, 180_000);

test('what is encrypted is what is looked for: with the key the words are there, in the client and in the UI\'s codec server', async () => {
  const codec = new PayloadEncryption(readKeys(keyFile));
  const { events } = await lab.client.temporal.workflow.getHandle('migrate/sealed').fetchHistory();
  const payloads = events!.flatMap(({ activityTaskCompletedEventAttributes: done }) => done?.result?.payloads ?? []);
  expect((await codec.decode(payloads)).map(({ data }) => Buffer.from(data!).toString()).join('')).toContain(IN_PAYLOADS);

  const origin = 'http://localhost:8233';
  const ui = await startCodecServer({ codec, port: 0, address: '127.0.0.1', origins: [origin] });
  try {
    // The UI's server gives a history as JSON, and its page sends what it finds there to the codec server.
    const page = await fetch(`${server.uiUrl}/api/v1/namespaces/default/workflows/${encodeURIComponent('migrate/sealed')}/history`);
    const { history } = (await page.json()) as { history: { events: { workflowExecutionStartedEventAttributes?: { input: { payloads: object[] } } }[] } };
    const [started] = history.events;
    const answer = await fetch(`${ui.url}/decode`, { method: 'POST', headers: { origin, 'content-type': 'application/json', 'x-namespace': 'default' }, body: JSON.stringify(started!.workflowExecutionStartedEventAttributes!.input) });
    const decoded = (await answer.json()) as { payloads: { data: string }[] };
    expect(JSON.parse(Buffer.from(decoded.payloads[0]!.data, 'base64').toString())).toMatchObject({ vm: 'sealed' });
  } finally {
    await ui.close();
  }
  // Live progress, a heartbeat, is decoded too; schedules and their memo.
  const schedule = await lab.client.schedules.create({ name: 'sealed', cron: '0 2 * * SUN', evacuation: { hosts: ['host-a'], windowSeconds: 3600 } });
  expect(schedule).toMatchObject({ hosts: 'host-a', evacuation: { windowSeconds: 3600 } });
  await lab.client.schedules.delete('sealed');
});
