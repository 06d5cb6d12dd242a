/** Tells a switchover under way that it is not wanted any more. */
export interface SwitchoverSignals {
  /** The user cancels: give up before the point of no return. */
  cancel: AbortSignal;
  /** Leave QEMU as it is; somebody else goes on. A window that has begun is finished all the same. */
  leave: AbortSignal;
}

export interface Task<T> {
  result: Promise<T>;
  cancel(): void;
  leave(): void;
}

/** The task was left: its work goes on elsewhere, or by a later call. */
export class TaskLeft extends Error {
  override readonly name = 'TaskLeft';
}

/**
 * The switchovers that this process works on: one a guest at a time. They are not the activities that start them: an activity that Temporal has
 * given up on (its heartbeat came late, or its workflow was terminated) is gone, yet the guest may be paused, and two that act on one
 * switchover could send `migrate_cancel` and `migrate-continue` side by side. A retried activity finds the work of its predecessor going on.
 */
export class Switchovers {
  private readonly tasks = new Map<string, Task<unknown> & { key: string }>();

  /** The guest's task with this key, if it is under way; else a new one, after whatever else works on the guest has let go. */
  async start<T>(guest: string, key: string, work: (signals: SwitchoverSignals) => Promise<T>): Promise<Task<T>> {
    for (let other = this.tasks.get(guest); other; other = this.tasks.get(guest)) {
      if (other.key === key) return other as Task<T> & { key: string };
      other.leave();
      await settled(other.result);
    }
    const [cancel, leave] = [new AbortController(), new AbortController()];
    const result = work({ cancel: cancel.signal, leave: leave.signal });
    const task = { key, result, cancel: () => cancel.abort(new TaskLeft('cancelled')), leave: () => leave.abort(new TaskLeft(`somebody else goes on with guest ${guest}`)) };
    this.tasks.set(guest, task);
    void settled(result).then(() => {
      if (this.tasks.get(guest) === task) this.tasks.delete(guest);
    });
    return task;
  }

  /** Lets go of a guest, or of all, and waits until that is done: at most as long as a window. */
  async leave(guest?: string): Promise<void> {
    const tasks = [...this.tasks].filter(([name]) => guest === undefined || name === guest).map(([, task]) => task);
    tasks.forEach((task) => task.leave());
    await Promise.all(tasks.map(({ result }) => settled(result)));
  }
}

async function settled(promise: Promise<unknown>): Promise<void> {
  await promise.then(() => undefined, () => undefined);
}
