import type { ProcessIdentity } from '../../hypervisor/processes';
import { SPOKEN } from '../../qmp/spoken';
import { Refused, type Served, SimulatedMonitor } from './qmp-server';
import type { BlockGraph } from './block-graph';
import type { SimulatedHost } from './hypervisor';

export type Handler = (args: Record<string, unknown>) => unknown;

/** Far above what Linux gives, so that no simulated process is taken for a real one. */
let nextPid = 2 ** 30;

/** A simulated process: it has a pid, perhaps monitors, and ends once. */
export abstract class SimulatedProcess implements ProcessIdentity {
  readonly pid = nextPid++;
  readonly startTime = this.pid;
  /** How it ended, once it has. */
  exitCode: number | undefined;

  constructor(readonly host: SimulatedHost, readonly argv: string[], readonly pidFile: string | undefined) {}

  get alive(): boolean {
    return this.exitCode === undefined;
  }

  /** Ends it at once, as SIGKILL would. Idempotent. */
  kill(exitCode = 137): void {
    if (!this.alive) return;
    this.exitCode = exitCode;
    this.ended();
  }

  /** It was asked to end by SIGTERM. */
  terminate(): void {
    this.kill(0);
  }

  protected abstract ended(): void;
}

/** A program with a main loop and QMP monitors: QEMU, or its storage daemon. */
export abstract class SimulatedProgram extends SimulatedProcess implements Served {
  thawed: Promise<void> | undefined;
  /** Rest of the argv that a message names. */
  printed: string[] = [];
  private thaw: (() => void) | undefined;
  private readonly monitors: SimulatedMonitor[] = [];
  /** What holds the main loop: it takes no in-band command meanwhile. */
  private readonly busy = new Set<Promise<unknown>>();
  abstract readonly blocks: BlockGraph;
  protected abstract readonly handlers: Record<string, Handler>;
  protected abstract readonly oobHandlers: Record<string, Handler>;

  async listen(paths: string[]): Promise<void> {
    for (const path of paths) this.monitors.push(await SimulatedMonitor.listen(path, this));
  }

  /** As SIGSTOP does: it answers nobody, and takes no byte. */
  freeze(): void {
    this.host.world.network.advance();
    this.thawed ??= new Promise((resolve) => (this.thaw = resolve));
  }

  unfreeze(): void {
    this.host.world.network.advance();
    this.thaw?.();
    this.thawed = undefined;
  }

  async turn(): Promise<void> {
    while (this.busy.size > 0) await Promise.race(this.busy);
    const { latencyMs } = this.host.world;
    if (latencyMs > 0) await new Promise((resolve) => setTimeout(resolve, latencyMs));
  }

  /** Holds the main loop until `work` is done. */
  async holdLoop<T>(work: Promise<T>): Promise<T> {
    const held: Promise<unknown> = work.then(() => undefined, () => undefined).then(() => this.busy.delete(held));
    this.busy.add(held);
    return await work;
  }

  execute(command: string, args: Record<string, unknown>): unknown {
    if (command === 'qmp_capabilities') throw new Refused('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
    const handler = this.handlers[command];
    if (!handler) throw new Refused(`The command ${command} has not been found`, 'CommandNotFound');
    checkArguments(command, args);
    this.host.world.network.advance();
    return handler(args);
  }

  executeOob(command: string, args: Record<string, unknown>): unknown {
    const handler = this.oobHandlers[command];
    if (!handler) throw new Refused(`The command ${command} does not support OOB`);
    this.host.world.network.advance();
    return handler(args);
  }

  event(event: string, data?: object): void {
    if (this.alive) this.monitors.forEach((monitor) => monitor.event(event, data));
  }

  protected ended(): void {
    // Whoever waits for it shall see that it is gone.
    this.unfreeze();
    this.monitors.forEach((monitor) => monitor.close());
  }
}

const REQUIRED: Record<string, string[]> = {
  'blockdev-del': ['node-name'], 'blockdev-add': ['driver'], 'blockdev-mirror': ['device', 'target', 'sync'], 'block-job-cancel': ['device'], 'job-dismiss': ['id'], migrate: ['uri'], 'migrate-incoming': ['uri'],
  'migrate-continue': ['state'], 'block-export-add': ['type', 'id', 'node-name'], 'block-export-del': ['id'], 'nbd-server-start': ['addr'], 'object-add': ['qom-type', 'id'],
};

function checkArguments(command: string, args: Record<string, unknown>): void {
  const missing = REQUIRED[command]?.find((name) => !(name in args));
  if (missing) throw new Refused(`Parameter '${missing}' is missing`);
  const spoken = SPOKEN[command as keyof typeof SPOKEN] as { arguments: object; more?: object } | undefined;
  if (!spoken || spoken.more) return;
  const unexpected = Object.keys(args).find((name) => !(name in spoken.arguments));
  if (unexpected) throw new Refused(`Parameter '${unexpected}' is unexpected`);
}
