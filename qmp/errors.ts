/** Anything that goes wrong between us and a QMP monitor. `monitor` is the path of its socket. */
export class QmpError extends Error {
  override readonly name: string = 'QmpError';

  constructor(
    readonly monitor: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** QEMU's error classes. Only `GenericError` is common; the text in `desc` then says more, and steps classify it (facts/qemu.md §6). */
export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound' | 'KVMMissingCap' | (string & Record<never, never>);

const REMEDY: Record<string, string> = {
  CommandNotFound: 'this QEMU lacks the command: use one that has it',
  DeviceNotActive: 'it may have ended already: ask for its state',
  DeviceNotFound: 'check the name against what is there',
  KVMMissingCap: 'this host has no KVM that can do it',
};

/** QEMU understood the command and refused it, or tried and failed. Repeating it unchanged gives the same answer. */
export class QmpCommandFailed extends QmpError {
  override readonly name = 'QmpCommandFailed';

  constructor(
    monitor: string,
    readonly command: string,
    readonly errorClass: QmpErrorClass,
    readonly desc: string,
  ) {
    super(monitor, `QEMU at ${monitor} refused ${command}: ${desc} (${errorClass}); ${REMEDY[errorClass] ?? 'put right what it names, then repeat'}`);
  }
}

/**
 * There is no connection, or it ended. With `command` it is not known whether that took effect: reconnect and look, as QEMU does not
 * repeat events either.
 */
export class QmpDisconnected extends QmpError {
  override readonly name = 'QmpDisconnected';
  readonly command?: string;

  constructor(
    monitor: string,
    readonly why: string,
    options: ErrorOptions & { command?: string } = {},
  ) {
    const doubt = options.command === undefined ? '' : `, with ${options.command} unanswered: reconnect and ask whether it took effect`;
    super(monitor, `no connection to QEMU at ${monitor}: ${why}${doubt}`, options);
    if (options.command !== undefined) this.command = options.command;
  }
}

/** Nothing came in time. A late reply is dropped, yet QEMU may still carry the command out. */
export class QmpTimeout extends QmpError {
  override readonly name = 'QmpTimeout';
  readonly command?: string;

  constructor(
    monitor: string,
    readonly timeoutMs: number,
    waitedFor: { command: string } | { what: string },
  ) {
    const command = 'command' in waitedFor ? waitedFor.command : undefined;
    const remedy = command === undefined ? 'look at the state instead of waiting on' : 'its main loop may hang on a dead peer: yank that out of band, then ask for the state';
    super(monitor, `QEMU at ${monitor} gave no ${'what' in waitedFor ? waitedFor.what : `answer to ${waitedFor.command}`} within ${timeoutMs} ms; ${remedy}`);
    if (command !== undefined) this.command = command;
  }
}

/** The process that holds a monitor. */
export interface MonitorHolder {
  pid: number;
  name: string;
}

/** The monitor takes one client at a time, and has another: the kernel accepted our connection, QEMU did not greet. */
export class QmpMonitorBusy extends QmpError {
  override readonly name = 'QmpMonitorBusy';
  readonly holder?: MonitorHolder;

  constructor(monitor: string, holder: MonitorHolder | undefined, options?: ErrorOptions) {
    const who = !holder
      ? 'another client holds it, or QEMU hangs: find the other end with "ss -xp" and let it disconnect'
      : holder.pid === process.pid
        ? `another connection of this very process (pid ${holder.pid}) holds it: share one QmpMonitor per path`
        : `${holder.name} (pid ${holder.pid}) holds it: let it disconnect, or give QEMU a second -qmp socket`;
    super(monitor, `the QMP monitor ${monitor} does not greet: ${who}`, options);
    if (holder) this.holder = holder;
  }
}

/** What the peer sent is not QMP, or more than the bound. The connection is ended. */
export class QmpProtocolError extends QmpError {
  override readonly name = 'QmpProtocolError';

  constructor(monitor: string, what: string, options?: ErrorOptions) {
    super(monitor, `what answers at ${monitor} does not speak QMP as expected: ${what}; check that the path is a QMP (not HMP or serial) socket`, options);
  }
}
