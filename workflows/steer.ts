import { z } from 'zod';
import { type Assessment, megabytes, seconds } from './convergence';
import type { Capabilities, Effects } from './divergence';
import type { Phase } from './phases';

/** Who steers, and why: shown in the Temporal UI beside what was done. */
const signed = { author: z.string().trim().min(1, 'say who you are').max(200), reason: z.string().trim().min(1, 'say why').max(1_000) };
/** QEMU takes less than 64 KiB/s badly: a single request of the mirror would wait for seconds. */
const rate = z.number().min(65_536);
/** The range of QEMU's own `downtime-limit`; a shorter pause than 20 ms is not to be had. */
const pauseMs = z.number().min(20).max(2_000_000);
const until = z.iso.datetime({ offset: true });

/** A decision of an operator, or of a program, about a migration under way: plain JSON, so that any Temporal SDK can send it. */
export const steerSchema = z.discriminatedUnion('do', [
  z.strictObject({ do: z.literal('lift-limits'), ...signed }),
  z.strictObject({ do: z.literal('set-bandwidth'), bytesPerSecond: rate, ...signed }),
  z.strictObject({ do: z.literal('nudge'), ...signed }),
  z.strictObject({ do: z.literal('write-blocking'), ...signed }),
  z.strictObject({ do: z.literal('throttle'), bytesPerSecond: rate, ...signed }),
  z.strictObject({ do: z.literal('unthrottle'), ...signed }),
  z.strictObject({ do: z.literal('set-max-downtime'), ms: pauseMs, ...signed }),
  /** Apply no remedy, and let no deadline pass, before then. */
  z.strictObject({ do: z.literal('wait'), until, ...signed }),
  /** Drop the mirrors, and begin again then. */
  z.strictObject({ do: z.literal('postpone'), until, ...signed }),
  /** Move the memory now, and accept a pause of up to this. */
  z.strictObject({ do: z.literal('switchover-now'), maxPauseMs: pauseMs, ...signed }),
  z.strictObject({ do: z.literal('abort'), ...signed }),
]);

export type Steer = z.output<typeof steerSchema>;

export interface SteerSituation {
  phase: Phase;
  /** The last one told; none before the mirrors are sampled. */
  assessment?: Assessment;
  capabilities: Capabilities;
  /** Whether the exports have a cap that can be changed while they run (the `throttle` node). */
  bandwidthLive: boolean;
  /** What the cap is, if there is one. */
  bandwidthBytesPerSecond?: number;
  effects: Effects;
  maxDowntimeMs: number;
  nowMs: number;
}

/** What each phase has that can be steered. */
const STEERABLE: Record<Phase, 'not-yet' | 'disks' | 'memory' | 'too-late'> = {
  preflight: 'not-yet',
  reserve: 'not-yet',
  prepare: 'not-yet',
  export: 'not-yet',
  mirror: 'disks',
  converge: 'disks',
  memory: 'memory',
  switchover: 'too-late',
  cleanup: 'too-late',
};

/** Why this steer makes no sense now, for the one who sent it; undefined if it does. Pure: an update's validator. */
export function refuseSteer(steer: Steer, situation: SteerSituation): string | undefined {
  const { phase, assessment, nowMs } = situation;
  const when = STEERABLE[phase];
  if (when === 'too-late') return `the migration is in phase ${phase}: it is too late to ${steer.do}`;
  switch (steer.do) {
    case 'abort':
      return undefined;
    case 'set-max-downtime':
      return steer.ms === situation.maxDowntimeMs ? `the budget is ${seconds(steer.ms)} already` : undefined;
    case 'postpone':
      if (when === 'memory') return 'the memory is being moved: abort it, or let it end';
      return isPast(steer.until, nowMs);
    case 'wait':
      if (assessment?.verdict === 'failed') return `there is nothing to wait for: ${assessment.message}`;
      return isPast(steer.until, nowMs);
    default:
      return when === 'not-yet' ? `the migration is in phase ${phase}: no disk is copied yet` : refuseRemedy(steer, situation, when === 'memory');
  }
}

/** Of a steer that does something to mirrors which exist, or to the guest that they copy. */
function refuseRemedy(steer: Exclude<Steer, { do: 'abort' | 'set-max-downtime' | 'postpone' | 'wait' }>, situation: SteerSituation, memoryMoves: boolean): string | undefined {
  const { assessment, capabilities, effects } = situation;
  switch (steer.do) {
    case 'lift-limits':
      if (effects.limitsLifted) return 'the bandwidth cap is lifted already';
      return capabilities.capSet ? undefined : 'no bandwidth cap is set that could be lifted';
    case 'set-bandwidth':
      if (!situation.bandwidthLive) return 'the bandwidth of these exports cannot be changed while they run';
      return !effects.limitsLifted && steer.bytesPerSecond === situation.bandwidthBytesPerSecond ? `the bandwidth cap is ${megabytes(steer.bytesPerSecond)}/s already` : undefined;
    case 'throttle':
      if (!capabilities.ioThrottle) return "this QEMU cannot throttle the guest's disks";
      return steer.bytesPerSecond === effects.throttleBytesPerSecond ? `the guest is throttled to ${megabytes(steer.bytesPerSecond)}/s already` : undefined;
    case 'unthrottle':
      return effects.throttleBytesPerSecond === undefined && !effects.throttledForAMoment ? 'the guest is not throttled' : undefined;
    case 'nudge':
      if (!capabilities.ioThrottle) return "this QEMU cannot throttle the guest's disks";
      if (memoryMoves || assessment?.disks.every(({ ready }) => ready)) return 'all mirrors are ready: a nudge is for one that is not';
      return assessment?.verdict === 'hovering' ? undefined : `a nudge is for a mirror that hovers near ready; this one does not: ${assessment?.message ?? 'nothing is known of it yet'}`;
    case 'write-blocking':
      if (effects.writeBlocking) return 'the mirrors are write-blocking already';
      if (capabilities.writeBlockingLive) return undefined;
      if (!capabilities.rearm || !capabilities.ioThrottle) return 'this QEMU cannot switch a running mirror to write-blocking';
      // The switch stops the guest and ends its mirrors, which QEMU does not bear while it migrates.
      return memoryMoves ? 'this QEMU switches a mirror by a short stop, which is not possible while the memory is moved' : undefined;
    case 'switchover-now': {
      if (!assessment) return 'nothing is known of the mirrors yet';
      if (assessment.verdict === 'stalled' || assessment.verdict === 'failed') return `the copy does not go on: ${assessment.message}`;
      // A mirror that was never ready cannot be finished: cancelling it gives up the copy.
      const unready = assessment.disks.filter(({ ready }) => !ready);
      if (unready.length > 0) return `not all mirrors are ready: ${unready.map(({ id, remainingBytes }) => `${id} (${megabytes(remainingBytes)} remain)`).join(', ')}`;
      if (assessment.predictedDrainMs > steer.maxPauseMs) return `the drain of the disks alone would take ${seconds(assessment.predictedDrainMs)}, more than the ${seconds(steer.maxPauseMs)} accepted`;
      return undefined;
    }
  }
}

function isPast(until: string, nowMs: number): string | undefined {
  return Date.parse(until) > nowMs ? undefined : `${until} is not in the future`;
}
