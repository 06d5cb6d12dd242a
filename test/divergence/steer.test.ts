import type { Assessment } from '../../workflows/convergence';
import { PHASES } from '../../workflows/phases';
import { refuseSteer, type Steer, steerSchema, type SteerSituation } from '../../workflows/steer';
import { MB, START_MS } from './mirror-model';

const SIGNED = { author: 'ada', reason: 'the batch job ends at six' };
const steer = (what: Record<string, unknown>): Steer => steerSchema.parse({ ...what, ...SIGNED });
const FUTURE = new Date(START_MS + 60_000).toISOString();
const PAST = new Date(START_MS - 60_000).toISOString();
const ALL = [
  { do: 'lift-limits' },
  { do: 'set-bandwidth', bytesPerSecond: 20 * MB },
  { do: 'nudge' },
  { do: 'write-blocking' },
  { do: 'throttle', bytesPerSecond: 5 * MB },
  { do: 'unthrottle' },
  { do: 'set-max-downtime', ms: 800 },
  { do: 'wait', until: FUTURE },
  { do: 'postpone', until: FUTURE },
  { do: 'switchover-now', maxPauseMs: 5_000 },
  { do: 'abort' },
];

const assessment = (given: Partial<Assessment> = {}, ready = false): Assessment => ({
  verdict: 'hovering',
  sinceMs: START_MS,
  changed: false,
  trouble: 'guest-never-pauses',
  message: 'disk vda hovers',
  disks: [{ id: 'vda', remainingBytes: MB, lengthBytes: 100 * MB, ready, copyBytesPerSecond: 15 * MB, dirtyBytesPerSecond: 15 * MB, throughputBytesPerSecond: 50 * MB, etaMs: null, predictedDrainMs: 80 }],
  remainingBytes: MB,
  throughputBytesPerSecond: 50 * MB,
  predictedDrainMs: 80,
  stopDrainMs: 20,
  fitsBudget: false,
  ...given,
});
/** A migration in which every steer but `switchover-now` makes sense. */
const situation = (given: Partial<SteerSituation> = {}): SteerSituation => ({
  phase: 'converge',
  assessment: assessment(),
  capabilities: { capSet: true, writeBlockingLive: false, rearm: true, ioThrottle: true },
  bandwidthLive: true,
  bandwidthBytesPerSecond: 10 * MB,
  effects: { throttleBytesPerSecond: 8 * MB },
  maxDowntimeMs: 300,
  nowMs: START_MS,
  ...given,
});
const refusal = (what: Record<string, unknown>, given: Partial<SteerSituation> = {}) => refuseSteer(steer(what), situation(given));

describe('the schema', () => {
  test.each(ALL)('takes %j with an author and a reason', (what) => expect(steerSchema.parse({ ...what, ...SIGNED })).toEqual({ ...what, ...SIGNED }));
  test.each(ALL)('refuses %j without an author or a reason, or with empty ones', (what) => {
    for (const signed of [{}, { author: 'ada' }, { reason: 'because' }, { author: ' ', reason: 'because' }, { author: 'ada', reason: '' }]) expect(steerSchema.safeParse({ ...what, ...signed }).success).toBe(false);
  });
  test.each([
    { do: 'dance' },
    { do: 'throttle' },
    { do: 'throttle', bytesPerSecond: 0 },
    { do: 'throttle', bytesPerSecond: -1 },
    { do: 'throttle', bytesPerSecond: '5M' },
    { do: 'set-bandwidth', bytesPerSecond: 100 },
    { do: 'set-max-downtime', ms: 0 },
    { do: 'set-max-downtime', ms: 3_000_000 },
    { do: 'wait', until: 'tomorrow' },
    { do: 'wait', until: '2027-01-15T06:00:00' },
    { do: 'postpone' },
    { do: 'switchover-now' },
    { do: 'abort', force: true },
  ])('refuses %j', (what) => expect(steerSchema.safeParse({ ...what, ...SIGNED }).success).toBe(false));
  test('takes a time with any offset', () => expect(steer({ do: 'wait', until: '2027-01-15T06:00:00+02:00' })).toMatchObject({ until: '2027-01-15T06:00:00+02:00' }));
});

describe('a steer', () => {
  test.each(ALL.filter((what) => what.do !== 'switchover-now'))('%j makes sense while a disk hovers', (what) => expect(refusal(what)).toBeUndefined());
  test.each(ALL)('%j comes too late once the guest is being switched over', (what) => {
    for (const phase of ['switchover', 'cleanup'] as const) expect(refusal(what, { phase })).toMatch(/too late/);
  });
  test.each(ALL)('%j before any disk is copied: only what needs no disk', (what) => {
    for (const phase of ['preflight', 'prepare', 'export'] as const) {
      const answer = refusal(what, { phase });
      if (['abort', 'wait', 'postpone', 'set-max-downtime'].includes(what.do)) expect(answer).toBeUndefined();
      else expect(answer).toMatch(/no disk is copied yet/);
    }
  });
  test('may abort in every phase before the switchover', () => {
    for (const phase of PHASES.slice(0, PHASES.indexOf('switchover'))) expect(refusal({ do: 'abort' }, { phase })).toBeUndefined();
  });

  test.each<[string, Record<string, unknown>, Partial<SteerSituation>, RegExp]>([
    ['no cap is set', { do: 'lift-limits' }, { capabilities: { capSet: false, writeBlockingLive: false, rearm: true, ioThrottle: true } }, /no bandwidth cap is set/],
    ['the cap is lifted', { do: 'lift-limits' }, { effects: { limitsLifted: true } }, /lifted already/],
    ['the cap is that already', { do: 'set-bandwidth', bytesPerSecond: 10 * MB }, {}, /cap is 10.0 MB\/s already/],
    ['the export has no throttle node', { do: 'set-bandwidth', bytesPerSecond: 20 * MB }, { bandwidthLive: false }, /cannot be changed/],
    ['it diverges', { do: 'nudge' }, { assessment: assessment({ verdict: 'diverging', message: 'disk vda does not catch up' }) }, /nudge is for a mirror that hovers .*does not catch up/],
    ['all are ready', { do: 'nudge' }, { assessment: assessment({}, true) }, /all mirrors are ready/],
    ['the memory moves', { do: 'nudge' }, { phase: 'memory' }, /all mirrors are ready/],
    ['QEMU cannot throttle', { do: 'nudge' }, { capabilities: { capSet: true, writeBlockingLive: true, rearm: true, ioThrottle: false } }, /cannot throttle/],
    ['QEMU cannot throttle', { do: 'throttle', bytesPerSecond: 5 * MB }, { capabilities: { capSet: true, writeBlockingLive: true, rearm: true, ioThrottle: false } }, /cannot throttle/],
    ['it is throttled to that', { do: 'throttle', bytesPerSecond: 8 * MB }, {}, /throttled to 8.0 MB\/s already/],
    ['it is not throttled', { do: 'unthrottle' }, { effects: {} }, /not throttled/],
    ['it is write-blocking', { do: 'write-blocking' }, { effects: { writeBlocking: true } }, /write-blocking already/],
    ['QEMU can neither switch nor throttle', { do: 'write-blocking' }, { capabilities: { capSet: true, writeBlockingLive: false, rearm: true, ioThrottle: false } }, /cannot switch/],
    ['the memory moves, and it needs a stop', { do: 'write-blocking' }, { phase: 'memory' }, /not possible while the memory is moved/],
    ['it is the budget already', { do: 'set-max-downtime', ms: 300 }, {}, /300 ms already/],
    ['the time is over', { do: 'wait', until: PAST }, {}, /not in the future/],
    ['the time is over', { do: 'postpone', until: PAST }, {}, /not in the future/],
    ['the mirror has failed', { do: 'wait', until: FUTURE }, { assessment: assessment({ verdict: 'failed', message: 'No space left on device' }) }, /nothing to wait for: No space left/],
    ['the memory moves', { do: 'postpone', until: FUTURE }, { phase: 'memory' }, /memory is being moved/],
    ['a mirror was never ready', { do: 'switchover-now', maxPauseMs: 5_000 }, {}, /not all mirrors are ready: vda \(1.0 MB remain\)/],
    ['the drain takes longer', { do: 'switchover-now', maxPauseMs: 500 }, { assessment: assessment({ verdict: 'diverging', predictedDrainMs: 6_000 }, true) }, /drain of the disks alone would take 6.0 s, more than the 500 ms accepted/],
    ['nothing moves', { do: 'switchover-now', maxPauseMs: 500 }, { assessment: assessment({ verdict: 'stalled', message: 'nothing was copied' }, true) }, /does not go on: nothing was copied/],
  ])('is refused when %s: %j', (_, what, given, reason) => expect(refusal(what, given)).toMatch(reason));

  test('may switch over now when the drain fits what is accepted, though not the budget', () => {
    expect(refusal({ do: 'switchover-now', maxPauseMs: 7_000 }, { assessment: assessment({ verdict: 'diverging', predictedDrainMs: 6_000 }, true) })).toBeUndefined();
  });
  test('may switch to write-blocking while the memory moves where QEMU does it live', () => {
    expect(refusal({ do: 'write-blocking' }, { phase: 'memory', capabilities: { capSet: true, writeBlockingLive: true, rearm: true, ioThrottle: true } })).toBeUndefined();
  });
  test('may take back a nudge whose end nobody saw', () => expect(refusal({ do: 'unthrottle' }, { effects: { throttledForAMoment: true } })).toBeUndefined());
  test('is refused when nothing is known yet and it depends on it', () => {
    const unknown = situation({ phase: 'mirror' });
    delete unknown.assessment;
    expect(refuseSteer(steer({ do: 'nudge' }), unknown)).toMatch(/nothing is known/);
    expect(refuseSteer(steer({ do: 'switchover-now', maxPauseMs: 500 }), unknown)).toMatch(/nothing is known/);
  });
});
