import { ApplicationFailure } from '@temporalio/common';
import { ActivityFailure, TimeoutFailure } from '@temporalio/workflow';
import fc from 'fast-check';
import { createHostActivities } from '../../activities';
import type { HostDependencies } from '../../activities/context';
import { ERRORS, refusal, toFailure } from '../../activities/errors';
import { fleetActivities } from '../../activities/fleet';
import { Quarters } from '../../activities/quarters';
import { buildProgram } from '../../client/cli';
import { currentDetails, waitDetails } from '../../workflows/details';
import { RUNGS } from '../../workflows/divergence';
import { evacuationDetails, fleetEvacuationDetails } from '../../workflows/evacuation-details';
import type { EvacuationStatus } from '../../workflows/evacuation';
import { hostDetails } from '../../workflows/host-details';
import { lastWord } from '../../workflows/last-word';
import { migrateVmSchema, type MigrationStatus } from '../../workflows/messages';
import { PHASES } from '../../workflows/phases';
import { evacuationStaticDetails, moveDetails, moveSummary, oneLine, summaryOf } from '../../workflows/summaries';

/** The texts of the Temporal UI, without a browser. */
const LIMIT_BYTES = 400;
const bytes = (text: string) => Buffer.byteLength(text);
const status: MigrationStatus = { vm: 'db-7', from: 'host-a', to: 'host-b', phase: 'converge', memoryTry: 0, warnings: [], decisions: [] };
const request = migrateVmSchema.parse({ vm: 'db-7', to: 'host-b', onDivergence: 'ask' });

describe('summaries', () => {
  test('are short enough for the server, whatever names they have', () => {
    const name = 'n'.repeat(64);
    const targets = [{}, {}];
    const input = { guest: name, from: name, to: name, host: name, hosts: [name, name], targets, plan: { disks: targets }, around: { budgetMs: 250 }, handOver: { memoryTry: 2, maxDowntimeMs: 500 }, bytesPerSecond: 1e9, ms: 100, sourceDisks: 'keep', keepHours: 24, pid: 4711, cordon: {}, seconds: 3 };
    const activities = Object.keys({ ...createHostActivities({ host: { store: {} } } as unknown as HostDependencies), ...fleetActivities({} as never) });
    expect(activities.length).toBeGreaterThan(40);
    for (const activity of activities) {
      const summary = summaryOf(activity, name, input);
      expect(summary).not.toMatch(/undefined|NaN/);
      expect(summary).not.toBe(activity);
      expect(bytes(summary)).toBeLessThanOrEqual(LIMIT_BYTES);
    }
    expect(summaryOf('startGuest', 'host-a', undefined)).toBe('startGuest');
    fc.assert(fc.property(fc.string({ unit: 'grapheme', maxLength: 1000 }), (text) => bytes(oneLine(text)) <= LIMIT_BYTES && !oneLine(text).includes('\n')));
  });

  test('of a move say what is known at its start', () => {
    expect(moveSummary({ guest: 'db-7', from: 'host-a', to: 'host-b', diskCount: 2, diskBytes: 48 * 2 ** 30 })).toBe('db-7: host-a → host-b, 2 disks, 48 GiB');
    expect(moveSummary({ guest: 'db-7', to: 'host-b', cold: true })).toBe('db-7 → host-b, stopped');
    expect(moveDetails({ vm: 'db-7', to: 'host-b', maxDowntimeMs: 300, memory: {} }, false)).toMatch(/Asked for: maxDowntimeMs 300\./);
  });
});

describe('details', () => {
  const evacuation: EvacuationStatus = { host: 'host-a', phase: 'moving', planned: [], moving: [], moved: [], stayed: [], failures: [], limits: { fleet: 1, perSource: 1, perDestination: 1 } };
  const phases: EvacuationStatus['phase'][] = ['planning', 'waiting-for-approval', 'moving', 'paused', 'away', 'returning', 'done'];
  const choices = [...RUNGS, 'wait', 'postpone', 'abort'] as const;
  const asks = { choices: [...choices], until: '2026-11-24T16:00:00Z' };

  test('have only commands that exist, with the options that they need', () => {
    const texts = [
      currentDetails({ ...status, asks }, { request }),
      waitDetails('db-7', { host: 'host-b', why: 'whether it arrived', since: '2026-11-24T15:00:00Z' }),
      ...phases.map((phase) => evacuationDetails({ ...evacuation, phase })),
      ...[true, false].map((paused) => fleetEvacuationDetails({ hosts: [], paused }, 'fleet/rack')),
      hostDetails('host-a', { name: 'host-a', address: '', guests: [], totalMemoryBytes: 1, freeMemoryBytes: 1, roots: [], reportedAt: '2026-11-24T15:00:00Z', reservations: [], cordoned: { by: 'x', reason: 'y', at: 'z' } }),
      moveDetails({ vm: 'db-7', to: 'host-b' }, false),
      evacuationStaticDetails('host-a', { host: 'host-a' }),
    ];
    const commands = texts.flatMap((text) => [...text.matchAll(/`vmferry ([^`]+)`/g)].map((match) => match[1]!));
    expect(commands.length).toBeGreaterThan(20);
    expect(commands.filter((command) => commandProblem(command.split(' ')) !== undefined)).toEqual([]);
    for (const choice of choices) expect(commands.some((command) => command.startsWith(`steer db-7 ${choice}`))).toBe(true);
  });

  test.each(PHASES)('of phase %s say what happens and what comes next', (phase) => {
    const text = currentDetails({ ...status, phase }, { request });
    expect(text).toContain(`Phase **${phase}**: `);
    expect(text).toMatch(/Next: .{5}/);
  });

  test('say who decides, until when, and what happens without an answer', () => {
    const text = currentDetails({ ...status, asks, verdict: 'diverging', message: 'disk vda does not catch up' }, { request: { ...request, afterAsk: 'postpone' }, disksDeadlineAtMs: Date.parse('2026-11-25T15:00:00Z') });
    expect(text).toContain('**You decide, until 2026-11-24 16:00:00 UTC**; without an answer: postpone');
    expect(text).toContain('Deadline of the disks: 2026-11-25 15:00:00 UTC, then abort');
    expect(text).toContain('**diverging**: disk vda does not catch up');
  });

  test('stand without what an older agent does not tell, and whatever a person wrote', () => {
    const old = { name: 'host-a', guests: [], reservations: [], reportedAt: '2026-11-24T15:00:00Z' } as unknown as Parameters<typeof hostDetails>[1];
    expect(hostDetails('host-a', old)).toContain('host-a');
    const decisions = [{ at: '2026-11-24T15:00:00Z', by: 'a|b', what: 'abort', why: 'two\nlines' }];
    expect(currentDetails({ ...status, decisions })).toContain('| 15:00:00 | a\\|b | abort | two lines |');
  });
});

describe('the first line of a failure', () => {
  const activity = (cause: Error) => new ActivityFailure('Activity task failed', 'awaitMirrors', '1', 'NON_RETRYABLE_FAILURE', 'agent', cause);
  const firstLine = (error: unknown) => (error as Error).message.split('\n')[0];
  const left = 'guest db-7 stays on host-a, running';

  test('is what to do, for what an agent reports and for what the workflow decides', () => {
    const known = Object.assign(new Error('the mirror of disk vda ended'), { name: 'MirrorFailed' });
    const reported = lastWord(activity(toFailure(known, 'host-a', 'db-7')), left);
    expect(firstLine(reported)).toBe(`${left}: ${ERRORS.MirrorFailed.advice}`);
    expect(reported).toMatchObject({ type: 'MirrorFailed', message: expect.stringMatching(/\nhost-a, guest db-7: the mirror of disk vda ended$/) });
    const decided = lastWord(ApplicationFailure.nonRetryable(`${left}: nobody answered`, 'DisksNotConverging'), left);
    expect((decided as Error).message).toBe(`${left}: ${ERRORS.DisksNotConverging.advice}\nnobody answered`);
  });

  test('is the one reason of a refusal, or says that there are more', () => {
    expect(firstLine(refusal('MigrationRefused', 'guest db-7 cannot move to host-b', ['give it 1 GiB']))).toBe('guest db-7 cannot move to host-b; nothing was changed: give it 1 GiB');
    expect(refusal('MigrationRefused', 'guest db-7 cannot move to host-b', ['one', 'two'])).toMatchObject({ message: 'guest db-7 cannot move to host-b; nothing was changed. Mend all of these, then try again:\n- one\n- two', details: [{ blockers: ['one', 'two'] }] });
  });

  test('names the agents when a step took too long, and what its tries said where that is known', () => {
    expect(lastWord(activity(new TimeoutFailure('activity timed out', undefined, 'SCHEDULE_TO_START')), left)).toMatchObject({ type: 'TimedOut', message: expect.stringMatching(/^guest db-7 stays .*agents of its hosts run/) });
    const noSlot = ApplicationFailure.create({ type: 'NoSlot', message: 'host-b has no free slot' });
    const timedOut = new TimeoutFailure('activity timed out', undefined, 'SCHEDULE_TO_CLOSE');
    Object.assign(timedOut, { cause: noSlot });
    expect(lastWord(activity(timedOut), left)).toMatchObject({ type: 'NoSlot', message: 'host-b has no free slot' });
  });

  test('is left alone where only a person can know, and a fault of ours stays one', () => {
    expect(lastWord(ApplicationFailure.nonRetryable('guest db-7 arrived, and ended: start it on host-b', 'GuestCrashedAfterMove'), left)).toMatchObject({ message: 'guest db-7 arrived, and ended: start it on host-b' });
    const fault = new TypeError('a fault');
    expect(lastWord(fault, left)).toBe(fault);
  });
});

test('however long a copy takes, and whatever becomes dirty again, it is told four times at most', () => {
  fc.assert(fc.property(fc.array(fc.record({ remaining: fc.integer({ min: 0, max: 1000 }), afterMs: fc.integer({ min: 1, max: 60_000 }) }), { maxLength: 200 }), (samples) => {
    const quarters = new Quarters(0);
    const told: number[] = [];
    let nowMs = 0;
    for (const { remaining, afterMs } of samples) {
      nowMs += afterMs;
      if (!quarters.isNews(remaining, 1000, nowMs)) continue;
      quarters.told(nowMs);
      told.push(nowMs);
    }
    return told.length <= 4 && told.every((atMs, index) => atMs - (told[index - 1] ?? 0) >= 10_000);
  }));
});

/** The word of a command line that the program would not take, or an option that it lacks. */
function commandProblem(words: string[]): string | undefined {
  let command = buildProgram();
  const rest = [...words];
  while (command.commands.length > 0) {
    const word = rest.shift();
    const child = command.commands.find((one) => one.name() === word);
    if (!child) return word ?? command.name();
    command = child;
  }
  const options = rest.filter((word) => word.startsWith('--'));
  const unknown = options.find((option) => !command.options.some(({ long }) => long === option));
  if (unknown !== undefined) return unknown;
  // What is asked says once that each answer needs a reason.
  return command.options.find(({ mandatory, long }) => mandatory && !options.includes(long!) && !(words[0] === 'steer' && long === '--reason'))?.long ?? undefined;
}
