import fc from 'fast-check';
import { type DiskSample, type Surroundings, Supervision, SUPERVISION_TIMES } from '../../workflows/convergence';
import { DiskTrend } from '../../workflows/disk-trend';
import { LastingVerdict, VERDICTS } from '../../workflows/lasting-verdict';
import { assessMemory, type MemorySample, MemorySupervision } from '../../workflows/memory-convergence';
import { MB, MirrorModel, random, SAMPLE_MS, START_MS, Watch } from './mirror-model';

const mirror = (link: number, guest: number, options: { synced?: boolean; hovers?: boolean; sizeBytes?: number; seed?: number } = {}) =>
  new MirrorModel({ linkBytesPerSecond: link * MB, guestBytesPerSecond: guest * MB, ...(options.hovers && { hovers: true }) }, options);

describe('the measured table of facts/qemu.md §4', () => {
  test.each([
    { link: 20, guest: 25, remainingMB: 30, downtimeMs: 1600 },
    { link: 10, guest: 20, remainingMB: 58, downtimeMs: 6100 },
    { link: 10, guest: 40, remainingMB: 123, downtimeMs: 12_700 },
  ])('a guest of $guest MB/s on a link of $link diverges, and the drain is predicted as it was measured', ({ link, guest, remainingMB, downtimeMs }) => {
    // The pause is taken now, not after the memory was moved.
    const watch = new Watch({ vda: mirror(link, guest) }, { budgetMs: 300 }, { ...SUPERVISION_TIMES, leadMs: 0 });
    // A bulk copy of a quiet guest first: without it nobody knows what the link can do.
    watch.mirrors.vda!.now.guestBytesPerSecond = 0;
    while (!watch.mirrors.vda!.ready) watch.step();
    watch.mirrors.vda!.now.guestBytesPerSecond = guest * MB;
    const assessment = watch.run(7_500);
    expect(Math.abs(assessment.remainingBytes / MB - remainingMB)).toBeLessThan(0.15 * remainingMB);
    expect(Math.abs(assessment.predictedDrainMs - downtimeMs)).toBeLessThan(0.25 * downtimeMs);
    expect(assessment).toMatchObject({ verdict: 'diverging', trouble: 'guest-writes-faster-than-link', fitsBudget: false, disks: [{ id: 'vda', ready: true, etaMs: null }] });
    expect(watch.verdicts).toEqual(['diverging']);
    expect(assessment.message).toMatch(/disk vda does not catch up: the guest writes faster than the link copies; .* MB remain, the guest writes .* MB\/s, .* are copied .*never at this rate/);
  });

  test('20 on 20 drifts to 6 MB in 7.5 s: it hovers around the budget', () => {
    const watch = new Supervision();
    const told: string[] = [];
    let last;
    for (let ms = -5_000; ms <= 7_500; ms += SAMPLE_MS) {
      const remainingBytes = ms < 0 ? -ms * 20_000 : (ms / 7_500) * 6 * MB;
      last = watch.push({ vda: { atMs: START_MS + ms, remainingBytes, offsetBytes: (ms + 5_000) * 20_000, ready: ms >= 0 } }, { budgetMs: 300 });
      if (last.changed) told.push(last.verdict);
    }
    expect(told).toEqual(['hovering']);
    expect(last).toMatchObject({ verdict: 'hovering', fitsBudget: false });
    // The measured disk downtime was 0.3 s; what comes on top is for the memory that is to be moved first.
    expect(last?.predictedDrainMs).toBeGreaterThan(300);
    expect(last?.predictedDrainMs).toBeLessThan(700);
  });

  test('write-blocking after 4.5 s makes 30 on 10 converge, without any new growth', () => {
    const watch = new Watch({ vda: mirror(10, 30, { synced: true }) });
    watch.run(8_000);
    expect(watch.verdicts).toEqual(['diverging']);
    watch.mirrors.vda!.writeBlocking = true;
    const assessment = watch.run(25_000);
    expect(watch.verdicts).toEqual(['diverging', 'converging']);
    expect(assessment).toMatchObject({ verdict: 'converging', trouble: 'none', fitsBudget: true });
    expect(assessment.predictedDrainMs).toBeLessThan(60);
  });

  test('two writers of 15 on a link of 50 hover: near, and never ready; once ready they fit', () => {
    const disks = { vda: mirror(25, 15, { hovers: true, seed: 2 }), vdb: mirror(25, 15, { hovers: true, seed: 3 }) };
    const watch = new Watch(disks);
    const hovering = watch.run(60_000);
    expect(hovering).toMatchObject({ verdict: 'hovering', trouble: 'guest-never-pauses', fitsBudget: false });
    expect(hovering.message).toMatch(/hovers, near but never ready/);
    expect(watch.verdicts).toEqual(['hovering']);
    Object.values(disks).forEach((disk) => (disk.ready = true));
    const ready = watch.run(10_000);
    expect(ready).toMatchObject({ verdict: 'converging', fitsBudget: true });
    expect(watch.verdicts).toEqual(['hovering', 'converging']);
  });

  test.each([100, 500, 1_000])('the verdicts do not depend on how often is sampled (every %i ms)', (sampleMs) => {
    const verdicts = (mirrors: Record<string, MirrorModel>) => {
      const watch = new Watch(mirrors);
      for (let ms = 0; ms < 40_000; ms += sampleMs) watch.step(sampleMs);
      return watch.verdicts;
    };
    expect(verdicts({ vda: mirror(10, 20, { synced: true }) })).toEqual(['diverging']);
    expect(verdicts({ vda: mirror(25, 15, { hovers: true, seed: 2 }), vdb: mirror(25, 15, { hovers: true, seed: 3 }) })).toEqual(['hovering']);
    expect(verdicts({ vda: mirror(50, 5) })).toEqual([]);
  });

  test('a throttle to 2 MB/s after 4.5 s makes 30 on 10 converge', () => {
    const watch = new Watch({ vda: mirror(10, 30, { synced: true }) });
    watch.run(8_000);
    watch.mirrors.vda!.throttle = 2 * MB;
    watch.run(20_000);
    expect(watch.verdicts).toEqual(['diverging', 'converging']);
  });
});

describe('a copy that is all right', () => {
  test('an idle guest catches up without a word, and the gate opens with the first sample that is ready', () => {
    const watch = new Watch({ vda: mirror(100, 0), vdb: mirror(100, 0, { sizeBytes: 64 * MB }) });
    let assessment = watch.step();
    expect(assessment).toMatchObject({ verdict: 'converging', fitsBudget: false });
    while (!assessment.disks.every(({ ready }) => ready)) assessment = watch.step();
    expect(assessment).toMatchObject({ verdict: 'converging', trouble: 'none', fitsBudget: true });
    expect(watch.run(60_000)).toMatchObject({ verdict: 'converging', fitsBudget: true, predictedDrainMs: 25 });
    expect(watch.told).toEqual([]);
  });

  test('a bulk copy that is slow converges, and the message says if it will be late', () => {
    const watch = new Watch({ vda: mirror(1, 0, { sizeBytes: 10_000 * MB }) }, { budgetMs: 300, disksDeadlineAtMs: START_MS + 600_000 });
    const assessment = watch.run(20_000);
    expect(assessment.verdict).toBe('converging');
    expect(assessment.disks[0]!.etaMs).toBeGreaterThan(9_000_000);
    expect(assessment.message).toMatch(/disk vda: 9980 MB remain, 1.0 MB\/s are copied, done in 166 min: later than the deadline in 10 min/);
  });

  test('a bulk copy against a guest that lets it come to a level is told long before it is there', () => {
    const watch = new Watch({ vda: mirror(10, 30, { sizeBytes: 200 * MB }) });
    watch.run(20_000);
    expect(watch.verdicts).toEqual(['diverging']);
    expect(watch.told[0]!.atMs).toBeLessThan(12_000);
    expect(watch.told[0]!.message).toMatch(/never at this rate/);
  });

  test('a link that becomes slower, or a guest that writes half of what it can, is no reason to worry', () => {
    const idle = mirror(50, 0, { sizeBytes: 2_000 * MB });
    const watch = new Watch({ vda: idle });
    for (const link of [50, 25, 40, 10, 60]) {
      idle.now.linkBytesPerSecond = link * MB;
      watch.run(7_000);
    }
    expect(watch.run(60_000).fitsBudget).toBe(true);
    expect(watch.told).toEqual([]);
    const busy = new Watch({ vda: mirror(50, 25, { sizeBytes: 400 * MB }) });
    expect(busy.run(40_000).fitsBudget).toBe(true);
    expect(busy.told).toEqual([]);
  });

  test('a second pass that would end after the deadline diverges', () => {
    const disk = mirror(10, 0, { synced: true });
    const watch = new Watch({ vda: disk }, { budgetMs: 300, disksDeadlineAtMs: START_MS + 60_000 });
    disk.remainingBytes = 200 * MB;
    disk.now = { linkBytesPerSecond: 10 * MB, guestBytesPerSecond: 9 * MB };
    watch.run(10_000);
    expect(watch.verdicts).toEqual([]);
    disk.now.linkBytesPerSecond = 3 * MB;
    watch.run(10_000);
    expect(watch.verdicts).toEqual(['diverging']);
  });

  test('no data, and a mirror that still looks for what is allocated, converge', () => {
    const watch = new Supervision();
    for (let ms = 0; ms < 20_000; ms += SAMPLE_MS) {
      expect(watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 0, offsetBytes: 0, ready: false } }, { budgetMs: 300 })).toMatchObject({ verdict: 'converging', changed: false, fitsBudget: false });
    }
    for (let ms = 20_000; ms < 40_000; ms += SAMPLE_MS) {
      const offsetBytes = (ms - 20_000) * 10_000;
      expect(watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 1000 * MB - offsetBytes, offsetBytes, ready: false } }, { budgetMs: 300 }).changed).toBe(false);
    }
  });

  test('a little that remains on a link that nobody has measured fits', () => {
    const watch = new Supervision();
    let assessment;
    for (let ms = 0; ms < 1_000; ms += SAMPLE_MS) assessment = watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 65_536, offsetBytes: ms, ready: true } }, { budgetMs: 100 });
    expect(assessment).toMatchObject({ verdict: 'converging', fitsBudget: true });
  });

  test('the drain of disks that share a link is predicted for all together, though each had the link to itself before', () => {
    const [vda, vdb] = [mirror(20, 0, { sizeBytes: 100 * MB }), mirror(0, 0, { synced: true })];
    const watch = new Watch({ vda, vdb }, { budgetMs: 300 });
    watch.run(8_000);
    vda.now.linkBytesPerSecond = 0;
    vdb.now.linkBytesPerSecond = 20 * MB;
    vdb.remainingBytes = 100 * MB;
    watch.run(8_000);
    for (const disk of [vda, vdb]) Object.assign(disk, { remainingBytes: 4 * MB, writeBlocking: true });
    const assessment = watch.step(10);
    expect(assessment.disks.every(({ predictedDrainMs }) => predictedDrainMs < 300)).toBe(true);
    expect(assessment.predictedDrainMs).toBeGreaterThan(400);
    expect(assessment.fitsBudget).toBe(false);
  });

  test('nobody opens the gate on a single sample, but for a mirror that cannot fall behind', () => {
    const sample: DiskSample = { atMs: START_MS, remainingBytes: 0, offsetBytes: MB, ready: true };
    const watch = new Supervision();
    const fits = [0, 250, 500].map((ms) => watch.push({ vda: { ...sample, atMs: START_MS + ms } }, { budgetMs: 300 }).fitsBudget);
    expect(fits).toEqual([false, false, true]);
    expect(new Supervision().push({ vda: { ...sample, writeBlocking: true } }, { budgetMs: 300 }).fitsBudget).toBe(true);
  });

  test('a fall that is just enough to converge is not enough to leave trouble', () => {
    const falls = (share: number, before?: 'diverging') => {
      const watch = new Supervision(SUPERVISION_TIMES, before && { verdict: before, sinceMs: START_MS });
      let assessment;
      for (let ms = 0; ms < 20_000; ms += SAMPLE_MS) assessment = watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 500 * MB - ms * 10_000 * share, offsetBytes: 900 * MB + ms * 10_000, ready: true } }, { budgetMs: 300 });
      return assessment?.verdict;
    };
    expect([falls(0.03), falls(0.07), falls(0.07, 'diverging'), falls(0.15, 'diverging')]).toEqual(['diverging', 'converging', 'diverging', 'converging']);
  });

  test('a slow link that progresses a MiB every other second is not stalled', () => {
    const watch = new Supervision();
    for (let ms = 0; ms < 120_000; ms += SAMPLE_MS) {
      const offsetBytes = Math.floor(ms / 2_000) * 1_048_576;
      expect(watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 1000 * MB - offsetBytes, offsetBytes, ready: false } }, { budgetMs: 300 })).toMatchObject({ verdict: 'converging', changed: false });
    }
  });

  test('a re-armed mirror counts from 0, and what the link can do stays known', () => {
    const disk = mirror(7, 20, { synced: true });
    const watch = new Watch({ vda: disk });
    watch.run(10_000);
    disk.rearm();
    const assessment = watch.step();
    expect(assessment.throughputBytesPerSecond / MB).toBeCloseTo(7, 0);
    expect(assessment.fitsBudget).toBe(true);
    watch.run(20_000);
    expect(watch.verdicts).toEqual(['diverging', 'converging']);
  });
});

describe('a copy that stops', () => {
  test('a stall of 20 s is told once, and once when it is over; the guest writes on meanwhile', () => {
    const disk = mirror(50, 10, { sizeBytes: 400 * MB });
    const watch = new Watch({ vda: disk });
    watch.run(10_000);
    disk.now.linkBytesPerSecond = 0;
    const stalled = watch.run(20_000);
    expect(stalled).toMatchObject({ verdict: 'stalled', trouble: 'destination-hanging', fitsBudget: false });
    expect(stalled.message).toMatch(/disk vda: nothing was copied for (19|20).* s, .* MB remain: the destination hangs, or the link to it is dead/);
    expect(stalled.throughputBytesPerSecond / MB).toBeCloseTo(50, 0);
    disk.now.linkBytesPerSecond = 50 * MB;
    const back = watch.run(1_000);
    expect(back.message).toMatch(/disk vda is copied again after a stall/);
    expect(back.throughputBytesPerSecond / MB).toBeCloseTo(50, 0);
    expect(watch.run(2_500)).toMatchObject({ verdict: 'stalled', message: expect.stringMatching(/copied again after a stall/) });
    watch.run(30_000);
    expect(watch.verdicts).toEqual(['stalled', 'converging']);
    expect(watch.told[0]!.atMs).toBeLessThan(10_000 + 6_000);
  });

  test('a gate that was open closes when the little that remains does not move any more', () => {
    const watch = new Supervision();
    const fits = (ms: number) => watch.push({ vda: { atMs: START_MS + ms, remainingBytes: 65_536, offsetBytes: Math.min(ms, 5_000), ready: true } }, { budgetMs: 300 }).fitsBudget;
    const open: boolean[] = [];
    for (let ms = 0; ms <= 7_000; ms += SAMPLE_MS) open.push(fits(ms));
    // From the third sample until a second after the last step, at 5 s.
    expect(open.map((is, index) => (is ? index * SAMPLE_MS : undefined)).filter((ms) => ms !== undefined)).toEqual(Array.from({ length: 22 }, (_, index) => 500 + index * SAMPLE_MS));
  });

  test('a dead link and a hanging destination are told apart where another way to the host is known', () => {
    for (const [peerAnswers, trouble] of [[true, 'destination-hanging'], [false, 'destination-unreachable']] as const) {
      const watch = new Watch({ vda: mirror(0, 5, { synced: true }) }, { budgetMs: 300, peerAnswers });
      expect(watch.run(10_000)).toMatchObject({ verdict: 'stalled', trouble });
    }
  });

  test.each([
    [{ error: 'No space left on device' }, 'target-error', /mirror of disk vda ended with "No space left on device": the destination could not write it/],
    [{ error: 'Input/output error' }, 'target-error', /Input\/output error/],
    [{ error: 'Input/output error', errorOperation: 'read' as const }, 'source-error', /the source could not read it/],
    [{ error: 'Connection reset by peer' }, 'destination-unreachable', /cannot be reached/],
    [{ ioStatus: 'nospace' as const }, 'target-error', /No space left on device/],
    [{ ioStatus: 'failed' as const }, 'target-error', /an I\/O error/],
  ])('a mirror with %j has failed, at once', (broken, trouble, message) => {
    const watch = new Supervision();
    const sample: DiskSample = { atMs: START_MS, remainingBytes: MB, offsetBytes: MB, ready: true };
    const fine = { ...sample, remainingBytes: 0 };
    expect(watch.push({ vda: sample, vdb: fine }, { budgetMs: 300 }).changed).toBe(false);
    const assessment = watch.push({ vda: { ...sample, atMs: START_MS + 250, ...broken }, vdb: { ...fine, atMs: START_MS + 250 } }, { budgetMs: 300 });
    expect(assessment).toMatchObject({ verdict: 'failed', changed: true, trouble, fitsBudget: false });
    expect(assessment.message).toMatch(message);
  });
});

describe('what a pause will have to drain', () => {
  /** Four seconds of a mirror that copies 10 MB/s, whose remaining bytes grow by so much. */
  const grown = (growsBytesPerSecond: number, sample: Partial<DiskSample> = {}, noise = 0) => {
    const [trend, next] = [new DiskTrend(SUPERVISION_TIMES), random(11)];
    for (let ms = 0; ms <= 4_000; ms += SAMPLE_MS) {
      const jumps = (next() - 0.5) * noise;
      trend.push({ atMs: START_MS + ms, remainingBytes: 20 * MB + (growsBytesPerSecond * ms) / 1000 + jumps, offsetBytes: 10_000 * ms, ready: true, ...sample });
    }
    return trend;
  };
  test('is what remains, and what the guest dirtied since the mirror last counted', () => expect(grown(0).atPauseBytes / MB).toBeCloseTo(20 + 1));
  test('is what will remain when the memory has been moved, if it grows', () => expect(grown(2 * MB).atPauseBytes / MB).toBeCloseTo(28 + 3 * 2 + 1.2));
  test('is only what remains where a write ends at the target', () => expect(grown(2 * MB, { writeBlocking: true }).atPauseBytes / MB).toBeCloseTo(28));
  test('is not less than what is in flight', () => expect(grown(0, { inFlightBytes: 32 * MB, writeBlocking: true }).atPauseBytes / MB).toBeCloseTo(32));
  test('does not take noise for growth', () => expect(grown(0, {}, 10 * MB).slopeBytesPerSecond).toBeCloseTo(0));
});

describe('the reason', () => {
  const diverging = (around: Partial<Surroundings>) => {
    const watch = new Watch({ vda: mirror(10, 30, { synced: true }) }, { budgetMs: 300, ...around });
    return watch.run(10_000);
  };
  test.each([
    [{ capBytesPerSecond: 10 * MB }, 'own-cap'],
    [{ capBytesPerSecond: 100 * MB }, 'guest-writes-faster-than-link'],
    [{ linkBytesPerSecond: 100 * MB }, 'destination-disk-slow'],
    [{ destinationDiskBusy: 0.97 }, 'destination-disk-slow'],
    [{ linkBytesPerSecond: 11 * MB, destinationDiskBusy: 0.2 }, 'guest-writes-faster-than-link'],
  ])('with %j is %s', (around, trouble) => expect(diverging(around)).toMatchObject({ verdict: 'diverging', trouble }));
});

describe('signals', () => {
  test('samples that alternate between two verdicts change nothing', () => {
    fc.assert(
      fc.property(fc.constantFrom('hovering' as const, 'diverging' as const), fc.array(fc.integer({ min: 1, max: 11 }), { minLength: 20, maxLength: 200 }), (bad, runs) => {
        const lasting = new LastingVerdict(SUPERVISION_TIMES);
        let nowMs = 0;
        let changes = 0;
        // Never 3 s of the same.
        runs.forEach((samples, index) => {
          for (let n = 0; n < samples; n++) if (lasting.push(index % 2 ? bad : 'converging', (nowMs += SAMPLE_MS))) changes++;
        });
        expect(changes).toBe(0);
      }),
    );
  });

  test('hovering and diverging in turn add up to trouble, told once', () => {
    const lasting = new LastingVerdict(SUPERVISION_TIMES);
    const changes: string[] = [];
    for (let n = 0; n < 400; n++) if (lasting.push(n % 2 ? 'hovering' : 'diverging', n * SAMPLE_MS)) changes.push(lasting.verdict);
    expect(changes).toEqual(['hovering']);
  });

  test('whatever samples say, changes are rare: each lasted, and a restless verdict is told ever more seldom', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.constantFrom(...VERDICTS.slice(0, 3)), fc.integer({ min: 1, max: 40 })), { minLength: 50, maxLength: 120 }), (story) => {
        const lasting = new LastingVerdict(SUPERVISION_TIMES);
        const changes: number[] = [];
        let nowMs = 0;
        for (const [says, samples] of story) for (let n = 0; n < samples; n++) if (lasting.push(says, (nowMs += SAMPLE_MS))) changes.push(nowMs);
        changes.slice(1).forEach((atMs, index) => expect(atMs - changes[index]!).toBeGreaterThanOrEqual(SAMPLE_MS));
        for (const atMs of changes) expect(changes.filter((other) => other >= atMs && other < atMs + 120_000).length).toBeLessThanOrEqual(16);
      }),
    );
  });

  test('noise around any threshold does not make the verdict flap', () => {
    fc.assert(
      fc.property(
        fc.record({
          seed: fc.nat(),
          throughput: fc.integer({ min: 5, max: 200 }),
          // Around "near" (400 ms of the link), around the drain that fits, and around the growth that counts as diverging.
          nearness: fc.double({ min: 0.5, max: 1.5, noNaN: true }),
          drift: fc.double({ min: -0.12, max: 0.12, noNaN: true }),
          noise: fc.double({ min: 0.01, max: 0.3, noNaN: true }),
          ready: fc.boolean(),
        }),
        ({ seed, throughput, nearness, drift, noise, ready }) => {
          const link = throughput * MB;
          const next = random(seed);
          const watch = new Supervision();
          let changes = 0;
          let offsetBytes = 0;
          for (let ms = 0; ms < 300_000; ms += SAMPLE_MS) {
            offsetBytes += (link * SAMPLE_MS) / 1000;
            const level = Math.max(4.2 * MB, link * 0.4) * nearness;
            const saw = link * drift * (((ms % 40_000) - 20_000) / 1000);
            const remainingBytes = Math.max(1, level + saw + (next() - 0.5) * 2 * noise * level);
            if (watch.push({ vda: { atMs: START_MS + ms, remainingBytes, offsetBytes, ready } }, { budgetMs: 400 }).changed) changes++;
          }
          // The slow saw is a real change, which lasts, every 40 s: to hovering, to diverging, and back. Anything more would be noise.
          expect(changes).toBeLessThanOrEqual(3 * Math.ceil(300 / 40));
        },
      ),
      { numRuns: 100 },
    );
  });

  test('noise without any trend is told at most once', () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 5, max: 200 }), fc.double({ min: 0.3, max: 3, noNaN: true }), fc.double({ min: 0.01, max: 0.4, noNaN: true }), fc.boolean(), (seed, throughput, nearness, noise, ready) => {
        const [link, next, watch] = [throughput * MB, random(seed), new Supervision()];
        const level = Math.max(4.2 * MB, link * 0.4) * nearness;
        const told: string[] = [];
        for (let n = 0; n < 1200; n++) {
          const sample = { atMs: START_MS + n * SAMPLE_MS, remainingBytes: level * (1 + (next() - 0.5) * 2 * noise), offsetBytes: (n * link * SAMPLE_MS) / 1000, ready };
          const assessment = watch.push({ vda: sample }, { budgetMs: 400 });
          if (assessment.changed) told.push(assessment.verdict);
        }
        expect(told.length).toBeLessThanOrEqual(2);
        expect(told).not.toContain('converging');
      }),
      { numRuns: 100 },
    );
  });

  test('an agent that is restarted does not tell again what it told', () => {
    const disk = mirror(10, 30, { synced: true });
    const first = new Watch({ vda: disk });
    const { verdict, sinceMs } = first.run(10_000);
    const second = new Supervision(SUPERVISION_TIMES, { verdict, sinceMs });
    for (let ms = 0; ms < 20_000; ms += SAMPLE_MS) {
      for (let n = 0; n < 25; n++) disk.advance(10);
      expect(second.push({ vda: disk.sample(first.nowMs + 1_000 + ms) }, { budgetMs: 300 })).toMatchObject({ verdict: 'diverging', sinceMs, changed: false });
    }
  });

  test('every number survives JSON, whatever the samples are', () => {
    const sample = fc.record({
      gapMs: fc.integer({ min: 0, max: 20_000 }),
      remainingBytes: fc.integer({ min: 0, max: 1e12 }),
      offsetBytes: fc.integer({ min: 0, max: 1e13 }),
      ready: fc.boolean(),
      writeBlocking: fc.boolean(),
      error: fc.option(fc.constant('Input/output error'), { nil: undefined }),
    });
    fc.assert(
      fc.property(fc.array(sample, { minLength: 1, maxLength: 60 }), fc.integer({ min: 20, max: 2_000_000 }), (samples, budgetMs) => {
        const watch = new Supervision();
        let atMs = START_MS;
        for (const { gapMs, error, ...rest } of samples) {
          atMs += gapMs;
          const assessment = watch.push({ vda: { ...rest, atMs, ...(error !== undefined && { error }) }, vdb: { atMs, remainingBytes: 0, offsetBytes: MB, ready: true } }, { budgetMs });
          expect(JSON.parse(JSON.stringify(assessment))).toEqual(assessment);
          if (assessment.fitsBudget) expect(assessment.predictedDrainMs).toBeLessThanOrEqual(budgetMs);
          expect(assessment.message).not.toMatch(/NaN|undefined|Infinity/);
          expect(assessment.message.length).toBeGreaterThan(5);
        }
      }),
    );
  });
});

describe('memory', () => {
  /** QEMU's passes: what remains falls at the link's rate, and jumps to what was dirtied when a pass ends. */
  function passes(options: { sentMB: number; dirtyMB: number; totalMB?: number; forMs?: number; stallsAtMs?: number }): MemorySample[] {
    const { sentMB, dirtyMB, totalMB = 1000, forMs = 60_000, stallsAtMs = Infinity } = options;
    const samples: MemorySample[] = [];
    let [remaining, transferred, dirtied, first] = [totalMB, 0, 0, true];
    for (let ms = 0; ms < forMs; ms += SAMPLE_MS) {
      for (let step = 0; step < SAMPLE_MS && ms < stallsAtMs; step++) {
        remaining -= sentMB / 1000;
        transferred += sentMB / 1000;
        dirtied = Math.min(totalMB, dirtied + dirtyMB / 1000);
        if (remaining <= 0) [remaining, dirtied, first] = [dirtied, 0, false];
      }
      samples.push({ atMs: START_MS + ms, remainingBytes: Math.max(0, remaining) * MB, totalBytes: totalMB * MB, transferredBytes: transferred * MB, dirtyBytesPerSecond: first ? 0 : dirtyMB * MB, bytesPerSecond: sentMB * MB, downtimeLimitMs: 100 });
    }
    return samples;
  }
  function told(samples: MemorySample[]) {
    const supervision = new MemorySupervision();
    return samples.map((sample) => supervision.push(sample)).filter(({ changed }) => changed).map(({ verdict, message }) => ({ verdict, message }));
  }

  test('that shrinks from pass to pass converges without a word', () => expect(told(passes({ sentMB: 100, dirtyMB: 40 }))).toEqual([]));
  test('that is dirtied faster than it is sent diverges, told once', () => {
    const [first, ...more] = told(passes({ sentMB: 100, dirtyMB: 150 }));
    expect(more).toEqual([]);
    expect(first).toMatchObject({ verdict: 'diverging' });
    expect(first!.message).toMatch(/memory does not converge: the guest dirties it faster than it can be sent: .* MB of 1000 MB remain, .* MB\/s become dirty, 100 MB\/s are sent; the pause would be .* of the 100 ms allowed/);
  });
  test('that no longer moves is stalled, told once', () => expect(told(passes({ sentMB: 100, dirtyMB: 40, stallsAtMs: 3_000 })).map(({ verdict }) => verdict)).toEqual(['stalled']));
  test('of an idle guest converges in its first pass, however slow', () => expect(told(passes({ sentMB: 1, dirtyMB: 0 }))).toEqual([]));
  test('near the limit, dirtied as fast as it is sent, hovers', () => {
    const sample: MemorySample = { atMs: START_MS, remainingBytes: 30 * MB, totalBytes: 1000 * MB, dirtyBytesPerSecond: 100 * MB, bytesPerSecond: 100 * MB, downtimeLimitMs: 100 };
    expect(assessMemory(sample, [])).toMatchObject({ verdict: 'hovering', predictedDowntimeMs: 300 });
    expect(assessMemory({ ...sample, remainingBytes: 5 * MB }, [])).toMatchObject({ verdict: 'converging', predictedDowntimeMs: 50 });
  });
  test('numbers are finite when nothing is sent', () => {
    const nothing: MemorySample = { atMs: START_MS, remainingBytes: MB, totalBytes: MB, dirtyBytesPerSecond: 0, bytesPerSecond: 0, downtimeLimitMs: 100 };
    expect(Number.isFinite(assessMemory(nothing, []).predictedDowntimeMs)).toBe(true);
  });
});
