import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { type HostConfig, hostConfigSchema } from '../hypervisor/host-config';
import { parseWith } from '../hypervisor/definition';
import { ensureCertificates } from '../hypervisor/lab-certificates';
import { type RunningWorker, startControlWorker } from './control';
import { startHostAgent } from './host-agent';
import { freePort, startTemporalServer, type TemporalServer } from './temporal-server';

export interface DevOptions {
  /** Everything lives below this folder: state, run files, images, the server's database. */
  folder: string;
  hosts: string[];
  /** An address that all hosts share; IPv4 or IPv6. */
  address?: string;
  /** Default: free ones. */
  port?: number;
  uiPort?: number;
  /** Guests travel as plain text; without it by TLS, with certificates that are made below the folder. */
  insecure?: boolean;
  /** Further roots of every host, such as where kernels are. */
  roots?: Record<string, string>;
  logger: Logger;
}

export interface DevStack {
  server: TemporalServer;
  configs: Record<string, HostConfig>;
  /** Rejects if a worker fails. */
  done: Promise<void>;
  stop(): Promise<void>;
}

/** As long as anybody tries it out. */
const CERTIFICATE_DAYS = 3650;

/** The configuration of one host of a development stack: its own state, run and images folders below `folder`. `extra` says at least how disks and memory travel. */
export function devHostConfig(folder: string, name: string, temporalAddress: string, extra: Record<string, unknown>, roots: Record<string, unknown> = {}): HostConfig {
  const images = join(folder, name, 'images');
  mkdirSync(images, { recursive: true });
  return parseWith(
    hostConfigSchema,
    {
      name,
      address: '127.0.0.1',
      temporal: { address: temporalAddress, namespace: 'default' },
      stateDir: join(folder, name, 'state'),
      runDir: join(folder, name, 'run'),
      roots: { images, ...roots },
      ...extra,
    },
    `the configuration of ${name}`,
  );
}

/** Runs everything on this machine: a Temporal server with its UI, the control worker and an agent a host. Guests outlive it. */
export async function startDevStack(options: DevOptions): Promise<DevStack> {
  const { folder, hosts, logger } = options;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const server = await startTemporalServer({ port: options.port ?? (await freePort()), uiPort: options.uiPort ?? (await freePort()), database: join(folder, 'temporal.db'), logFile: join(folder, 'temporal.log') });
  const running: RunningWorker[] = [];
  const stop = async () => {
    await Promise.all(running.map((one) => one.stop()));
    await server.stop();
  };
  try {
    const certificates = join(folder, 'certs');
    if (!options.insecure) await ensureCertificates(certificates, hosts.map((name) => ({ name })), CERTIFICATE_DAYS);
    const extra = (host: string) => ({ ...(options.insecure ? { insecure: true } : { tls: { dir: join(certificates, host) } }), ...(options.address && { address: options.address }) });
    const configs = Object.fromEntries(hosts.map((host) => [host, devHostConfig(folder, host, server.address, extra(host), options.roots)]));
    running.push(await startControlWorker({ temporal: { address: server.address, namespace: 'default' }, logger }));
    for (const config of Object.values(configs)) running.push(await startHostAgent(config, logger));
    const done = Promise.race(running.map((one) => one.done));
    done.catch(() => undefined);
    return { server, configs, done, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
