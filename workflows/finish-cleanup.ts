import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { ParentClosePolicy, startChild } from '@temporalio/workflow';
import { anyHost, destinationHost, sourceHost } from './activities';
import type { MigrationRef } from '../activities/context';
import type { Instead } from '../hypervisor/guest-store';
import { leftoverWorkflowId } from './messages';

/** What a host that was away left undone. */
export type UndoneThere =
  | { at: 'source'; do: 'removeMirrors'; destinationDestroyed: boolean; instead?: Instead }
  | { at: 'source'; do: 'retireSource'; sourceDisks: 'keep' | 'wipe'; keepHours: number }
  | { at: 'source'; do: 'stayCold'; destinationDiscarded: boolean }
  | { at: 'destination'; do: 'discardDestination' | 'settleDestination' }
  /** It was confirmed fenced, and another copy runs instead of its own. */
  | { at: 'destination'; do: 'retireFenced' };
export type Leftover = { ref: MigrationRef } & UndoneThere;

/** Leaves something to a workflow of its own. One that is on its way already does it as well. */
export async function leaveForLater(leftover: Leftover): Promise<void> {
  const { ref } = leftover;
  const host = leftover.at === 'source' ? ref.from : ref.to;
  try {
    await startChild(finishCleanup, { args: [leftover], workflowId: leftoverWorkflowId(ref, host), parentClosePolicy: ParentClosePolicy.ABANDON, staticSummary: `${leftover.do} on ${host}` });
  } catch (error) {
    if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
  }
}

/** Waits for a host to return, however long that takes, and does what it left undone. A workflow of its own, so that the guest can be moved meanwhile. */
export async function finishCleanup(leftover: Leftover): Promise<void> {
  const { ref } = leftover;
  switch (leftover.do) {
    case 'removeMirrors':
      return await sourceHost(ref.from).atLast.removeMirrors({ ...ref, destinationDestroyed: leftover.destinationDestroyed, ...(leftover.instead && { instead: leftover.instead }) });
    case 'retireSource':
      return await sourceHost(ref.from).atLast.retireSource({ ...ref, sourceDisks: leftover.sourceDisks, keepHours: leftover.keepHours });
    case 'stayCold':
      return await sourceHost(ref.from).atLast.stayCold({ ...ref, destinationDiscarded: leftover.destinationDiscarded });
    case 'discardDestination':
      return await destinationHost(ref.to).atLast.discardDestination(ref);
    case 'settleDestination':
      return await destinationHost(ref.to).atLast.settleDestination(ref);
    case 'retireFenced':
      return await anyHost(ref.to).atLast.retireFenced(ref);
  }
}
