import { QmpConnection } from '../../qmp/connection';
import { QmpCommandFailed, QmpProtocolError } from '../../qmp/errors';
import { checkDepth, DEEPEST, TooDeep } from '../../qmp/line-decoder';
import { FakeMonitor, socketFolder } from '../qmp/fake-monitor';

/** A QEMU that was taken over by its guest speaks to the agent as it likes: it costs the agent no memory, no time, and no wrong decision. */
const folder = socketFolder();
afterAll(() => folder.remove());

let monitor: FakeMonitor;
let qmp: QmpConnection;
const open = async (name: string) => {
  monitor = await FakeMonitor.listen(folder.path(name));
  qmp = await QmpConnection.connect(monitor.path);
  return await monitor.clients.next();
};
afterEach(async () => {
  qmp.close();
  await monitor.close();
});

test('a line that does not end is not collected for ever', async () => {
  const server = await open('long');
  const answer = qmp.execute('query-status');
  for (let mebibytes = 0; mebibytes < 33; mebibytes++) server.raw(Buffer.alloc(2 ** 20, 'x'));
  await expect(answer).rejects.toThrow(/a line exceeds 33554432 bytes/);
  expect(await qmp.closed).toBeInstanceOf(QmpProtocolError);
});

test('a reply that is nested too deeply to be walked ends the connection; brackets in a text do not count', async () => {
  const nest = (depth: number) => Buffer.from(`${'['.repeat(depth)}${']'.repeat(depth)}`);
  expect(() => checkDepth(nest(DEEPEST))).not.toThrow();
  expect(() => checkDepth(nest(DEEPEST + 1))).toThrow(TooDeep);
  expect(() => checkDepth(Buffer.from(JSON.stringify({ text: `"\\${'[{'.repeat(5_000)}` })))).not.toThrow();
  const server = await open('deep');
  const answer = qmp.execute('query-status');
  server.raw(`{"return": ${nest(100_000).toString()}, "id": 2}\n`);
  await expect(answer).rejects.toThrow('nested deeper than 1024');
});

test.each([
  ['many', 10_001, 0],
  ['large', 20, 2 ** 20],
])('%s events that nobody has read yet end the connection, with what came before them unharmed', async (_case, count, size) => {
  const server = await open(`flood${count}`);
  const events = qmp.listen('STOP');
  for (let sent = 0; sent < count; sent++) server.event('STOP', { filler: 'x'.repeat(size) });
  expect(await qmp.closed).toMatchObject({ message: expect.stringContaining('floods us with events') });
  expect(events.tryNext()).toMatchObject({ event: 'STOP' });
});

const job = { id: 'j', type: 'mirror', status: 'running', 'current-progress': 0, 'total-progress': 10 };
test.each<[string, 'query-jobs' | 'query-block-jobs' | 'query-migrate' | 'query-block' | 'query-status' | 'query-memory-size-summary', string]>([
  ['a negative length', 'query-jobs', JSON.stringify([{ ...job, 'total-progress': -1 }])],
  ['progress beyond what can be counted', 'query-jobs', '[{"id":"j","status":"running","current-progress":18446744073709551616,"total-progress":1}]'],
  ['an endless offset', 'query-block-jobs', '[{"device":"j","len":1,"offset":1e999}]'],
  ['a text as a number', 'query-block-jobs', '[{"device":"j","len":"1","offset":0}]'],
  ['memory below zero', 'query-migrate', '{"status":"active","ram":{"total":1,"remaining":-5}}'],
  ['an endless rate', 'query-migrate', '{"status":"active","ram":{"total":1,"remaining":1,"mbps":1e999}}'],
  ['a disk of half a byte', 'query-block', '[{"device":"d","inserted":{"file":"f","image":{"virtual-size":0.5}}}]'],
  ['a state that is none', 'query-status', '{"status":null,"running":"perhaps"}'],
  ['a list where one thing is due', 'query-memory-size-summary', '[]'],
])('%s in an answer is refused: nothing is decided by it, and the connection goes on', async (_case, command, value) => {
  const server = await open('odd');
  const answer = qmp.execute(command);
  server.raw(`{"return": ${value}, "id": ${(await server.requests.next()).id}}\n`);
  await expect(answer).rejects.toThrow(new RegExp(`its answer to ${command} has an impossible`));
  expect(qmp.isOpen).toBe(true);
});

test('an error\'s words are cut to a message\'s length, and are text', async () => {
  const server = await open('words');
  const [long, none] = [qmp.execute('stop'), qmp.execute('stop')].map((command) => command.catch((error: QmpCommandFailed) => error));
  server.send({ error: { class: 'GenericError', desc: 'x'.repeat(2 ** 20) }, id: (await server.requests.next()).id });
  server.send({ error: {}, id: (await server.requests.next()).id });
  expect((await long as QmpCommandFailed).message.length).toBeLessThan(5_000);
  expect(await none).toBeInstanceOf(QmpCommandFailed);
});
