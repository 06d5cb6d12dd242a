import type { temporal } from '@temporalio/proto';
import type { Span } from './recorder';

/** Who had something to do; of two at once the first in this order. */
export type Doer = 'qemu' | 'activity' | 'workflow' | 'to the agent' | 'to the workflow' | 'nobody';
const ORDER: readonly Doer[] = ['qemu', 'activity', 'workflow', 'to the agent', 'to the workflow'];

/** A part of a move in which one doer was at work, and the step that it belongs to: the activity, or after it the one that had ended last. */
interface Part {
  doer: Doer;
  step: string;
  from: number;
  to: number;
}

type Event = temporal.api.history.v1.IHistoryEvent;
const atMs = ({ eventTime }: Event): number => Number(eventTime!.seconds) * 1000 + eventTime!.nanos! / 1e6;

/** What a history says of who was at work when. A hand-over is the time in which a task of Temporal's waits for its worker. */
export function parts(history: readonly Event[]): Part[] {
  const found: Part[] = [];
  const scheduled = new Map<number, { step: string; at: number }>();
  const started = new Map<number, number>();
  let [taskScheduled, taskStarted, last] = [0, 0, 'begin'];
  for (const event of history) {
    const at = atMs(event);
    const ended = event.activityTaskCompletedEventAttributes ?? event.activityTaskFailedEventAttributes ?? event.activityTaskCanceledEventAttributes ?? event.activityTaskTimedOutEventAttributes;
    if (event.activityTaskScheduledEventAttributes) scheduled.set(Number(event.eventId), { step: event.activityTaskScheduledEventAttributes.activityType!.name!, at });
    else if (event.activityTaskStartedEventAttributes) started.set(Number(event.activityTaskStartedEventAttributes.scheduledEventId), at);
    else if (ended) {
      const id = Number(ended.scheduledEventId);
      const { step, at: from } = scheduled.get(id)!;
      const begun = started.get(id) ?? at;
      found.push({ doer: 'to the agent', step, from, to: begun }, { doer: 'activity', step, from: begun, to: at });
      last = step;
    } else if (event.workflowTaskScheduledEventAttributes) taskScheduled = at;
    else if (event.workflowTaskStartedEventAttributes) {
      found.push({ doer: 'to the workflow', step: last, from: taskScheduled, to: at });
      taskStarted = at;
    } else if (event.workflowTaskCompletedEventAttributes) found.push({ doer: 'workflow', step: last, from: taskStarted, to: at });
  }
  return found;
}

/** Every moment of `[from, to]` once: by step and doer, in milliseconds. QEMU's time is that of the activity that waits for it. */
export function timeline(history: readonly Event[], qemu: Pick<Span, 'from' | 'to'>[], from: number, to: number): Map<string, Record<Doer, number>> {
  const all: Part[] = [...qemu.map((span): Part => ({ doer: 'qemu', step: '', ...span })), ...parts(history)];
  const moments = [...new Set([from, to, ...all.flatMap((part) => [part.from, part.to])])].filter((at) => at >= from && at <= to).sort((a, b) => a - b);
  const steps = new Map<string, Record<Doer, number>>();
  let before = 'begin';
  for (let index = 1; index < moments.length; index++) {
    const [a, b] = [moments[index - 1]!, moments[index]!];
    const now = all.filter((part) => part.from <= a && part.to >= b);
    const doer = ORDER.find((one) => now.some((part) => part.doer === one)) ?? 'nobody';
    // Of two activities at once the one that began later is the one that the move waits for.
    const latest = (one: Doer) => now.filter((part) => part.doer === one).sort((x, y) => y.from - x.from)[0]?.step;
    before = (doer === 'qemu' ? (latest('activity') ?? latest('workflow') ?? latest('to the agent')) : latest(doer)) ?? before;
    const row = steps.get(before) ?? { qemu: 0, activity: 0, workflow: 0, 'to the agent': 0, 'to the workflow': 0, nobody: 0 };
    row[doer] += b - a;
    steps.set(before, row);
  }
  return steps;
}
