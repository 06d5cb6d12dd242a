import { destinationHost, sourceHost } from './activities';
import type { MigrationRef } from '../activities/context';

/** What a host that was away left undone. */
export type Leftover = { ref: MigrationRef } & (
  | { at: 'source'; do: 'removeMirrors'; destinationDestroyed: boolean }
  | { at: 'source'; do: 'retireSource'; sourceDisks: 'keep' | 'wipe'; keepHours: number }
  | { at: 'destination'; do: 'discardDestination' | 'settleDestination' }
);

/** Waits for a host to return, however long that takes, and does what it left undone. A workflow of its own, so that the guest can be moved meanwhile. */
export async function finishCleanup(leftover: Leftover): Promise<void> {
  const { ref } = leftover;
  switch (leftover.do) {
    case 'removeMirrors':
      return await sourceHost(ref.from).atLast.removeMirrors({ ...ref, destinationDestroyed: leftover.destinationDestroyed });
    case 'retireSource':
      return await sourceHost(ref.from).atLast.retireSource({ ...ref, sourceDisks: leftover.sourceDisks, keepHours: leftover.keepHours });
    case 'discardDestination':
      return await destinationHost(ref.to).atLast.discardDestination(ref);
    case 'settleDestination':
      return await destinationHost(ref.to).atLast.settleDestination(ref);
  }
}
