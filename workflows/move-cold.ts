import { CancellationScope, log, setCurrentDetails, setHandler, upsertSearchAttributes, workflowInfo } from '@temporalio/workflow';
import type { MigrationRef } from '../activities/context';
import type { GuestPlan } from '../hypervisor/preflight';
import { control, controlPatiently, destinationHost, isAway, sourceHost } from './activities';
import { currentDetails } from './details';
import { leaveForLater, type Leftover } from './finish-cleanup';
import { parseInput } from './input';
import { type MigrationResult, type MigrationStatus, type MoveColdInput, moveColdSchema, SEARCH_ATTRIBUTES, statusQuery } from './messages';
import { greeted, mirrorTargets, NO_FINDINGS, reachable, refused, rootOf } from './migrate-vm';
import type { Phase } from './phases';

/**
 * Moves a guest that does not run: its definition, and its images chunk by chunk, so that an agent that is restarted goes on where it was. While it moves it
 * is startable nowhere; a failure leaves it startable at the source and nothing at the destination.
 */
export async function moveCold(raw: MoveColdInput): Promise<MigrationResult> {
  const request = parseInput(moveColdSchema, raw, 'MigrationRefused');
  const { vm, to } = request;
  const startedAtMs = Date.now();
  const status: MigrationStatus = { vm, to, phase: 'preflight', memoryTry: 0, warnings: [], decisions: [] };
  const { workflowId, runId } = workflowInfo();
  const undos: (() => Promise<void>)[] = [];
  setHandler(statusQuery, () => status);
  const enter = (phase: Phase) => {
    status.phase = phase;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.phase, value: phase }]);
    setCurrentDetails(currentDetails(status));
  };
  try {
    enter('preflight');
    const { from } = await control.locateGuest({ guest: vm, to });
    status.from = from;
    upsertSearchAttributes([{ key: SEARCH_ATTRIBUTES.guest, value: vm }, { key: SEARCH_ATTRIBUTES.source, value: from }, { key: SEARCH_ATTRIBUTES.destination, value: to }]);
    const ref: MigrationRef = { guest: vm, attempt: runId.slice(-8), from, to };
    const source = sourceHost(from);
    const destination = destinationHost(to);
    const plan = await preflight(source, destination, ref, status);

    enter('reserve');
    undos.push(() => control.release({ hosts: [from, to], workflowId, runId }));
    const disks = plan.disks.map(({ path, allocatedBytes, blockDevice }) => ({ root: rootOf(path), bytes: blockDevice ? 0 : allocatedBytes }));
    await controlPatiently(request.slotSeconds).reserve({ from, to, guest: vm, workflowId, runId, memoryBytes: 0, disks });

    enter('prepare');
    let discarded = false;
    undos.push(async () => {
      await destination.undo.discardDestination(ref).then(() => void (discarded = true), ifAway({ ref, at: 'destination', do: 'discardDestination' }));
    });
    await destination.step.prepareDestination({ ...ref, plan });
    enter('export');
    const { bandwidthBytesPerSecond } = request;
    const targets = mirrorTargets(plan, await destination.step.exportDisks({ ...ref, plan, ...(bandwidthBytesPerSecond !== undefined && { bandwidthBytesPerSecond }) }));
    enter('mirror');
    // Runs last of the undos: only then it is known whether the destination's copy is gone.
    undos.unshift(() => source.undo.stayCold({ ...ref, destinationDiscarded: discarded }).catch(ifAway({ ref, at: 'source', do: 'stayCold', destinationDiscarded: discarded })));
    await source.copy.copyStopped({ ...ref, plan, targets });

    return await CancellationScope.nonCancellable(async () => {
      enter('switchover');
      await source.step.handOverStopped(ref);
      await destination.atLast.takeStopped(ref);
      undos.length = 0;
      enter('cleanup');
      await source.atLast.retireSource({ ...ref, sourceDisks: request.sourceDisks, keepHours: request.keepHours });
      await control.release({ hosts: [from, to], workflowId, runId }).catch((error: unknown) => log.warn('the slots are released later', { error: String(error) }));
      setCurrentDetails(`**${vm}** is on **${to}**, stopped`);
      return { vm, from, to, outcome: 'completed', totalMs: Date.now() - startedAtMs, memoryTries: 0, disks: plan.disks.map(({ id, sizeBytes }) => ({ id, sizeBytes })), warnings: status.warnings, decisions: [] } satisfies MigrationResult;
    });
  } catch (error) {
    await CancellationScope.nonCancellable(async () => {
      if (undos.length > 0) enter('cleanup');
      for (const undo of undos.reverse()) await undo().catch((failed: unknown) => log.error('an undo failed: something was left behind', { cause: String(error), error: String(failed) }));
    });
    throw error;
  }
}

/** What a host that is away leaves undone is done when it returns. */
function ifAway(leftover: Leftover): (error: unknown) => Promise<void> {
  return async (error) => {
    if (!isAway(error)) throw error;
    await leaveForLater(leftover);
  };
}

async function preflight(source: ReturnType<typeof sourceHost>, destination: ReturnType<typeof destinationHost>, ref: MigrationRef, status: MigrationStatus): Promise<GuestPlan> {
  const here = await reachable(ref.from, source.look.inspectStopped(ref));
  const there = here.plan ? await reachable(ref.to, destination.look.inspectDestination({ ...ref, plan: here.plan })) : NO_FINDINGS;
  const blockers = [...here.blockers, ...there.blockers];
  if (blockers.length === 0) blockers.push(...(await greeted(ref, here.plan, there, source)));
  if (blockers.length > 0 || !here.plan) throw refused(ref.guest, ref.to, blockers);
  status.warnings = [...here.warnings, ...there.warnings];
  return here.plan;
}

