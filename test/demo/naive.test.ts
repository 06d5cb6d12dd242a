import { readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { judge, naiveMigration } from '../../demo/naive';
import type { VerifyResult } from '../../demo/guest/test-guest';

const leftFolders = () => readdirSync(tmpdir()).filter((name) => name.startsWith('vmferry-naive-'));

test('migrate-continue with "ready" but dirty mirrors loses blocks or kills a QEMU, and the proof sees it', async () => {
  const before = leftFolders();
  const said: string[] = [];
  const { outcome, mirrors, source, destination, verified } = await naiveMigration((text) => said.push(text));

  // What the orchestrator of the report went by: both "ready", and yet far from equal.
  expect(mirrors.map(({ ready, status }) => ({ ready, status }))).toEqual([{ ready: true, status: 'ready' }, { ready: true, status: 'ready' }]);
  expect(mirrors.reduce((sum, { len, offset }) => sum + len - offset, 0)).toBeGreaterThan(16 * 2 ** 20);

  const seen = { lost: verified?.blocksLost ?? 0, sourceDied: source.exit !== undefined, destinationDied: destination.exit !== undefined };
  expect(seen.lost > 0 || seen.sourceDied || seen.destinationDied).toBe(true);
  expect(outcome).not.toBe('naive-nothing-lost');
  expect(said[0]).toMatch(/THE WRONG WAY/);
  expect(said.at(-1)).toMatch(/THE WRONG WAY/);
  expect(leftFolders()).toEqual(before);
}, 300_000);

test('an interrupted run says so and leaves nothing', async () => {
  const before = leftFolders();
  let interrupt!: (reason: Error) => void;
  const interrupted = new Promise<never>((_resolve, reject) => (interrupt = reject));
  // The first event of a QEMU: it runs, and the flow is in the midst of things.
  const run = naiveMigration((text) => text.includes('RESUME') && interrupt(new Error('interrupted by SIGTERM')), interrupted);
  await expect(run).rejects.toThrow('interrupted by SIGTERM');
  expect(leftFolders()).toEqual(before);
});

describe('the outcome names the worst that happened', () => {
  const verified = (lost: number, memoryErrors = 0): VerifyResult => ({ writesCompleted: 9, blocksWritten: 9, blocksChecked: 9, blocksLost: lost, memoryErrors, writeErrors: 0, first: [] });
  const dead = { exit: 'SIGABRT' };
  const running = { status: { running: true, status: 'running' } };
  const paused = { status: { running: false, status: 'postmigrate' } };

  test.each([
    ['naive-blocks-lost', dead, running, verified(3)],
    ['naive-blocks-lost', paused, running, verified(3)],
    ['naive-source-died', dead, running, verified(0)],
    ['naive-destination-died', running, dead, verified(0)],
    ['naive-both-died', dead, dead, undefined],
    ['naive-two-copies', running, running, verified(0)],
    ['naive-hung', paused, {}, undefined],
    ['naive-memory-damaged', paused, running, verified(0, 1)],
    ['naive-nothing-lost', paused, running, verified(0)],
  ])('%s', (outcome, source, destination, result) => {
    expect(judge({ source, destination }, result)).toBe(outcome);
  });
});
