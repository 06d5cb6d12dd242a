import fc from 'fast-check';
import type { Assessment } from '../../workflows/convergence';
import { type Capabilities, decide, type Decision, type Effects, judge, ladder, MOST_USES, type Policy, type Remedy, type RungName, RUNGS, SETTLE_MS, type Situation, THROTTLE_TO, type Tried, undoOf } from '../../workflows/divergence';
import { VERDICTS } from '../../workflows/lasting-verdict';
import { CAPABILITIES, MigrationModel, POLICY } from './migration-model';
import { MB, MirrorModel, START_MS } from './mirror-model';

const assess = (given: Partial<Assessment> & { ready?: boolean } = {}): Assessment => {
  const { ready = false, ...rest } = given;
  return {
    verdict: 'diverging',
    sinceMs: START_MS - 1_000,
    changed: true,
    trouble: 'guest-writes-faster-than-link',
    message: 'disk vda does not catch up',
    disks: [{ id: 'vda', remainingBytes: 58 * MB, lengthBytes: 300 * MB, ready, copyBytesPerSecond: 10 * MB, dirtyBytesPerSecond: 20 * MB, throughputBytesPerSecond: 10 * MB, etaMs: null, predictedDrainMs: 6_000 }],
    remainingBytes: 58 * MB,
    throughputBytesPerSecond: 10 * MB,
    predictedDrainMs: 6_000,
    stopDrainMs: 1_600,
    fitsBudget: false,
    ...rest,
  };
};
const situation = (given: Partial<Situation> = {}): Situation => ({ assessment: assess(), policy: POLICY, capabilities: { ...CAPABILITIES, capSet: true, writeBlockingLive: true }, tried: [], effects: {}, nowMs: START_MS, ...given });
const done = (remedy: Remedy, outcome: Tried['outcome'] = 'failed', by: Tried['by'] = 'policy'): Tried => ({ remedy, atMs: START_MS - 60_000, by, outcome });
const LIFT = { do: 'lift-limits' } as const;
const NUDGE = { do: 'nudge', ms: 100 } as const;
const BLOCKING = { do: 'write-blocking', by: 'block-job-change' } as const;
const THROTTLE = { do: 'throttle', bytesPerSecond: 8 * MB } as const;

describe('the ladder', () => {
  test('is climbed from the mildest rung, each time the one before did not help', () => {
    const hovering = assess({ verdict: 'hovering' });
    const climbed: Remedy[] = [];
    for (let rung = 0; rung < 4; rung++) {
      const decision = decide(situation({ assessment: hovering, tried: climbed.map((remedy) => done(remedy)) }));
      if (decision.action !== 'apply') throw new Error(`no remedy after ${climbed.length}: ${decision.why}`);
      climbed.push(decision.remedy);
    }
    expect(climbed).toEqual([LIFT, { do: 'nudge', ms: 300 }, BLOCKING, THROTTLE]);
    expect(decide(situation({ assessment: hovering, tried: climbed.map((remedy) => done(remedy)) }))).toMatchObject({ action: 'nothing', againAtMs: POLICY.disksDeadlineAtMs, why: expect.stringMatching(/nothing is left but to wait for a quieter guest, until the deadline in 10 min \(lift-limits: tried, and did not help; .*disk vda does not catch up/) });
  });

  test('has no nudge for a copy that diverges, or is ready', () => {
    expect(decide(situation({ tried: [done(LIFT)] }))).toMatchObject({ action: 'apply', remedy: BLOCKING, why: expect.stringMatching(/milder: lift-limits: tried, and did not help; nudge: only for a mirror that is near/) });
    expect(ladder(situation({ assessment: assess({ verdict: 'hovering', ready: true }) }))[1]).toEqual({ name: 'nudge', out: 'all mirrors are ready' });
  });

  test('nudges no longer than a short hold of the guest, nor than its budget', () => {
    const nudge = (remainingBytes: number, maxDowntimeMs: number) => {
      const rung = ladder(situation({ assessment: assess({ verdict: 'hovering', remainingBytes, throughputBytesPerSecond: 50 * MB }), policy: { ...POLICY, maxDowntimeMs } }))[1]!;
      return rung.remedy?.do === 'nudge' ? rung.remedy.ms : undefined;
    };
    expect([nudge(1 * MB, 500), nudge(5 * MB, 500), nudge(50 * MB, 2_000), nudge(50 * MB, 60)]).toEqual([100, 200, 500, 60]);
  });

  test('switches a mirror of an older QEMU by re-arming it, which needs its throttle', () => {
    const capabilities = { ...CAPABILITIES, writeBlockingLive: false };
    expect(decide(situation({ capabilities }))).toMatchObject({ remedy: { do: 'write-blocking', by: 're-arm' } });
    expect(decide(situation({ capabilities: { ...capabilities, ioThrottle: false } }))).toMatchObject({ action: 'nothing' });
  });

  test('throttles to what the link does, less for a guest whose small writes each cost a whole block', () => {
    const capabilities = { ...CAPABILITIES, rearm: false };
    expect(decide(situation({ capabilities }))).toMatchObject({ remedy: { do: 'throttle', bytesPerSecond: 10 * MB * THROTTLE_TO } });
    const disks = [{ ...assess().disks[0]!, guestBytesPerSecond: 5 * MB, dirtyBytesPerSecond: 20 * MB }];
    expect(decide(situation({ capabilities, assessment: assess({ disks }) }))).toMatchObject({ remedy: { do: 'throttle', bytesPerSecond: 2 * MB } });
  });

  test('lowers a throttle only by a step worth it', () => {
    const capabilities = { ...CAPABILITIES, rearm: false };
    expect(decide(situation({ capabilities, effects: { throttleBytesPerSecond: 8.5 * MB } }))).toMatchObject({ action: 'nothing' });
    expect(decide(situation({ capabilities, effects: { throttleBytesPerSecond: 20 * MB } }))).toMatchObject({ remedy: THROTTLE });
  });

  test('lifts a throttle that did not help before it waits, but not one that an operator set', () => {
    const tried = [done(LIFT), done(BLOCKING)];
    const effects = { throttleBytesPerSecond: 8 * MB };
    expect(decide(situation({ tried: [...tried, done(THROTTLE)], effects }))).toMatchObject({ action: 'apply', remedy: { do: 'unthrottle' } });
    expect(decide(situation({ tried: [...tried, done(THROTTLE, 'failed', 'operator')], effects }))).toMatchObject({ action: 'nothing' });
  });

  test('is not climbed for ever by a remedy that helps for a moment only', () => {
    const hovering = assess({ verdict: 'hovering' });
    const capabilities = { ...CAPABILITIES, rearm: false };
    const nudges = (uses: number) => Array.from({ length: uses }, () => done(NUDGE, 'helped'));
    expect(decide(situation({ assessment: hovering, capabilities, tried: nudges(MOST_USES - 1) }))).toMatchObject({ remedy: { do: 'nudge' } });
    expect(decide(situation({ assessment: hovering, capabilities, tried: nudges(MOST_USES) }))).toMatchObject({ remedy: { do: 'throttle' } });
  });
});

describe('a remedy', () => {
  const tried: Tried[] = [{ remedy: BLOCKING, atMs: START_MS, by: 'policy', outcome: 'pending' }];
  const later = (ms: number, assessment = assess()) => situation({ tried, nowMs: START_MS + ms, assessment });
  const outcome = (given: Situation) => judge(given)[0]!.outcome;

  test('is left alone until it had time to work', () => {
    expect(decide(later(SETTLE_MS['write-blocking'] - 1))).toMatchObject({ action: 'nothing', againAtMs: START_MS + SETTLE_MS['write-blocking'] });
    expect(outcome(later(SETTLE_MS['write-blocking'] - 1))).toBe('pending');
    expect(outcome(later(SETTLE_MS['write-blocking']))).toBe('failed');
    expect(decide(later(SETTLE_MS['write-blocking']))).toMatchObject({ action: 'apply' });
  });
  test('helped when the copy converges, or fits', () => {
    expect(outcome(later(1_000, assess({ verdict: 'converging' })))).toBe('helped');
    expect(outcome(later(1_000, assess({ fitsBudget: true })))).toBe('helped');
  });
  test('is not to blame for a stall, and has its time after it', () => {
    expect(outcome(later(100_000, assess({ verdict: 'stalled' })))).toBe('pending');
    const after = assess({ sinceMs: START_MS + 100_000 });
    expect([outcome(later(110_000, after)), outcome(later(120_000, after))]).toEqual(['pending', 'failed']);
  });
});

describe('a policy', () => {
  test('`abort` gives up at once, and only for a copy that does not converge', () => {
    const policy = { ...POLICY, onDivergence: 'abort' as const };
    for (const verdict of ['hovering', 'diverging'] as const) expect(decide(situation({ policy, assessment: assess({ verdict }) }))).toMatchObject({ action: 'end', how: 'abort', because: 'policy' });
    for (const verdict of ['converging', 'stalled'] as const) expect(decide(situation({ policy, assessment: assess({ verdict }) }))).toMatchObject({ action: 'nothing' });
  });

  test('`ask` offers what can be done and waits; with no answer it does as it was told', () => {
    const policy = { ...POLICY, onDivergence: 'ask' as const };
    expect(decide(situation({ policy }))).toMatchObject({ action: 'ask', choices: ['lift-limits', 'write-blocking', 'throttle', 'wait', 'postpone', 'abort'], untilMs: START_MS + 30_000, why: 'disk vda does not catch up' });
    const asked = { askedAtMs: START_MS, policy };
    expect(decide(situation({ ...asked, nowMs: START_MS + 29_999 }))).toMatchObject({ action: 'ask', untilMs: START_MS + 30_000 });
    const unanswered = (afterAsk: Policy['afterAsk']) => decide(situation({ ...asked, policy: { ...policy, afterAsk }, nowMs: START_MS + 30_000 }));
    expect(unanswered('postpone')).toMatchObject({ action: 'end', how: 'postpone', because: 'no-answer' });
    expect(unanswered('abort')).toMatchObject({ action: 'end', how: 'abort', because: 'no-answer' });
    expect(unanswered('auto')).toMatchObject({ action: 'apply', remedy: LIFT });
  });

  test('waits as long as an operator said, past a deadline too, but not for a mirror that has failed', () => {
    const given = { waitUntilMs: START_MS + 3_600_000, nowMs: START_MS + 1_000_000 };
    expect(decide(situation(given))).toMatchObject({ action: 'nothing', againAtMs: given.waitUntilMs });
    expect(decide(situation({ ...given, assessment: assess({ verdict: 'stalled' }) }))).toMatchObject({ action: 'nothing', againAtMs: given.waitUntilMs });
    expect(decide(situation({ ...given, assessment: assess({ verdict: 'failed', message: 'No space left on device' }) }))).toMatchObject({ action: 'end', how: 'abort', because: 'mirror-failed', why: 'No space left on device' });
    expect(decide(situation({ ...given, nowMs: given.waitUntilMs }))).toMatchObject({ action: 'end', because: 'deadline' });
  });
});

/** Whatever a workflow may be asked about. */
const remedies = fc.oneof(
  fc.constant<Remedy>(LIFT),
  fc.record({ do: fc.constant('nudge' as const), ms: fc.integer({ min: 20, max: 500 }) }),
  fc.record({ do: fc.constant('write-blocking' as const), by: fc.constantFrom('block-job-change' as const, 're-arm' as const) }),
  fc.record({ do: fc.constant('throttle' as const), bytesPerSecond: fc.integer({ min: 1, max: 100 * MB }) }),
  fc.constant<Remedy>({ do: 'unthrottle' }),
);
const assessments = fc
  .record({ verdict: fc.constantFrom(...VERDICTS), agoMs: fc.integer({ min: 0, max: 200_000 }), throughputBytesPerSecond: fc.integer({ min: 0, max: 200 * MB }), remainingBytes: fc.integer({ min: 0, max: 1_000 * MB }), ready: fc.boolean(), fitsBudget: fc.boolean() })
  .map(({ agoMs, ...rest }) => assess({ ...rest, sinceMs: START_MS - agoMs, fitsBudget: rest.fitsBudget && rest.ready && rest.verdict === 'converging' }));
const capabilities = fc.record({ capSet: fc.boolean(), writeBlockingLive: fc.boolean(), rearm: fc.boolean(), ioThrottle: fc.boolean() }) satisfies fc.Arbitrary<Capabilities>;
const effects: fc.Arbitrary<Effects> = fc.record({ throttleBytesPerSecond: fc.integer({ min: 1, max: 100 * MB }), throttledForAMoment: fc.boolean(), writeBlocking: fc.boolean(), limitsLifted: fc.boolean() }, { requiredKeys: [] });
const policies: fc.Arbitrary<Policy> = fc.record({
  onDivergence: fc.constantFrom('auto', 'ask', 'abort'),
  maxDowntimeMs: fc.integer({ min: 20, max: 5_000 }),
  disksDeadlineAtMs: fc.integer({ min: -60_000, max: 3_600_000 }).map((ms) => START_MS + ms),
  askMs: fc.integer({ min: 0, max: 300_000 }),
  afterAsk: fc.constantFrom('auto', 'postpone', 'abort'),
  atDeadline: fc.constantFrom('postpone', 'abort'),
  stallDeadlineMs: fc.integer({ min: 0, max: 300_000 }),
});
const attempts: fc.Arbitrary<Tried[]> = fc.array(fc.record({ remedy: remedies, atMs: fc.integer({ min: -100_000, max: 0 }).map((ms) => START_MS + ms), by: fc.constantFrom('policy', 'operator'), outcome: fc.constantFrom('pending', 'helped', 'failed') }), { maxLength: 8 });
const situations: fc.Arbitrary<Situation> = fc
  .record({ assessment: assessments, policy: policies, capabilities, tried: attempts, effects, nowMs: fc.constant(START_MS), askedAgoMs: fc.option(fc.integer({ min: 0, max: 300_000 })), waitMs: fc.option(fc.integer({ min: -10_000, max: 600_000 }), { freq: 10 }) })
  .map(({ askedAgoMs, waitMs, ...rest }) => ({ ...rest, ...(askedAgoMs !== null && { askedAtMs: START_MS - askedAgoMs }), ...(waitMs !== null && { waitUntilMs: START_MS + waitMs }) }));
const property = (check: (given: Situation, decision: Decision) => void) => fc.assert(fc.property(situations, (given) => check(given, decide(given))), { numRuns: 3_000 });

/** Written down again, apart from the ladder: can this rung be used at all? */
function usable(name: RungName, { assessment, capabilities: can, effects: now }: Situation): boolean {
  switch (name) {
    case 'lift-limits':
      return can.capSet && !now.limitsLifted;
    case 'nudge':
      return can.ioThrottle && assessment.verdict === 'hovering' && assessment.disks.some(({ ready }) => !ready);
    case 'write-blocking':
      return !now.writeBlocking && (can.writeBlockingLive || (can.rearm && can.ioThrottle));
    case 'throttle':
      return can.ioThrottle;
  }
}

describe('whatever the situation', () => {
  test('nothing more drastic is done than needed: every milder rung failed, was used up, or cannot be used', () =>
    property((given, decision) => {
      if (decision.action !== 'apply' || decision.remedy.do === 'unthrottle') return;
      const tried = judge(given);
      for (const milder of RUNGS.slice(0, RUNGS.indexOf(decision.remedy.do))) {
        const uses = tried.filter(({ remedy }) => remedy.do === milder);
        expect({ milder, needed: !usable(milder, given) || uses.some(({ outcome }) => outcome === 'failed') || uses.length >= MOST_USES }).toEqual({ milder, needed: true });
      }
    }));

  test('a remedy that failed is not repeated, and none is begun while another has had no time', () =>
    property((given, decision) => {
      if (decision.action !== 'apply') return;
      const tried = judge(given);
      expect(tried.filter(({ outcome }) => outcome === 'pending')).toEqual([]);
      if (decision.remedy.do !== 'unthrottle') expect(tried.filter(({ remedy, outcome }) => remedy.do === decision.remedy.do && outcome === 'failed')).toEqual([]);
    }));

  test('nothing is done, or offered, that this QEMU lacks', () =>
    property((given, decision) => {
      const can = given.capabilities;
      if (decision.action === 'apply') {
        const { remedy } = decision;
        if (remedy.do === 'write-blocking') expect(remedy.by === 'block-job-change' ? can.writeBlockingLive : can.rearm && can.ioThrottle).toBe(true);
        else if (remedy.do !== 'unthrottle') expect(usable(remedy.do, given)).toBe(true);
        if (remedy.do === 'throttle') expect(remedy.bytesPerSecond).toBeGreaterThan(0);
        if (remedy.do === 'nudge') expect(remedy.ms).toBeLessThanOrEqual(given.policy.maxDowntimeMs);
      }
      if (decision.action === 'ask') for (const name of RUNGS) if (decision.choices.includes(name)) expect(usable(name, given)).toBe(true);
    }));

  test('a copy that fits, converges or stalls gets no remedy, and a failed one ends', () =>
    property((given, decision) => {
      const { verdict, fitsBudget } = given.assessment;
      if (fitsBudget || verdict === 'converging' || verdict === 'stalled') expect(['nothing', 'end']).toContain(decision.action);
      if (verdict === 'failed') expect(decision).toMatchObject({ action: 'end', because: 'mirror-failed' });
    }));

  test('`ask` does nothing before its deadline but take back what failed; `abort` never does anything else', () =>
    property((given, decision) => {
      if (decision.action !== 'apply' || decision.remedy.do === 'unthrottle') return;
      expect(given.policy.onDivergence).not.toBe('abort');
      if (given.policy.onDivergence === 'ask') expect(given.nowMs).toBeGreaterThanOrEqual((given.askedAtMs ?? given.nowMs) + given.policy.askMs);
    }));

  test('every way out lifts a throttle that is in force', () =>
    property((given, decision) => {
      const throttled = given.effects.throttleBytesPerSecond !== undefined || given.effects.throttledForAMoment === true;
      expect(undoOf(given.effects)).toEqual(throttled ? [{ do: 'unthrottle' }] : []);
      if (decision.action === 'end') expect(decision.undo).toEqual(undoOf(given.effects));
    }));

  test('the next look is in the future, words are said, and neither JSON nor asking twice changes a thing', () =>
    property((given, decision) => {
      if (decision.action === 'nothing') expect(decision.againAtMs).toBeGreaterThan(given.nowMs);
      if (decision.action === 'ask') expect(decision.untilMs).toBeGreaterThan(given.nowMs);
      expect(decision.why).toMatch(/disk vda does not catch up/);
      expect(decision.why).not.toMatch(/NaN|undefined|Infinity/);
      expect(JSON.parse(JSON.stringify(decision))).toEqual(decision);
      expect(decide(JSON.parse(JSON.stringify(given)) as Situation)).toEqual(decision);
    }));

  test('it always ends: whatever is signalled and whenever, within the deadline, after few remedies, and with no throttle left', () => {
    const story = fc.array(fc.record({ afterMs: fc.integer({ min: 1, max: 60_000 }), assessment: assessments, broken: fc.boolean() }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(situations, story, (given, signals) => {
        const lastMs = Math.max(given.policy.disksDeadlineAtMs, given.waitUntilMs ?? 0, given.nowMs);
        const now: Situation = { ...given, tried: [], effects: {} };
        let [applied, looks, signal] = [0, 0, 0];
        let nextSignalAtMs = now.nowMs;
        for (;;) {
          expect(looks++).toBeLessThan(2_000);
          const decision = decide(now);
          if (decision.action === 'end') {
            expect(decision.undo).toEqual(undoOf(now.effects));
            expect(now.nowMs).toBeLessThanOrEqual(lastMs);
            break;
          }
          now.tried = judge(now);
          if (decision.action === 'apply') {
            applied++;
            const { remedy } = decision;
            now.tried = [...now.tried, { remedy, atMs: now.nowMs, by: 'policy', outcome: signals[signal % signals.length]!.broken ? 'failed' : 'pending' }];
            if (remedy.do === 'throttle') now.effects = { ...now.effects, throttleBytesPerSecond: remedy.bytesPerSecond };
            if (remedy.do === 'unthrottle') delete now.effects.throttleBytesPerSecond;
            continue;
          }
          if (decision.action === 'ask') now.askedAtMs ??= now.nowMs;
          const againAtMs = decision.action === 'ask' ? decision.untilMs : decision.againAtMs;
          if (signal < 200 && nextSignalAtMs < againAtMs) {
            const { afterMs, assessment } = signals[signal++ % signals.length]!;
            now.nowMs = Math.max(now.nowMs, nextSignalAtMs);
            nextSignalAtMs = now.nowMs + afterMs;
            now.assessment = { ...assessment, verdict: assessment.verdict === 'failed' ? 'hovering' : assessment.verdict, sinceMs: now.nowMs };
          } else now.nowMs = againAtMs;
        }
        expect(applied).toBeLessThanOrEqual(2 * MOST_USES * RUNGS.length);
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('a migration', () => {
  const disk = (link: number, guest: number, hovers = false, seed = 1) => new MirrorModel({ linkBytesPerSecond: link * MB, guestBytesPerSecond: guest * MB, hovers }, { sizeBytes: 200 * MB, seed });
  const done = (model: MigrationModel) => model.applied.map((remedy) => remedy.do);

  test.each([
    ['an older QEMU', false, 're-arm'],
    ['a QEMU with block-job-change', true, 'block-job-change'],
  ])('30 on 10 converges by write-blocking on %s, with the guest at the rate of the link afterwards', (_, writeBlockingLive, by) => {
    const vda = disk(10, 30);
    const model = new MigrationModel({ vda }, POLICY, { ...CAPABILITIES, writeBlockingLive });
    expect(model.run()).toMatchObject({ end: 'gate' });
    expect(model.applied).toEqual([{ do: 'write-blocking', by }]);
    model.leave();
    expect(vda).toMatchObject({ throttle: Infinity, guestBytesPerSecond: 10 * MB });
  });

  test.each([1, 2, 3, 4, 5])('two writers of 15 on a link of 50 are nudged, and done within 40 s (seed %i)', (seed) => {
    const model = new MigrationModel({ vda: disk(25, 15, true, seed), vdb: disk(25, 15, true, seed + 100) });
    const { end, ms } = model.run();
    expect({ end, did: done(model) }).toEqual({ end: 'gate', did: ['nudge'] });
    expect(ms).toBeLessThan(40_000);
  });

  test('two writers of 40 on a link of 50 get write-blocking, and are done within 40 s', () => {
    const model = new MigrationModel({ vda: disk(25, 40), vdb: disk(25, 40) });
    const { end, ms } = model.run();
    expect({ end, did: done(model) }).toEqual({ end: 'gate', did: ['write-blocking'] });
    expect(ms).toBeLessThan(40_000);
  });

  test('a cap of ours is lifted, and nothing else is done', () => {
    const model = new MigrationModel({ vda: disk(10, 30) }, POLICY, { ...CAPABILITIES, capSet: true }, { capBytesPerSecond: 10 * MB }, 100 * MB);
    expect(model.run()).toMatchObject({ end: 'gate' });
    expect(done(model)).toEqual(['lift-limits']);
    expect(model.decisions[0]!.why).toMatch(/our own bandwidth cap is used up/);
  });

  test('where nothing else is to be had the guest is throttled, and free again afterwards', () => {
    const vda = disk(10, 30);
    const model = new MigrationModel({ vda }, POLICY, { ...CAPABILITIES, rearm: false });
    expect(model.run()).toMatchObject({ end: 'gate' });
    expect(done(model)).toEqual(['throttle']);
    expect(vda.guestBytesPerSecond).toBeLessThan(10 * MB);
    model.leave();
    expect(vda.guestBytesPerSecond).toBe(30 * MB);
  });

  test('with `ask` and no answer nothing is done to the guest, and it ends as it was told', () => {
    const model = new MigrationModel({ vda: disk(10, 30) }, { ...POLICY, onDivergence: 'ask' });
    expect(model.run()).toMatchObject({ end: 'postpone', why: expect.stringMatching(/nobody answered within 30.0 s/) });
    expect(model.applied).toEqual([]);
  });

  test('with `abort` it ends with the first verdict', () => {
    const model = new MigrationModel({ vda: disk(10, 30) }, { ...POLICY, onDivergence: 'abort' });
    const { end, ms } = model.run();
    expect({ end, did: done(model) }).toEqual({ end: 'abort', did: [] });
    expect(ms).toBeLessThan(30_000);
  });

  test('a guest that goes quiet by itself gets no remedy, and it is said why', () => {
    const vda = disk(10, 30);
    const model = new MigrationModel({ vda }, { ...POLICY, onDivergence: 'ask', askMs: 300_000 });
    expect(model.run((ms) => (vda.now.guestBytesPerSecond = ms < 40_000 ? 30 * MB : 0))).toMatchObject({ end: 'gate' });
    expect(model.applied).toEqual([]);
    expect(model.decisions.at(-1)).toMatchObject({ action: 'nothing', why: expect.stringMatching(/the guest went quiet by itself \(.* MB remained then, .* MB now\): no remedy was needed/) });
  });

  test('a link that stalls for 20 s and comes back costs nothing but time; one that stays away ends it', () => {
    const stall = (forMs: number) => {
      const vda = disk(10, 2);
      const model = new MigrationModel({ vda });
      const end = model.run((ms) => (vda.now.linkBytesPerSecond = ms > 8_000 && ms < 8_000 + forMs ? 0 : 10 * MB));
      return { ...end, did: done(model), verdicts: model.watch.verdicts };
    };
    expect(stall(20_000)).toMatchObject({ end: 'gate', did: [], verdicts: ['stalled', 'converging'] });
    const dead = stall(Infinity);
    expect(dead).toMatchObject({ end: 'abort', did: [], verdicts: ['stalled'] });
    expect(dead.ms).toBeLessThan(8_000 + 5_000 + POLICY.stallDeadlineMs + 2_000);
  });

  test('a destination that fills up ends it at once, with the reason', () => {
    const vda = disk(10, 2);
    const model = new MigrationModel({ vda });
    expect(model.run((ms) => (vda.error = ms > 5_000 ? 'No space left on device' : undefined))).toMatchObject({ end: 'abort', why: expect.stringMatching(/No space left on device/) });
  });

  test('a guest that nothing helps ends at the deadline, with few signals and no throttle', () => {
    const vda = disk(10, 30);
    // Every throttle is ignored: what it writes comes from elsewhere.
    Object.defineProperty(vda, 'throttle', { get: () => Infinity, set: () => {} });
    const model = new MigrationModel({ vda }, POLICY, { ...CAPABILITIES, rearm: false });
    expect(model.run()).toMatchObject({ end: 'abort', ms: 600_000, why: expect.stringMatching(/not caught up by their deadline/) });
    expect(done(model)).toEqual(['throttle', 'unthrottle']);
    expect(model.watch.told.length).toBeLessThanOrEqual(2);
    expect(model.effects).toEqual({});
  });
});
