import { parseArguments, readFields } from '../../hypervisor/qemu-options';
import { BlockGraph } from './block-graph';
import type { SimulatedHost } from './hypervisor';
import { type Handler, SimulatedProgram } from './program';
import { VERSION } from './qmp-server';

/** A qemu-storage-daemon as vmferry starts it: a monitor, images, throttle groups and an NBD server that greets on a real port. */
export class SimulatedStorageDaemon extends SimulatedProgram {
  readonly sockets: string[];
  readonly blocks: BlockGraph = new BlockGraph(this);

  constructor(host: SimulatedHost, argv: string[], pidFile: string | undefined) {
    super(host, argv, pidFile);
    this.sockets = parseArguments(argv).filter(({ flag }) => flag === 'chardev').map((option) => readFields(option)['path']!);
  }

  protected readonly handlers: Record<string, Handler> = {
    ...this.blocks.handlers,
    'query-version': () => VERSION,
    quit: () => void setImmediate(() => this.kill(0)),
  };

  protected readonly oobHandlers: Record<string, Handler> = { 'query-yank': () => [], yank: () => undefined };

  protected override ended(): void {
    this.blocks.close();
    super.ended();
  }
}
