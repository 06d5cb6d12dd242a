import { mayStart } from '../../hypervisor/startable';
import { decideOwner, type Decision, type DestinationFate, type SourceFate } from '../../workflows/ownership';

/**
 * The switchover (docs/architecture.md) as a small explicit-state model: everything that one try can meet, in every order. A step is
 * atomic and any enabled step may come next, so a delay of a process, of the network or of Temporal is just another order; a control
 * worker that dies is a delay too, since Temporal remembers. The model begins while memory is copied, everything up.
 *
 * Left out: a second try, and the re-arming of mirrors for it (it begins like the first); more disks than one; a guest that arrives
 * paused; hosts that never come back, and `confirmFenced` for them.
 */
export interface State {
  /** The source's QEMU; the guest runs in `sends` and `runs`. `runs`: no migration under way; it failed, was cancelled, or the guest was started anew. */
  source: 'sends' | 'pre-switchover' | 'device' | 'completed' | 'runs' | 'dead';
  /** `behind` and `level` look alike to a query (R1). `ended`: proven level, then removed. `lost`: ended otherwise, or the guest ran on since. */
  mirror: 'behind' | 'level' | 'ended' | 'lost';
  /** Of memory. `whole`: all of it has left the source, not all of it has arrived; `lost`: it left and will not arrive. */
  stream: 'open' | 'whole' | 'lost' | 'broken';
  link: 'up' | 'slow' | 'cut';
  /** The destination's QEMU. `runs`: moved here and continued; `booted`: started anew from its disks. */
  destination: 'none' | 'listens' | 'loaded' | 'runs' | 'booted';
  /** SIGSTOP of whatever serves the guest at the destination. */
  hangs: boolean;
  /** The storage daemon still has the destination's images. */
  exported: boolean;
  /** The guest has executed at the destination: the source's copy is out of date. */
  moved: boolean;
  /** The durable ownership on each host; `none`: the guest is not known there. */
  sourceFile: 'owner' | 'handed-over' | 'none';
  destinationFile: 'incoming' | 'owner' | 'none';
  /** Up or not: each host, its agent, and the guard of the migration on it (R9). */
  sourceHost: boolean;
  sourceAgent: boolean;
  sourceGuard: boolean;
  destinationHost: boolean;
  destinationAgent: boolean;
  destinationGuard: boolean;
  /** `switching`: both activities are in flight. Then what `decideOwner` said, how far that was carried out, and the end. */
  workflow: 'switching' | Decision | 'undo: destroyed' | 'revive-source: destroyed' | 'clean' | 'ended' | 'terminated' | 'contradiction';
  /** What the workflow has heard of the two fates. */
  left: SourceFate | '';
  arrived: DestinationFate | '';
  /** Faults so far: kills of our own processes, whatever else breaks, reboots. */
  ours: number;
  theirs: number;
  reboots: number;
  /** `moveMemory` and `receive` run in their agents, whether or not the workflow still waits for them. */
  moving: boolean;
  receiving: boolean;
  /** Only without a rule: somebody has looked and not yet acted; a restarted agent waits for an event that is gone. */
  intent: '' | 'cancel' | 'destroy';
  deafSource: boolean;
  deafDestination: boolean;
}

export const START: State = {
  source: 'sends', mirror: 'behind', stream: 'open', link: 'up', destination: 'listens', hangs: false, exported: true, moved: false,
  sourceFile: 'owner', destinationFile: 'incoming', workflow: 'switching', left: '', arrived: '',
  sourceHost: true, sourceAgent: true, sourceGuard: true, destinationHost: true, destinationAgent: true, destinationGuard: true,
  moving: true, receiving: true, ours: 0, theirs: 0, reboots: 0, intent: '', deafSource: false, deafDestination: false,
};

/** The rules of the switchover, and those that the model showed to be needed beside them. Each can be left out. */
export const RULES = {
  R1: 'migrate-continue only after each mirror has ended, proven level',
  R2: 'return-path is off',
  R3: 'a drain that exceeds the downtime budget is given up',
  R4: 'after migrate-continue the ownership table decides, and it knows the marker',
  R5: 'the destination is destroyed before the source is resumed by hand',
  R6: 'a repeated step looks at what QEMU says, and waits for no event that is gone',
  R7: 'every wait has a deadline: the lease, the out-of-band yank, the end of a destination that hangs',
  R8: 'the stop of an agent is not a cancellation',
  R9: 'a guard on each host goes on when its agent dies',
  R10: 'only an owner is started',
  'paused arrival': 'the destination starts with -S',
  'one hand': 'migrate_cancel and migrate-continue come from one hand, so that no cancel follows a continue',
  'destroy at once': 'nobody can write the marker between the look at it and the kill of the destination',
  'undo in order': 'the source gets the guest back only when the destination is destroyed, however long that takes',
  'gone means gone': 'a source whose activity ended without an answer is asked again, not taken for gone',
  'window outlives workflow': 'the destination goes on when its activity is not wanted any more',
  'marker first': 'a repeated receive that finds the marker waits for no incoming migration',
  'marked is not running': 'a destination that has its marker and is paused is continued before anybody says that it runs',
} as const;
export type Rule = keyof typeof RULES;

export interface Action {
  /** QEMUs, agents and guards act at once. `workflow` needs Temporal, `init` restarts; `operator` and `fault` may act, or never. */
  by: 'source QEMU' | 'destination QEMU' | 'source agent' | 'source guard' | 'destination agent' | 'destination guard' | 'workflow' | 'init' | 'operator' | 'fault';
  name: string;
  enabled(state: State): boolean;
  /** Changes the state that it is given. */
  apply(state: State): void;
}

const sourceRuns = ({ source }: State) => source === 'sends' || source === 'runs';
const destinationRuns = ({ destination }: State) => destination === 'runs' || destination === 'booted';
const arrives = ({ destination }: State) => destination === 'listens' || destination === 'loaded';
const mirrored = ({ mirror }: State) => mirror === 'behind' || mirror === 'level';
const sent = ({ stream }: State) => stream === 'whole' || stream === 'lost';
const startable = (file: State['sourceFile'] | State['destinationFile']) => file !== 'none' && mayStart({ state: file });
/** The lease: the destination's agent says that its QEMU answers. */
const heard = (s: State) => s.destinationAgent && s.destination !== 'none' && !s.hangs && s.link !== 'cut';
/** A peer that hangs makes the QMP of the source hang, while a mirror is attached to it: only a yank frees that (facts/qemu.md §5). */
const stuck = (s: State) => s.hangs && mirrored(s);

type Change = (s: State) => void;
const set = (change: Partial<State>): Change => (s) => void Object.assign(s, change);
const all = (...changes: Change[]): Change => (s) => changes.forEach((change) => change(s));

/** The guest executes at the source: what its mirrors had copied is out of date, and a stream that is not wholly sent ends. */
const runAtSource: Change = (s) => set({ source: 'runs', mirror: mirrored(s) ? 'behind' : 'lost', ...(s.stream === 'open' && { stream: 'broken' }) })(s);
const endSource: Change = (s) => set({ source: 'dead', ...(mirrored(s) && { mirror: 'lost' }), ...(s.stream === 'open' && { stream: 'broken' }) })(s);
const endDestination: Change = (s) => set({ destination: 'none', hangs: false, ...(s.stream === 'open' && { stream: 'broken' }), ...(s.stream === 'whole' && { stream: 'lost' }) })(s);

/** Every step of the protocol and every fault, by the rules that are not `without`. The decision is the code's own, unless a test wants to see what another would do. */
export function switchoverActions(without: readonly Rule[] = [], decide: typeof decideOwner = decideOwner): Action[] {
  const has = (rule: Rule) => !without.includes(rule);
  const canStart = (file: State['sourceFile'] | State['destinationFile']) => (has('R10') ? startable(file) : file !== 'none');
  const handsOver = (s: State) => s.sourceAgent && s.moving;
  const takesOver = (s: State) => s.destinationAgent && s.receiving && (s.workflow !== 'terminated' || has('window outlives workflow'));
  const sourceGuards = (s: State) => has('R9') && s.sourceGuard && !handsOver(s);
  const destinationGuards = (s: State) => has('R9') && s.destinationGuard && !(s.destinationAgent && s.receiving);
  /** `receive` is not wanted any more when the source has not completed: the destination is asked instead (`destinationState`). */
  const calledOff = (s: State) => s.workflow === 'switching' && s.arrived === '' && s.destinationAgent && (s.left === 'running' || s.left === 'gone');
  const canCancel = (s: State) => s.source === 'pre-switchover' && (has('R7') || !stuck(s));
  const reviving = has('R5') ? 'revive-source: destroyed' : 'revive-source';
  const destroying = (s: State) => s.destinationAgent && (s.workflow === 'undo' || (s.workflow === 'revive-source' && has('R5')));
  const destroy = all(endDestination, (s) => set({ destinationGuard: false, intent: '', workflow: s.workflow === 'undo' ? 'undo: destroyed' : 'revive-source: destroyed' })(s));

  const step = (by: Action['by'], name: string, enabled: (s: State) => boolean, ...changes: Change[]): Action => ({ by, name, enabled, apply: all(...changes) });
  /** The destination's half of the window, in its order: hypervisor/takeover.ts. */
  const takeOver = (by: Action['by'], acts: (s: State) => boolean): Action[] => {
    const ready = (s: State) => acts(s) && s.destination === 'loaded' && !s.hangs;
    return [
      step(by, 'takes the images from the storage daemon', (s) => ready(s) && s.exported, set({ exported: false })),
      step(by, 'writes the marker', (s) => ready(s) && !s.exported && s.destinationFile === 'incoming', set({ destinationFile: 'owner' })),
      step(by, 'cont', (s) => ready(s) && !s.exported && s.destinationFile === 'owner', set({ destination: 'runs', moved: true })),
    ];
  };
  const sourceSays = (left: SourceFate, when: (s: State) => boolean) =>
    step('workflow', `hears that the source is ${left}`, (s) => s.workflow === 'switching' && s.left === '' && s.sourceAgent && when(s), set({ left }));
  const destinationSays = (arrived: DestinationFate, when: (s: State) => boolean, how = '') =>
    step('workflow', `hears that the destination is ${arrived}${how}`, (s) => s.workflow === 'switching' && s.arrived === '' && s.destinationAgent && when(s), set({ arrived }));
  const fault = (kind: 'ours' | 'theirs' | 'reboots', name: string, enabled: (s: State) => boolean, ...changes: Change[]) => step('fault', name, enabled, ...changes, (s) => void s[kind]++);

  return [
    // What QEMU does by itself (facts/qemu.md §3).
    step('source QEMU', 'pauses the guest: pre-switchover', (s) => s.source === 'sends' && s.stream === 'open', set({ source: 'pre-switchover' })),
    step('source QEMU', 'drains its mirrors', (s) => s.source === 'pre-switchover' && s.mirror === 'behind' && s.link === 'up' && s.exported && !s.hangs, set({ mirror: 'level' })),
    step('source QEMU', 'ends a mirror with an error', (s) => ['sends', 'pre-switchover', 'runs'].includes(s.source) && mirrored(s) && (s.link === 'cut' || !s.exported), set({ mirror: 'lost' })),
    step('source QEMU', 'sends the rest of the stream', (s) => s.source === 'device' && s.stream === 'open' && s.link === 'up' && !s.hangs, set({ stream: 'whole' })),
    step('source QEMU', 'completes: postmigrate', (s) => s.source === 'device' && sent(s) && (has('R2') || (s.link !== 'cut' && ['loaded', 'runs'].includes(s.destination))), set({ source: 'completed' })),
    step('source QEMU', 'fails, and runs the guest again', (s) => s.stream === 'broken' && (s.source === 'sends' || s.source === 'device'), runAtSource),
    step('source QEMU', 'waits for the last word of the destination, fails, and runs the guest again', (s) => !has('R2') && s.source === 'device' && sent(s) && (s.link === 'cut' || s.destination === 'none'), runAtSource),
    has('paused arrival')
      ? step('destination QEMU', 'has loaded the guest: completed', (s) => s.destination === 'listens' && s.stream === 'whole' && !s.hangs, set({ destination: 'loaded' }))
      : step('destination QEMU', 'has loaded the guest, and runs it', (s) => s.destination === 'listens' && s.stream === 'whole' && !s.hangs, set({ destination: 'runs', moved: true })),
    step('destination QEMU', 'ends, since the stream broke', (s) => s.destination === 'listens' && (s.stream === 'broken' || s.stream === 'lost') && !s.hangs, endDestination),

    // The source's half of the window: hypervisor/handover.ts.
    step('source agent', 'marks its copy as handed over', (s) => handsOver(s) && s.source === 'pre-switchover' && s.sourceFile === 'owner', set({ sourceFile: 'handed-over' })),
    step('source agent', 'finishes the mirrors', (s) => handsOver(s) && s.source === 'pre-switchover' && s.mirror === 'level' && !s.hangs, set({ mirror: 'ended' })),
    step('source agent', 'migrate-continue', (s) => handsOver(s) && s.source === 'pre-switchover' && s.sourceFile === 'handed-over' && (has('R1') ? s.mirror === 'ended' : s.mirror !== 'lost') && (!has('R7') || heard(s)), set({ source: 'device' })),
    step('source agent', 'gives up: migrate_cancel', (s) => handsOver(s) && canCancel(s) && ((has('R3') && s.mirror === 'behind') || (has('R7') && !heard(s)) || s.mirror === 'lost'), runAtSource),
    step('source agent', 'yanks a stream that stands still', (s) => handsOver(s) && has('R7') && s.source === 'device' && s.stream === 'open' && (s.hangs || s.link === 'slow'), set({ stream: 'broken' })),
    step('source agent', 'owns the guest again', (s) => handsOver(s) && s.source === 'runs' && s.sourceFile === 'handed-over', set({ sourceFile: 'owner' })),
    step('source guard', 'migrate_cancel', (s) => has('one hand') && sourceGuards(s) && canCancel(s), runAtSource),
    step('source guard', 'sees pre-switchover', (s) => !has('one hand') && sourceGuards(s) && canCancel(s) && s.intent === '', set({ intent: 'cancel' })),
    // A cancel just after the last byte may win: QEMU sets `cancelling` before the migration thread can set `completed`, and runs the guest (migration_completion).
    step('source guard', 'migrate_cancel, for what it saw', (s) => s.intent === 'cancel' && s.sourceGuard && (s.source === 'pre-switchover' || s.source === 'device'), runAtSource, set({ intent: '' })),
    ...takeOver('destination agent', (s) => takesOver(s) && !s.deafDestination),
    ...takeOver('destination guard', destinationGuards),

    // workflows/migrate-vm.ts, and what the agents do for it.
    sourceSays('completed', (s) => s.source === 'completed' && !s.deafSource),
    sourceSays('running', (s) => s.source === 'runs' && s.sourceFile === 'owner' && !s.deafSource),
    sourceSays('gone', (s) => s.source === 'dead'),
    destinationSays('running', (s) => !s.deafDestination && (s.destination === 'runs' || (s.destination === 'booted' && has('marker first')))),
    step('workflow', 'asks the destination, which continues what is marked', (s) => has('marked is not running') && calledOff(s) && s.destinationFile === 'owner' && s.destination === 'loaded' && !s.hangs, set({ destination: 'runs', moved: true })),
    destinationSays('running', (s) => !has('marked is not running') && calledOff(s) && s.destinationFile === 'owner' && s.destination === 'loaded', ': alive, with its marker'),
    destinationSays('dead', (s) => s.destination === 'none' && s.destinationFile === 'incoming'),
    destinationSays('dead-with-marker', (s) => s.destination === 'none' && s.destinationFile === 'owner'),
    destinationSays('dead', (s) => arrives(s) && s.destinationFile === 'incoming' && calledOff(s), ': called off, unmarked'),
    destinationSays('dead', (s) => arrives(s) && s.destinationFile === 'incoming' && s.left === 'completed' && s.hangs && has('R7'), ': it hangs, unmarked'),
    step('workflow', 'decides', (s) => s.workflow === 'switching' && s.left !== '' && s.arrived !== '', (s) => {
      const { left, arrived } = s as { left: SourceFate; arrived: DestinationFate };
      try {
        s.workflow = decide(left, !has('R4') && arrived === 'dead-with-marker' ? 'dead' : arrived);
      } catch {
        s.workflow = 'contradiction';
      }
    }),
    step('workflow', 'finds a marker instead of a destination to destroy, and asks again', (s) => destroying(s) && s.intent === '' && s.destinationFile === 'owner' && (has('R4') || s.destination !== 'none'), set({ workflow: 'switching', arrived: '', receiving: true })),
    step('workflow', 'destroys the destination', (s) => destroying(s) && has('destroy at once') && (s.destinationFile === 'incoming' || (!has('R4') && s.destination === 'none')), destroy),
    step('workflow', 'sees that the destination has no marker', (s) => destroying(s) && !has('destroy at once') && s.destinationFile === 'incoming' && s.intent === '', set({ intent: 'destroy' })),
    step('workflow', 'kills the destination, for what it saw', (s) => destroying(s) && s.intent === 'destroy', destroy),
    step('workflow', 'cannot reach the destination, and undoes the rest', (s) => !has('undo in order') && s.workflow === 'undo' && !s.destinationAgent, set({ workflow: 'undo: destroyed' })),
    step('workflow', 'gives the guest back to the source', (s) => s.workflow === reviving && s.sourceAgent && s.sourceFile === 'handed-over', set({ sourceFile: 'owner' })),
    step('workflow', 'cont at the source', (s) => s.workflow === reviving && s.sourceAgent && s.sourceFile === 'owner', (s) => s.source === 'completed' && runAtSource(s), set({ workflow: 'clean' })),
    step('workflow', 'undoes the rest at the source', (s) => s.workflow === 'undo: destroyed' && s.sourceAgent && s.source !== 'completed', (s) => s.source !== 'dead' && runAtSource(s), set({ mirror: 'lost', sourceFile: 'owner', workflow: 'clean' })),
    step('workflow', 'leaves a source alone that has handed everything over', (s) => s.workflow === 'undo: destroyed' && s.sourceAgent && s.source === 'completed', set({ workflow: 'clean' })),
    step('workflow', 'removes what is left at the destination', (s) => s.workflow === 'clean' && s.destinationAgent, (s) => s.destinationFile === 'incoming' && all(endDestination, set({ destinationFile: 'none', exported: false }))(s), set({ workflow: 'ended' })),
    step('workflow', 'retires the source', (s) => s.workflow === 'done' && s.sourceAgent, endSource, set({ sourceFile: 'none', workflow: 'ended' })),

    // Restarts. An activity whose agent died is given to the next one, unless the workflow is past it. A host that comes back starts what it may.
    step('init', 'restarts the source agent', (s) => s.sourceHost && !s.sourceAgent, (s) =>
      set({ sourceAgent: true, moving: s.workflow === 'switching' && s.left === '', deafSource: !has('R6') && ['completed', 'runs'].includes(s.source) })(s)),
    step('init', 'restarts the destination agent', (s) => s.destinationHost && !s.destinationAgent, (s) =>
      set({ destinationAgent: true, receiving: s.workflow === 'switching' && s.arrived === '' && (s.left === '' || s.left === 'completed'), deafDestination: !has('R6') && s.destination === 'loaded' })(s)),
    step('init', 'has the source agent start its guard again', (s) => handsOver(s) && !s.sourceGuard && ['sends', 'pre-switchover'].includes(s.source), set({ sourceGuard: true })),
    step('init', 'has the destination agent start its guard again', (s) => takesOver(s) && !s.destinationGuard && arrives(s), set({ destinationGuard: true })),
    step('init', 'boots the source host', (s) => !s.sourceHost, (s) => set({ sourceHost: true, ...(canStart(s.sourceFile) && { source: 'runs', mirror: 'lost' }) })(s)),
    step('init', 'boots the destination host', (s) => !s.destinationHost, (s) => set({ destinationHost: true, ...(canStart(s.destinationFile) && { destination: 'booted', moved: true }) })(s)),

    // A person, who may do at any time what is not refused.
    step('operator', 'cancels the migration: the source agent obeys', (s) => handsOver(s) && (s.source === 'sends' || canCancel(s)), runAtSource),
    step('operator', 'cancels the migration: its agent away, the source is taken for gone', (s) => !has('gone means gone') && s.workflow === 'switching' && s.left === '' && !s.sourceAgent, set({ left: 'gone' })),
    step('operator', 'starts the guest at the source', (s) => s.sourceAgent && s.source === 'dead' && canStart(s.sourceFile), set({ source: 'runs', mirror: 'lost' })),
    step('operator', 'starts the guest at the destination', (s) => s.destinationAgent && s.destination === 'none' && canStart(s.destinationFile), set({ destination: 'booted', moved: true })),
    step('operator', 'starts the paused guest at the source: cont', (s) => !has('R10') && s.sourceAgent && s.source === 'completed', runAtSource),
    step('operator', 'stops the source agent, which cancels', (s) => !has('R8') && handsOver(s) && ['sends', 'pre-switchover', 'device'].includes(s.source), runAtSource, set({ sourceAgent: false, moving: false })),

    // Faults. The stop of an agent is to the protocol what its death is (R8).
    fault('ours', 'SIGKILL of the source agent', (s) => s.sourceAgent, set({ sourceAgent: false, moving: false })),
    fault('ours', 'SIGKILL of the destination agent', (s) => s.destinationAgent, (s) => set({ destinationAgent: false, receiving: false, ...(s.intent === 'destroy' && { intent: '' }) })(s)),
    fault('ours', 'SIGKILL of the source guard', (s) => s.sourceGuard, set({ sourceGuard: false })),
    fault('ours', 'SIGKILL of the destination guard', (s) => s.destinationGuard, set({ destinationGuard: false })),
    fault('ours', 'the workflow is terminated', (s) => s.workflow === 'switching', set({ workflow: 'terminated' })),
    fault('theirs', 'SIGKILL of the source QEMU', (s) => s.source !== 'dead', endSource),
    fault('theirs', 'SIGKILL of the destination QEMU', (s) => s.destination !== 'none', endDestination),
    fault('theirs', 'SIGSTOP at the destination', (s) => arrives(s) && !s.hangs, set({ hangs: true })),
    fault('theirs', 'SIGCONT at the destination', (s) => s.hangs, set({ hangs: false })),
    fault('theirs', 'the link is cut', (s) => s.link !== 'cut', (s) => set({ link: 'cut', ...(s.stream === 'open' && { stream: 'broken' }) })(s)),
    fault('theirs', 'the link is cut with bytes under way', (s) => s.link !== 'cut' && s.stream === 'whole' && s.destination === 'listens', set({ link: 'cut', stream: 'lost' })),
    fault('theirs', 'the link becomes too slow', (s) => s.link === 'up', set({ link: 'slow' })),
    fault('theirs', 'receive fails at the destination', (s) => s.workflow === 'switching' && s.left === 'completed' && s.arrived === '' && takesOver(s) && arrives(s) && s.destinationFile === 'incoming', set({ arrived: 'dead' })),
    fault('reboots', 'the source host loses power', (s) => s.sourceHost, endSource, set({ sourceHost: false, sourceAgent: false, sourceGuard: false, moving: false })),
    fault('reboots', 'the destination host loses power', (s) => s.destinationHost, endDestination, set({ destinationHost: false, destinationAgent: false, destinationGuard: false, receiving: false, exported: false, intent: '' })),
  ];
}

/** What must not be in any state. */
const NEVER = {
  'two copies run': (s: State) => sourceRuns(s) && destinationRuns(s),
  'both copies may be started': (s: State) => startable(s.sourceFile) && startable(s.destinationFile),
  'an old copy runs': (s: State) => sourceRuns(s) && s.moved,
  'migrate-continue while a mirror exists': (s: State) => (s.source === 'device' || s.source === 'completed') && mirrored(s),
  'the destination runs with blocks missing': (s: State) => destinationRuns(s) && s.mirror !== 'ended',
  'the destination runs while its images are exported': (s: State) => destinationRuns(s) && s.exported,
  'both copies say that they run': (s: State) => s.workflow === 'contradiction',
  'the outcome is not what happened': (s: State) => (s.workflow === 'done' && !s.moved) || (s.workflow === 'crashed-after-move' && s.destination === 'runs'),
};
/** What must be reached at last from every state, if no more faults come. */
export const ENDS = 'the migration ends: one guest runs, or the reason is named and one copy may be started';
/** What QEMUs, agents and guards must reach by themselves, from every state after at most one kill of a process of ours (R9). */
export const RESUMES = 'a paused guest runs again without a restart and without Temporal';
export type Property = keyof typeof NEVER | typeof ENDS | typeof RESUMES;

/**
 * A good end: the guest runs on the host that owns it, and the other has no QEMU of it and may start none. Or none runs, since the guest's
 * own QEMU was killed or hangs, and one host may start it. A workflow that was terminated leaves the
 * tidying, and a guest whose QEMU was killed, to `repair`.
 */
function endsWell(s: State): boolean {
  if (s.hangs && s.destinationFile === 'owner') return true;
  const [here, there] = [sourceRuns(s), destinationRuns(s)];
  if (s.workflow === 'terminated') return here !== there || s.theirs + s.reboots > 0;
  if (s.workflow !== 'ended' && s.workflow !== 'crashed-after-move') return false;
  if (here) return startable(s.sourceFile) && s.destination === 'none';
  if (there) return startable(s.destinationFile) && (s.source === 'dead' || s.workflow === 'crashed-after-move');
  if (startable(s.sourceFile) === startable(s.destinationFile)) return false;
  return s.theirs + s.reboots > 0 && (startable(s.sourceFile) ? s.source === 'dead' : s.destination === 'none');
}

/** Forgets what makes no difference any more, so that there are fewer states. */
function forget(s: State): void {
  if (s.source !== 'sends' && s.source !== 'pre-switchover' && s.intent !== 'cancel') s.sourceGuard = false;
  if (!arrives(s)) s.destinationGuard = false;
}

export interface Exploration {
  reached: State[];
  /** The actions that were taken. */
  taken: Set<string>;
  /** Each violated property, with the shortest way to violate it and the state in which that ends. */
  broken: Map<Property, { trace: string[]; end: State }>;
}

/** Visits every state that can be reached with so many faults, breadth first. */
export function explore({ without = [], kills = 2, reboots = 2, decide = decideOwner }: { without?: readonly Rule[]; kills?: number; reboots?: number; decide?: typeof decideOwner } = {}): Exploration {
  const actions = switchoverActions(without, decide);
  const reached: State[] = [START];
  const index = new Map([[Object.values(START).join(), 0]]);
  const cameFrom: { from: number; name: string }[] = [];
  const taken = new Set<string>();
  const broken: Exploration['broken'] = new Map();
  const bad = new Set<number>();
  /** Of each state: whence fair steps lead to it (no fault, no operator), and whence prompt ones (no restart, no Temporal either). */
  const fair: number[][] = [[]];
  const prompt: number[][] = [[]];

  const traceTo = (at: number): string[] => (at === 0 ? [] : [...traceTo(cameFrom[at]!.from), cameFrom[at]!.name]);
  const violate = (property: Property, at: number) => void (broken.has(property) || broken.set(property, { trace: traceTo(at), end: reached[at]! }));

  for (let at = 0; at < reached.length; at++) {
    const state = reached[at]!;
    for (const [property, holds] of Object.entries(NEVER) as [keyof typeof NEVER, (s: State) => boolean][]) {
      if (!holds(state)) continue;
      bad.add(at);
      violate(property, at);
    }
    for (const { by, name, enabled, apply } of actions) {
      if (!enabled(state)) continue;
      const next = { ...state };
      apply(next);
      if (next.ours + next.theirs > kills || next.reboots > reboots) continue;
      forget(next);
      taken.add(`${by}: ${name}`);
      const key = Object.values(next).join();
      const to = index.get(key) ?? reached.push(next) - 1;
      if (to === fair.length) {
        index.set(key, to);
        cameFrom[to] = { from: at, name: `${by}: ${name}` };
        fair.push([]);
        prompt.push([]);
      }
      if (by === 'fault' || by === 'operator' || to === at) continue;
      fair[to]!.push(at);
      if (by !== 'workflow' && by !== 'init') prompt[to]!.push(at);
    }
  }

  // A step that is possible again and again is taken at last. So what can be reached from everywhere is reached, and what cannot is lost.
  const lost = (good: (s: State) => boolean, before: number[][], asked: (s: State) => boolean): number | undefined => {
    const reaching = new Set([...reached.keys()].filter((at) => bad.has(at) || good(reached[at]!)));
    for (const at of reaching) before[at]!.forEach((earlier) => reaching.add(earlier));
    const left = [...reached.keys()].filter((at) => asked(reached[at]!) && !reaching.has(at));
    // Where nothing goes on any more is the clearest example.
    const goesOn = new Set(before.flat());
    return left.find((at) => !goesOn.has(at)) ?? left[0];
  };
  const doomed = lost(endsWell, fair, () => true);
  if (doomed !== undefined) violate(ENDS, doomed);
  const frozen = lost((s) => sourceRuns(s) || destinationRuns(s), prompt, (s) => s.ours <= 1 && s.theirs + s.reboots === 0 && s.source !== 'dead');
  if (frozen !== undefined) violate(RESUMES, frozen);
  return { reached, taken, broken };
}
