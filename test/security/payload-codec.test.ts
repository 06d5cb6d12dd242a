import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomBytes } from 'node:crypto';
import { defaultPayloadConverter, type Payload } from '@temporalio/common';
import fc from 'fast-check';
import { InvalidDefinition } from '../../hypervisor/definition';
import { startCodecServer } from '../../workers/codec-server';
import { PayloadEncryption, readKeys } from '../../workers/payload-codec';
import { deleteFolders, temporaryFolder } from '../hypervisor/fixtures';

const folder = temporaryFolder();
afterAll(deleteFolders);

const newKey = (id: string) => ({ id, key: randomBytes(32) });
const keyFile = (text: string, mode = 0o600) => {
  const path = join(folder, 'keys');
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
};
const payload = (value: unknown) => defaultPayloadConverter.toPayload(value);
const value = (one: Payload) => defaultPayloadConverter.fromPayload(one);

test('whatever goes in comes out, and is nowhere in what lies between', async () => {
  const codec = new PayloadEncryption([newKey('k')]);
  await fc.assert(
    fc.asyncProperty(fc.jsonValue(), fc.stringMatching(/^[a-z]{12,40}$/), async (json, secret) => {
      const [sealed, again] = await codec.encode([payload({ json, secret }), payload({ json, secret })]);
      expect(Buffer.from(sealed!.data!).includes(secret)).toBe(false);
      // Two that say the same do not look the same.
      expect(Buffer.from(sealed!.data!)).not.toEqual(Buffer.from(again!.data!));
      expect(value((await codec.decode([sealed!]))[0]!)).toEqual(JSON.parse(JSON.stringify({ json, secret })));
    }),
  );
});

test('a new key encrypts, and what an older one encrypted is still read', async () => {
  const [old, young] = [newKey('2025'), newKey('2026')];
  const [before] = await new PayloadEncryption([old]).encode([payload('before')]);
  const rotated = new PayloadEncryption([young, old]);
  const [after] = await rotated.encode([payload('after')]);
  expect((await rotated.decode([before!, after!, payload('plain')])).map(value)).toEqual(['before', 'after', 'plain']);
  await expect(new PayloadEncryption([old]).decode([after!])).rejects.toThrow('encrypted with the key "2026", which is not in this process\'s key file (it has 2025)');
});

test('what was changed on its way is refused, at whichever byte', async () => {
  const codec = new PayloadEncryption([newKey('k')]);
  const [sealed] = await codec.encode([payload({ vm: 'web' })]);
  await fc.assert(
    fc.asyncProperty(fc.nat(sealed!.data!.length - 1), fc.integer({ min: 1, max: 255 }), async (at, change) => {
      const data = Buffer.from(sealed!.data!);
      data[at]! ^= change;
      await expect(codec.decode([{ ...sealed!, data }])).rejects.toThrow('cannot be decrypted');
    }),
  );
  for (const length of [0, 5, 27]) await expect(codec.decode([{ ...sealed!, data: sealed!.data!.subarray(0, length) }])).rejects.toThrow('cannot be decrypted');
});

test('a key file has a key a line; one that others may read, or that is none, is refused without a word of it', () => {
  const base64 = randomBytes(32).toString('base64');
  expect(readKeys(keyFile(`# keys\nnew ${base64}\n\nold ${base64} # until June\n`)).map(({ id, key }) => [id, key.length])).toEqual([['new', 32], ['old', 32]]);
  const refusal = (path: string) => {
    try {
      readKeys(path);
    } catch (error) {
      expect(error).toBeInstanceOf(InvalidDefinition);
      return (error as Error).message;
    }
    throw new Error('was taken');
  };
  expect(refusal(keyFile(`k ${base64}`, 0o640))).toMatch(/others may read the payload keys \(mode 640\): chmod 600/);
  for (const [text, why] of [['', 'has no key'], [`k ${base64.slice(8)}`, 'line 1'], [`k ${base64}\nk ${base64}`, 'two keys are named "k"'], [base64, 'line 1'], [`a b ${base64}`, 'line 1']] as const) {
    const message = refusal(keyFile(text));
    expect(message).toContain(why);
    expect(message).not.toContain(base64.slice(8));
  }
  expect(refusal('/nowhere')).toContain('VMFERRY_PAYLOAD_KEY_FILE');
});

describe('the codec server', () => {
  const UI = 'http://localhost:8233';
  const codec = new PayloadEncryption([newKey('k')]);
  const toJson = ({ metadata, data }: Payload) => ({ metadata: Object.fromEntries(Object.entries(metadata!).map(([key, bytes]) => [key, Buffer.from(bytes).toString('base64')])), data: Buffer.from(data!).toString('base64') });
  const serve = async (work: (ask: (path: string, init?: Omit<RequestInit, 'body'> & { body?: unknown }) => Promise<Response>) => Promise<void>, token?: string) => {
    const server = await startCodecServer({ codec, port: 0, address: '127.0.0.1', origins: [UI], ...(token && { token }) });
    try {
      await work(async (path, init = {}) => await fetch(server.url + path, { method: 'POST', ...init, body: init.body === undefined || typeof init.body === 'string' ? init.body : JSON.stringify(init.body) } as RequestInit));
    } finally {
      await server.close();
    }
  };

  test('shows the UI what was encrypted, and encrypts what it sends', async () => {
    await serve(async (ask) => {
      const preflight = await ask('/decode', { method: 'OPTIONS', headers: { origin: UI, 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type,x-namespace' } });
      expect(preflight.status).toBe(204);
      expect(preflight.headers.get('access-control-allow-origin')).toBe(UI);
      expect(preflight.headers.get('access-control-allow-headers')).toContain('x-namespace');
      const [sealed] = await codec.encode([payload({ vm: 'web' })]);
      const decoded = await ask('/decode', { headers: { origin: UI }, body: { payloads: [toJson(sealed!)] } });
      const { payloads } = (await decoded.json()) as { payloads: { data: string }[] };
      expect(JSON.parse(Buffer.from(payloads[0]!.data, 'base64').toString())).toEqual({ vm: 'web' });
      const encoded = (await (await ask('/encode', { body: { payloads: [toJson(payload('x'))] } })).json()) as { payloads: { data: string }[] };
      expect((await (await ask('/decode', { body: encoded })).json())).toEqual({ payloads: [toJson(payload('x'))] });
    });
  });

  test('answers no other page, no other path, and nothing that is not a payload', async () => {
    await serve(async (ask) => {
      const [sealed] = await codec.encode([payload('secret')]);
      const other = await ask('/decode', { headers: { origin: 'https://evil.example' }, body: { payloads: [toJson(sealed!)] } });
      expect([other.status, other.headers.get('access-control-allow-origin')]).toEqual([403, null]);
      expect((await ask('/keys', { body: {} })).status).toBe(404);
      expect((await ask('/decode', { method: 'GET' })).status).toBe(405);
      for (const body of ['', '{', '[]', '{"payloads":[{"data":"?"}]}', '{"payloads":[{"data":1}]}']) expect((await ask('/decode', { body })).status).toBe(400);
      const [changed] = [{ ...toJson(sealed!), data: Buffer.alloc(40).toString('base64') }];
      expect((await ask('/decode', { body: { payloads: [changed] } })).status).toBe(400);
    });
  });

  test('asks for its token, if it has one', async () => {
    await serve(async (ask) => {
      const body = { payloads: [] };
      expect((await ask('/decode', { body })).status).toBe(401);
      expect((await ask('/decode', { body, headers: { authorization: 'Bearer wrong' } })).status).toBe(401);
      expect((await ask('/decode', { body, headers: { authorization: 'Bearer correct-horse' } })).status).toBe(200);
    }, 'correct-horse');
  });
});
