import { once } from 'node:events';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, watch } from 'node:fs';
import { dirname } from 'node:path';
import { monitorPath, qemuArguments } from '../../hypervisor/command-line';
import type { Definition } from '../../hypervisor/definition';
import { type HostConfig, runFolder } from '../../hypervisor/host-config';
import { QmpMonitor } from '../../qmp/monitor';

export const QEMU = '/usr/bin/qemu-system-x86_64';

/** A QEMU of the test, ended by its own handle. `print` is what it wrote. */
export class LiveGuest {
  readonly monitor: QmpMonitor;
  printed = '';
  private constructor(
    readonly child: ChildProcess,
    socket: string,
  ) {
    this.monitor = new QmpMonitor(socket, { timeoutMs: 2_000 });
    child.stderr?.on('data', (data: Buffer) => (this.printed += data.toString()));
  }

  /** Resolves when QMP answers; rejects with what QEMU printed if it ends before. */
  static async start(argv: string[], socket: string, cwd = '/'): Promise<LiveGuest> {
    const appeared = new Promise<void>((resolve) => {
      const watcher = watch(dirname(socket), () => {
        if (!existsSync(socket)) return;
        watcher.close();
        resolve();
      }).unref();
    });
    const child = spawn(QEMU, argv, { cwd, stdio: ['ignore', 'ignore', 'pipe'] });
    const guest = new LiveGuest(child, socket);
    let ended = false;
    const end = once(child, 'close').then(() => {
      ended = true;
      throw new Error(guest.printed);
    });
    end.catch(() => undefined);
    // The socket is made early, and answers once QEMU's main loop runs: asking is waiting.
    const answer = async () => {
      await appeared;
      for (;;) {
        try {
          return await guest.monitor.execute('query-status');
        } catch (error) {
          if (ended) throw error;
        }
      }
    };
    await Promise.race([answer(), end]);
    return guest;
  }

  static async launch(config: HostConfig, definition: Definition): Promise<LiveGuest> {
    mkdirSync(runFolder(config, definition.name), { recursive: true });
    return LiveGuest.start(qemuArguments(config, definition, { incoming: true }), monitorPath(config, definition));
  }

  get pid(): number {
    return this.child.pid!;
  }

  /** A command for people, of which our vocabulary has none. */
  async human(command: string): Promise<string> {
    const execute = this.monitor.execute as unknown as (name: string, args: object) => Promise<string>;
    return await execute('human-monitor-command', { 'command-line': command });
  }

  /** All that the guest can see: devices, their addresses and properties. Which file is behind a disk is not. */
  async machine(): Promise<object> {
    const blocks = await this.monitor.execute('query-block');
    return {
      tree: (await this.human('info qtree')).replace(/#block\d+/g, '#block'),
      pci: await this.human('info pci'),
      memory: await this.monitor.execute('query-memory-size-summary'),
      blocks: blocks.map(({ device, qdev, removable, inserted }) => ({
        device, qdev, removable, size: inserted?.image['virtual-size'], format: inserted?.drv, readOnly: inserted?.ro, cache: inserted?.cache, node: inserted?.['node-name']?.replace(/#.*/, '#'),
      })),
    };
  }

  async end(): Promise<void> {
    this.monitor.close();
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const closed = once(this.child, 'close');
    this.child.kill('SIGKILL');
    await closed;
  }
}

/** Moves the whole state of one QEMU into another that waits for it; rejects with QEMU's words unless the receiver has taken all of it. */
export async function migrate(source: LiveGuest, destination: LiveGuest, socket: string): Promise<void> {
  for (const { monitor } of [source, destination]) await monitor.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
  const events = (await destination.monitor.connection()).listen('MIGRATION');
  await destination.monitor.execute('migrate-incoming', { uri: `unix:${socket}` });
  await source.monitor.execute('migrate', { uri: `unix:${socket}` });
  for (;;) {
    const { data } = await events.next({ timeoutMs: 20_000 }).catch(() => Promise.reject(new Error(`not received: ${destination.printed}`)));
    if (data.status === 'completed') return events.close();
    if (data.status === 'failed') throw new Error(`not received: ${destination.printed}`);
  }
}
