import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '../hypervisor/host';
import type { HandOverPlan } from '../hypervisor/handover-plan';
import { mirrorStates } from '../hypervisor/mirrors';
import { StoppedMirrors } from '../hypervisor/stopped-mirrors';
import type { QmpConnection } from '../qmp/connection';
import { MemorySupervision } from '../workflows/memory-convergence';
import type { TraceRecorder } from '../workflows/trace';
import type { MigrationRef, Progress, Step } from './context';
import { Quarters } from './quarters';

const SAMPLE_MS = 500;
/** How much was sent in all is worth no wait. */
const LAST_LOOK_MS = 500;
/** Of the whole budget; the rest is for the disks, and for the hand-over itself. */
const MOST_FOR_MEMORY = 0.8;

/** Shows how far the memory is, tells the workflow when its verdict changes, and gives it more of the downtime budget when it does not converge. */
export async function watchMemory(host: Host, input: MigrationRef & { handOver: HandOverPlan }, step: Step, recorder: TraceRecorder, over: AbortSignal): Promise<void> {
  const { settings, maxDowntimeMs } = input.handOver;
  const supervision = new MemorySupervision();
  const stopped = new StoppedMirrors();
  const quarters = new Quarters(Date.now());
  let downtimeLimitMs = settings.downtimeLimitMs;
  try {
    const qmp = await host.monitor(input.guest).connection();
    while (!over.aborted && qmp.isOpen) {
      const { ram, status } = await qmp.execute('query-migrate');
      if (status === 'pre-switchover' || status === 'device') step.progress({ phase: 'switchover' });
      else if (status?.startsWith('postcopy') && ram) step.progress({ phase: 'switchover', memory: { remainingBytes: ram.remaining, totalBytes: ram.total, dirtyBytesPerSecond: 0, bytesPerSecond: ((ram.mbps ?? 0) * 1e6) / 8, sentBytes: ram.transferred } });
      else if (ram) {
        const memory = { remainingBytes: ram.remaining, totalBytes: ram.total, dirtyBytesPerSecond: (ram['dirty-pages-rate'] ?? 0) * (ram['page-size'] ?? 4096), bytesPerSecond: ((ram.mbps ?? 0) * 1e6) / 8, sentBytes: ram.transferred };
        recorder.push(Date.now(), [{ id: 'memory', remainingBytes: memory.remainingBytes, copyBytesPerSecond: memory.bytesPerSecond, dirtyBytesPerSecond: memory.dirtyBytesPerSecond }]);
        const said = supervision.push({ ...memory, atMs: Date.now(), transferredBytes: ram.transferred, downtimeLimitMs });
        step.progress({ phase: 'memory', ...(await disksOf(qmp, input, stopped)), memory: { ...memory, predictedDowntimeMs: said.predictedDowntimeMs }, verdict: { verdict: said.verdict, message: said.message } });
        if (said.changed || quarters.isNews(memory.remainingBytes, memory.totalBytes, Date.now())) {
          quarters.told(Date.now());
          await step.tell({ memory: { ...memory, verdict: said.verdict, predictedDowntimeMs: said.predictedDowntimeMs, message: said.message } });
        }
        if (said.changed && said.verdict !== 'converging' && downtimeLimitMs < maxDowntimeMs * MOST_FOR_MEMORY && !settings.postCopy) {
          downtimeLimitMs = Math.round(maxDowntimeMs * MOST_FOR_MEMORY);
          step.log.info({ downtimeLimitMs }, 'memory does not converge: gives it more of the downtime budget');
          await qmp.execute('migrate-set-parameters', { 'downtime-limit': downtimeLimitMs });
        }
      }
      await delay(SAMPLE_MS, undefined, { signal: over }).catch(() => undefined);
    }
    const { ram } = await qmp.execute('query-migrate', undefined, { timeoutMs: LAST_LOOK_MS });
    if (ram) step.progress({ phase: 'switchover', memory: { remainingBytes: ram.remaining, totalBytes: ram.total, dirtyBytesPerSecond: 0, bytesPerSecond: 0, sentBytes: ram.transferred } });
  } catch (error) {
    // What is shown is of no account for what is done.
    step.log.debug({ error: (error as Error).message }, 'progress of the memory cannot be read');
  }
}

/** Mirrors that lost their connection while memory is sent go on as soon as they can, so that they are whole when the guest is paused. */
async function disksOf(qmp: QmpConnection, { attempt, handOver: { targets } }: MigrationRef & { handOver: HandOverPlan }, stopped: StoppedMirrors): Promise<Pick<Progress, 'disks'>> {
  const states = await mirrorStates(qmp, targets, attempt).catch(() => []);
  // What cannot be mended is met by the hand-over itself.
  await stopped.goOn(qmp, targets, states).catch(() => undefined);
  return { disks: states.map(({ id, remainingBytes, lengthBytes, offsetBytes, ready }) => ({ id, remainingBytes, lengthBytes, ready, bytesPerSecond: 0, copiedBytes: offsetBytes })) };
}
