import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, chownSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client, Connection, WorkflowNotFoundError } from '@temporalio/client';
import { DYNAMIC_CONFIG } from '../../workers/temporal-server';
import { freePorts } from '../support/free-ports';

const LOOPBACK = '127.0.0.1';
const USER = 'temporal';
const DATABASES = { temporal: 'temporal', visibility: 'temporal_visibility' } as const;
/** Fixed for good when the databases are made. Four are plenty for a test; a real one has hundreds (docs/operating.md). */
const FEW_SHARDS = 4;
/** The shortest that the server takes. */
const RETENTION_SECONDS = 24 * 3600;
/** A quiet machine needs 5 s for all of it. */
const START_MS = 120_000;
/** Debian's and Ubuntu's `nobody` and `nogroup`: PostgreSQL refuses root. Not `postgres`, who may do what he likes to the distribution's databases. */
const NOBODY = 65_534;

/** What scripts/cluster-setup.sh found or made. */
export interface ClusterPrograms {
  /** The folder of `temporal-server`, `temporal-sql-tool` and `schema`. */
  temporal: string;
  /** The folder of PostgreSQL's programs. */
  postgres: string;
}

/**
 * A Temporal server as a production has it, all four services with PostgreSQL as their store and for visibility, on free loopback ports and below
 * one folder on tmpfs. Its processes end with `close`, or when this process dies.
 */
export class TemporalCluster {
  address = '';
  private readonly children: { name: string; process: ChildProcess; stop: NodeJS.Signals }[] = [];
  private readonly asPostgres = process.getuid!() === 0 ? { uid: NOBODY, gid: NOBODY } : {};

  private constructor(readonly folder: string, private readonly programs: ClusterPrograms, private readonly shards: number) {}

  static async start(programs: ClusterPrograms, shards = FEW_SHARDS): Promise<TemporalCluster> {
    const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'vmt-'));
    // PostgreSQL's user must get to his own folder in it, and to nothing else.
    chmodSync(folder, 0o711);
    const cluster = new TemporalCluster(folder, programs, shards);
    try {
      const password = randomBytes(16).toString('hex');
      const port = await cluster.startPostgres(password);
      for (const kind of ['temporal', 'visibility'] as const) await cluster.createDatabase(kind, port, password);
      await cluster.startServer(port, password);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  /** All processes: PostgreSQL's, and the server. */
  get pids(): number[] {
    return this.children.map(({ process }) => process.pid!);
  }

  logFile(name: string): string {
    return join(this.folder, `${name}.log`);
  }

  /** Ends all processes by their pids, the server before its store, and removes the folder. */
  async close(): Promise<void> {
    for (const { process: child, stop } of this.children.splice(0).reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      child.kill(stop);
      const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
      await exited;
      clearTimeout(timer);
    }
    if (process.env['VMFERRY_KEEP_LAB']) console.error(`cluster kept: ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
  }

  private async startPostgres(password: string): Promise<number> {
    const home = join(this.folder, 'postgres');
    const [data, passwordFile] = [join(home, 'data'), join(home, 'password')];
    mkdirSync(home, { mode: 0o700 });
    writeFileSync(passwordFile, password, { mode: 0o600 });
    if (this.asPostgres.uid !== undefined) for (const path of [home, passwordFile]) chownSync(path, this.asPostgres.uid, this.asPostgres.gid);
    await this.run(join(this.programs.postgres, 'initdb'), ['--pgdata', data, '--username', USER, '--pwfile', passwordFile, '--auth', 'scram-sha-256', '--encoding', 'UTF8', '--no-locale', '--no-sync'], this.asPostgres);
    const [port] = (await freePorts(1)) as [number];
    // Its folder does not outlive it: nothing need reach a disk.
    const settings = { listen_addresses: LOOPBACK, port, unix_socket_directories: '', fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' };
    // SIGINT is PostgreSQL's "fast shutdown": it does not wait for its clients to leave, and takes its shared memory along.
    this.spawn('postgres', { stop: 'SIGINT', orphaned: 'SIGINT' }, join(this.programs.postgres, 'postgres'), ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])], this.asPostgres);
    await this.until('postgres', async () => {
      await promisify(execFile)(join(this.programs.postgres, 'pg_isready'), ['--quiet', '--host', LOOPBACK, '--port', String(port)]);
    });
    return port;
  }

  /** Makes one of the two databases with its tables, by Temporal's own tool from the module's own versions of the schema. */
  private async createDatabase(kind: keyof typeof DATABASES, port: number, password: string): Promise<void> {
    const connection = ['--plugin', 'postgres12', '--endpoint', LOOPBACK, '--port', String(port), '--user', USER, '--database', DATABASES[kind]];
    const versions = join(this.programs.temporal, 'schema', kind, 'versioned');
    for (const command of [['create-database'], ['setup-schema', '--version', '0.0'], ['update-schema', '--schema-dir', versions]]) {
      await this.run(join(this.programs.temporal, 'temporal-sql-tool'), [...connection, ...command], { env: { ...process.env, SQL_PASSWORD: password } });
    }
  }

  private async startServer(databasePort: number, password: string): Promise<void> {
    const [frontend, ...ports] = (await freePorts(8)) as [number, ...number[]];
    const dynamicConfig = join(this.folder, 'dynamic-config.yaml');
    this.address = `${LOOPBACK}:${frontend}`;
    // JSON is YAML.
    writeFileSync(dynamicConfig, JSON.stringify(Object.fromEntries(DYNAMIC_CONFIG.map((setting) => setting.split('=') as [string, string]).map(([key, value]) => [key, [{ value: Number(value) }]]))));
    writeFileSync(join(this.folder, 'cluster.yaml'), JSON.stringify(serverConfig({ frontend, ports, databasePort, password, dynamicConfig, shards: this.shards })), { mode: 0o600 });
    // Orphaned it has lost its store as well: to end in good order then takes it seconds, for nothing.
    this.spawn('temporal', { stop: 'SIGTERM', orphaned: 'SIGKILL' }, join(this.programs.temporal, 'temporal-server'), ['--root', this.folder, '--config', '.', '--env', 'cluster', '--allow-no-auth', 'start'], {});
    await this.until('temporal', async () => await this.makeNamespace());
  }

  /** Makes the namespace if need be. Throws unless workflows can be asked for and listed in it: history, both databases and the frontend work then. */
  private async makeNamespace(): Promise<void> {
    const connection = await Connection.connect({ address: this.address, connectTimeout: '1 second' });
    try {
      const { namespaces } = await connection.workflowService.listNamespaces({});
      if (!namespaces.some(({ namespaceInfo }) => namespaceInfo?.name === 'default')) {
        await connection.workflowService.registerNamespace({ namespace: 'default', workflowExecutionRetentionPeriod: { seconds: RETENTION_SECONDS as unknown as Long } });
      }
      const client = new Client({ connection });
      await client.workflow.count();
      await client.workflow.getHandle('none').describe().catch((error: unknown) => {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      });
    } finally {
      await connection.close();
    }
  }

  /** Repeats `work` until it does not throw. Throws, with what the process said last, if that ended or takes too long. */
  private async until(name: string, work: () => Promise<void>): Promise<void> {
    const { process: child } = this.children.find((one) => one.name === name)!;
    for (const end = performance.now() + START_MS; ; await delay(50)) {
      const ended = child.exitCode ?? child.signalCode;
      const why = await work().then(() => undefined, (error: Error) => error.message);
      if (why === undefined) return;
      if (ended === null && performance.now() < end) continue;
      const said = readFileSync(this.logFile(name), 'utf8').trim().split('\n').slice(-20).map((line) => line.slice(0, 400)).join('\n');
      throw new Error(`${name} ${ended === null ? `does not answer after ${START_MS / 1000} s (${why})` : `ended at start (${ended})`}:\n${said}`);
    }
  }

  /** By `setpriv`: it asks the kernel for the signal at our death, and becomes the program, under the same pid. */
  private spawn(name: string, signals: { stop: NodeJS.Signals; orphaned: NodeJS.Signals }, program: string, args: string[], options: { uid?: number; gid?: number }): void {
    const log = openSync(this.logFile(name), 'a', 0o600);
    const child = spawn('setpriv', ['--pdeathsig', signals.orphaned.slice('SIG'.length), program, ...args], { stdio: ['ignore', log, log], cwd: '/', ...options });
    closeSync(log);
    this.children.push({ name, process: child, stop: signals.stop });
  }

  private async run(program: string, args: string[], options: { uid?: number; gid?: number; env?: NodeJS.ProcessEnv }): Promise<void> {
    await promisify(execFile)(program, args, { cwd: '/', ...options });
  }
}

/** After the module's own `config/development-postgres12.yaml`, without what would listen for nobody: HTTP, metrics, profiles. */
function serverConfig({ frontend, ports, databasePort, password, dynamicConfig, shards }: { frontend: number; ports: number[]; databasePort: number; password: string; dynamicConfig: string; shards: number }) {
  const store = (databaseName: string, maxConns: number) => ({
    sql: { pluginName: 'postgres12', databaseName, connectAddr: `${LOOPBACK}:${databasePort}`, connectProtocol: 'tcp', user: USER, password, maxConns, maxIdleConns: maxConns, maxConnLifetime: '1h' },
  });
  const service = (grpcPort: number) => ({ rpc: { grpcPort, membershipPort: ports.pop(), bindOnIP: LOOPBACK } });
  return {
    log: { stdout: true, level: 'warn' },
    persistence: {
      defaultStore: 'default',
      visibilityStore: 'visibility',
      numHistoryShards: shards,
      // Each of the four services has both pools, and PostgreSQL takes 100 connections in all.
      datastores: { default: store(DATABASES.temporal, 15), visibility: store(DATABASES.visibility, 5) },
    },
    global: { membership: { maxJoinDuration: '30s', broadcastAddress: LOOPBACK } },
    services: { frontend: service(frontend), history: service(ports.pop()!), matching: service(ports.pop()!), worker: service(ports.pop()!) },
    clusterMetadata: {
      enableGlobalNamespace: false,
      failoverVersionIncrement: 10,
      masterClusterName: 'active',
      currentClusterName: 'active',
      clusterInformation: { active: { enabled: true, initialFailoverVersion: 1, rpcName: 'frontend', rpcAddress: `${LOOPBACK}:${frontend}` } },
    },
    dcRedirectionPolicy: { policy: 'noop' },
    dynamicConfigClient: { filepath: dynamicConfig, pollInterval: '60s' },
  };
}
