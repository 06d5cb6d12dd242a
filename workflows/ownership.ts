/**
 * Who owns a guest after its source may have handed it over: design §5, R4. Pure, so that the workflow and a model of the protocol
 * decide alike.
 *
 * Source: `running` — it could not hand over the whole stream (R2), or gave up before `migrate-continue`, and runs on; `completed` — it
 * handed everything over and is paused; `gone` — its QEMU ended.
 * Destination: `running` — it has everything and runs, or is paused as the guest was; `dead` — it will never run by itself; `marker`
 * says that it had written "about to run".
 */
export type SourceFate = 'running' | 'completed' | 'gone';
export type DestinationFate = 'running' | 'dead' | 'dead-with-marker';

export type Decision =
  /** The destination owns the guest. */
  | 'done'
  /** Destroy what is left of the destination; the source has the guest, running or to be started. */
  | 'undo'
  /** Prove the destination dead, then let the source run on (R5). */
  | 'revive-source'
  /** The guest moved and then crashed: report it, and never revive the old copy. */
  | 'crashed-after-move';

export function decideOwner(source: SourceFate, destination: DestinationFate): Decision {
  if (destination === 'running') {
    // R2 makes this impossible; if QEMU breaks its promise nobody may decide but a person.
    if (source === 'running') throw new Error('both copies say that they run');
    return 'done';
  }
  if (source === 'running') return 'undo';
  if (destination === 'dead-with-marker') return 'crashed-after-move';
  return source === 'completed' ? 'revive-source' : 'undo';
}
