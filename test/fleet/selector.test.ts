import fc from 'fast-check';
import { InvalidSelector, matches, parseSelector } from '../../workflows/selector';

const selects = (selector: string, labels: Record<string, string>) => matches(parseSelector(selector), labels);

test.each([
  ['', {}, true],
  ['  ', { rack: 'r1' }, true],
  ['rack=r1', { rack: 'r1' }, true],
  ['rack==r1', { rack: 'r1' }, true],
  ['rack = r1', { rack: 'r2' }, false],
  ['rack=r1', {}, false],
  ['rack!=r1', { rack: 'r2' }, true],
  ['rack!=r1', { rack: 'r1' }, false],
  ['rack!=r1', {}, true],
  ['gpu', { gpu: 'no' }, true],
  ['gpu', {}, false],
  ['!gpu', {}, true],
  ['!gpu', { gpu: 'yes' }, false],
  ['! gpu', {}, true],
  ['rack in (r1,r2)', { rack: 'r2' }, true],
  ['rack in ( r1 , r2 )', { rack: 'r1' }, true],
  ['rack in (r1,r2)', { rack: 'r3' }, false],
  ['rack in (r1,r2)', {}, false],
  ['rack notin (r1,r2)', { rack: 'r3' }, true],
  ['rack notin (r1,r2)', { rack: 'r1' }, false],
  ['rack notin (r1,r2)', {}, true],
  ['rack in (r1,r2),!old,zone!=b', { rack: 'r1', zone: 'a' }, true],
  ['rack in (r1,r2), !old, zone!=b', { rack: 'r1', zone: 'b' }, false],
  ['topology.example.org/zone=eu-1', { 'topology.example.org/zone': 'eu-1' }, true],
  // Not labels, though objects have them.
  ['toString', {}, false],
  ['!constructor', {}, true],
] as const)('"%s" of %j is %s', (selector, labels, expected) => expect(selects(selector, labels)).toBe(expected));

test.each(['=r1', 'rack=', 'rack=r1,', ',', 'rack in', 'rack in ()', 'rack in (r1,)', 'rack in r1', 'rack in (r1', 'rack IN (r1)', 'rack>1', 'a b', '-rack', 'rack=r 1', '!', '!!gpu', 'rack=(r1)', 'rack===r1'])('"%s" cannot be read, and the message says how it should be', (selector) => {
  expect(() => parseSelector(selector)).toThrow(InvalidSelector);
  expect(() => parseSelector(selector)).toThrow(/^selector ".*": ".*" is none of key=value, key!=value, key, !key, key in \(a,b\), key notin \(a,b\), joined by commas$/);
});

test('the message names the part that is wrong, and a long text is refused as fast as a short one', () => {
  expect(() => parseSelector('rack=r1, zone~b')).toThrow('"zone~b" is none of');
  const started = Date.now();
  expect(() => parseSelector(`${'a-'.repeat(50_000)}!`)).toThrow(InvalidSelector);
  expect(() => parseSelector('('.repeat(20_000))).toThrow(InvalidSelector);
  expect(() => parseSelector(`rack in (${'a,'.repeat(5_000)}`)).toThrow(InvalidSelector);
  expect(Date.now() - started).toBeLessThan(2_000);
});

const key = fc.constantFrom('rack', 'zone', 'gpu', 'a.b/c-d');
const value: fc.Arbitrary<string> = fc.constantFrom('r1', 'r2', 'r3');
const part = fc.oneof(
  fc.tuple(key, fc.constantFrom('=', '==', ' = ', '!='), value).map(([k, o, v]) => ({ text: `${k}${o}${v}`, so: (labels: Record<string, string>) => (o === '!=' ? labels[k] !== v : labels[k] === v) })),
  key.map((k) => ({ text: k, so: (labels: Record<string, string>) => k in labels })),
  key.map((k) => ({ text: `!${k}`, so: (labels: Record<string, string>) => !(k in labels) })),
  fc.tuple(key, fc.boolean(), fc.array(value, { minLength: 1, maxLength: 3 })).map(([k, isIn, values]) => ({ text: `${k} ${isIn ? 'in' : 'notin'} (${values.join(', ')})`, so: (labels: Record<string, string>) => (isIn ? k in labels && values.includes(labels[k]!) : !(k in labels && values.includes(labels[k]!))) })),
);

test('a comma is "and", whatever is joined', () => {
  fc.assert(
    fc.property(fc.array(part, { maxLength: 4 }), fc.dictionary(key, value, { noNullPrototype: true }), (parts, labels) => {
      expect(selects(parts.map(({ text }) => text).join(', '), labels)).toBe(parts.every(({ so }) => so(labels)));
    }),
  );
});

test('any text is read or refused, never anything else', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom('a', '=', '!', ',', '(', ')', ' ', 'in', 'notin', '-') }), (text) => {
      try {
        expect(Array.isArray(parseSelector(text))).toBe(true);
      } catch (error) {
        expect(error).toBeInstanceOf(InvalidSelector);
      }
    }),
  );
});
