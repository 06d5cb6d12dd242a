import { QmpDisconnected, QmpTimeout } from '../../qmp/errors';
import { QmpMonitor, QmpMonitors } from '../../qmp/monitor';
import { type FakeClient, FakeMonitor, GREETING, socketFolder } from './fake-monitor';

let folder: ReturnType<typeof socketFolder>;
let server: FakeMonitor | undefined;
let monitor: QmpMonitor;

beforeEach(() => {
  folder = socketFolder();
  monitor = new QmpMonitor(folder.path('s'));
});

afterEach(async () => {
  monitor.close();
  await server?.close();
  server = undefined;
  folder.remove();
});

const listen = async (greeting?: string) => (server = await FakeMonitor.listen(monitor.path, greeting));

async function answer(client: FakeClient, value: unknown): Promise<void> {
  client.reply(await client.requests.next(), value);
}

test('concurrent users share one attempt and one connection', async () => {
  const { clients, accepted } = await listen();
  const replies = [monitor.execute('query-jobs'), monitor.execute('query-jobs'), monitor.executeOob('query-yank')];
  const client = await clients.next();
  for (let answered = 0; answered < replies.length; answered++) await answer(client, []);
  await expect(Promise.all(replies)).resolves.toEqual([[], [], []]);
  expect(await monitor.connection()).toBe(await monitor.connection());
  expect(accepted.length).toBe(1);
});

test('one user who gives up while connecting leaves the attempt to the others', async () => {
  const { clients } = await listen('');
  const abort = new AbortController();
  const reason = new Error('enough');
  const aborted = monitor.execute('query-jobs', undefined, { signal: abort.signal });
  const impatient = monitor.connection({ timeoutMs: 5 });
  const patient = monitor.connection();
  abort.abort(reason);
  await expect(aborted).rejects.toBe(reason);
  await expect(impatient).rejects.toBeInstanceOf(QmpTimeout);
  (await clients.next()).send(GREETING);
  expect((await patient).isOpen).toBe(true);
});

test('a failed attempt is told to all who wait, and the next use tries again', async () => {
  const failed = await Promise.all([monitor.connection(), monitor.connection()].map((attempt) => attempt.catch((error: unknown) => error)));
  expect(failed[0]).toBeInstanceOf(QmpDisconnected);
  expect(failed[1]).toBe(failed[0]);
  await listen();
  expect((await monitor.connection()).isOpen).toBe(true);
});

test('it reconnects on the next use after a disconnect, and sends no command twice', async () => {
  const { clients, accepted } = await listen();
  const lost = monitor.execute('cont').catch((error: unknown) => error);
  const first = await clients.next();
  await first.requests.next();
  first.socket.destroy();
  expect(await lost).toMatchObject({ name: 'QmpDisconnected', command: 'cont' });
  const reply = monitor.execute('query-status');
  const second = await clients.next();
  const request = await second.requests.next();
  expect(request.execute).toBe('query-status');
  second.reply(request, { running: true, status: 'running' });
  expect(await reply).toEqual({ running: true, status: 'running' });
  expect(accepted.length).toBe(2);
});

test('closing is for good: it ends the connection or the attempt, and later users are refused', async () => {
  const { clients } = await listen('');
  const connecting = monitor.connection().catch((error: unknown) => error);
  const client = await clients.next();
  monitor.close();
  monitor.close();
  expect(await connecting).toBeInstanceOf(QmpDisconnected);
  await client.closed;
  await expect(monitor.execute('stop')).rejects.toThrow(/closed on our side/);
});

test('the registry has one monitor per path, however it is spelt, and forgets on demand', async () => {
  const { clients } = await listen();
  const monitors = new QmpMonitors();
  const one = monitors.get(monitor.path);
  expect(monitors.get(monitor.path.replace('/s', '/./s'))).toBe(one);
  await one.connection();
  monitors.forget(monitor.path);
  monitors.forget(monitor.path);
  await (await clients.next()).closed;
  const other = monitors.get(monitor.path);
  expect(other).not.toBe(one);
  await other.connection();
  monitors.close();
  await (await clients.next()).closed;
  expect(monitors.get(monitor.path)).not.toBe(other);
});
