import { SimulatedFleet } from '../simulated/fleet';
import { jsonLines } from './json-lines';
import { runCli } from './run-cli';

/** Commands that need agents: real ones, on simulated QEMUs. */
let fleet: SimulatedFleet;
beforeAll(async () => {
  fleet = await SimulatedFleet.open({ hosts: 3, guestsPerHost: 2, speed: 20 });
}, 60_000);
afterAll(async () => await fleet?.close());

const vmferry = async (...args: string[]) => await runCli(fleet.temporal.address, ...args);
const json = async (...args: string[]) => jsonLines((await vmferry(...args, '--json')).out);

test('a move with --json tells how it goes and ends with its result; watched later it is the same result', async () => {
  const lines = await json('migrate', 'h00-g000', '--to', 'h01');
  const [result, ...events] = lines.toReversed();
  expect(result).toMatchObject({ event: 'result', command: 'migrate', outcome: 'completed', exitCode: 0, vm: 'h00-g000', from: 'h00', to: 'h01', memoryTries: 1, totalMs: expect.any(Number), downtimeMs: expect.any(Number), workflowId: 'migrate/h00-g000' });
  expect(events).not.toEqual([]);
  for (const event of events) expect(event).toMatchObject({ event: 'migration', vm: 'h00-g000', to: 'h01', phase: expect.any(String) });
  expect(await json('watch', 'h00-g000')).toEqual([{ ...result, command: 'watch' }]);
});

test('a move says its result on stdout and how it goes on stderr; with --quiet only the result is said', async () => {
  const moved = /^h01-g000 moved from h0\d to h0\d in .*, paused for .*\.\n$/;
  expect(await vmferry('migrate', 'h01-g000', '--to', 'h02')).toEqual({ code: 0, out: expect.stringMatching(moved), err: expect.stringMatching(/^Watching migrate\/h01-g000; [^]*\nh01-g000 h01 → h02: /) });
  const quiet = await vmferry('migrate', 'h01-g000', '--to', 'h01', '--quiet');
  expect(quiet).toEqual({ code: 0, out: expect.stringMatching(moved), err: '' });
});

test('a refused move is an error with every reason, as a line of JSON and, even with --quiet, in words', async () => {
  const message = 'there is no host "h09" (known are: h00, h01, h02)';
  expect((await json('migrate', 'h00-g001', '--to', 'h09')).at(-1)).toEqual({ event: 'error', type: 'MigrationRefused', message: expect.stringContaining(message), blockers: [message], exitCode: 3, vm: 'h00-g001', to: 'h09', workflowId: 'migrate/h00-g001', runId: expect.any(String) });
  expect(await vmferry('migrate', 'h00-g001', '--to', 'h09', '--quiet')).toEqual({ code: 3, out: '', err: expect.stringMatching(/^vmferry: [^]*no host "h09"/) });
});

test('guests and hosts are events, and their number the result', async () => {
  expect(await json('vm', 'list')).toEqual([...Array.from({ length: 6 }, () => expect.objectContaining({ event: 'guest', state: 'running', disks: 2 }) as unknown), { event: 'result', command: 'vm list', outcome: 'completed', exitCode: 0, count: 6 }]);
  expect(await json('host', 'list')).toEqual([...['h00', 'h01', 'h02'].map((name) => expect.objectContaining({ event: 'host', name, reachable: true }) as unknown), { event: 'result', command: 'host list', outcome: 'completed', exitCode: 0, count: 3 }]);
  expect(await json('leftovers')).toEqual([{ event: 'result', command: 'leftovers', outcome: 'completed', exitCode: 0, count: 0 }]);
  expect(await json('vm', 'show', 'h02-g000')).toEqual([expect.objectContaining({ event: 'result', host: 'h02', name: 'h02-g000', images: [expect.objectContaining({ id: 'disk0' }), expect.anything()], definition: expect.objectContaining({ name: 'h02-g000' }) })]);
  expect(await json('repair', 'h02-g000')).toEqual([expect.objectContaining({ event: 'result', command: 'repair', outcome: 'nothing to repair', owner: 'h02' })]);
});

test('an evacuation tells each change, and ends with its report', async () => {
  const lines = await json('evacuate', 'h02');
  expect(lines.at(-1)).toMatchObject({ event: 'result', command: 'evacuate', outcome: 'completed', host: 'h02', moved: expect.arrayContaining([expect.objectContaining({ guest: 'h02-g000', downtimeMs: expect.any(Number) })]), stayed: [], workflowId: 'evacuate/h02' });
  expect(lines.slice(0, -1)).not.toEqual([]);
  for (const event of lines.slice(0, -1)) expect(event).toMatchObject({ event: 'evacuation', host: 'h02' });
  expect(await json('host', 'uncordon', 'h02')).toEqual([{ event: 'result', command: 'host uncordon', outcome: 'completed', exitCode: 0, host: 'h02' }]);
});
