import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { type DataConverter, type Payload, type PayloadCodec, ValueError } from '@temporalio/common';
import { temporal } from '@temporalio/proto';
import { InvalidDefinition } from '../hypervisor/definition';

/** One key, and the name by which a payload says that it needs it. */
export interface PayloadKey {
  id: string;
  key: Buffer;
}

const ENCODING = 'binary/encrypted';
/** In a payload's metadata. */
const KEY_ID = 'encryption-key-id';
const CIPHER = 'aes-256-gcm';
const [NONCE_BYTES, TAG_BYTES, KEY_BYTES] = [12, 16, 32];
const { Payload: Wire } = temporal.api.common.v1;

/** The file with the keys; without this variable payloads are plain. */
export const KEY_FILE_VARIABLE = 'VMFERRY_PAYLOAD_KEY_FILE';

/**
 * Reads a key file: a line a key, `ID BASE64`, of 32 random bytes; `#` begins a comment. The first encrypts, all decrypt. Throws `InvalidDefinition`,
 * also if anybody but its owner may read it; no message has a key in it.
 */
export function readKeys(path: string): PayloadKey[] {
  let text: string;
  try {
    const { mode } = statSync(path);
    if ((mode & 0o077) !== 0) throw new InvalidDefinition(`${path}: others may read the payload keys (mode ${(mode & 0o777).toString(8)}): chmod 600 ${path}`);
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw error instanceof InvalidDefinition ? error : new InvalidDefinition(`the payload keys cannot be read (${KEY_FILE_VARIABLE}): ${(error as Error).message}`);
  }
  const keys = text.split('\n').flatMap((line, index) => {
    const words = line.replace(/#.*/, '').trim().split(/\s+/);
    if (words[0] === '') return [];
    const [id, base64, ...more] = words as [string, string?, ...string[]];
    const key = Buffer.from(base64 ?? '', 'base64');
    if (more.length > 0 || !/^[A-Za-z0-9_.-]{1,64}$/.test(id) || key.length !== KEY_BYTES) throw new InvalidDefinition(`${path}, line ${index + 1}: give a name and 32 bytes in base64, such as: echo "2026-11 $(head -c 32 /dev/urandom | base64)"`);
    return [{ id, key }];
  });
  if (keys.length === 0) throw new InvalidDefinition(`${path} has no key: echo "2026-11 $(head -c 32 /dev/urandom | base64)" >> ${path}`);
  const twice = keys.find(({ id }, index) => keys.findIndex((other) => other.id === id) < index);
  if (twice) throw new InvalidDefinition(`${path}: two keys are named "${twice.id}": give each its own name`);
  return keys;
}

/** Encrypts each payload as a whole, its metadata included, with AES-256-GCM; a payload that is plain is passed on as it is when it is read. */
export class PayloadEncryption implements PayloadCodec {
  constructor(private readonly keys: readonly PayloadKey[]) {}

  async encode(payloads: Payload[]): Promise<Payload[]> {
    const { id, key } = this.keys[0]!;
    return await Promise.resolve(
      payloads.map((payload) => {
        const nonce = randomBytes(NONCE_BYTES);
        const cipher = createCipheriv(CIPHER, key, nonce).setAAD(Buffer.from(id));
        const data = Buffer.concat([nonce, cipher.update(Wire.encode(payload).finish()), cipher.final(), cipher.getAuthTag()]);
        return { metadata: { encoding: Buffer.from(ENCODING), [KEY_ID]: Buffer.from(id) }, data };
      }),
    );
  }

  /** Throws `ValueError` for a payload whose key is not here, or that was changed since. */
  async decode(payloads: Payload[]): Promise<Payload[]> {
    return await Promise.resolve(payloads.map((payload) => this.open(payload)));
  }

  private open(payload: Payload): Payload {
    const text = (name: string) => Buffer.from(payload.metadata?.[name] ?? []).toString();
    if (text('encoding') !== ENCODING) return payload;
    const [id, data] = [text(KEY_ID), Buffer.from(payload.data ?? [])];
    const known = this.keys.find((key) => key.id === id);
    if (!known) throw new ValueError(`a payload was encrypted with the key "${id.slice(0, 64)}", which is not in this process's key file (it has ${this.keys.map((key) => key.id).join(', ')}): add it there`);
    try {
      const decipher = createDecipheriv(CIPHER, known.key, data.subarray(0, NONCE_BYTES)).setAAD(Buffer.from(id)).setAuthTag(data.subarray(-TAG_BYTES));
      return Wire.decode(Buffer.concat([decipher.update(data.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()]));
    } catch {
      throw new ValueError(`a payload cannot be decrypted with the key "${id}": it was changed, or another key has that name`);
    }
  }
}

/** What clients and workers of this process convert payloads with: encrypted if the environment names a key file. Throws `InvalidDefinition`. */
export function payloadConverter(): DataConverter | undefined {
  const file = process.env[KEY_FILE_VARIABLE];
  if (!file) return undefined;
  return { payloadCodecs: [new PayloadEncryption(readKeys(file))], failureConverterPath: require.resolve('./failure-converter') };
}
