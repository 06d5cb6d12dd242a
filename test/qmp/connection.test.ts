import { QmpConnection } from '../../qmp/connection';
import { QmpCommandFailed, QmpDisconnected, QmpError, QmpMonitorBusy, QmpProtocolError, QmpTimeout } from '../../qmp/errors';
import { type FakeClient, FakeMonitor, GREETING, socketFolder } from './fake-monitor';

let folder: ReturnType<typeof socketFolder>;
let monitor: FakeMonitor | undefined;
let connections: QmpConnection[] = [];

beforeEach(() => {
  folder = socketFolder();
});

afterEach(async () => {
  for (const connection of connections) connection.close();
  connections = [];
  await monitor?.close();
  monitor = undefined;
  folder.remove();
});

async function serve(greeting?: string | null): Promise<FakeMonitor> {
  return (monitor = await (greeting === null ? FakeMonitor.listen(folder.path('s'), '') : FakeMonitor.listen(folder.path('s'), greeting)));
}

async function pair(options?: Parameters<typeof QmpConnection.connect>[1]): Promise<{ qmp: QmpConnection; server: FakeClient }> {
  const { path, clients } = await serve();
  const qmp = await QmpConnection.connect(path, options);
  connections.push(qmp);
  return { qmp, server: await clients.next() };
}

/** A round trip: whatever was sent before has been read by both sides. */
async function settle(qmp: QmpConnection, server: FakeClient): Promise<void> {
  const reply = qmp.execute('query-name');
  server.reply(await server.requests.next(), {});
  await reply;
}

describe('connecting', () => {
  test('waits for a greeting that comes late, in pieces, and with the next line in the same chunk', async () => {
    const { path, clients } = await serve(null);
    const connecting = QmpConnection.connect(path);
    const server = await clients.next();
    const greeting = JSON.stringify(GREETING);
    server.raw(greeting.slice(0, 20));
    await new Promise((resolve) => setImmediate(resolve));
    server.raw(`${greeting.slice(20)}\r\n\r\n{"event":"RESUME","timestamp":{"seconds":1,"microseconds":2}}\r\n`);
    const qmp = await connecting;
    connections.push(qmp);
    expect(qmp.greeting.version.qemu).toEqual({ major: 7, minor: 2, micro: 22 });
    expect(qmp.oob).toBe(true);
    await settle(qmp, server);
  });

  test('neither enables nor offers out-of-band commands where the greeting lacks them', async () => {
    const { path } = await serve(`${JSON.stringify({ QMP: { ...GREETING.QMP, capabilities: [] } })}\n`);
    const qmp = await QmpConnection.connect(path);
    connections.push(qmp);
    expect(qmp.oob).toBe(false);
    await expect(qmp.executeOob('query-yank')).rejects.toThrow(/did not offer out-of-band commands/);
    await expect(qmp.executeOob('query-yank')).rejects.toBeInstanceOf(QmpError);
  });

  test('a monitor that does not greet is busy', async () => {
    const { path } = await serve(null);
    const error = await QmpConnection.connect(path, { timeoutMs: 50 }).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(QmpMonitorBusy);
    expect(String(error)).toContain(path);
  });

  test.each([
    ['HMP', "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "],
    ['other JSON', '{"hello": true}\n'],
    ['null', 'null\n'],
    ['a greeting without a version', '{"QMP": {"capabilities": []}}\n'],
    ['binary', Buffer.from([0xff, 0x00, 0x80, 0x0a]).toString('latin1')],
    ['an endless line', 'x'.repeat(100_000)],
    ['a line that stops', '{"QMP": '],
  ])('%s is no greeting', async (_name, garbage) => {
    const { path } = await serve(garbage);
    await expect(QmpConnection.connect(path, { timeoutMs: 100 })).rejects.toBeInstanceOf(QmpProtocolError);
  });

  test('says whether the socket is missing, was left behind, closes at once, or has too long a path', async () => {
    const { path, clients } = await serve(null);
    const connecting = QmpConnection.connect(path);
    (await clients.next()).socket.destroy();
    await expect(connecting).rejects.toThrow(/closed the connection before it greeted/);
    await expect(connecting).rejects.toBeInstanceOf(QmpDisconnected);
    await expect(QmpConnection.connect(folder.path('none'))).rejects.toThrow(/there is no such socket/);
    await expect(QmpConnection.connect(folder.path('x'.repeat(100)))).rejects.toThrow(/longer than 107 bytes/);
  });

  test('can be aborted, before and while it waits, and its socket is closed', async () => {
    const { path, clients } = await serve(null);
    const reason = new Error('enough');
    await expect(QmpConnection.connect(path, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const abort = new AbortController();
    const connecting = QmpConnection.connect(path, { signal: abort.signal });
    const server = await clients.next();
    abort.abort(reason);
    await expect(connecting).rejects.toBe(reason);
    await server.closed;
  });

  test('a QEMU that greets but does not negotiate is a timeout of qmp_capabilities', async () => {
    const { path, clients } = await serve(null);
    const connecting = QmpConnection.connect(path, { timeoutMs: 300 });
    const server = await clients.next();
    server.socket.removeAllListeners('data');
    server.socket.resume();
    server.send(GREETING);
    await expect(connecting).rejects.toMatchObject({ name: 'QmpTimeout', command: 'qmp_capabilities' });
    await server.closed;
  });
});

describe('commands', () => {
  test('many run at once, and each gets its own reply in whatever order', async () => {
    const { qmp, server } = await pair();
    const replies = ['a', 'b', 'c', 'd', 'e'].map((path) => qmp.execute('qom-get', { path, property: 'p' }));
    const requests = await Promise.all(replies.map(() => server.requests.next()));
    for (const request of [...requests].reverse()) server.reply(request, (request.arguments as { path: string }).path);
    await expect(Promise.all(replies)).resolves.toEqual(['a', 'b', 'c', 'd', 'e']);
  });

  test('replies arrive whole when they are coalesced, split inside a character, or padded with empty lines', async () => {
    const { qmp, server } = await pair();
    const replies = [qmp.execute('query-name'), qmp.execute('query-name')];
    const [one, two] = [await server.requests.next(), await server.requests.next()];
    const bytes = Buffer.from(`\r\n{"return":{"name":"grün"},"id":${one.id}}\r\n\n{"return":{"name":"è"},"id":${two.id}}\r\n`);
    for (const byte of bytes) server.raw(Buffer.of(byte));
    await expect(Promise.all(replies)).resolves.toEqual([{ name: 'grün' }, { name: 'è' }]);
  });

  test('a reply of 30 MB arrives whole', async () => {
    const { qmp, server } = await pair();
    const reply = qmp.execute('human-monitor-command', { 'command-line': 'info' });
    server.reply(await server.requests.next(), 'y'.repeat(30 * 2 ** 20));
    expect((await reply).length).toBe(30 * 2 ** 20);
  });

  test.each(['GenericError', 'CommandNotFound', 'DeviceNotActive', 'DeviceNotFound', 'KVMMissingCap', 'NewInQemu99'])('%s is told with the command, the class, the words and the monitor', async (errorClass) => {
    const { qmp, server } = await pair();
    const reply = qmp.execute('block-job-cancel', { device: 'mirror0' });
    const { id } = await server.requests.next();
    server.send({ error: { class: errorClass, desc: "Block job 'mirror0' not found" }, id });
    const error = (await reply.catch((error: unknown) => error)) as QmpCommandFailed;
    expect(error).toBeInstanceOf(QmpCommandFailed);
    expect(error).toMatchObject({ errorClass, command: 'block-job-cancel', desc: "Block job 'mirror0' not found", monitor: qmp.path });
    for (const part of [errorClass, 'block-job-cancel', 'mirror0', qmp.path]) expect(error.message).toContain(part);
    await settle(qmp, server);
  });

  test('one that times out rejects, and its late reply disturbs nobody', async () => {
    const { qmp, server } = await pair();
    const late = qmp.execute('query-jobs', undefined, { timeoutMs: 20 });
    await expect(late).rejects.toMatchObject({ name: 'QmpTimeout', command: 'query-jobs', timeoutMs: 20 });
    await expect(late).rejects.toBeInstanceOf(QmpTimeout);
    server.reply(await server.requests.next(), []);
    await settle(qmp, server);
  });

  test('one that is aborted rejects with the reason, and its late reply, good or bad, disturbs nobody', async () => {
    const { qmp, server } = await pair();
    const abort = new AbortController();
    const reason = new Error('enough');
    const replies = [qmp.execute('query-jobs', undefined, { signal: abort.signal }), qmp.execute('stop', undefined, { signal: abort.signal })];
    const [one, two] = [await server.requests.next(), await server.requests.next()];
    abort.abort(reason);
    for (const reply of replies) await expect(reply).rejects.toBe(reason);
    await expect(qmp.execute('stop', undefined, { signal: abort.signal })).rejects.toBe(reason);
    server.reply(one, []);
    server.send({ error: { class: 'GenericError', desc: 'no' }, id: two.id });
    await settle(qmp, server);
  });

  test('never more than seven are in QEMU\'s queue, given-up ones included, so that out-of-band ones get through', async () => {
    const { qmp, server } = await pair();
    const abort = new AbortController();
    const replies = Array.from({ length: 10 }, (_, index) => qmp.execute('qom-get', { path: `/${index}`, property: 'p' }, { signal: abort.signal }).catch(() => 'given up'));
    const rest = qmp.execute('query-status');
    const yank = qmp.executeOob('yank', { instances: [{ type: 'migration' }] });
    const requests = [];
    for (let sent = 0; sent < 8; sent++) requests.push(await server.requests.next());
    expect(requests.map((request) => request['exec-oob'] ?? request.execute)).toEqual([...Array<string>(7).fill('qom-get'), 'yank']);
    server.reply(requests[7]!, {});
    await yank;
    abort.abort(new Error('enough'));
    await Promise.all(replies);
    expect(server.requests.size).toBe(0);
    server.reply(requests[0]!, 1);
    const next = await server.requests.next();
    expect(next.execute).toBe('query-status');
    server.reply(next, { running: true, status: 'running' });
    await expect(rest).resolves.toEqual({ running: true, status: 'running' });
  });
});

describe('the end', () => {
  test('a disconnect in mid command rejects all, sent or not, and says that the outcome is unknown', async () => {
    const { qmp, server } = await pair();
    const replies = Array.from({ length: 9 }, () => qmp.execute('migrate-continue', { state: 'pre-switchover' }).catch((error: unknown) => error));
    const request = await server.requests.next();
    server.raw(`{"return": {}, "id": ${request.id}`);
    server.socket.end();
    const errors = (await Promise.all(replies)) as QmpDisconnected[];
    for (const error of errors) expect(error).toBeInstanceOf(QmpDisconnected);
    expect(errors[0]).toMatchObject({ command: 'migrate-continue', message: expect.stringContaining('ask whether it took effect') });
    expect(errors[8]?.command).toBeUndefined();
    expect(qmp.isOpen).toBe(false);
    expect(await qmp.closed).toBeInstanceOf(QmpDisconnected);
    await expect(qmp.execute('stop')).rejects.toBeInstanceOf(QmpDisconnected);
  });

  test('a reply just before the disconnect still counts', async () => {
    const { qmp, server } = await pair();
    const quit = qmp.execute('quit');
    server.reply(await server.requests.next(), {});
    server.socket.end();
    await expect(quit).resolves.toEqual({});
    await qmp.closed;
  });

  test('closing twice is as good as once', async () => {
    const { qmp, server } = await pair();
    const reply = qmp.execute('query-status').catch((error: unknown) => error);
    qmp.close();
    qmp.close();
    expect(await reply).toBeInstanceOf(QmpDisconnected);
    await qmp.closed;
    await server.closed;
  });

  test.each([
    ['broken JSON', '{"return": }\n'],
    ['no object', '[]\n'],
    ['a number', '17\n'],
    ['null', 'null\n'],
    ['neither reply nor event', '{"foo": 1, "id": 1}\n'],
    ['an event without a time', '{"event": "STOP"}\n'],
    ['an error about a request that QEMU could not read', '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'],
    ['an oversized line', 'z'.repeat(5_000)],
    ['an oversized line that ends', `${'z'.repeat(5_000)}\n`],
  ])('%s ends the connection as a protocol error', async (_name, garbage) => {
    const { qmp, server } = await pair({ maxReplyBytes: 4_096 });
    const reply = qmp.execute('query-status').catch((error: unknown) => error);
    await server.requests.next();
    server.raw(garbage);
    expect(await qmp.closed).toBeInstanceOf(QmpProtocolError);
    expect(await reply).toMatchObject({ name: 'QmpDisconnected', command: 'query-status' });
    await server.closed;
  });
});
