import { setTimeout as delay } from 'node:timers/promises';
import { ScheduleOverlapPolicy } from '@temporalio/client';
import type { ScheduleRequest } from '../../client';
import { evacuationWorkflowId } from '../../workflows/evacuation';
import { FleetStage, guest } from './fleet-stage';
import { jsonLines } from './json-lines';
import type { Said } from './run-cli';

/** The fleet's commands against a real Temporal server and control worker. No host answers: what would move a guest waits for its agent. */
let stage: FleetStage;
beforeAll(async () => {
  stage = await FleetStage.start();
  await stage.report('host-a', [guest('db'), guest('web', { memoryBytes: 2 * 2 ** 30 }), guest('pinned', { migratable: 'never' })], { rack: 'r1' });
  await stage.report('host-b', [], { rack: 'r2', gpu: 'yes' });
  await stage.report('host-c', [guest('legacy', { machine: 'pc-i440fx-2.1' })], { rack: 'r3' });
  await stage.report('host-d', [], { rack: 'r4' });
});
afterAll(async () => await stage.stop());

const lines = ({ out }: Said) => jsonLines(out);
const oneLine = ({ err }: Said) => err.trim().replace(/\s*\n?\(--help tells more\)$/, '').split('\n');
/** Visibility, and so a list, lags behind. */
async function until<T>(look: () => Promise<T>, so: (found: T) => boolean): Promise<T> {
  for (;;) {
    const found = await look();
    if (so(found)) return found;
    await delay(100);
  }
}

describe('a command line that makes no sense is refused in one line that names the option, the value and the fix:', () => {
  test.each<[string, string[], string]>([
    ['neither hosts nor a selector', ['evacuate'], 'say which hosts: names, or --selector with labels'],
    ['both', ['evacuate', 'host-a', '--selector', 'rack=r1'], 'host-a and --selector rack=r1 both say which hosts: give one of them'],
    ['a limit of 0', ['evacuate', 'host-a', '--limit-source', '0'], "option '--limit-source <n>' argument '0' is invalid. Give a whole number from 1 to"],
    ['a limit that is no number', ['evacuation', 'set-limits', 'host-a', '--limit-fleet', 'many'], "option '--limit-fleet <n>' argument 'many' is invalid"],
    ['no limit at all', ['evacuation', 'set-limits', 'host-a'], 'say which limit: --limit-fleet'],
    ['more tries than allowed', ['evacuate', 'host-a', '--tries', '11'], "'--tries <n>' argument '11' is invalid. Give a whole number from 1 to 10."],
    ['a negative number of failures', ['evacuate', 'host-a', '--max-failures', '-1'], "'--max-failures <n>' argument '-1' is invalid"],
    ['a window without a unit', ['evacuate', 'host-a', '--window', '4'], "'--window <duration>' argument '4' is invalid. Give a number with ms, s, m, h or d, such as 4h."],
    ['a window of 0', ['evacuate', 'host-a', '--window', '0h'], "'--window <duration>' argument '0h' is invalid. Give a duration from 1 s"],
    ['what to do at the end of a window that has none', ['evacuate', 'host-a', '--at-window-end', 'postpone'], '--at-window-end postpone needs a --window'],
    ['a selector that cannot be read', ['evacuate', '--selector', 'rack in r1'], "'--selector <selector>' argument 'rack in r1' is invalid. Give conditions on labels, such as rack=r12"],
    ['an empty one, for destinations', ['evacuate', 'host-a', '--to', ''], "'--to <selector>' argument '' is invalid"],
    ['a share without %', ['evacuate', '--selector', 'gpu', '--min-free-memory', '10'], "argument '10' is invalid. Give 0% to 100%, such as 10%."],
    ['a plan that waits for approval', ['evacuate', 'host-a', '--plan', '--approve'], '--plan moves nothing, --approve moves once it is approved: give one of them'],
    ['a plan of many hosts', ['evacuate', 'host-a', 'host-b', '--plan'], '--plan is for one host: name it'],
    ['waves of one host', ['evacuate', 'host-a', '--hosts-at-once', '2'], '--hosts-at-once is for many hosts'],
    ['the return of many hosts', ['evacuate', '--selector', 'gpu', '--and-return'], '--and-return is for one host'],
    ['a schedule without a window', ['evacuate', 'host-a', '--schedule', '0 2 * * *'], '--schedule needs a --window'],
    ['a schedule that is detached', ['evacuate', 'host-a', '--schedule', '0 2 * * *', '--window', '1h', '--detach'], '--detach does nothing with --schedule'],
    ['a time zone without a schedule', ['evacuate', 'host-a', '--timezone', 'UTC'], '--timezone belongs to --schedule'],
    ['an unknown time zone', ['evacuate', 'host-a', '--schedule', '0 2 * * *', '--timezone', 'Mars/Olympus'], "'--timezone <zone>' argument 'Mars/Olympus' is invalid. Give a time zone such as Europe/Berlin"],
    ['less catch-up than Temporal takes', ['evacuate', 'host-a', '--schedule', '0 2 * * *', '--catch-up', '1s'], "'--catch-up <duration>' argument '1s' is invalid. Give a duration from 10 s"],
    ['images that are wiped and kept', ['evacuate', 'host-a', '--source-disks', 'wipe', '--keep-for', '1h'], '--source-disks wipe keeps nothing'],
    ['a steer of many hosts that is for one', ['evacuation', 'skip', 'fleet/r1', 'db', '--reason', 'x'], 'fleet/r1 empties many hosts: name one of them'],
    ['slots that are changed and reset', ['host', 'set-limits', 'host-a', '--incoming', '1', '--reset'], '--reset takes back --outgoing and --incoming'],
    ['slots without a change', ['host', 'set-limits', 'host-a'], 'say what to change: --outgoing, --incoming, or --reset'],
    ['a cordon without a reason', ['host', 'cordon', 'host-a', '--reason', ' '], 'say who cordons the host, and why'],
    ['a stopped guest with a downtime', ['migrate', 'db', '--to', 'host-b', '--stopped', '--max-downtime', '1s'], '--stopped is for a guest that does not run: leave --max-downtime out'],
  ])('%s', async (_case, args, text) => {
    const said = await stage.vmferry(...args);
    expect({ code: said.code, out: said.out, lines: oneLine(said) }).toEqual({ code: 2, out: '', lines: [expect.stringContaining(text)] });
    const json = await stage.vmferry(...args, '--json');
    expect({ code: json.code, lines: lines(json), err: json.err }).toEqual({ code: 2, lines: [{ event: 'error', type: 'UsageError', message: expect.stringContaining(text), exitCode: 2 }], err: '' });
  });
});

describe('hosts', () => {
  test('are listed with labels, slots, cordon and state; a cordon and slots can be set and taken back', async () => {
    expect(await stage.vmferry('host', 'cordon', 'host-d', '--reason', 'memory errors', '--author', 'ann')).toMatchObject({ code: 0, out: expect.stringContaining('vmferry host uncordon host-d'), err: '' });
    expect(await stage.vmferry('host', 'set-limits', 'host-d', '--incoming', '0')).toMatchObject({ code: 0 });
    const row = async () => (await stage.vmferry('host', 'list')).out.split('\n').find((line) => line.startsWith('host-d'))!;
    expect(await row()).toMatch(/0\/2 +0\/0 +rack=r4 +cordoned/);
    const shown = await stage.vmferry('host', 'show', 'host-d');
    expect(shown.out).toContain('cordoned by ann at ');
    expect(shown.out).toContain('slots in use: 0/2 outgoing, 0/0 incoming (set by an operator)');
    expect(lines(await stage.vmferry('host', 'show', 'host-d', '--json'))[0]).toMatchObject({ name: 'host-d', reachable: true, labels: { rack: 'r4' }, cordoned: { by: 'ann', reason: 'memory errors' }, slots: { outgoing: 2, incoming: 0 } });
    await stage.vmferry('host', 'uncordon', 'host-d');
    await stage.vmferry('host', 'set-limits', 'host-d', '--reset');
    expect(await row()).toMatch(/0\/2 +0\/2 +rack=r4 +ready/);
  });

  test('that nobody knows are refused with those that are known', async () => {
    const known = 'host-a, host-b, host-c, host-d';
    expect(await stage.vmferry('host', 'show', 'host-z')).toMatchObject({ code: 3, err: expect.stringContaining(`there is no host "host-z" (known are: ${known})`) });
    expect(await stage.vmferry('host', 'uncordon', 'host-z')).toMatchObject({ code: 3, err: expect.stringContaining(`there is no host "host-z" (known are: ${known})`) });
    expect(await stage.vmferry('evacuate', 'host-z')).toMatchObject({ code: 3, err: expect.stringContaining('there is no host "host-z"') });
    expect(await stage.vmferry('evacuate', 'host-z', 'host-a')).toMatchObject({ code: 3, err: expect.stringContaining('hosts: there is no host "host-z"') });
  });
});

describe('an evacuation', () => {
  test('is planned without a change: where each guest would go, which stays and why', async () => {
    const plan = lines(await stage.vmferry('evacuate', 'host-a', '--plan', '--to', 'rack in (r2,r4)', '--skip', 'db', '--json'));
    expect(plan).toEqual([expect.objectContaining({ outcome: 'planned', planned: [expect.objectContaining({ guest: 'web', to: expect.stringMatching(/host-[bd]/) })], stayed: [{ guest: 'pinned', from: 'host-a', reasons: [expect.stringContaining('migratable: never')] }, { guest: 'db', from: 'host-a', reasons: ['it was asked to stay'] }] })]);
    const text = await stage.vmferry('evacuate', 'host-a', '--plan');
    expect(text).toMatchObject({ code: 0, err: '' });
    expect(text.out).toMatch(/web +host-[bcd] +planned/);
    expect(text.out).toContain('2 guests would move, 23 GiB in all; 1 would stay.');
    expect((await stage.client.hosts()).every(({ cordoned }) => !cordoned)).toBe(true);
  });

  test('that cannot be done says why at once, every reason, and changes nothing', async () => {
    const said = await stage.vmferry('evacuate', 'host-a', '--skip', 'nobody', '--to', 'rack=r9', '--json');
    expect(said.code).toBe(3);
    expect(lines(said)).toEqual([{ event: 'error', type: 'EvacuationRefused', exitCode: 3, host: 'host-a', message: expect.any(String), blockers: expect.arrayContaining([expect.stringContaining('there is no guest "nobody" on host-a'), expect.stringContaining('guest web would stay')]) }]);
    expect(await stage.vmferry('evacuate', 'host-a', '--window', '1s')).toMatchObject({ code: 3, err: expect.stringContaining('windowSeconds: the window of 1.0 s is shorter than even the smallest guest needs') });
    expect(await stage.vmferry('evacuate', 'host-c')).toMatchObject({ code: 3, err: expect.stringContaining('no QEMU with machine pc-i440fx-2.1') });
    expect(await stage.vmferry('evacuate', '--selector', 'rack=r9')).toMatchObject({ code: 3, err: expect.stringContaining('selector: "rack=r9" matches no host (labels are: gpu=yes, rack=r1, rack=r2, rack=r3, rack=r4)') });
    expect((await stage.client.hosts()).every(({ cordoned }) => !cordoned)).toBe(true);
    await expect(stage.client.fleet.evacuate({ host: 'host-a', tries: 0, limits: { fleet: 0 } })).rejects.toMatchObject({ type: 'EvacuationRefused', details: { blockers: expect.anything() }, message: expect.stringMatching(/limits\.fleet: .*got 0[^]*tries: |tries: [^]*limits\.fleet: /) });
    await expect(stage.client.fleet.evacuate({ host: 'host-a', windowSeconds: 0 })).rejects.toMatchObject({ type: 'EvacuationRefused', message: expect.stringContaining('windowSeconds: ') });
  });

  test('of an empty host is done at once; many are emptied one after the other', async () => {
    const said = await stage.vmferry('evacuate', 'host-b', '--json');
    expect(said.code).toBe(0);
    expect(lines(said).at(-1)).toMatchObject({ host: 'host-b', outcome: 'completed', moved: [], stayed: [], workflowId: 'evacuate/host-b' });
    const many = await stage.vmferry('evacuate', '--selector', 'rack in (r2,r4)', '--name', 'both');
    expect(many).toMatchObject({ code: 0, out: expect.stringContaining('2 of 2 hosts empty, 0 guests moved') });
    expect(await stage.vmferry('evacuation', 'show', 'fleet/both')).toMatchObject({ code: 0, out: expect.stringContaining('2 of 2 hosts done') });
    for (const host of ['host-b', 'host-d']) await stage.client.fleet.uncordon(host);
  });

  test('waits for its approval, takes limits and skips meanwhile, and is cancelled', async () => {
    const started = await stage.vmferry('evacuate', 'host-a', '--approve', '--detach', '--limit-fleet', '5', '--on-divergence', 'ask');
    expect(started).toMatchObject({ code: 0, out: expect.stringMatching(/2 guests would move[^]*vmferry evacuation watch host-a/), err: '' });
    expect(await stage.vmferry('evacuate', 'host-a')).toMatchObject({ code: 3, err: expect.stringContaining('evacuate/host-a is under way already: see "vmferry evacuation show host-a"') });
    expect(await until(() => stage.vmferry('evacuation', 'show', 'host-a'), ({ out }) => out.includes('waiting-for-approval'))).toMatchObject({ code: 0, out: expect.stringContaining('waits for "vmferry evacuation approve host-a"') });
    expect(await stage.vmferry('evacuation', 'set-limits', 'host-a', '--limit-source', '1')).toMatchObject({ code: 0, out: expect.stringContaining('At once now: 5 in all, 1 from a host, 2 to a host.') });
    await expect((await stage.client.fleet.evacuation('host-a')).setLimits({ fleet: 0 }, { by: 'x', reason: 'y' })).rejects.toMatchObject({ type: 'EvacuationRefused', message: expect.stringMatching(/^limits\.fleet: .*\(got 0\)$/) });
    expect(await stage.vmferry('evacuation', 'skip', 'host-a', 'nobody', '--reason', 'x')).toMatchObject({ code: 3, err: expect.stringContaining('guest nobody is not planned to move') });
    expect(await stage.vmferry('evacuation', 'skip', 'host-a', 'db', '--reason', 'its owner asked', '--author', 'ann')).toMatchObject({ code: 0 });
    expect(await stage.vmferry('evacuation', 'bring-back', 'host-a')).toMatchObject({ code: 3, err: expect.stringContaining('waits to bring nobody back') });
    const given = await stage.client.temporal.workflow.getHandle(evacuationWorkflowId('host-a')).fetchHistory();
    expect(Buffer.from(given.events![0]!.workflowExecutionStartedEventAttributes!.input!.payloads![0]!.data!).toString()).toContain('"onDivergence":"ask"');
    const cancelled = await stage.vmferry('evacuation', 'cancel', 'host-a');
    expect(cancelled).toMatchObject({ code: 0, out: expect.stringContaining('Host host-a was not emptied further: it was cancelled: 0 guests moved') });
    expect(cancelled.out).toContain('db stayed: skipped by ann: its owner asked');
    expect(await stage.vmferry('evacuation', 'cancel', 'host-a')).toMatchObject({ code: 3, err: expect.stringContaining('evacuate/host-a is over already') });
    expect(await stage.vmferry('evacuation', 'approve', 'host-a')).toMatchObject({ code: 3, err: expect.stringContaining('host host-a is not being emptied now') });
    await stage.client.fleet.uncordon('host-a');
  });

  test('that leaves guests tells what happens line by line, ends with a report of who stayed and why, and with exit code 1', async () => {
    const said = await stage.vmferry('evacuate', 'host-a', '--tries', '1', '--skip', 'web', '--to', 'rack=r2');
    expect(said.code).toBe(1);
    // No agent answers.
    for (const line of ['db moves from host-a to host-b', 'db failed to move to host-b, HostUnreachable: ']) expect(said.err).toContain(`\n${line}`);
    for (const line of ['Host host-a could be emptied only in part: 0 guests moved in ', 'web stayed: it was asked to stay', 'db stayed: ', 'It takes no guests until "vmferry host uncordon host-a".']) expect(`\n${said.out}`).toContain(`\n${line}`);
    expect(await stage.vmferry('evacuation', 'watch', 'host-a')).toMatchObject({ code: 1, out: expect.stringContaining('could be emptied only in part') });
    await stage.client.fleet.uncordon('host-a');
  });

  test('that was never begun is not shown', async () => {
    expect(await stage.vmferry('evacuation', 'show', 'host-c2')).toMatchObject({ code: 3, err: expect.stringContaining('there is no evacuation of a host "host-c2" on record') });
    expect(await stage.vmferry('evacuation', 'pause', 'fleet/none', '--reason', 'x')).toMatchObject({ code: 3, err: expect.stringContaining('there is no evacuation "fleet/none" on record') });
  });
});

describe('a schedule', () => {
  const request = (more: Partial<ScheduleRequest> = {}): ScheduleRequest => ({ name: 'nightly', cron: '30 2 * * SUN', timeZone: 'Europe/Berlin', evacuation: { selector: 'rack=r2', windowSeconds: 3600 }, ...more });

  test('is made by evacuate, shown with its next times and its policies, paused, resumed, triggered and deleted', async () => {
    const made = await stage.vmferry('evacuate', '--selector', 'rack=r2', '--schedule', '30 2 * * SUN', '--timezone', 'Europe/Berlin', '--window', '4h', '--jitter', '10m', '--limit-fleet', '3', '--name', 'nightly');
    expect(made).toMatchObject({ code: 0, err: expect.stringContaining('vmferry schedule trigger nightly') });
    expect(made.out).toContain('nightly: empties rack=r2 at "30 2 * * SUN" in Europe/Berlin, for 4 h each time');
    expect(made.out).toContain('while the last one is under way: skip; missed: made up for within 10 min; jitter: up to 10 min');
    expect(made.out).toMatch(/\nnext: \d{4}-\d\d-\d\d 02:3\d GMT\+[12]\nthen: /);
    const [shown] = lines(await stage.vmferry('schedule', 'show', 'nightly', '--json'));
    expect(shown).toMatchObject({ name: 'nightly', overlap: 'SKIP', catchUpSeconds: 600, jitterSeconds: 600, windowSeconds: 14_400, paused: false, taken: 0, evacuation: { selector: 'rack=r2', windowSeconds: 14_400, limits: { fleet: 3 } } });
    expect((shown!['nextTimes'] as string[]).length).toBeGreaterThan(1);
    const { policies } = await stage.client.temporal.schedule.getHandle('nightly').describe();
    expect(policies).toMatchObject({ overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: 600_000 });

    expect(await until(() => stage.vmferry('schedule', 'list'), ({ out }) => out.includes('nightly'))).toMatchObject({ code: 0, out: expect.stringMatching(/nightly +rack=r2 +30 2 \* \* SUN +Europe\/Berlin +4 h +\d{4}-/) });
    await stage.vmferry('schedule', 'pause', 'nightly', '--reason', 'freeze', '--author', 'ann');
    expect(await stage.client.schedules.show('nightly')).toMatchObject({ paused: true, note: 'paused by ann: freeze' });
    await until(() => stage.vmferry('schedule', 'list'), ({ out }) => / paused$/m.test(out));
    expect(await stage.vmferry('schedule', 'resume', 'nightly')).toMatchObject({ code: 0, out: expect.stringMatching(/next: \d{4}-/) });

    expect(await stage.vmferry('schedule', 'trigger', 'nightly')).toMatchObject({ code: 0 });
    const { recent } = await until(() => stage.client.schedules.show('nightly'), ({ taken, running }) => taken === 1 && running.length === 0);
    expect(recent).toEqual([{ at: expect.any(String), workflowId: expect.stringMatching(/^fleet\/nightly-/) }]);
    expect(await stage.vmferry('evacuation', 'show', recent[0]!.workflowId)).toMatchObject({ code: 0, out: expect.stringContaining('1 of 1 host done') });
    await stage.client.fleet.uncordon('host-b');

    expect(await stage.vmferry('schedule', 'delete', 'nightly')).toMatchObject({ code: 0 });
    expect(await stage.vmferry('schedule', 'show', 'nightly')).toMatchObject({ code: 3, err: expect.stringContaining('there is no schedule "nightly"') });
    await until(() => stage.vmferry('schedule', 'list'), ({ out }) => out === '');
  });

  test('whose last evacuation is under way is not triggered again, and its next time is skipped', async () => {
    // It never ends: no host has so much free memory.
    await stage.client.schedules.create(request({ name: 'busy', evacuation: { hosts: ['host-c'], windowSeconds: 3600, minFreeMemory: 1 } }));
    const handle = stage.client.temporal.schedule.getHandle('busy');
    try {
      await stage.client.schedules.trigger('busy');
      const { running } = await until(() => stage.client.schedules.show('busy'), (one) => one.running.length === 1);
      expect(await stage.vmferry('schedule', 'trigger', 'busy')).toMatchObject({ code: 3, err: expect.stringContaining(`${running[0]!} is under way still`) });
      await handle.trigger(ScheduleOverlapPolicy.SKIP);
      expect(await until(() => stage.client.schedules.show('busy'), (one) => one.skippedForOverlap > 0)).toMatchObject({ taken: 1, skippedForOverlap: 1 });
      expect(await until(() => stage.vmferry('evacuation', 'show', running[0]!), ({ out }) => out.includes('waits: '))).toMatchObject({ out: expect.stringContaining('less than 100 % (minFreeMemory)') });
      expect(await stage.vmferry('evacuation', 'pause', running[0]!, '--reason', 'x')).toMatchObject({ code: 0 });
      expect(await stage.vmferry('evacuation', 'cancel', running[0]!)).toMatchObject({ code: 0, out: expect.stringContaining('0 of 1 host empty') });
    } finally {
      await stage.client.schedules.delete('busy');
    }
  });

  test.each<[string, Partial<ScheduleRequest>, string]>([
    ['times that never come', { cron: '0 0 30 2 *' }, 'cron: "0 0 30 2 *" never comes in Europe/Berlin'],
    ['a year that is over', { cron: '0 0 1 1 * 2020' }, 'never comes'],
    ['a cron expression that is none', { cron: 'at night' }, 'cron: "at night" cannot be used'],
    ['a minute that there is not', { cron: '61 2 * * *' }, 'cron: "61 2 * * *" cannot be used'],
    ['a time zone inside the expression', { cron: 'TZ=Mars/Olympus 0 2 * * *' }, 'has a time zone of its own'],
    ['an unknown time zone', { timeZone: 'Mars/Olympus' }, 'timeZone: "Mars/Olympus" is not known'],
    ['a window of 0', { evacuation: { selector: 'rack=r2', windowSeconds: 0 } }, 'windowSeconds: '],
    ['no window', { evacuation: { selector: 'rack=r2' } as ScheduleRequest['evacuation'] }, 'windowSeconds: say how long'],
    ['a selector that matches no host now', { evacuation: { selector: 'rack=r9', windowSeconds: 60 } }, 'selector: "rack=r9" matches no host (labels are: gpu=yes, rack=r1'],
    ['an unknown host', { evacuation: { hosts: ['host-z'], windowSeconds: 60 } }, 'hosts: there is no host "host-z" (known are: host-a'],
    ['hosts and a selector', { evacuation: { hosts: ['host-a'], selector: 'gpu', windowSeconds: 60 } }, 'give either hosts or a selector'],
    ['a name that is none', { name: 'a/b' }, 'name: "a/b" is no name'],
    ['less catch-up than Temporal takes', { catchUpSeconds: 1 }, 'catchUpSeconds: 1 is less than 10'],
  ])('is refused, and none is left, with %s', async (_case, more, text) => {
    await expect(stage.client.schedules.create(request({ name: 'wrong', ...more }))).rejects.toMatchObject({ type: 'EvacuationRefused', message: expect.stringContaining(text), details: { blockers: [expect.any(String)] } });
    await expect(stage.client.schedules.show('wrong')).rejects.toMatchObject({ type: 'NotFound' });
  });

  test('with a name that is taken is refused', async () => {
    await stage.client.schedules.create(request({ name: 'once' }));
    await expect(stage.client.schedules.create(request({ name: 'once' }))).rejects.toMatchObject({ type: 'EvacuationRefused', message: expect.stringContaining('there is a schedule "once" already') });
    await stage.client.schedules.delete('once');
  });
});
