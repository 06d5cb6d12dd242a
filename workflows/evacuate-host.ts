import { ApplicationFailure, allHandlersFinished, CancellationScope, CancelledFailure, ChildWorkflowCancellationType, ChildWorkflowFailure, condition, ParentClosePolicy, setCurrentDetails, setHandler, startChild, upsertSearchAttributes } from '@temporalio/workflow';
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { control } from './activities';
import { approveUpdate, bringBackUpdate, changedLimits, type EvacuateHostInput, evacuateHostSchema, evacuationQuery, type EvacuationReport, type EvacuationRequest, type EvacuationStatus, pauseUpdate, type PlannedMove, setLimitsUpdate, skipUpdate, verdictUpdate } from './evacuation';
import { evacuationDetails } from './evacuation-details';
import { refuseEvacuation } from './evacuation-rules';
import type { PlacementHost } from './fleet';
import { parseInput } from './input';
import { type MigrationResult, migrationWorkflowId, SEARCH_ATTRIBUTES } from './messages';
import { migrateVm } from './migrate-vm';
import { moveCold } from './move-cold';
import { placeGuests } from './placement';
import { mayStart } from './start-order';
import { innermost } from './steering';

/** How often guests that have come since, or could not move at first, are looked at again. */
const MOST_ROUNDS = 5;
/** A guest that another migration moves is looked at again after this. */
const BUSY_MS = 30_000;
const LONGEST_MS = 365 * 24 * 3600 * 1000;
/** Failures that speak against the destination: another one is tried. */
const DESTINATION_FAILED = ['MigrationRefused', 'HostUnreachable', 'DestinationDied', 'MirrorFailed', 'CopyStalled', 'NoSlot', 'ImageExists'];

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
  private readonly skipped: Set<string>;
  /** Guests that do not run and were asked to stay. */
  private readonly left = new Set<string>();
  private verdict?: 'accepted' | ApplicationFailure;
  private approved = false;
  private paused = false;
  private cancelled = false;
  private broughtBack = false;
  private windowOver = false;
  private replan = false;
  /** A guest is moved by somebody else. */
  private busy = false;
  private changes = 0;

  constructor(private readonly input: EvacuationRequest) {
    const { host, limits, skip, windowSeconds } = input;
    this.skipped = new Set(skip);
    this.status = { host, phase: 'planning', planned: [], moving: [], moved: [], stayed: [], failures: [], limits, ...(windowSeconds !== undefined && { windowEndsAt: new Date(this.startedAtMs + windowSeconds * 1000).toISOString() }) };
    this.listen();
  }

  async run(): Promise<EvacuationReport> {
    const { input, status } = this;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.source, value: input.host }, { key: SEARCH_ATTRIBUTES.evacuation, value: input.host }]);
    this.show();
    const fleet = await control.fleet();
    this.plan(fleet);
    const refused = refuseEvacuation(input, fleet, status.planned, status.stayed);
    if (refused) {
      this.verdict = ApplicationFailure.nonRetryable(`host ${input.host} cannot be evacuated; nothing was changed:\n- ${refused.join('\n- ')}`, 'EvacuationRefused', { blockers: refused });
      await condition(allHandlersFinished);
      throw this.verdict;
    }
    if (input.mode !== 'plan') await control.setCordon({ host: input.host, cordon: { by: 'evacuation', reason: `evacuate/${input.host}` } });
    this.verdict = 'accepted';
    if (input.mode === 'plan') return await this.end('planned');
    void CancellationScope.current().cancelRequested.catch(() => {
      this.cancelled = true;
    });
    return await CancellationScope.nonCancellable(async () => {
      if (input.mode === 'approve') {
        status.phase = 'waiting-for-approval';
        this.show();
        await this.until(() => this.approved);
      }
      for (let round = 1; round <= MOST_ROUNDS && !this.isOver; round++) {
        await this.moveAll();
        if (this.isOver) break;
        if (this.busy) await this.until(() => false, BUSY_MS);
        this.busy = false;
        // Who has come meanwhile, or could not move then: the host itself says it.
        this.plan(await control.fleet());
        if (status.planned.length === 0) break;
      }
      if (input.andReturn && status.moved.length > 0 && !this.cancelled) await this.bringBack();
      return await this.end(this.cancelled ? 'cancelled' : status.stayed.some(({ guest }) => !this.skipped.has(guest) && !this.left.has(guest)) ? 'partly' : 'completed');
    });
  }

  /** What is left on the host, where it goes, and what must stay. Guests that move are left alone. */
  private plan(fleet: PlacementHost[]): void {
    const { input, status } = this;
    const home = fleet.find(({ name }) => name === input.host);
    const moving = new Set(this.scopes.keys());
    const gone = new Set(status.moved.map(({ guest }) => guest));
    const candidates = (home?.guests ?? []).filter(({ name, state }) => !moving.has(name) && !(gone.has(name) && state.startsWith('handed over')));
    const wanted = candidates.filter(({ name, state }) => !this.skipped.has(name) && !(state === 'stopped' && input.stopped === 'leave') && (this.tries[name] ?? 0) < input.tries);
    const { moves, stays } = placeGuests(wanted.map((guest) => ({ guest, from: input.host })), fleet, { sources: [input.host], destinations: input.destinations, approved: input.approved, avoid: this.avoid });
    status.planned = moves;
    if (input.stopped === 'leave') for (const { name, state } of candidates) if (state === 'stopped') this.left.add(name);
    const others = candidates.filter((one) => !wanted.includes(one)).map(({ name, state }) => ({ guest: name, from: input.host, reasons: [this.whyNot(name, state)] }));
    status.stayed = [...stays, ...others];
    this.replan = false;
    this.show();
  }

  private whyNot(guest: string, state: string): string {
    if (this.skipped.has(guest)) return 'it was asked to stay';
    const failed = this.status.failures.filter((one) => one.guest === guest);
    if (failed.length > 0) return `${failed.length} tries failed: ${failed.map(({ to, why }) => `to ${to}: ${why}`).join('; ')}`;
    return `it is ${state}, and stopped guests were asked to stay`;
  }

  /** Starts what may start whenever something has changed, until nothing is left to start and nothing moves. */
  private async moveAll(): Promise<void> {
    const { status } = this;
    for (;;) {
      if (this.replan && !this.isOver) this.plan(await control.fleet());
      if (status.phase !== 'returning') status.phase = this.paused ? 'paused' : 'moving';
      if (!this.paused && !this.isOver) for (const move of mayStart(status.planned, status.moving, status.limits)) await this.start(move);
      this.show();
      if (this.scopes.size === 0 && (status.planned.length === 0 || this.isOver)) return;
      const seen = this.changes;
      await this.until(() => this.changes !== seen);
      if (!this.isOver) continue;
      this.endMoving();
      await condition(() => this.scopes.size === 0);
    }
  }

  private async start(move: PlannedMove): Promise<void> {
    const { input, status } = this;
    const { guest, from, to, cold } = move;
    status.planned = status.planned.filter((one) => one !== move);
    this.tries[guest] = (this.tries[guest] ?? 0) + 1;
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
      this.scopes.set(guest, scope);
      status.moving.push({ guest, from, to, workflowId: child.workflowId, since: new Date().toISOString() });
      void child.result().then(
        (result) => this.ended(move, { result }),
        (error: unknown) => this.ended(move, { error }),
      );
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      // Somebody else moves it: the host will say where it is.
      status.failures.push({ guest, to, type: 'MigrationRefused', why: `it is being moved already (${migrationWorkflowId(guest)})` });
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
      status.stayed.push({ guest, from: move.from, reasons: [this.windowOver ? 'its move was put off as the window ended' : 'its move was cancelled'] });
      return;
    }
    const { type, message } = innermost(cause);
    const why = message.split('\n').join(' ');
    status.failures.push({ guest, to, type: type ?? 'Failed', why });
    if (DESTINATION_FAILED.includes(type ?? '')) (this.avoid[guest] ??= []).push(to);
    if (status.failures.length > input.maxFailures) status.stopped ??= `${status.failures.length} tries failed, more than ${input.maxFailures} (maxFailures)`;
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

  /** Until something is so, or it is over, or this long has passed. */
  private async until(so: () => boolean, mostMs = LONGEST_MS): Promise<void> {
    const { windowEndsAt } = this.status;
    const windowMs = windowEndsAt === undefined || this.windowOver ? LONGEST_MS : Math.max(1, Date.parse(windowEndsAt) - Date.now());
    const happened = await condition(() => so() || this.isOver, Math.min(windowMs, mostMs));
    if (happened || windowMs > mostMs || windowMs === LONGEST_MS) return;
    this.windowOver = true;
    this.status.stopped ??= `the window ended at ${windowEndsAt!}`;
  }

  /** Waits for the word, then moves every guest home that is where it was put. */
  private async bringBack(): Promise<void> {
    const { input, status } = this;
    status.phase = 'away';
    this.show();
    await condition(() => this.broughtBack || this.cancelled);
    if (this.cancelled) return;
    status.phase = 'returning';
    await control.setCordon({ host: input.host });
    const fleet = await control.fleet();
    const away = status.moved.filter(({ guest, to }) => fleet.find(({ name }) => name === to)?.guests.some(({ name, state }) => name === guest && !state.startsWith('handed over')));
    status.planned = away.map(({ guest, to, cold, bytes }) => ({ guest, from: to, to: input.host, cold, memoryBytes: 0, diskBytes: bytes, why: 'it came from there' }));
    for (const one of away) delete this.tries[one.guest];
    status.moved = status.moved.filter((one) => !away.includes(one));
    await this.moveAll();
  }

  private async end(outcome: EvacuationReport['outcome']): Promise<EvacuationReport> {
    await condition(allHandlersFinished);
    const { status } = this;
    status.phase = 'done';
    if (outcome !== 'planned') {
      const said = new Set([...status.moved, ...status.stayed, ...status.planned].map(({ guest }) => guest));
      const failed = [...new Set(status.failures.map(({ guest }) => guest))].filter((guest) => !said.has(guest));
      status.stayed.push(...failed.map((guest) => ({ guest, from: status.host, reasons: [this.whyNot(guest, '')] })));
      status.stayed.push(...status.planned.map(({ guest, from }) => ({ guest, from, reasons: [status.stopped ?? 'it was cancelled'] })));
      status.planned = [];
    }
    this.show();
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
        this.skipped.add(guest);
        this.changes++;
        status.planned = status.planned.filter((one) => one.guest !== guest);
        status.stayed.push({ guest, from: status.host, reasons: [`skipped by ${by}: ${reason}`] });
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

function coldFields({ migration: { sourceDisks, keepHours, bandwidthBytesPerSecond, slotSeconds } }: EvacuationRequest) {
  return { ...(sourceDisks && { sourceDisks }), ...(keepHours !== undefined && { keepHours }), ...(bandwidthBytesPerSecond !== undefined && { bandwidthBytesPerSecond }), ...(slotSeconds !== undefined && { slotSeconds }) };
}
