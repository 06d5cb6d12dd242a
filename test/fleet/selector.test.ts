import fc from 'fast-check';
import { InvalidSelector, matches, parseSelector } from '../../workflows/selector';

const holds = (text: string, labels: Record<string, string> = {}) => matches(parseSelector(text), labels);

describe('a selector', () => {
  test.each([
    ['rack=r12', { rack: 'r12' }, { rack: 'r1' }],
    ['rack==r12', { rack: 'r12' }, {}],
    ['rack = r12', { rack: 'r12' }, { rack: '' }],
    ['zone!=b', { zone: 'a' }, { zone: 'b' }],
    ['gpu', { gpu: '' }, {}],
    ['!gpu', {}, { gpu: 'no' }],
    ['! gpu', {}, { gpu: 'no' }],
    ['rack in (r1,r2)', { rack: 'r2' }, { rack: 'r3' }],
    ['rack in( r1 , r2 )', { rack: 'r1' }, {}],
    ['rack notin (r1)', { rack: 'r2' }, { rack: 'r1' }],
    ['in in (notin)', { in: 'notin' }, { in: 'in' }],
    ['rack=', { rack: '' }, {}],
    ['example.com/rack=r1', { 'example.com/rack': 'r1' }, { rack: 'r1' }],
    ['rack in (r1,r2),zone!=b,!gpu', { rack: 'r1', zone: 'a' }, { rack: 'r1', zone: 'a', gpu: '1' }],
    ['zone=a,rack notin (r1,r2)', { zone: 'a', rack: 'r3' }, { zone: 'a', rack: 'r2' }],
    ['constructor', { constructor: 'x' }, {}],
  ])('%s', (text, selected, left) => {
    expect([holds(text, selected), holds(text, left)]).toEqual([true, false]);
  });

  test('selects everything when it is empty', () => {
    expect([holds(''), holds('  ', { rack: 'r1' })]).toEqual([true, true]);
  });

  test('with != or notin also selects what has no such label, as in Kubernetes', () => {
    expect([holds('zone!=b'), holds('rack notin (r1,r2)'), holds('zone!=')]).toEqual([true, true, true]);
  });

  test.each([
    ['rack=r1,', 'a comma has nothing on one side: remove it'],
    [',rack=r1', 'a comma has nothing on one side: remove it'],
    ['=r1', '"=r1" names no label: put one before the operator, as in rack=r1'],
    ['!', '"!" names no label'],
    ['rack=r1 zone=b', '"r1 zone=b" has a space in it: join requirements with commas, as in rack=r1,zone=b'],
    ['rack zone', '"rack zone" has a space in it: join requirements with commas'],
    ['rack=r1;zone=b', '"r1;zone=b" is not the value of a label: use letters, digits, "-", "_" and "."'],
    ['ra~ck', '"ra~ck" is not the name of a label'],
    ['-rack=r1', '"-rack" is not the name of a label'],
    ['rack in (r1,r2', '"rack in (r1" is not a list in parentheses: write it as rack in (r1,r2)'],
    ['rack of (r1)', '"rack of (r1)" is not a list in parentheses'],
    ['rack in r1', '"rack in r1" has no list: write it in parentheses, as in rack in (r1,r2)'],
    ['rack in ()', '"rack in ()" has an empty value: write rack in (a,b), or rack= for the empty label'],
    ['rack in (r1,)', '"rack in (r1,)" has an empty value'],
    ['cores>32', '"cores>32" compares numbers, which is not known here: list the values, as in cores in (32,64)'],
    ['rack=r1=r2', '"r1=r2" is not the value of a label'],
    ['rack!r1', '"rack!r1" is not the name of a label'],
  ])('%s is refused, naming the bad part and the fix', (text, words) => {
    expect(() => parseSelector(text)).toThrow(InvalidSelector);
    expect(() => parseSelector(text)).toThrow(`the selector ${JSON.stringify(text)} cannot be read: ${words}`);
  });

  test('is read or refused in one line, whatever is written', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: fc.constantFrom(...'ab=!(), \n<>in') })), (text) => {
        try {
          expect(JSON.parse(JSON.stringify(parseSelector(text)))).toEqual(parseSelector(text));
        } catch (error) {
          expect(error).toBeInstanceOf(InvalidSelector);
          expect((error as Error).message).not.toContain('\n');
        }
      }),
      { numRuns: 3_000 },
    );
  });

  test('and its opposite select every host exactly once', () => {
    const word = fc.constantFrom('a', 'b', 'c');
    const label = fc.tuple(word, fc.uniqueArray(word, { minLength: 1 }));
    fc.assert(
      fc.property(label, fc.dictionary(word, word), ([key, values], labels) => {
        expect(holds(`${key} in (${values.join()})`, labels)).toBe(!holds(`${key} notin (${values.join()})`, labels));
        expect(holds(key, labels)).toBe(!holds(`!${key}`, labels));
        expect(holds(`${key}=${values[0]}`, labels)).toBe(!holds(`${key}!=${values[0]}`, labels));
      }),
    );
  });
});
