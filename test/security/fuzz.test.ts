import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { stringify } from 'yaml';
import { parseDuration, parseRate } from '../../client/quantities';
import { allowProblems } from '../../hypervisor/argument-allowlist';
import { qemuArguments } from '../../hypervisor/command-line';
import { definitionSchema, InvalidDefinition, parseYamlWith } from '../../hypervisor/definition';
import { hostConfigSchema } from '../../hypervisor/host-config';
import { findMonitor, findName, importCommandLine, madeAtStart } from '../../hypervisor/import-command-line';
import { onMessages, toDestinationSchema, toSourceSchema } from '../../hypervisor/lease-messages';
import { formatArguments, joinFields, mapFields, type Option, parseArguments, readFields, splitFields, UnreadableOption } from '../../hypervisor/qemu-options';
import { parseSize } from '../../hypervisor/size';
import { checkDepth, LineDecoder, LineTooLong, TooDeep } from '../../qmp/line-decoder';
import { definitionOf, deleteFolders, hostIn, temporaryFolder } from '../hypervisor/fixtures';

/** Whatever the input is: an answer, or one error of ours with one clear message; and what is taken means the same when it is read again. */
const folder = temporaryFolder();
const config = hostIn(folder);
afterAll(deleteFolders);

/** An error that a user may see: of ours, and no stack or object in it. */
function clear(error: unknown, ...kinds: (new (...args: never[]) => Error)[]): void {
  expect(kinds.some((kind) => error instanceof kind) ? 'ours' : error).toBe('ours');
  expect((error as Error).message).toMatch(/\S/);
  expect((error as Error).message).not.toMatch(/\[object|undefined is not|\n\s+at /);
}

const FLAGS = 'drive device chardev netdev serial qmp monitor mon vnc display blockdev object m smp name machine M cpu append kernel initrd hda cdrom S daemonize nographic usb fw_cfg smbios D bogus'.split(' ');
const word = fc.oneof(fc.constantFrom('unix:', 'tcp:', 'file=', 'json:', 'path=', 'id=', 'server', 'wait=off', '..', '/etc/shadow', '${images}/a', '${run}/s', '${', ',', ',,', '{', '{"driver":"file"}', ':', 'mon:', 'chardev:', 'driver=', 'format=raw', 'if=virtio', '-', '--', '\0', '%', '🦆', ' '), fc.string({ maxLength: 8 }));
const value = fc.array(word, { maxLength: 6 }).map((words) => words.join(''));
const argv = fc.array(fc.oneof(fc.constantFrom(...FLAGS).map((flag) => `-${flag}`), value), { maxLength: 12 });

test('lines of any bytes, in any pieces, are given whole or refused', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 80 }), { maxLength: 20 }), fc.integer({ min: 1, max: 200 }), (chunks, bound) => {
      const decoder = new LineDecoder(bound);
      const lines: Buffer[] = [];
      try {
        for (const chunk of chunks) for (const line of decoder.push(Buffer.from(chunk))) lines.push(line);
      } catch (error) {
        clear(error, LineTooLong);
        return;
      }
      const expected = Buffer.concat(chunks).toString('latin1').split('\n').slice(0, -1).map((line) => line.replace(/\r$/, ''));
      expect(lines.map((line) => line.toString('latin1'))).toEqual(expected);
    }),
    { numRuns: 300 },
  );
});

test('the depth of JSON is measured as a parser would, whatever is in its texts', () => {
  const nested = fc.letrec((tie) => ({ value: fc.oneof({ depthSize: 'max', maxDepth: 8 }, fc.string(), fc.integer(), fc.array(tie('value'), { maxLength: 3 }), fc.dictionary(fc.string(), tie('value'), { maxKeys: 3 })) })).value;
  fc.assert(fc.property(nested, (json) => checkDepth(Buffer.from(JSON.stringify(json)))));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 5_000 }), (bytes) => {
      try {
        checkDepth(Buffer.from(bytes));
      } catch (error) {
        clear(error, TooDeep);
      }
    }),
  );
});

describe('definitions and configurations', () => {
  const key = fc.oneof(fc.constantFrom(...Object.keys(definitionSchema.shape), ...Object.keys(hostConfigSchema.shape), '__proto__', 'constructor', 'toString'), fc.string({ maxLength: 6 }));
  const yaml = fc.oneof(fc.string({ maxLength: 200 }), fc.dictionary(key, fc.jsonValue({ maxDepth: 3 })).map((fields) => stringify(fields)), fc.constantFrom('a: &a [*a]', '&a [*a, *a]', '!!js/function "x"', 'a: !!binary x', '? {a: b}\n: c', '- - - -', '%YAML 9.9', '\t', '<<: {name: x}', 'name: 0x10', 'memory: .inf', 'memory: .nan', 'memory: -0', 'memory: 1e999'));
  test.each([['definition', definitionSchema], ['configuration', hostConfigSchema]] as const)('any text is a %s, or is refused with a reason', (_what, schema) => {
    fc.assert(
      fc.property(yaml, (text) => {
        try {
          parseYamlWith(schema, text, 'x.yaml');
        } catch (error) {
          clear(error, InvalidDefinition);
          expect((error as Error).message).toMatch(/^x\.yaml is not (YAML|valid)/);
        }
      }),
      { numRuns: 400 },
    );
  });

  test('a text that grows as it is read is refused in a moment', () => {
    const laughs = ['a: &a [x,x,x,x,x,x,x,x,x]', ...'bcdefghi'.split('').map((name, index) => `${name}: &${name} [${Array(9).fill(`*${'abcdefgh'[index]}`).join(',')}]`)].join('\n');
    expect(() => parseYamlWith(definitionSchema, laughs, 'x.yaml')).toThrow(InvalidDefinition);
    expect(() => parseYamlWith(definitionSchema, `name: ${'['.repeat(50_000)}`, 'x.yaml')).toThrow(InvalidDefinition);
  });

  const path = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,10}$/).map((name) => `\${images}/${name}`);
  const disk = fc.record({ id: fc.stringMatching(/^[a-z]{1,20}$/), path, format: fc.constantFrom('raw', 'qcow2'), readOnly: fc.boolean() });
  const valid = fc.record({ name: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}$/), memory: fc.integer({ min: 1, max: 2 ** 30 }).map((units) => units * 8192), disks: fc.uniqueArray(disk, { maxLength: 4, selector: ({ id }) => id }), labels: fc.dictionary(fc.string(), fc.string()) });
  test('a definition that is stored and read again is the same', () => {
    fc.assert(
      fc.property(valid, (fields) => {
        let definition;
        try {
          definition = definitionOf(fields);
        } catch (error) {
          return clear(error, InvalidDefinition);
        }
        expect(parseYamlWith(definitionSchema, stringify(definition), 'again')).toEqual(definition);
      }),
    );
  });

  /** Without the paths that stay inside a root, or the guest's run folder. What a `-fw_cfg` begins with is a name, not a file. */
  const elsewhere = (text: string) => text.split(/[,=]/).filter((part) => ![config.roots['images']!.path, config.runDir].some((folder) => part.startsWith(`${folder}/`)) || part.includes('..')).join(',');
  test('whatever arguments it has, QEMU gets a command line or nobody does; and no option of it names a file elsewhere', () => {
    fc.assert(
      fc.property(argv, fc.boolean(), (given, own) => {
        let made: string[];
        try {
          made = qemuArguments(config, definitionOf(own ? { commandLine: given } : { arguments: given }), { incoming: false });
        } catch (error) {
          return clear(error, InvalidDefinition);
        }
        expect(made.filter((text, index) => elsewhere(text).includes('/etc/shadow') && !['-append', '-name', '-cpu', '-uuid'].includes(made[index - 1]!.replace(/^--/, '-')) && !/(name|string|product)=[^,]*\/etc\/shadow/.test(text) && !(made[index - 1] === '-fw_cfg' && !/(^|,)file=/.test(text)))).toEqual([]);
      }),
      { numRuns: 1_500 },
    );
  });
});

describe('command lines', () => {
  test('any is imported, or refused with reasons; looking at one never fails', () => {
    fc.assert(
      fc.property(argv, (given) => {
        const line = ['/usr/bin/qemu-system-x86_64', ...given];
        const { definition, reasons } = importCommandLine(line, { config, cwd: '/', name: 'vm1' });
        expect(definition === undefined).toBe(reasons.length > 0);
        reasons.forEach((reason) => clear(new InvalidDefinition(reason), InvalidDefinition));
        findMonitor(line, '/');
        for (const look of [() => findName(line), () => madeAtStart(line)]) {
          try {
            look();
          } catch (error) {
            clear(error, UnreadableOption);
          }
        }
      }),
      { numRuns: 1_500 },
    );
  });

  test('options are written as they were read', () => {
    // An option without a name, or whose name begins with a dash, is none that QEMU takes.
    fc.assert(fc.property(argv.filter((given) => !given.some((part) => /^--(-|$)/.test(part))), (given) => expect(parseArguments(formatArguments(parseArguments(given)))).toEqual(parseArguments(given))));
    fc.assert(fc.property(fc.array(fc.string({ minLength: 1 }).filter((part) => !/\0|^,/.test(part)), { minLength: 1 }), (parts) => expect(splitFields(joinFields(parts))).toEqual(parts)));
  });

  test('a rule sees every text of an option that a change of it would reach', () => {
    const option = fc.record({ flag: fc.constantFrom(...FLAGS), value });
    fc.assert(
      fc.property(option, (given: Option) => {
        try {
          const texts: string[] = [];
          mapFields(given, (text) => (texts.push(text), text));
          for (const text of Object.values(readFields(given))) if (text !== 'on' && text !== 'off' && text !== '') expect(texts).toContain(text);
          expect(Array.isArray(allowProblems(given, []))).toBe(true);
        } catch (error) {
          clear(error, UnreadableOption);
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

test('whatever comes to the lease is a message of it, or ends the connection', async () => {
  const lines = fc.array(fc.oneof(fc.string(), fc.jsonValue({ maxDepth: 2 }).map((json) => JSON.stringify(json)), fc.constantFrom('{"run":true}', '{"beat":1}', '{"attempt":"x"}', '{"gone":"x"}', '{"run":true,"x":1}', '{"__proto__":{"run":true}}', '{"beat":1e999}')), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(lines, fc.constantFrom(toDestinationSchema, toSourceSchema), async (given, schema) => {
      const socket = new PassThrough();
      const heard: unknown[] = [];
      onMessages<unknown>(socket, schema, (message) => heard.push(message));
      socket.write(`${given.join('\n')}\n`);
      await new Promise((resolve) => setImmediate(resolve));
      for (const message of heard) expect(schema.safeParse(message).success).toBe(true);
      const wrong = given.join('\n').split('\n').findIndex((line) => {
        try {
          return !schema.safeParse(JSON.parse(line)).success;
        } catch {
          return true;
        }
      });
      expect(socket.destroyed).toBe(wrong >= 0);
      if (wrong >= 0) expect(heard).toHaveLength(wrong);
      socket.destroy();
    }),
    { numRuns: 300 },
  );
});

test('a line that never ends is not collected by the lease', () => {
  const socket = new PassThrough();
  onMessages<unknown>(socket, toDestinationSchema, () => undefined);
  socket.emit('data', Buffer.alloc(9_000, 'x'));
  expect(socket.destroyed).toBe(true);
});

test('sizes, durations and rates are numbers that can be counted with, or none', () => {
  const text = fc.oneof(fc.string(), fc.tuple(fc.oneof(fc.float(), fc.nat(), fc.constantFrom('1'.repeat(400), '-1', '1e5', '0x10', 'NaN', 'Infinity')), fc.constantFrom('', 'K', 'TiB', 'MB', 'ms', 'd', '/s', 'MB/s', 'Gbit/s', ' ', '__proto__', 'constructor')).map((parts) => parts.join('')));
  fc.assert(
    fc.property(text, (given) => {
      for (const number of [parseSize(given), parseDuration(given), parseRate(given)]) if (number !== undefined) expect(Number.isFinite(number) && number >= 0).toBe(true);
    }),
    { numRuns: 1_000 },
  );
  fc.assert(fc.property(fc.nat(), (bytes) => expect(parseSize(`${bytes}`)).toBe(bytes)));
});
