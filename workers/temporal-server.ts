import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync } from 'node:fs';
import { createServer } from 'node:net';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Connection } from '@temporalio/client';
import { SEARCH_ATTRIBUTES } from '../workflows/messages';

export interface TemporalServer {
  address: string;
  uiUrl: string;
  pid: number;
  stop(): Promise<void>;
}

/** The server's polls a second are few by default: hand-overs between steps then take 100 ms each after a burst (facts: docs/operating.md). */
export const DYNAMIC_CONFIG = ['history.transferProcessorMaxPollRPS=2000', 'history.timerProcessorMaxPollRPS=2000', 'history.visibilityProcessorMaxPollRPS=2000'];

const CACHED = 'temporal-v1.5.1/temporal';

/** The `temporal` program: from VMFERRY_TEMPORAL, PATH, or the cache that scripts/setup.sh fills. Throws, with the fix, if there is none. */
export function findTemporal(): string {
  const cache = process.env['VMFERRY_CACHE'] || join(homedir(), '.cache/vmferry');
  const onPath = (process.env['PATH'] ?? '').split(delimiter).map((folder) => join(folder, 'temporal'));
  const given = process.env['VMFERRY_TEMPORAL'];
  const found = given ? [given] : [...onPath, join(cache, CACHED)];
  const binary = found.find((path) => existsSync(path));
  if (!binary) throw new Error(`no Temporal server was found (${given ? `VMFERRY_TEMPORAL=${given}` : 'neither on PATH nor in the cache'}): run scripts/setup.sh, or put the temporal program on PATH`);
  return binary;
}

/** A TCP port that nobody listens on now. */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  return await new Promise((resolve, reject) => {
    const server = createServer().once('error', reject);
    server.listen(0, host, () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** Starts a development server with its UI, on SQLite in a file or in memory, and waits until it answers. It ends with `stop`. */
export async function startTemporalServer(options: { port: number; uiPort: number; database?: string; logFile: string }): Promise<TemporalServer> {
  const { port, uiPort, database, logFile } = options;
  const args = ['server', 'start-dev', '--ip', '127.0.0.1', '--port', String(port), '--ui-port', String(uiPort), '--log-level', 'warn'];
  if (database) args.push('--db-filename', database);
  for (const setting of DYNAMIC_CONFIG) args.push('--dynamic-config-value', setting);
  for (const { name } of Object.values(SEARCH_ATTRIBUTES)) args.push('--search-attribute', `${name}=Keyword`);
  const log = openSync(logFile, 'a', 0o600);
  const child = spawn(findTemporal(), args, { stdio: ['ignore', log, log], detached: true });
  closeSync(log);
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const address = `127.0.0.1:${port}`;
  for (let up = false; !up; ) {
    if (child.exitCode !== null) throw new Error(`the Temporal server ended at start: see ${logFile} (is port ${port} or ${uiPort} taken?)`);
    up = await answers(address);
    if (!up) await delay(50);
  }
  return {
    address,
    uiUrl: `http://127.0.0.1:${uiPort}`,
    pid: child.pid!,
    stop: async () => {
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), 5_000);
      await exited;
      clearTimeout(timer);
    },
  };
}

async function answers(address: string): Promise<boolean> {
  try {
    const connection = await Connection.connect({ address, connectTimeout: '1 second' });
    try {
      // The port opens before the namespace is there.
      await connection.workflowService.describeNamespace({ namespace: 'default' });
      return true;
    } finally {
      await connection.close();
    }
  } catch {
    return false;
  }
}
