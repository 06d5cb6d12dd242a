import type { LeaseLoss } from './lease';
import type { MigrationSettings } from './migration';
import type { MirrorTarget } from './mirrors';

/** What the source's half of the switchover is told, and what it says (handover.ts). */
export interface HandOverPlan {
  attempt: string;
  /** Counts the tries of the memory phase, from 1. */
  memoryTry: number;
  to: string;
  targets: MirrorTarget[];
  settings: MigrationSettings;
  lease: { host: string; port: number };
  /** The longest pause of the guest, in milliseconds, that a try may cost before it is given up (R3). */
  maxDowntimeMs: number;
  /** How long memory may be copied before the try is given up, in milliseconds. */
  memoryDeadlineMs: number;
  /** How long nothing may be sent, with the guest running, before the try is given up, in milliseconds. */
  memoryStallMs: number;
}

export type GiveUpKind = 'downtime-budget' | 'memory-deadline' | 'mirror-failed' | 'migration-failed' | 'interrupted' | 'cancelled' | LeaseLoss['kind'];

/** Moments of the downtime window, in milliseconds since the epoch by this host's clock. */
export interface SourceWindow {
  stopped: number;
  preSwitchover: number;
  drained: number;
  mirrorsEnded: number;
  continued: number;
  completed: number;
}

export type HandOverResult =
  | { source: 'completed'; window?: SourceWindow; /** Its stream broke as post-copy began: nobody but the destination knows whether it is whole. */ unproven?: true }
  /** The connection broke before the last page was sent. */
  | { source: 'post-copy'; message: string; window?: SourceWindow }
  | { source: 'running'; because: GiveUpKind; message: string; /** READY mirrors remain, and only the memory phase is to be repeated. */ mirrorsReady: boolean; /** What the try cost the guest; absent if it was not paused, or for a time that nobody knows. */ pausedMs?: number };

export interface HandOverSignals {
  /** Gives up before the point of no return; ignored after it. */
  cancel: AbortSignal;
  /** The agent stops (R8), or somebody else goes on: leaves QEMU as it is and rejects, unless the guest is paused; then the window is finished first. */
  leave: AbortSignal;
  /** Called when the guest has been paused: from here on every millisecond counts. */
  paused(): void;
  /** For the log: what happens inside the window. */
  note(what: string): void;
}

/** Why a try is given up before the point of no return; the guest runs on. */
export class GiveUp extends Error {
  constructor(readonly kind: GiveUpKind, message: string) {
    super(message);
  }
}
