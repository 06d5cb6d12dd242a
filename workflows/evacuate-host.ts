import { ApplicationFailure, allHandlersFinished, CancellationScope, CancelledFailure, ChildWorkflowCancellationType, ChildWorkflowFailure, condition, ParentClosePolicy, setCurrentDetails, setHandler, startChild, upsertSearchAttributes } from '@temporalio/workflow';
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { control } from './activities';
import { approveUpdate, bringBackUpdate, changedLimits, type EvacuateHostInput, evacuateHostSchema, type EvacuationLimits, evacuationQuery, type EvacuationReport, type EvacuationRequest, type EvacuationStatus, type MovePlan, pauseUpdate, type PlannedMove, setLimitsUpdate, skipUpdate, verdictUpdate } from './evacuation';
import { evacuationDetails } from './evacuation-details';
import { refuseEvacuation } from './evacuation-rules';
import { parseInput } from './input';
import { EVACUATION, type MigrationResult, migrationWorkflowId, SEARCH_ATTRIBUTES } from './messages';
import { migrateVm } from './migrate-vm';
import { moveCold } from './move-cold';
import { mayStart } from './start-order';
import { innermost } from './steering';

/** How often guests that have come since, or could not move at first, are looked at again. */
const MOST_ROUNDS = 5;
/** A guest that another migration moves is looked at again after this. */
const BUSY_MS = 30_000;
/** Failures that speak against the destination: another one is tried. */
const DESTINATION_FAILED = ['MigrationRefused', 'HostUnreachable', 'DestinationDied', 'MirrorFailed', 'CopyStalled', 'NoSlot', 'ImageExists'];

/** Ends of a move that had changed nothing: others took the room that was planned for it. They do not count as failures. */
const REFUSED = ['MigrationRefused', 'HostUnreachable', 'NoSlot'];

/**
 * Empties a host: cordons it, plans, moves every guest that can go, by a child workflow each, and says what became of each. It stays cordoned until somebody
 * says otherwise. A guest that fails stops nobody; `maxFailures` does. What moves when this is terminated goes on by itself.
 */
export async function evacuateHost(raw: EvacuateHostInput): Promise<EvacuationReport> {
  return await new Evacuation({ ...parseInput(evacuateHostSchema, raw, 'EvacuationRefused'), migration: raw.migration ?? {} }).run();
}

class Evacuation {
  private readonly startedAtMs = Date.now();
  private readonly status: EvacuationStatus;
  private readonly tries: Record<string, number> = {};
  /** Destinations that failed for a guest. */
  private readonly avoid: Record<string, string[]> = {};
  /** Of the moves under way. */
  private readonly scopes = new Map<string, CancellationScope>();
  /** Guests that are not to move any more, and why. */
  private readonly skipped: Map<string, string>;
  /** On the host, or on their way from it, when that was last looked at. */
  private home = new Set<string>();
  private verdict?: 'accepted' | ApplicationFailure;
  private approved = false;
  private paused = false;
  private cancelled = false;
  private broughtBack = false;
  private windowOver = false;
  private replan = false;
  /** A guest is moved by somebody else. */
  private busy = false;
  /** Counts whatever may let another guest start, or end the ones that move. */
  private changes = 0;
  /** Tries that failed, of this way: away, or back. */
  private failed = 0;
  /** Where guests are that are brought back. */
  private readonly awayAt = new Map<string, string>();
  /** Stopped guests that were asked to stay. */
  private readonly left = new Set<string>();

  constructor(private readonly input: EvacuationRequest) {
    const { host, limits, skip, windowSeconds } = input;
    this.skipped = new Map(skip.map((guest) => [guest, 'it was asked to stay']));
    this.status = { host, phase: 'planning', planned: [], moving: [], moved: [], stayed: [], failures: [], limits, ...(windowSeconds !== undefined && { windowEndsAt: new Date(this.startedAtMs + windowSeconds * 1000).toISOString() }) };
    this.listen();
  }

  async run(): Promise<EvacuationReport> {
    const { input, status } = this;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.source, value: input.host }, { key: SEARCH_ATTRIBUTES.evacuation, value: input.host }]);
    this.show();
    const refused = refuseEvacuation(input, await this.plan());
    if (refused) {
      this.verdict = ApplicationFailure.nonRetryable(`host ${input.host} cannot be evacuated; nothing was changed:\n- ${refused.join('\n- ')}`, 'EvacuationRefused', { blockers: refused });
      await condition(allHandlersFinished);
      throw this.verdict;
    }
    if (input.mode !== 'plan') await control.setCordon({ host: input.host, cordon: { by: EVACUATION, reason: `evacuate/${input.host}` } });
    this.verdict = 'accepted';
    if (input.mode === 'plan') {
      status.phase = 'done';
      this.show();
      await condition(allHandlersFinished);
      return { ...status, outcome: 'planned', totalMs: Date.now() - this.startedAtMs };
    }
    void CancellationScope.current().cancelRequested.catch(() => {
      this.cancelled = true;
      this.changes++;
    });
    return await CancellationScope.nonCancellable(async () => {
      if (input.mode === 'approve') {
        status.phase = 'waiting-for-approval';
        this.show();
        await this.until(() => this.approved || this.isOver);
      }
      for (let round = 1; round <= MOST_ROUNDS && !this.isOver; round++) {
        await this.moveAll();
        if (this.isOver) break;
        if (this.busy) await this.until(() => this.isOver, BUSY_MS);
        this.busy = false;
        // Who has come meanwhile, or could not move then: the host itself says it.
        await this.plan();
        if (status.planned.length === 0) break;
      }
      if (input.andReturn && status.moved.length > 0 && !this.cancelled) await this.bringBack();
      return await this.end();
    });
  }

  /** What is left on the host, where it goes, and what must stay. Guests that move are left alone. */
  private async plan(): Promise<MovePlan> {
    const { input, status } = this;
    this.replan = false;
    const settled = [...this.skipped.keys(), ...Object.keys(this.tries).filter((guest) => this.tries[guest]! >= input.tries)];
    const where = ({ guest, to }: { guest: string; to: string }) => ({ guest, to });
    const plan = await control.planMoves({ host: input.host, settled, moving: status.moving.map(where), moved: status.moved.map(where), stopped: input.stopped, options: { sources: [input.host], destinations: input.destinations, approved: input.approved, avoid: this.avoid } });
    const here = plan.home?.guests ?? [];
    // While the plan was made a guest may have been skipped, and one that moved may have ended.
    const free = ({ guest }: { guest: string }) => !this.skipped.has(guest) && !this.scopes.has(guest);
    status.planned = plan.moves.filter(free);
    const stays = plan.stays.filter(free);
    const said = new Set([...status.planned, ...stays].map(({ guest }) => guest));
    const others = here.filter(({ name }) => !said.has(name) && !this.scopes.has(name)).map(({ name, state }) => ({ guest: name, from: input.host, reasons: [this.whyNot(name, state)] }));
    this.home = new Set([...here.map(({ name }) => name), ...this.scopes.keys()]);
    for (const { name, state } of here) if (state === 'stopped' && input.stopped === 'leave') this.left.add(name);
    status.stayed = [...stays, ...others];
    this.show();
    return { ...plan, moves: status.planned, stays: status.stayed };
  }

  private whyNot(guest: string, state: string): string {
    const asked = this.skipped.get(guest);
    if (asked !== undefined) return asked;
    const failed = this.status.failures.filter((one) => one.guest === guest && (!this.awayAt.has(guest) || one.to === this.input.host));
    if (failed.length > 0) return `${failed.length} tries failed: ${failed.map(({ to, why }) => `to ${to}: ${why}`).join('; ')}`;
    return `it is ${state}, and stopped guests were asked to stay`;
  }

  /** Starts what may start whenever something has changed, until nothing is left to start and nothing moves. */
  private async moveAll(): Promise<void> {
    const { status } = this;
    for (;;) {
      // Before anything is awaited: what changes meanwhile is looked at at once.
      const seen = this.changes;
      if (this.replan && !this.isOver) await this.plan();
      if (status.phase !== 'returning') status.phase = this.paused ? 'paused' : 'moving';
      await this.startSome();
      if (this.isOver) this.endMoving();
      this.show();
      if (this.scopes.size === 0 && (status.planned.length === 0 || this.isOver)) return;
      await this.until(() => this.changes !== seen);
    }
  }

  /** One after the other: while one is started, another may be skipped, limits may be lowered, all may be paused. */
  private async startSome(): Promise<void> {
    const { status } = this;
    while (!this.paused && !this.isOver) {
      const [move] = mayStart(status.planned, status.moving, moveLimits(status.limits));
      if (!move) return;
      await this.start(move);
    }
  }

  private async start(move: PlannedMove): Promise<void> {
    const { input, status } = this;
    const { guest, from, to, cold } = move;
    status.planned = status.planned.filter((one) => one !== move);
    const scope = new CancellationScope();
    const options = {
      workflowId: migrationWorkflowId(guest),
      parentClosePolicy: ParentClosePolicy.ABANDON,
      cancellationType: ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
      staticSummary: `${guest}: ${from} → ${to}${cold ? ', stopped' : ''}`,
      typedSearchAttributes: [{ key: SEARCH_ATTRIBUTES.guest, value: guest }, { key: SEARCH_ATTRIBUTES.source, value: from }, { key: SEARCH_ATTRIBUTES.destination, value: to }, { key: SEARCH_ATTRIBUTES.evacuation, value: input.host }],
    };
    try {
      const child = await scope.run(() => (cold ? startChild(moveCold, { ...options, args: [{ vm: guest, to, ...coldFields(input) }] }) : startChild(migrateVm, { ...options, args: [{ ...input.migration, vm: guest, to }] })));
      this.tries[guest] = (this.tries[guest] ?? 0) + 1;
      this.scopes.set(guest, scope);
      status.moving.push({ guest, from, to, workflowId: child.workflowId, since: new Date().toISOString() });
      void child.result().then(
        (result) => this.ended(move, { result }),
        (error: unknown) => this.ended(move, { error }),
      );
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      // Somebody else moves it, which is no failure of ours: the host will say where it is.
      if (!status.failures.some((one) => one.guest === guest && one.type === 'Busy')) status.failures.push({ guest, to, type: 'Busy', why: `it is being moved already (${migrationWorkflowId(guest)})` });
      this.busy = true;
    }
  }

  private ended(move: PlannedMove, { result, error }: { result?: MigrationResult; error?: unknown }): void {
    const { input, status } = this;
    const { guest, to, cold } = move;
    this.scopes.delete(guest);
    this.changes++;
    status.moving = status.moving.filter((one) => one.guest !== guest);
    if (result) {
      status.moved.push({ guest, to, cold, totalMs: result.totalMs, ...(result.downtimeMs !== undefined && { downtimeMs: result.downtimeMs }), bytes: move.memoryBytes + move.diskBytes, tries: this.tries[guest]! });
      return;
    }
    const cause = error instanceof ChildWorkflowFailure ? error.cause : error;
    if (cause instanceof CancelledFailure) {
      const why = this.windowOver && !this.cancelled ? 'its move was put off as the window ended' : 'its move was cancelled';
      status.stayed.push({ guest, from: move.from, reasons: [why] });
      // By somebody who wants it to stay: it is not tried again.
      if (!this.isOver) this.skipped.set(guest, why);
      return;
    }
    const { type, message } = innermost(cause);
    const why = message.split('\n').join(' ');
    status.failures.push({ guest, to, type: type ?? 'Failed', why });
    if (DESTINATION_FAILED.includes(type ?? '')) (this.avoid[guest] ??= []).push(to);
    if (!REFUSED.includes(type ?? '')) this.failed++;
    if (this.failed > input.maxFailures) status.stopped ??= `${this.failed} tries failed, more than ${input.maxFailures} (maxFailures)`;
    // A host that is full or dead is no longer planned for.
    this.replan = status.phase !== 'returning';
  }

  /** The window is over, it was cancelled, or too much has failed: no other guest starts. */
  private get isOver(): boolean {
    return this.cancelled || this.windowOver || this.status.stopped !== undefined;
  }

  /** What becomes of guests that move when it is over. */
  private endMoving(): void {
    const undo = (this.cancelled && this.input.atCancel === 'undo') || (this.windowOver && this.input.atWindowEnd === 'postpone');
    if (undo) for (const scope of this.scopes.values()) scope.cancel();
  }

  /** Until something is so, or the window ends, or this long has passed. */
  private async until(so: () => boolean, mostMs = Infinity): Promise<void> {
    const { windowEndsAt } = this.status;
    const windowMs = windowEndsAt === undefined || this.windowOver ? Infinity : Math.max(1, Date.parse(windowEndsAt) - Date.now());
    const ms = Math.min(windowMs, mostMs);
    if (ms === Infinity) return await condition(so);
    if ((await condition(so, ms)) || windowMs > mostMs) return;
    this.windowOver = true;
    this.changes++;
    this.status.stopped ??= `the window ended at ${windowEndsAt!}`;
  }

  /** Waits for the word, then moves every guest home that is where it was put. The window, and what failed, was of the way out. */
  private async bringBack(): Promise<void> {
    const { input, status } = this;
    status.phase = 'away';
    this.show();
    await condition(() => this.broughtBack || this.cancelled);
    if (this.cancelled) return;
    status.phase = 'returning';
    delete status.stopped;
    delete status.windowEndsAt;
    this.windowOver = false;
    this.failed = 0;
    await control.setCordon({ host: input.host });
    const where = await control.locations({ guests: status.moved.map(({ guest }) => guest) });
    const away = status.moved.filter(({ guest, to }) => where[guest] === to);
    status.planned = away.map(({ guest, to, cold, bytes }) => ({ guest, from: to, to: input.host, cold, memoryBytes: 0, diskBytes: bytes, why: 'it came from there' }));
    for (const { guest, to } of away) {
      delete this.tries[guest];
      this.awayAt.set(guest, to);
      this.home.add(guest);
    }
    status.moved = status.moved.filter((one) => !away.includes(one));
    await this.moveAll();
  }

  private async end(): Promise<EvacuationReport> {
    await condition(allHandlersFinished);
    const { status } = this;
    status.phase = 'done';
    const from = (guest: string) => this.awayAt.get(guest) ?? status.host;
    const busy = (guest: string) => status.failures.find((one) => one.guest === guest && one.type === 'Busy')?.why;
    status.stayed.push(...status.planned.map(({ guest }) => ({ guest, from: from(guest), reasons: [status.stopped ?? (this.cancelled ? 'it was cancelled' : busy(guest) ?? `it came while the host was emptied: evacuate ${status.host} again`)] })));
    status.planned = [];
    const said = new Set([...status.moved, ...status.stayed].map(({ guest }) => guest));
    const failed = [...new Set(status.failures.map(({ guest }) => guest))].filter((guest) => !said.has(guest) && this.home.has(guest));
    status.stayed.push(...failed.map((guest) => ({ guest, from: from(guest), reasons: [this.whyNot(guest, '')] })));
    this.show();
    const asked = (guest: string) => this.skipped.has(guest) || this.left.has(guest);
    const outcome = this.cancelled ? 'cancelled' : status.stayed.some(({ guest }) => !asked(guest)) ? 'partly' : 'completed';
    return { ...status, outcome, totalMs: Date.now() - this.startedAtMs };
  }

  private listen(): void {
    const { status } = this;
    const notOver = () => {
      if (this.isOver || status.phase === 'done') throw ApplicationFailure.nonRetryable(`the evacuation of ${status.host} is over: ${status.stopped ?? 'it was cancelled'}`, 'EvacuationRefused');
    };
    setHandler(evacuationQuery, () => status);
    setHandler(verdictUpdate, async () => {
      await condition(() => this.verdict !== undefined);
      if (this.verdict instanceof ApplicationFailure) throw this.verdict;
      return status;
    });
    setHandler(approveUpdate, () => {
      this.approved = true;
    }, {
      validator: (_signed) => {
        if (status.phase !== 'waiting-for-approval') throw ApplicationFailure.nonRetryable(`the evacuation of ${status.host} waits for no approval: it is ${status.phase}`, 'EvacuationRefused');
      },
    });
    setHandler(pauseUpdate, ({ paused }) => {
      this.paused = paused;
      this.changes++;
    }, { validator: (_signed) => notOver() });
    setHandler(setLimitsUpdate, ({ limits }) => {
      this.changes++;
      const changed = changedLimits(status.limits, limits);
      if ('limits' in changed) status.limits = changed.limits;
      return status.limits;
    }, {
      validator: ({ limits }: { limits: Partial<EvacuationStatus['limits']> }) => {
        notOver();
        const changed = changedLimits(status.limits, limits);
        if ('wrong' in changed) throw ApplicationFailure.nonRetryable(changed.wrong, 'EvacuationRefused');
      },
    });
    setHandler(
      skipUpdate,
      ({ guest, by, reason }) => {
        const why = `skipped by ${by}: ${reason}`;
        this.skipped.set(guest, why);
        this.changes++;
        status.planned = status.planned.filter((one) => one.guest !== guest);
        status.stayed.push({ guest, from: status.host, reasons: [why] });
      },
      {
        validator: ({ guest }) => {
          if (!status.planned.some((one) => one.guest === guest)) throw ApplicationFailure.nonRetryable(`guest ${guest} is not planned to move: ${status.moving.some((one) => one.guest === guest) ? 'it moves already (vmferry cancel)' : `planned are ${status.planned.map((one) => one.guest).join(', ') || 'none'}`}`, 'EvacuationRefused');
        },
      },
    );
    setHandler(bringBackUpdate, () => {
      this.broughtBack = true;
    }, {
      validator: (_signed) => {
        if (status.phase !== 'away') throw ApplicationFailure.nonRetryable(`the evacuation of ${status.host} waits to bring nobody back: it is ${status.phase}`, 'EvacuationRefused');
      },
    });
  }

  private show(): void {
    setCurrentDetails(evacuationDetails(this.status));
  }
}

const moveLimits = ({ fleet, perSource, perDestination }: EvacuationLimits) => ({ fleet, perSource: { default: perSource }, perDestination: { default: perDestination } });

function coldFields({ migration: { sourceDisks, keepHours, bandwidthBytesPerSecond, slotSeconds } }: EvacuationRequest) {
  return { ...(sourceDisks && { sourceDisks }), ...(keepHours !== undefined && { keepHours }), ...(bandwidthBytesPerSecond !== undefined && { bandwidthBytesPerSecond }), ...(slotSeconds !== undefined && { slotSeconds }) };
}
