import { setTimeout as delay } from 'node:timers/promises';
import { QmpMonitorBusy } from '../qmp/errors';
import { endRemedy } from './copy-mode';
import type { GuardJob } from './guard';
import { guardSource } from './handover';
import type { Host } from './host';
import { takeOver } from './takeover';

/** What a guard does when the one whom it watches has ended without a word: finishes the window. `leave`: somebody else goes on. */
export async function finishWindow(host: Host, job: GuardJob, leave: AbortSignal): Promise<void> {
  while (!leave.aborted && host.process(job.guest)) {
    try {
      await act(host, job, leave);
      return;
    } catch (error) {
      // The kernel closes a dead agent's connections, and QEMU notices a moment later.
      if (!(error instanceof QmpMonitorBusy)) throw error;
      await delay(5);
    }
  }
}

async function act(host: Host, job: GuardJob, leave: AbortSignal): Promise<void> {
  const { guest } = job;
  switch (job.role) {
    case 'source':
      return await guardSource(host, guest, job.plan, leave);
    case 'destination':
      return void (await takeOver(host, undefined, guest, job.attempt, leave));
    case 'remedy':
      return await endRemedy(host, guest);
  }
}
