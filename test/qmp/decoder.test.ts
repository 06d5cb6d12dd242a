import fc from 'fast-check';
import { QmpConnection } from '../../qmp/connection';
import { QmpError } from '../../qmp/errors';
import { LineDecoder, LineTooLong } from '../../qmp/line-decoder';
import { FakeMonitor, socketFolder } from './fake-monitor';

/** Cuts the bytes at the given places (taken modulo the length). */
function chunks(bytes: Buffer, cuts: number[]): Buffer[] {
  const places = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((start, index) => bytes.subarray(start, places[index] ?? bytes.length));
}

test('any chunking of valid lines yields the same messages', () => {
  fc.assert(
    fc.property(fc.array(fc.jsonValue({ maxDepth: 2 }), { maxLength: 8 }), fc.array(fc.nat(5_000), { maxLength: 40 }), fc.constantFrom('\n', '\r\n'), (messages, cuts, newline) => {
      const bytes = Buffer.from(messages.map((message) => JSON.stringify(message) + newline).join(''));
      const decoder = new LineDecoder(2 ** 20);
      const lines = chunks(bytes, cuts).flatMap((chunk) => [...decoder.push(chunk)]);
      expect(lines.map((line) => JSON.stringify(JSON.parse(line.toString('utf8'))))).toEqual(messages.map((message) => JSON.stringify(message)));
    }),
    { numRuns: 500 },
  );
});

test('a line may be as long as the bound and no longer, and those before it are yielded first', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 50 }), fc.integer({ min: 0, max: 3 }), fc.array(fc.nat(200)), (bound, excess, cuts) => {
      const decoder = new LineDecoder(bound);
      const lines: Buffer[] = [];
      const read = () => {
        for (const chunk of chunks(Buffer.from(`\n${'x'.repeat(bound + excess)}\n`), cuts)) for (const line of decoder.push(chunk)) lines.push(line);
      };
      if (excess > 0) expect(read).toThrow(LineTooLong);
      else read();
      expect(lines.length).toBe(excess > 0 ? 1 : 2);
    }),
  );
});

describe('a hostile peer', () => {
  const folder = socketFolder();
  afterAll(() => folder.remove());

  const nearlyQmp = fc.oneof(
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
    fc
      .record({ id: fc.oneof(fc.nat(5), fc.jsonValue()), return: fc.jsonValue(), error: fc.jsonValue(), event: fc.jsonValue(), data: fc.jsonValue(), timestamp: fc.jsonValue() }, { requiredKeys: [] })
      .map((message) => Buffer.from(`${JSON.stringify(message)}\n`)),
  );

  test('never crashes the process: every command and wait ends, with a value or an error of ours', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(nearlyQmp, { maxLength: 10 }), async (garbage) => {
        const path = folder.path('s');
        const monitor = await FakeMonitor.listen(path);
        const qmp = await QmpConnection.connect(path, { maxReplyBytes: 4_096 });
        const server = await monitor.clients.next();
        const events = qmp.listen();
        const outcomes = [qmp.execute('query-status'), qmp.execute('query-jobs'), events.next()].map((outcome) => (outcome as Promise<unknown>).catch((error: unknown) => expect(error).toBeInstanceOf(QmpError)));
        server.raw(Buffer.concat(garbage));
        server.socket.end();
        await Promise.all(outcomes);
        expect(await qmp.closed).toBeInstanceOf(QmpError);
        await monitor.close();
      }),
      { numRuns: 100 },
    );
  });

  test('random bytes instead of a greeting give an error of ours', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 100 }), async (bytes) => {
        const monitor = await FakeMonitor.listen(folder.path('g'), '');
        const connecting = QmpConnection.connect(monitor.path);
        const server = await monitor.clients.next();
        server.socket.end(Buffer.from(bytes));
        await expect(connecting).rejects.toBeInstanceOf(QmpError);
        await monitor.close();
      }),
      { numRuns: 50 },
    );
  });
});
