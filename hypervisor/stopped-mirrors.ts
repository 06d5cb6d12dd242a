import type { QmpConnection } from '../qmp/connection';
import { isStopped, MirrorFailed, type MirrorState, type MirrorTarget } from './mirrors';
import { nbdAnswers } from './nbd-probe';

/** How often a mirror that QEMU has stopped is let go on, and how long the export may take to answer before. */
const EVERY_MS = 1_000;
const ANSWER_MS = 500;
/**
 * How often a mirror may fail in a row, with an export that answers, before the disk behind it is at fault. More than one: the first request after a cut
 * only makes QEMU's NBD client connect again.
 */
const MOST_ERRORS = 6;

/**
 * Mirrors that QEMU has stopped since their target could not be written, mostly as the link was cut. They go on as soon as the export answers again,
 * and copy again only what had failed. That is sound as an export's name cannot be guessed and lives as long as its storage daemon: what was written
 * to one that has ended since, perhaps with its host, is not counted on.
 */
export class StoppedMirrors {
  private readonly failures = new Map<string, { offsetBytes: number; count: number }>();
  private askedAt = -Infinity;

  /** Lets them go on where that may help. Says whether any stands still. Throws `MirrorFailed` if the export is gone for good, or its disk is at fault. */
  async goOn(qmp: QmpConnection, targets: MirrorTarget[], states: MirrorState[]): Promise<boolean> {
    const stopped = states.filter((state) => isStopped(state) && state.ioStatus === 'failed');
    if (stopped.length === 0) return false;
    if (performance.now() - this.askedAt < EVERY_MS) return true;
    this.askedAt = performance.now();
    const { host, port } = targets[0]!;
    try {
      await nbdAnswers(host, port, ANSWER_MS);
    } catch (error) {
      // Nobody listens: the storage daemon has ended, and its exports with it.
      if (/ECONNREFUSED/.test((error as Error).message)) throw error;
      return true;
    }
    for (const { id, job, offsetBytes } of stopped) {
      const before = this.failures.get(job);
      const count = before?.offsetBytes === offsetBytes ? before.count + 1 : 1;
      if (count > MOST_ERRORS) throw new MirrorFailed(`the destination could not write disk ${id}, ${MOST_ERRORS} times in a row, though its storage daemon answers`);
      this.failures.set(job, { offsetBytes, count });
      await qmp.execute('job-resume', { id: job });
    }
    return true;
  }
}
