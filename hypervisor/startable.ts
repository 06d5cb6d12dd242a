import type { Ownership } from './guest-store';

/** R10: only an owner is started. Pure, so that the agent and the model of the protocol decide alike. */
export function mayStart(ownership: Pick<Ownership, 'state'> | undefined): boolean {
  return ownership?.state === 'owner';
}
