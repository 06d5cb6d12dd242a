import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as generated from '@opentelemetry/otlp-transformer/build/src/generated/root';
import { flushTraces, tracesAreAsked } from '../../workers/tracing';
import { freePort } from '../../workers/temporal-server';
import { SimulatedFleet } from '../simulated/fleet';
import { QUIET } from '../simulated/hypervisor';

interface Attribute { key: string; value: { stringValue: string } }
interface Sent { resourceSpans: { resource: { attributes: Attribute[] }; scopeSpans: { spans: { name: string; spanId: Uint8Array; parentSpanId: Uint8Array | null; traceId: Uint8Array; attributes: Attribute[] }[] }[] }[] }
// Made by protobufjs from OpenTelemetry's own definitions, without types.
const { ExportTraceServiceRequest } = (generated as unknown as { opentelemetry: { proto: { collector: { trace: { v1: { ExportTraceServiceRequest: { decode: (body: Buffer) => Sent } } } } } } }).opentelemetry.proto.collector.trace.v1;

interface Span { name: string; id: string; parent: string; trace: string; host: unknown; service: unknown }

/** What a collector is: it takes spans by OTLP over HTTP. */
class Collector {
  readonly spans: Span[] = [];
  readonly headers: IncomingHttpHeaders[] = [];
  readonly paths = new Set<string>();
  private readonly server: Server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part)).on('end', () => {
      this.headers.push(request.headers);
      this.paths.add(request.url!);
      this.take(Buffer.concat(parts));
      response.end();
    });
  });

  async listen(port: number): Promise<void> {
    await new Promise<void>((done) => this.server.listen(port, '127.0.0.1', done));
  }

  close(): void {
    this.server.close();
    this.server.closeAllConnections();
  }

  private take(body: Buffer): void {
    const hex = (bytes: Uint8Array | null) => Buffer.from(bytes ?? []).toString('hex');
    const valueOf = (attributes: Attribute[], name: string) => attributes.find(({ key }) => key === name)?.value.stringValue;
    for (const { resource, scopeSpans } of ExportTraceServiceRequest.decode(body).resourceSpans) {
      for (const span of scopeSpans.flatMap(({ spans }) => spans)) {
        this.spans.push({ name: span.name, id: hex(span.spanId), parent: hex(span.parentSpanId), trace: hex(span.traceId), host: valueOf(span.attributes, 'vmferry.host'), service: valueOf(resource.attributes, 'service.name') });
      }
    }
  }
}

const ENVIRONMENT = ['OTEL_EXPORTER_OTLP_ENDPOINT', 'OTEL_EXPORTER_OTLP_HEADERS', 'OTEL_SERVICE_NAME'] as const;
const collector = new Collector();
let fleet: SimulatedFleet;
beforeAll(async () => {
  const port = await freePort();
  await collector.listen(port);
  process.env['OTEL_EXPORTER_OTLP_ENDPOINT'] = `http://127.0.0.1:${port}`;
  process.env['OTEL_EXPORTER_OTLP_HEADERS'] = 'x-tenant=lab';
  process.env['OTEL_SERVICE_NAME'] = 'a lab';
  fleet = await SimulatedFleet.open({ hosts: 2, guestsPerHost: 1, speed: 20, behaviour: () => QUIET });
}, 60_000);
afterAll(async () => {
  await fleet?.close();
  collector.close();
  for (const name of ENVIRONMENT) delete process.env[name];
});

test('a migration is one trace, from the client through the workflow to the steps of both hosts', async () => {
  const migration = await fleet.client.migrate({ vm: 'h00-g000', to: 'h01', sourceDisks: 'wipe' });
  await migration.isRunning();
  await migration.result();
  await flushTraces();
  const [start, ...others] = collector.spans.filter(({ name }) => name === 'StartWorkflow:migrateVm');
  expect(others).toEqual([]);
  expect(start).toMatchObject({ parent: '', service: 'a lab' });
  const trace = collector.spans.filter((span) => span.trace === start!.trace);
  const named = (name: string) => trace.find((span) => span.name === name);
  const childOf = (name: string, parent: string) => expect({ name, parent: named(name)?.parent }).toEqual({ name, parent: named(parent)!.id });
  childOf('RunWorkflow:migrateVm', 'StartWorkflow:migrateVm');
  for (const [step, host] of [['inspectSource', 'h00'], ['prepareDestination', 'h01'], ['startMirrors', 'h00'], ['awaitMirrors', 'h00'], ['moveMemory', 'h00'], ['receive', 'h01'], ['retireSource', 'h00'], ['locateGuest', 'vmferry-control']] as const) {
    childOf(`StartActivity:${step}`, 'RunWorkflow:migrateVm');
    childOf(`RunActivity:${step}`, `StartActivity:${step}`);
    expect(named(`RunActivity:${step}`)).toMatchObject({ host });
  }
  // What hosts report for ever, and what watching asks, is no part of it, nor a trace of its own.
  expect(collector.spans.filter((span) => span.trace !== start!.trace).map(({ name }) => name)).toEqual([]);
  expect(trace.filter(({ name }) => /quer|describe/i.test(name))).toEqual([]);
  expect([...collector.paths]).toEqual(['/v1/traces']);
  expect(collector.headers[0]).toMatchObject({ 'x-tenant': 'lab', 'content-type': 'application/x-protobuf' });
});

test('a migration that began with traces is gone on with by a control worker without, and one that began without by one with', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'traced-'));
  try {
    const history = execFileSync(process.env['VMFERRY_TEMPORAL'] ?? 'temporal', ['workflow', 'show', '--address', fleet.temporal.address, '--workflow-id', 'migrate/h00-g000', '--output', 'json'], { encoding: 'utf8' });
    expect(history).toContain('_tracer-data');
    writeFileSync(join(folder, 'traced.json'), history);
    const replay = (...args: string[]) => JSON.parse(execFileSync(process.execPath, [join(__dirname, '../replay/replay.js'), ...args], { encoding: 'utf8' })) as unknown;
    expect(replay(folder)).toEqual({ replayed: 1, failures: [] });
    expect(replay(join(__dirname, '../replay/histories'), 'workflow-bundle-traced')).toMatchObject({ failures: [] });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('without the standard variables nothing of OpenTelemetry is loaded, neither by a process nor into workflows', () => {
  const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, ...environment } = process.env;
  const loaded = (env: NodeJS.ProcessEnv) => {
    const script = "require('./dist/workers/tracing').tracing('x').then(() => require('./dist/client')).then(() => require('./dist/workers/dev')).then(() => console.log(Object.keys(require.cache).filter((path) => path.includes('opentelemetry')).length))";
    return Number(execFileSync(process.execPath, ['-e', script], { encoding: 'utf8', env, cwd: join(__dirname, '../..') }));
  };
  expect(loaded(environment)).toBe(0);
  const bundled = ['workflow-bundle', 'workflow-bundle-traced'].map((bundle) => readFileSync(join(__dirname, `../../dist/workers/${bundle}.js`), 'utf8').includes('node_modules/@opentelemetry'));
  expect(bundled).toEqual([false, true]);
  expect(loaded({ ...environment, OTEL_EXPORTER_OTLP_ENDPOINT: endpoint })).toBeGreaterThan(50);
  expect([{}, { OTEL_TRACES_EXPORTER: 'none', OTEL_EXPORTER_OTLP_ENDPOINT: 'x' }, { OTEL_SDK_DISABLED: 'true', OTEL_TRACES_EXPORTER: 'otlp' }, { OTEL_TRACES_EXPORTER: 'otlp' }, { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'x' }].map(tracesAreAsked)).toEqual([false, false, false, true, true]);
});

test('another protocol than the one that is spoken is refused in one line', () => {
  const run = () => execFileSync(join(__dirname, '../../bin/vmferry'), ['--temporal-address', fleet.temporal.address, 'vm', 'list'], { encoding: 'utf8', stdio: 'pipe', env: { ...process.env, OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' } });
  expect(run).toThrow(/^Command failed[^\n]*\nvmferry: OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by http\/protobuf alone, not by "grpc"[^\n]*\n$/);
});
