import { QmpConnection } from '../../qmp/connection';

type Hook = (tapped: { path: string; args: Record<string, unknown> | undefined }) => Promise<void> | void;

/**
 * Sees every in-band command just before an agent of this process sends it to a real QEMU. A hook may look, or do harm, at exactly that moment.
 * The test's own connections (to `look.sock`) are left out.
 */
export class QmpTap {
  readonly sent: { path: string; command: string; args: Record<string, unknown> | undefined }[] = [];
  private readonly hooks = new Map<string, Hook[]>();
  private readonly original = QmpConnection.prototype.execute;

  constructor() {
    const { sent, hooks, original } = this;
    QmpConnection.prototype.execute = async function (this: QmpConnection, command: string, ...rest: unknown[]) {
      if (!this.path.endsWith('look.sock')) {
        const args = rest[0] as Record<string, unknown> | undefined;
        for (const hook of hooks.get(command) ?? []) await hook({ path: this.path, args });
        sent.push({ path: this.path, command, args });
      }
      return await (original as (...all: unknown[]) => Promise<unknown>).call(this, command, ...rest);
    };
  }

  /** Runs `hook` before each `command` that goes to a monitor whose path contains `host`. */
  before(host: string, command: string, hook: Hook): void {
    const list = this.hooks.get(command) ?? [];
    list.push(async (tapped) => {
      if (tapped.path.includes(`/${host}/`)) await hook(tapped);
    });
    this.hooks.set(command, list);
  }

  /** The same, but only the first time. */
  once(host: string, command: string, hook: Hook): void {
    let done = false;
    this.before(host, command, async (tapped) => {
      if (done) return;
      done = true;
      await hook(tapped);
    });
  }

  reset(): void {
    this.hooks.clear();
    this.sent.length = 0;
  }

  restore(): void {
    QmpConnection.prototype.execute = this.original;
  }
}
