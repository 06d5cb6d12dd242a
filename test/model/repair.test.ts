import fc from 'fast-check';
import type { CopyReport, QemuReport } from '../../hypervisor/copy-report';
import { decideRepair, keyOf, type Known, type Look, type RepairDecision, type RepairStep } from '../../workflows/repair';
import { explore, type State } from './switchover-model';

/** The decisions of `vmferry repair`, without QEMUs: one by one, of any hosts that there may be, and for every state that a terminated switchover can leave. */
const A = 'host-a';
const B = 'host-b';
const NOTHING: CopyReport = { defined: false, storageDaemon: false, guard: false, kept: [] };
const since = '2026-01-01T00:00:00Z';
const qemu = (over: Partial<QemuReport & { answers: true }> = {}): QemuReport => ({ answers: true, runState: 'running', running: true, outgoing: 'none', ours: [], ...over });
const POSTMIGRATE = qemu({ runState: 'postmigrate', running: false, outgoing: 'completed' });
const PAGES = qemu({ runState: 'postmigrate', running: false, outgoing: 'post-copy' });
const LACKS = qemu({ outgoing: 'post-copy' });
const INCOMING = qemu({ runState: 'inmigrate', running: false });
const copy = (over: Partial<CopyReport>): Look => ({ answers: true, copy: { ...NOTHING, defined: true, ...over } });
const owner = (over: Partial<CopyReport> = {}) => copy({ ownership: { state: 'owner', since }, qemu: qemu(), ...over });
const handedOver = (to: string, over: Partial<CopyReport> = {}, attempt = 'one') => copy({ ownership: { state: 'handed-over', attempt, to }, attempt: { role: 'source', attempt, peer: to }, qemu: POSTMIGRATE, ...over });
const incoming = (from: string, over: Partial<CopyReport> = {}, attempt = 'one') => copy({ ownership: { state: 'incoming', attempt, from }, attempt: { role: 'destination', attempt, peer: from }, ...over });
const arrived = (from: string, over: Partial<CopyReport> = {}, attempt = 'one') => copy({ ownership: { state: 'owner', since, attempt }, attempt: { role: 'destination', attempt, peer: from }, qemu: qemu(), ...over });
const none: Look = { answers: true, copy: NOTHING };
const away = (lastSaid?: string): Look => ({ answers: false, ...(lastSaid !== undefined && { lastSaid }) });
const known = (hosts: Record<string, Look>, over: Partial<Known> = {}): Known => ({ guest: 'web', hosts, fenced: [], rested: ['one host-a'], awaited: ['one host-a'], ...over });

/** A decision in one line. */
function inShort(decision: RepairDecision): string {
  switch (decision.kind) {
    case 'act':
      return decision.steps.map(({ host, do: step }) => `${step} ${host}`).join(', ');
    case 'wait':
      return `wait ${decision.hosts.join(' ')}`;
    case 'settled':
      return `settled ${decision.owner}${decision.left.length > 0 ? `, left ${decision.left.length}` : ''}`;
    case 'unclear':
      return decision.type;
  }
}

describe('one by one', () => {
  test.each<[string, Known, string]>([
    ['a healthy guest', known({ [A]: owner(), [B]: none }), 'settled host-a'],
    ['one that is stopped', known({ [A]: owner({ qemu: undefined as never }), [B]: none }), 'settled host-a'],
    ['one that settled where it came, its source retired', known({ [A]: none, [B]: copy({ ownership: { state: 'owner', since, attempt: 'one' }, qemu: qemu() }) }), 'settled host-b'],
    ['terminated while disks are copied: first the source is brought to rest', known({ [A]: owner({ attempt: { role: 'source', attempt: 'one', peer: B } }), [B]: incoming(A) }, { rested: [] }), 'sourceState host-a'],
    ['… then its incoming QEMU goes', known({ [A]: owner({ attempt: { role: 'source', attempt: 'one', peer: B } }), [B]: incoming(A, { qemu: INCOMING }) }), 'destroyIncoming host-b'],
    ['… then the mirrors', known({ [A]: owner({ attempt: { role: 'source', attempt: 'one', peer: B } }), [B]: incoming(A) }), 'removeMirrors host-a'],
    ['… then the images', known({ [A]: owner(), [B]: incoming(A) }), 'discardDestination host-b'],
    ['the same, its destination away: what is to be done there is kept before the record goes', known({ [A]: owner({ attempt: { role: 'source', attempt: 'one', peer: B } }), [B]: away() }), 'discardDestination host-b, removeMirrors host-a'],
    ['arrived, and nobody said so', known({ [A]: handedOver(B), [B]: arrived(A) }), 'settleDestination host-b, retireSource host-a'],
    ['arrived, its source away', known({ [A]: away('handed over to host-b'), [B]: arrived(A) }), 'retireSource host-a, settleDestination host-b'],
    ['arrived and crashed there', known({ [A]: handedOver(B), [B]: arrived(A, { qemu: undefined as never }) }), 'settleDestination host-b, retireSource host-a'],
    ['arrived by post-copy, and its source sends pages still', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: arrived(A) }), 'settleDestination host-b'],
    ['… and settled there', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: copy({ ownership: { state: 'owner', since, attempt: 'one' }, qemu: qemu() }) }), 'settled host-b, left 1'],
    ['… its connection broken', known({ [A]: handedOver(B, { qemu: qemu({ runState: 'postmigrate', running: false, outgoing: 'post-copy-paused' }) }), [B]: arrived(A) }), 'settleDestination host-b'],
    ['… and pages are missing there', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: arrived(A, { qemu: LACKS }) }), 'bringPages host-b'],
    ['… and it waits for one, so its monitor is silent', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: arrived(A, { qemu: { answers: false, problem: 'silent' } }) }), 'bringPages host-b'],
    ['… and the source is away: its QEMU must not be ended when it returns', known({ [A]: away('handed over to host-b'), [B]: arrived(A, { qemu: LACKS }) }), 'wait host-a'],
    ['… and the source was confirmed fenced: the guest is lost as a running one', known({ [A]: away('handed over to host-b'), [B]: arrived(A, { qemu: LACKS }) }, { fenced: [A] }), 'bringPages host-b'],
    ['… and the destination is away', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: away() }), 'wait host-b'],
    ['… and the destination was confirmed fenced', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: away() }, { fenced: [B] }), 'reviveSource host-a, removeMirrors host-a, retireFenced host-b'],
    ['… and it crashed there: nobody needs the pages', known({ [A]: handedOver(B, { qemu: PAGES }), [B]: arrived(A, { qemu: undefined as never }) }), 'settleDestination host-b, retireSource host-a'],
    ['a copy on a third host that was passed on', known({ [A]: none, [B]: copy({ ownership: { state: 'owner', since, attempt: 'two' }, qemu: qemu() }), c: handedOver(A, {}, 'old') }), 'retireSource c'],
    ['a copy on a third host that nothing leads from to the guest', known({ [A]: owner(), [B]: none, c: handedOver('d', {}, 'old') }), 'settled host-a, left 1'],
    ['a copy on its way from a host that is away, though another has the guest', known({ [A]: owner(), [B]: incoming('c'), c: away() }), 'settled host-a, left 1'],
    ['a copy on its way from a host that handed everything over to it, though another has the guest', known({ [A]: owner(), [B]: incoming('c'), c: handedOver(B) }), 'settled host-a, left 2'],
    ['a copy that was on its way from a host that has nothing of it', known({ [A]: owner(), [B]: incoming('c'), c: none }), 'discardDestination host-b'],
    ['everything handed over, the destination loads', known({ [A]: handedOver(B), [B]: incoming(A, { qemu: INCOMING }) }, { awaited: [] }), 'receive host-b'],
    ['… and does not come to an end', known({ [A]: handedOver(B), [B]: incoming(A, { qemu: INCOMING }) }), 'destroyIncoming host-b'],
    ['… hangs', known({ [A]: handedOver(B), [B]: incoming(A, { qemu: { answers: false, problem: 'silent' } }) }, { awaited: [] }), 'destroyIncoming host-b'],
    ['… is dead', known({ [A]: handedOver(B), [B]: incoming(A) }), 'reviveSource host-a, removeMirrors host-a'],
    ['… and so is the source: then its copy is the guest again', known({ [A]: handedOver(B, { qemu: undefined as never }), [B]: incoming(A) }), 'removeMirrors host-a'],
    ['… is away', known({ [A]: handedOver(B), [B]: away() }), 'wait host-b'],
    ['… is confirmed fenced', known({ [A]: handedOver(B), [B]: away() }, { fenced: [B] }), 'reviveSource host-a, removeMirrors host-a, retireFenced host-b'],
    ['… fenced, and answers all the same: it is believed', known({ [A]: handedOver(B), [B]: arrived(A) }, { fenced: [B] }), 'settleDestination host-b, retireSource host-a'],
    ['… fenced, and a third host had said to have the guest', known({ [A]: handedOver(B), [B]: away(), c: away('running') }, { fenced: [B] }), 'wait c'],
    ['… both fenced: the copy at the source may be old', known({ [A]: handedOver(B), [B]: away(), c: away('running') }, { fenced: [B, 'c'] }), 'OwnershipUnknown'],
    ['the fenced host is back before its leftover was done', known({ [A]: owner({ ownership: { state: 'owner', since, instead: { host: B, attempt: 'one' } } }), [B]: arrived(A) }), 'retireFenced host-b'],
    ['handed over to a host that has nothing of it', known({ [A]: handedOver(B), [B]: none }), 'OwnershipUnknown'],
    ['on its way, the source away', known({ [A]: away('running'), [B]: incoming(A) }), 'wait host-a'],
    ['on its way, the source fenced: nothing is thrown away', known({ [A]: away('running'), [B]: incoming(A) }, { fenced: [A] }), 'GuestGone'],
    ['only on a host that is away', known({ [A]: away('running'), [B]: none }), 'HostUnreachable'],
    ['nowhere', known({ [A]: none, [B]: none }), 'NotFound'],
    ['two owners', known({ [A]: owner(), [B]: owner() }), 'OwnershipUnknown'],
    ['two that run', known({ [A]: handedOver(B, { qemu: qemu({ outgoing: 'cancelled' }) }), [B]: arrived(A) }), 'OwnershipUnknown'],
    ['a source whose monitor does not answer', known({ [A]: handedOver(B, { qemu: { answers: false, problem: 'busy' } }), [B]: incoming(A) }), 'OwnershipUnknown'],
    ['an owner with things of a migration and no attempt', known({ [A]: owner({ qemu: qemu({ ours: ['vmferry-job-x-0'] }) }), [B]: none }), 'tidyCopy host-a'],
  ])('%s', (_what, state, expected) => {
    expect(inShort(decideRepair(state))).toBe(expected);
  });
});

const HOSTS = [A, B, 'host-c', 'host-d'];
const ATTEMPTS = ['one', 'two'];
const someQemu: fc.Arbitrary<QemuReport | undefined> = fc.constantFrom(undefined, qemu(), POSTMIGRATE, INCOMING, qemu({ outgoing: 'active' }), qemu({ outgoing: 'continued', running: false, runState: 'finish-migrate' }), qemu({ outgoing: 'cancelled' }), { answers: false as const, problem: 'silent' });
const someLook: fc.Arbitrary<Look> = fc.oneof(
  fc.constant(none),
  fc.constantFrom(away(), away('running'), away('stopped'), away('handed over to host-b'), away('arriving from host-a')),
  fc.record({ state: fc.constantFrom('owner', 'incoming', 'handed-over', undefined), own: fc.constantFrom(...ATTEMPTS), role: fc.constantFrom('source', 'destination', undefined), attempt: fc.constantFrom(...ATTEMPTS), peer: fc.constantFrom(...HOSTS), brought: fc.boolean(), instead: fc.boolean(), qemu: someQemu, guard: fc.boolean() }).map(
    ({ state, own, role, attempt, peer, brought, instead, qemu: process, guard }): Look =>
      copy({
        ...(state === 'owner' && { ownership: { state, since, ...(brought && { attempt: own }), ...(instead && { instead: { host: peer, attempt: own } }) } }),
        ...(state === 'incoming' && { ownership: { state, attempt: own, from: peer } }),
        ...(state === 'handed-over' && { ownership: { state, attempt: own, to: peer } }),
        ...(role && { attempt: { role, attempt, peer } }),
        ...(process && { qemu: process }),
        guard,
      }),
  ),
);
const keys = fc.subarray(ATTEMPTS.flatMap((attempt) => HOSTS.map((host) => `${attempt} ${host}`)));
const someKnown: fc.Arbitrary<Known> = fc.record({ guest: fc.constant('web'), hosts: fc.dictionary(fc.constantFrom(...HOSTS), someLook, { minKeys: 1 }), fenced: fc.subarray(HOSTS), rested: keys, awaited: keys });

const copyAt = ({ hosts }: Known, host: string) => {
  const look = hosts[host];
  return look?.answers ? look.copy : undefined;
};
const stepsOf = (decision: RepairDecision): RepairStep[] => (decision.kind === 'act' ? decision.steps : []);
const runsAt = (state: Known, host: string) => {
  const process = copyAt(state, host)?.qemu;
  return process?.answers === true && process.running;
};

describe('of any hosts that there may be', () => {
  const property = (holds: (state: Known, decision: RepairDecision) => void) => fc.assert(fc.property(someKnown, (state) => holds(state, decideRepair(state))), { numRuns: 20_000 });

  test('a copy is made startable only if every host that may have another answers, or is fenced', () => property((state, decision) => {
    for (const step of stepsOf(decision)) {
      if (step.do !== 'reviveSource' && !(step.do === 'removeMirrors' && step.destinationDestroyed)) continue;
      const { host, ref } = step;
      expect(copyAt(state, host)?.ownership).toMatchObject({ state: 'handed-over', attempt: ref.attempt, to: ref.to });
      for (const other of Object.keys(state.hosts).filter((one) => one !== host)) {
        expect(copyAt(state, other)?.ownership?.state).not.toBe('owner');
        expect(runsAt(state, other)).toBe(false);
      }
      const there = copyAt(state, ref.to);
      if (there) expect({ arrives: there.ownership?.state ?? there.attempt?.role, qemu: there.qemu }).toEqual({ arrives: expect.stringMatching(/incoming|destination/), qemu: undefined });
      else {
        expect(state.fenced).toContain(ref.to);
        expect(step.instead).toEqual({ host: ref.to, attempt: ref.attempt });
        // What the fenced one may have passed the guest on to.
        for (const [other, look] of Object.entries(state.hosts)) if (other !== ref.to && !look.answers) expect(look.lastSaid ?? 'arriving').toMatch(/^(arriving|handed over)/);
      }
    }
  }));

  test('a copy is thrown away only if another is the guest, and never the guest itself', () => property((state, decision) => {
    const steps = stepsOf(decision);
    for (const { do: step, host, ref } of steps) {
      if (!['discardDestination', 'retireSource', 'retireFenced'].includes(step)) continue;
      const revived = steps.find((other) => other.do === 'removeMirrors' && other.destinationDestroyed)?.host;
      const guest = decision.kind === 'act' ? (decision.owner ?? revived) : undefined;
      expect(guest).toBeDefined();
      expect(guest).not.toBe(host);
      if (revived === undefined) expect(copyAt(state, guest!)?.ownership?.state).toBe('owner');
      // What is on its way may be all that there is of a guest that its source has handed over.
      const from = copyAt(state, ref.from);
      if (step === 'discardDestination' && copyAt(state, host) && ref.from !== guest) expect([state.hosts[ref.from]?.answers, from?.ownership?.state === 'handed-over' && from.ownership.attempt === ref.attempt]).toEqual([true, false]);
      if (step !== 'retireFenced') expect(copyAt(state, host)?.ownership?.state).not.toBe('owner');
      if (copyAt(state, host)) expect(copyAt(state, host)!.qemu?.answers === true && runsAt(state, host) && step !== 'retireFenced').toBe(false);
    }
  }));

  test('an incoming QEMU is ended only without its marker, and if it does not run', () => property((state, decision) => {
    for (const { do: step, host } of stepsOf(decision)) {
      if (step !== 'destroyIncoming') continue;
      expect(copyAt(state, host)?.ownership?.state).not.toBe('owner');
      expect(runsAt(state, host)).toBe(false);
    }
  }));

  test('every decision has its reason, is the same again, and does not depend on the order of the hosts', () => property((state, decision) => {
    const reversed = { ...state, hosts: Object.fromEntries(Object.entries(state.hosts).reverse()) };
    expect(decideRepair(reversed)).toEqual(decision);
    if (decision.kind === 'act') {
      expect(decision.steps.length).toBeGreaterThan(0);
      for (const { why } of decision.steps) expect(why).not.toBe('');
    } else expect(decision.why).not.toBe('');
  }));

  test('only hosts that are away are waited for', () => property((state, decision) => {
    if (decision.kind !== 'wait') return;
    expect(decision.hosts.length).toBeGreaterThan(0);
    for (const host of decision.hosts) expect([copyAt(state, host), state.fenced.includes(host)]).toEqual([undefined, false]);
  }));
});

/** What both hosts have in a state of the model, and whether an attempt is on record. */
interface World {
  s: State;
  sourceRecord: boolean;
  destinationRecord: boolean;
  instead: boolean;
  rested: boolean;
  awaited: boolean;
}

const sourceRuns = ({ source }: State) => source === 'sends' || source === 'runs';
const destinationRuns = ({ destination }: State) => destination === 'runs' || destination === 'booted';

function look({ s, sourceRecord, destinationRecord, instead }: World): { source: Look; destination: Look } {
  const processes: Record<State['source'], QemuReport | undefined> = {
    sends: qemu({ outgoing: 'active' }), 'pre-switchover': qemu({ running: false, runState: 'finish-migrate', outgoing: 'pre-switchover' }), device: qemu({ running: false, runState: 'finish-migrate', outgoing: 'continued' }),
    completed: POSTMIGRATE, runs: qemu({ outgoing: 'cancelled' }), dead: undefined,
  };
  const here = processes[s.source];
  const there = s.destination === 'none' ? undefined : s.hangs ? { answers: false as const, problem: 'hangs' } : destinationRuns(s) ? qemu() : INCOMING;
  return {
    source: s.sourceFile === 'none' ? none : copy({ ownership: s.sourceFile === 'owner' ? { state: 'owner', since, ...(instead && { instead: { host: B, attempt: 'one' } }) } : { state: 'handed-over', attempt: 'one', to: B }, ...(sourceRecord && { attempt: { role: 'source', attempt: 'one', peer: B } }), ...(here && { qemu: here }) }),
    destination: s.destinationFile === 'none' ? none : copy({ ownership: s.destinationFile === 'owner' ? { state: 'owner', since, attempt: 'one' } : { state: 'incoming', attempt: 'one', from: A }, ...(destinationRecord && { attempt: { role: 'destination', attempt: 'one', peer: A } }), ...(there && { qemu: there }) }),
  };
}

/** What the activities do, on the model's state. Throws if one would refuse. */
function carryOut(world: World, step: RepairStep): void {
  const { s } = world;
  const runHere = () => void (s.source = 'runs');
  const arrive = () => void Object.assign(s, { exported: false, destinationFile: 'owner', destination: 'runs', moved: true });
  switch (step.do) {
    case 'sourceState':
      world.rested = true;
      if (s.source === 'device') s.source = s.stream === 'whole' || s.stream === 'lost' ? 'completed' : 'runs';
      if (s.source === 'sends' || s.source === 'pre-switchover') runHere();
      if (s.source === 'runs') s.sourceFile = 'owner';
      return;
    case 'receive':
      world.awaited = true;
      if (s.hangs || s.destination === 'none') return;
      if (s.destination === 'loaded' || s.stream === 'whole') return arrive();
      if (s.stream !== 'open') s.destination = 'none';
      return;
    case 'destroyIncoming':
      if (s.destinationFile !== 'owner') Object.assign(s, { destination: 'none', hangs: false });
      return;
    case 'reviveSource':
      Object.assign(s, { sourceFile: 'owner' });
      world.instead = step.instead !== undefined;
      if (s.source === 'completed') runHere();
      return;
    case 'removeMirrors':
      if (s.source === 'completed') throw new Error('OwnershipUnknown');
      if (s.sourceFile !== 'owner') {
        if (!step.destinationDestroyed) throw new Error('OwnershipUnknown');
        s.sourceFile = 'owner';
        world.instead = step.instead !== undefined;
      }
      world.sourceRecord = false;
      return;
    case 'discardDestination':
      if (s.destinationFile === 'owner') throw new Error('GuestStateError');
      Object.assign(s, { destination: 'none', destinationFile: 'none', hangs: false });
      world.destinationRecord = false;
      return;
    case 'settleDestination':
      if (s.destination === 'loaded' && s.destinationFile === 'owner') Object.assign(s, { destination: 'runs', moved: true });
      world.destinationRecord = false;
      return;
    case 'retireSource':
      if (s.sourceFile !== 'handed-over') throw new Error('GuestStateError');
      Object.assign(s, { source: 'dead', sourceFile: 'none' });
      world.sourceRecord = false;
      return;
    case 'retireFenced':
      Object.assign(s, { destination: 'none', destinationFile: 'none', hangs: false });
      world.destinationRecord = false;
      return;
    case 'tidyCopy':
      return;
  }
}

/** Repairs until there is nothing to do; checks after each step what must never be. */
function repair(world: World, absent: { host?: string; fenced?: boolean; lastSaid?: string } = {}): { end: RepairDecision; steps: string[]; later: RepairStep[] } {
  const steps: string[] = [];
  const later: RepairStep[] = [];
  for (let round = 0; round < 12; round++) {
    const { source, destination } = look(world);
    const gone: Look = away(absent.lastSaid);
    const end = decideRepair({
      guest: 'web',
      hosts: { [A]: absent.host === A ? gone : source, [B]: absent.host === B ? gone : destination },
      fenced: absent.fenced ? [absent.host!] : [],
      rested: world.rested ? ['one host-a'] : [],
      awaited: world.awaited ? ['one host-a'] : [],
    });
    if (end.kind !== 'act') return { end, steps, later };
    for (const step of end.steps) {
      steps.push(`${step.do} ${step.host}`);
      expect(keyOf(step.ref)).toBe('one host-a');
      if (step.host === absent.host) later.push(step);
      else carryOut(world, step);
      const { s } = world;
      expect({ steps, twoRun: sourceRuns(s) && destinationRuns(s), oldRuns: sourceRuns(s) && s.moved, bothStartable: s.sourceFile === 'owner' && s.destinationFile === 'owner' && !world.instead }).toEqual({ steps, twoRun: false, oldRuns: false, bothStartable: false });
    }
  }
  throw new Error(`no end: ${steps.join(', ')}`);
}

describe('for every state that a switchover can be terminated in, with a kill, a hang or a cut, and a reboot', () => {
  let terminated: State[];
  beforeAll(() => {
    terminated = explore({ kills: 2, reboots: 1 }).reached.filter(({ workflow, hangs, destinationFile }) => workflow === 'terminated' && !(hangs && destinationFile === 'owner'));
    expect(terminated.length).toBeGreaterThan(1_000);
  });
  const world = (s: State): World => ({ s: { ...s }, sourceRecord: s.sourceFile !== 'none', destinationRecord: s.destinationFile !== 'none', instead: false, rested: false, awaited: false });

  test('one copy is the guest, nothing else is left, and a second repair finds nothing to do', () => {
    const ways = new Set<string>();
    for (const state of terminated) {
      const now = world(state);
      const { end, steps } = repair(now);
      ways.add(steps.join(', '));
      expect({ state, end: end.kind }).toEqual({ state, end: 'settled' });
      const { s, sourceRecord, destinationRecord } = now;
      expect([s.sourceFile, s.destinationFile].sort()).toEqual(['none', 'owner']);
      expect([sourceRecord, destinationRecord]).toEqual([false, false]);
      // A guest whose own QEMU was not killed runs.
      if (s.theirs + s.reboots === 0) expect({ state, runs: sourceRuns(s) || destinationRuns(s) }).toEqual({ state, runs: true });
      expect(repair(now).steps).toEqual([]);
    }
    process.stderr.write(`\n${terminated.length} states, ${ways.size} ways to repair them:\n${[...ways].sort().map((way) => `  ${way}\n`).join('')}`);
  });

  test('a destination that is away is waited for wherever it may run the guest; fenced, the source runs, and the other copy goes when it returns', () => {
    let waited = 0;
    for (const state of terminated) {
      const now = world(state);
      const first = repair(now, { host: B });
      if (first.end.kind === 'settled') {
        expect(first.end.owner).toBe(A);
        expect(now.s.sourceFile).toBe('owner');
        continue;
      }
      if (first.end.kind === 'unclear') {
        expect({ state, type: first.end.type }).toEqual({ state, type: 'NotFound' });
        continue;
      }
      waited++;
      expect({ state, end: inShort(first.end) }).toEqual({ state, end: 'wait host-b' });
      // What the person says is true: that machine is off. Whether the guest had run there before is not known.
      Object.assign(now.s, { destination: 'none', moved: false, hangs: false });
      const { end, later } = repair(now, { host: B, fenced: true });
      expect({ state, end: inShort(end) }).toEqual({ state, end: 'settled host-a' });
      expect(now.instead).toBe(true);
      expect(later.map((step) => step.do)).toEqual(['retireFenced']);
      later.forEach((step) => carryOut(now, step));
      expect(repair(now).end).toMatchObject({ kind: 'settled', owner: A });
    }
    expect(waited).toBeGreaterThan(100);
  });

  test('a source that is away is waited for unless the guest has arrived; fenced, nothing is thrown away', () => {
    for (const state of terminated.filter(({ destinationFile }) => destinationFile !== 'none')) {
      const now = world(state);
      const { end } = repair(now, { host: A });
      if (now.s.destinationFile === 'owner') {
        expect({ state, end: inShort(end) }).toEqual({ state, end: 'settled host-b' });
        continue;
      }
      expect({ state, end: inShort(end) }).toEqual({ state, end: 'wait host-a' });
      const fenced = repair(now, { host: A, fenced: true });
      expect([inShort(fenced.end), fenced.steps]).toEqual(['GuestGone', []]);
      // Back again, it has the guest.
      expect(repair(now).end.kind).toBe('settled');
    }
  });
});
