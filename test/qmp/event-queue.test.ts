import { QmpConnection } from '../../qmp/connection';
import { QmpDisconnected, QmpTimeout } from '../../qmp/errors';
import { eventTimeMs } from '../../qmp/event-queue';
import { type FakeClient, FakeMonitor, socketFolder } from './fake-monitor';

let folder: ReturnType<typeof socketFolder>;
let monitor: FakeMonitor;
let qmp: QmpConnection;
let server: FakeClient;

beforeEach(async () => {
  folder = socketFolder();
  monitor = await FakeMonitor.listen(folder.path('s'));
  qmp = await QmpConnection.connect(monitor.path);
  server = await monitor.clients.next();
});

afterEach(async () => {
  qmp.close();
  await monitor.close();
  folder.remove();
});

test('two listeners each see every event of theirs, in order, and only theirs', async () => {
  const both = qmp.listen('STOP', 'MIGRATION');
  const all = qmp.listen();
  server.event('STOP');
  server.event('RTC_CHANGE', { offset: 1 });
  server.event('MIGRATION', { status: 'completed' });
  const [first, second] = [await both.next(), await both.next()];
  expect(first).toMatchObject({ event: 'STOP', data: {} });
  expect(second).toMatchObject({ event: 'MIGRATION', data: { status: 'completed' } });
  expect([(await all.next()).event, (await all.next()).event, (await all.next()).event]).toEqual(['STOP', 'RTC_CHANGE', 'MIGRATION']);
  expect(all.tryNext()).toBeUndefined();
});

test('a listener opened before the command has the event that comes before its reply', async () => {
  const events = qmp.listen('RESUME');
  const reply = qmp.execute('cont');
  const request = await server.requests.next();
  server.event('RESUME', undefined, 1_700_000_000);
  server.reply(request, {});
  await reply;
  const event = events.tryNext();
  expect(event && eventTimeMs(event)).toBe(1_700_000_000_000.5);
});

test('a wait that timed out or was aborted loses no event', async () => {
  const events = qmp.listen('STOP');
  const abort = new AbortController();
  const reason = new Error('enough');
  const aborted = events.next({ signal: abort.signal });
  const timedOut = events.next({ timeoutMs: 5 });
  abort.abort(reason);
  await expect(aborted).rejects.toBe(reason);
  await expect(timedOut).rejects.toBeInstanceOf(QmpTimeout);
  await expect(timedOut).rejects.toThrow(/no STOP event within 5 ms/);
  server.event('STOP');
  await expect(events.next({ signal: abort.signal })).rejects.toBe(reason);
  await expect(events.next()).resolves.toMatchObject({ event: 'STOP' });
});

test('concurrent waits share the events in the order of asking', async () => {
  const events = qmp.listen('MIGRATION_PASS');
  const waits = [events.next(), events.next()];
  server.event('MIGRATION_PASS', { pass: 1 });
  server.event('MIGRATION_PASS', { pass: 2 });
  expect((await Promise.all(waits)).map(({ data }) => data.pass)).toEqual([1, 2]);
});

test('after a disconnect it is drained first, then rejects, also for those who wait or listen anew', async () => {
  const events = qmp.listen('STOP');
  const waiting = qmp.listen('RESUME').next().catch((error: unknown) => error);
  server.event('STOP');
  server.socket.end();
  const reason = await qmp.closed;
  expect(await waiting).toBe(reason);
  await expect(events.next()).resolves.toMatchObject({ event: 'STOP' });
  await expect(events.next()).rejects.toBe(reason);
  await expect(qmp.listen().next()).rejects.toBe(reason);
});

test('iteration goes on after a break, ends quietly on close, and throws on a disconnect', async () => {
  const events = qmp.listen('MIGRATION_PASS');
  const lost = qmp.listen('STOP');
  for (const pass of [1, 2, 3]) server.event('MIGRATION_PASS', { pass });
  const seen: number[] = [];
  for await (const { data } of events) {
    seen.push(data.pass);
    if (data.pass === 2) break;
  }
  for await (const { data } of events) {
    seen.push(data.pass);
    setImmediate(() => events.close());
  }
  expect(seen).toEqual([1, 2, 3]);
  server.socket.end();
  await expect(lost[Symbol.asyncIterator]().next()).rejects.toBeInstanceOf(QmpDisconnected);
});

test('closing rejects who waits, forgets the rest, and leaves no listener, timer or abort handler behind', async () => {
  const abort = new AbortController();
  const added = jest.spyOn(abort.signal, 'addEventListener');
  const removed = jest.spyOn(abort.signal, 'removeEventListener');
  const events = qmp.listen('STOP');
  const waits = [events.next({ signal: abort.signal, timeoutMs: 60_000 }).catch((error: unknown) => error), events.next({ signal: abort.signal }).catch((error: unknown) => error)];
  await new Promise((resolve) => setImmediate(resolve));
  events.close();
  events.close();
  for (const error of await Promise.all(waits)) expect(error).toBeInstanceOf(QmpDisconnected);
  expect(removed.mock.calls.length).toBe(added.mock.calls.length);
  expect((qmp as unknown as { listeners: Set<unknown> }).listeners.size).toBe(0);
  server.event('STOP');
  await expect(events.next()).rejects.toThrow(/the listener was closed/);
});
