import { decideOwner, type Decision, type DestinationFate, type SourceFate } from '../../workflows/ownership';
import { ENDS, explore, type Exploration, type Property, RESUMES, type Rule, RULES, type State, switchoverActions } from './switchover-model';

/** docs/architecture.md, switchover: the protocol is right in every order of events, and none of its rules is idle. */
let whole: Exploration;
beforeAll(() => {
  whole = explore({ kills: 2, reboots: 2 });
});

test('with any two kills, hangs or cuts and any two reboots, never two copies, never a missing block, and always a good end', () => {
  expect([...whole.broken].map(([property, { trace }]) => [property, ...trace])).toEqual([]);
});

test('the model is not empty: every step of the protocol and every fault is taken, and every end is reached', () => {
  const onlyWithoutARule = /waits for the last word|sees |for what it saw|cannot reach|alive, with its marker|taken for gone|starts the paused|which cancels|leaves a source alone/;
  expect(switchoverActions().map(({ by, name }) => `${by}: ${name}`).filter((name) => !whole.taken.has(name) && !onlyWithoutARule.test(name))).toEqual([]);
  const ends: Record<string, (s: State) => boolean> = {
    'it moved': (s) => s.workflow === 'ended' && s.destination === 'runs' && s.source === 'dead' && s.sourceFile === 'none',
    'it stays': (s) => s.workflow === 'ended' && s.source === 'runs' && s.destinationFile === 'none',
    'it runs again after its source had completed': (s) => s.workflow === 'ended' && s.left === 'completed' && s.source === 'runs',
    'it is gone, and may be started at the source': (s) => s.workflow === 'ended' && s.source === 'dead' && s.sourceFile === 'owner',
    'it crashed after the move, and may be started at the destination': (s) => s.workflow === 'crashed-after-move' && s.destinationFile === 'owner',
    'it was started again at the destination by autostart': (s) => s.workflow === 'ended' && s.destination === 'booted',
  };
  expect(Object.keys(ends).filter((end) => !whole.reached.some(ends[end]!))).toEqual([]);
});

const MET: readonly (readonly [SourceFate, DestinationFate])[] = [
  ['completed', 'dead'], ['completed', 'dead-with-marker'], ['completed', 'running'],
  ['gone', 'dead'], ['gone', 'dead-with-marker'], ['gone', 'running'],
  ['running', 'dead'],
];

test('the rows of the ownership table that can be met are these: a source that runs on never meets a marker', () => {
  const rows = new Set(whole.reached.filter(({ left, arrived }) => left && arrived).map(({ left, arrived }) => `${left}, ${arrived}`));
  expect([...rows].sort()).toEqual(MET.map((row) => row.join(', ')));
});

test('any other decision in any of these rows would do harm, but for two that come to the same', () => {
  const harmless: string[] = [];
  for (const [source, destination] of MET) {
    for (const other of ['done', 'undo', 'revive-source', 'crashed-after-move'] as const satisfies Decision[]) {
      if (other === decideOwner(source, destination)) continue;
      const { broken } = explore({ kills: 1, reboots: 1, decide: (...row) => (row.join() === [source, destination].join() ? other : decideOwner(...row)) });
      if (broken.size === 0) harmless.push(`${source}, ${destination}: ${other}`);
    }
  }
  expect(harmless).toEqual(['gone, dead: revive-source', 'running, dead: revive-source']);
});

/** Each rule, what goes wrong without it, and a step that the shortest example must have. */
const CONSEQUENCES: Record<Rule, { property: Property; by?: RegExp; kills?: number }[]> = {
  R1: [{ property: 'migrate-continue while a mirror exists' }, { property: 'the destination runs with blocks missing' }],
  R2: [{ property: 'two copies run', by: /the link is cut/ }],
  R3: [{ property: ENDS, by: /too slow/ }],
  R4: [{ property: 'an old copy runs', by: /hears that the destination is dead-with-marker/ }],
  R5: [{ property: 'two copies run', by: /cont at the source/ }],
  R6: [{ property: RESUMES, by: /restarts the destination agent/ }],
  R7: [{ property: ENDS, by: /SIGSTOP/ }],
  R8: [{ property: 'two copies run', by: /stops the source agent/ }],
  R9: [{ property: RESUMES, by: /SIGKILL of the source agent/ }],
  R10: [{ property: 'two copies run', by: /starts the guest/ }],
  'paused arrival': [{ property: 'the destination runs while its images are exported' }],
  'one hand': [{ property: 'two copies run', by: /migrate_cancel, for what it saw/ }],
  'destroy at once': [{ property: 'both copies may be started' }, { property: 'two copies run' }],
  'undo in order': [{ property: 'both copies may be started' }, { property: 'two copies run' }],
  'gone means gone': [{ property: ENDS, by: /taken for gone/ }],
  'window outlives workflow': [{ property: RESUMES, by: /terminated/ }],
  'marker first': [{ property: ENDS, by: /starts the guest at the destination/ }],
  'marked is not running': [{ property: 'the outcome is not what happened' }, { property: ENDS, by: /alive, with its marker/, kills: 2 }],
};

test.each(Object.keys(RULES) as Rule[])('without the rule "%s" something goes wrong', (rule) => {
  const expected = CONSEQUENCES[rule];
  const { broken } = explore({ without: [rule], kills: Math.max(...expected.map(({ kills = 1 }) => kills)), reboots: 1 });
  for (const { property, by = /./ } of expected) {
    const example = broken.get(property);
    expect([property, example?.trace]).toEqual([property, expect.arrayContaining([expect.stringMatching(by)])]);
    process.stderr.write(`\nWithout ${rule} (${RULES[rule]}), not so: "${property}"\n${example!.trace.map((step, index) => `${String(index + 1).padStart(4)}. ${step}\n`).join('')}      ${ending(example!.end)}\n`);
  }
});

function ending({ source, destination, sourceFile, destinationFile, workflow }: State): string {
  return `→ source ${source} (${sourceFile}), destination ${destination} (${destinationFile}), workflow ${workflow}`;
}
