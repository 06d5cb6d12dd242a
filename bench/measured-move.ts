import type { Migration } from '../client/migration-client';
import { crossingGapMs, GUEST, HOSTS, type Stage } from '../demo/stage';
import { hostNowMs } from '../demo/guest/test-guest';
import { type Recorder, type Span, uncovered } from './recorder';

/** Where the time of one move of the demo guest went; all in milliseconds. */
export interface MeasuredMove {
  migration: Migration;
  guestGap: number;
  window: number;
  parts: Record<string, number>;
  oursInWindow: number;
  began: number;
  ended: number;
  total: number;
  ours: number;
  /** When QEMU, or a tool of its family, had something to do for us. */
  qemu: Pick<Span, 'from' | 'to'>[];
}

/** Moves the demo guest there and back, with `move` as the number of the move. */
export async function measureMove(stage: Stage, recorder: Recorder, move: number): Promise<MeasuredMove> {
  const [from, to] = move % 2 === 0 ? [HOSTS[0], HOSTS[1]] : [HOSTS[1], HOSTS[0]];
  recorder.clear();
  const began = hostNowMs();
  const migration = await stage.client.migrate({ vm: GUEST, to, sourceDisks: 'wipe', maxDowntimeMs: 2_000 });
  const over = new AbortController();
  void stage.guest.stayAttached(stage.serialSocket(to), over.signal);
  await migration.result().finally(() => over.abort());
  const ended = hostNowMs();
  await stage.guest.nextTick();
  const stopped = recorder.heard(from, 'STOP');
  const resumed = recorder.heard(to, 'RESUME');
  const preSwitchover = recorder.heard(from, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  const cancelled = recorder.sent(from, 'block-job-cancel');
  // Until the last look at the mirrors they had something left.
  const drained = Math.max(preSwitchover, recorder.lastSent(from, 'query-block-jobs', cancelled) ?? 0);
  const concluded = recorder.heard(from, 'JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
  const continued = recorder.sent(from, 'migrate-continue');
  const completed = recorder.heard(to, 'MIGRATION', ({ status }) => status === 'completed');
  const cont = recorder.sent(to, 'cont');
  // While QEMU works towards an event that we wait for, it is QEMU's time.
  const waits = [{ from: stopped, to: drained }, { from: cancelled, to: concluded }, { from: continued, to: completed }, { from: cont, to: resumed }];
  const copying = [{ from: recorder.sent(from, 'blockdev-mirror'), to: recorder.heard(from, 'BLOCK_JOB_READY') }, { from: recorder.sent(from, 'migrate'), to: stopped }];
  const qemu = [...recorder.spans.filter(({ what }) => what !== 'query-migrate'), ...waits, ...copying];
  return {
    migration,
    guestGap: crossingGapMs(stage.guest.ticksSince(began)) ?? Number.NaN,
    window: resumed - stopped,
    parts: {
      'STOP → pre-switchover': preSwitchover - stopped,
      '→ mirrors have nothing left': drained - preSwitchover,
      '→ mirrors asked to end': cancelled - drained,
      '→ mirrors ended': concluded - cancelled,
      '→ migrate-continue': continued - concluded,
      '→ completed at the destination': completed - continued,
      '→ cont': cont - completed,
      '→ RESUME': resumed - cont,
    },
    oursInWindow: uncovered(stopped, resumed, [...recorder.spans, ...waits]),
    began,
    ended,
    total: ended - began,
    ours: uncovered(began, ended, qemu),
    qemu,
  };
}

/** Throws if the guest lost anything: its figures are worth nothing then. */
export async function assertWhole(stage: Stage): Promise<void> {
  const { blocksLost, memoryErrors } = await stage.guest.verify();
  if (blocksLost > 0 || memoryErrors > 0) throw new Error(`${blocksLost} blocks lost, ${memoryErrors} pages damaged: these figures are worth nothing`);
}
