import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { MigrationClient } from '../../client';
import { type RunningWorker, startControlWorker } from '../../workers/control';
import { freePort, startTemporalServer, type TemporalServer } from '../../workers/temporal-server';
import type { GuestReport } from '../../workflows/fleet';
import { CONTROL_QUEUE, type HostReport, hostQuery, hostWorkflowId, reportSignal } from '../../workflows/messages';
import { runCli, type Said } from './run-cli';

const GIB = 2 ** 30;

/** A Temporal server and a control worker, and hosts that only say that they are there: nobody answers for them. */
export class FleetStage {
  private constructor(readonly server: TemporalServer, readonly client: MigrationClient, private readonly folder: string, private readonly control: RunningWorker) {}

  static async start(): Promise<FleetStage> {
    const folder = mkdtempSync(join(tmpdir(), 'vmferry-fleet-'));
    const server = await startTemporalServer({ port: await freePort(), uiPort: await freePort(), logFile: join(folder, 'temporal.log') });
    const temporal = { address: server.address, namespace: 'default' };
    const control = await startControlWorker({ temporal, logger: pino({ level: 'silent' }) });
    return new FleetStage(server, await MigrationClient.connect(temporal), folder, control);
  }

  async stop(): Promise<void> {
    await this.client.close();
    await this.control.stop();
    await this.server.stop();
    rmSync(this.folder, { recursive: true });
  }

  /** A host reports; it is listed when this resolves. */
  async report(name: string, guests: GuestReport[] = [], labels: Record<string, string> = {}): Promise<void> {
    const report: HostReport = {
      name,
      address: '127.0.0.1',
      guests,
      totalMemoryBytes: 64 * GIB,
      freeMemoryBytes: 32 * GIB,
      roots: [{ name: 'images', fileSystem: `disk of ${name}`, freeBytes: 500 * GIB }],
      facts: { labels, slots: { outgoing: 2, incoming: 2 }, processor: 'a processor', qemu: [{ path: '/usr/bin/qemu-system-x86_64', version: '7.2.0', machines: ['q35'], cpuModels: ['qemu64'] }] },
    };
    const handle = await this.client.temporal.workflow.signalWithStart('host', { workflowId: hostWorkflowId(name), taskQueue: CONTROL_QUEUE, args: [name], signal: reportSignal, signalArgs: [report] });
    while ((await handle.query(hostQuery))?.guests.length !== guests.length);
    while (!(await this.client.hosts()).some((host) => host.name === name));
  }

  async vmferry(...args: string[]): Promise<Said> {
    return await runCli(this.server.address, ...args);
  }
}

export function guest(name: string, more: Partial<GuestReport> = {}): GuestReport {
  return { name, state: 'running', memoryBytes: GIB, disks: [{ root: 'images', bytes: 10 * GIB }], machine: 'q35', cpuModel: 'qemu64', labels: {}, migratable: 'always', antiAffinity: [], hostSelector: '', ...more };
}
