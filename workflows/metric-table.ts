import type { MetricMeter } from '@temporalio/common';

/** Who counts: workflow code, as it happens; each control worker, by looking now and then; an agent, about its own host. */
type Origin = 'workflow' | 'control worker' | 'agent';

export interface Metric {
  kind: 'counter' | 'gauge' | 'histogram';
  origin: Origin;
  /** Names of labels. Their values are few and known, but for hosts, and the guests that move from a host. */
  labels: readonly string[];
  help: string;
  /** Upper bounds, in the unit of the name. */
  buckets?: readonly number[];
  /** A counter that alerts look at: it is there with 0 from the start, so that its first step is seen as one. */
  fromStart?: true;
}

/** Around the usual budgets, and the two seconds after which clients give up. */
const DOWNTIME_BUCKETS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 120];
/** From a small guest on a quiet network to a day of terabytes. */
const DURATION_BUCKETS = [5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400];
const WAIT_BUCKETS = [0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400];

/** Every metric of ours; docs/metrics.md is held against it. Base units and suffixes as Prometheus has them. */
export const METRICS = {
  vmferry_migrations_total: { kind: 'counter', origin: 'workflow', labels: ['kind', 'outcome', 'type'], help: 'migrations that ended' },
  vmferry_migration_duration_seconds: { kind: 'histogram', origin: 'workflow', labels: ['kind'], buckets: DURATION_BUCKETS, help: 'from start to end, of migrations that completed' },
  vmferry_migration_downtime_seconds: { kind: 'histogram', origin: 'workflow', labels: [], buckets: DOWNTIME_BUCKETS, help: 'how long guests were paused by migrations that completed' },
  vmferry_migration_downtime_over_budget_total: { kind: 'counter', origin: 'workflow', labels: [], fromStart: true, help: 'migrations that completed and paused their guest for longer than their budget' },
  vmferry_migration_slot_wait_seconds: { kind: 'histogram', origin: 'workflow', labels: ['kind'], buckets: WAIT_BUCKETS, help: 'how long migrations waited for a slot at both hosts' },
  vmferry_migration_tries_given_up_total: { kind: 'counter', origin: 'workflow', labels: ['because'], help: 'tries to hand a guest over that were given up; it ran on at its source' },
  vmferry_migration_postponements_total: { kind: 'counter', origin: 'workflow', labels: [], help: 'migrations that were put off' },
  vmferry_verdict_changes_total: { kind: 'counter', origin: 'workflow', labels: ['of', 'verdict'], help: 'changes of what is said of a copy, by the new verdict' },
  vmferry_remedies_total: { kind: 'counter', origin: 'workflow', labels: ['remedy', 'by', 'outcome'], help: 'remedies that were tried on copies that did not converge' },
  vmferry_steers_total: { kind: 'counter', origin: 'workflow', labels: ['steer'], help: 'decisions of operators' },
  vmferry_fences_total: { kind: 'counter', origin: 'workflow', labels: [], fromStart: true, help: 'hosts that were confirmed fenced' },
  vmferry_leftovers_total: { kind: 'counter', origin: 'workflow', labels: ['step'], help: 'steps of a cleanup that were left to a host that was away' },
  vmferry_undo_failures_total: { kind: 'counter', origin: 'workflow', labels: [], fromStart: true, help: 'steps of an undo that failed: something was left behind' },
  vmferry_repairs_total: { kind: 'counter', origin: 'workflow', labels: ['outcome'], help: 'repairs that ended' },
  vmferry_evacuations_total: { kind: 'counter', origin: 'workflow', labels: ['outcome'], help: 'evacuations of a host that ended' },

  vmferry_migrations_running: { kind: 'gauge', origin: 'control worker', labels: ['phase'], help: 'migrations under way' },
  vmferry_migrations_by_verdict: { kind: 'gauge', origin: 'control worker', labels: ['verdict'], help: 'migrations under way, by what is said of their copy' },
  vmferry_migrations_asking: { kind: 'gauge', origin: 'control worker', labels: [], help: 'migrations that wait for an answer of an operator' },
  vmferry_migrations_postponed: { kind: 'gauge', origin: 'control worker', labels: [], help: 'migrations that were put off and will begin again' },
  vmferry_migrations_waiting_for_host: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: 'migrations and repairs that cannot go on until this host says what became of the guest' },
  vmferry_leftovers_pending: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: 'steps of a cleanup that this host has still to do' },
  vmferry_evacuations_running: { kind: 'gauge', origin: 'control worker', labels: [], help: 'evacuations of a host under way' },
  vmferry_host_silent: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: '1 if its agent has not reported for 75 s' },
  vmferry_host_cordoned: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: '1 if it gets nothing new' },
  vmferry_host_slots: { kind: 'gauge', origin: 'control worker', labels: ['host', 'direction'], help: 'how many guests may leave or come at once' },
  vmferry_host_slots_taken: { kind: 'gauge', origin: 'control worker', labels: ['host', 'direction'], help: 'slots that migrations have reserved' },
  vmferry_host_reserved_memory_bytes: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: 'memory that is reserved for guests on their way' },
  vmferry_host_free_memory_bytes: { kind: 'gauge', origin: 'control worker', labels: ['host'], help: 'memory that further guests can have' },
  vmferry_census_timestamp_seconds: { kind: 'gauge', origin: 'control worker', labels: [], help: 'when this control worker last looked at all of this' },

  vmferry_guests: { kind: 'gauge', origin: 'agent', labels: ['host', 'state'], help: 'guests on this host' },
  vmferry_attempts: { kind: 'gauge', origin: 'agent', labels: ['host', 'role'], help: 'moves that are on record on this host: under way, or not cleaned up yet' },
  vmferry_kept_images: { kind: 'gauge', origin: 'agent', labels: ['host'], help: 'images of guests that left, kept for a set time' },
  vmferry_agent_report_timestamp_seconds: { kind: 'gauge', origin: 'agent', labels: ['host'], help: 'when Temporal last took a report of this host' },
  vmferry_leftovers_found_total: { kind: 'counter', origin: 'agent', labels: ['host'], fromStart: true, help: 'leftovers of earlier migrations that were found and removed' },
  vmferry_step_failures_total: { kind: 'counter', origin: 'agent', labels: ['host', 'step', 'type'], help: 'steps that failed on this host' },
  vmferry_copied_bytes_total: { kind: 'counter', origin: 'agent', labels: ['host', 'of'], help: 'what was sent from this host, with what was sent again' },
  vmferry_guest_verdict: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest', 'verdict'], help: '1 for what is said of the copy of a guest that moves' },
  vmferry_disk_remaining_bytes: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest', 'disk'], help: 'what the mirror of a disk has still to copy' },
  vmferry_disk_copy_bytes_per_second: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest', 'disk'], help: 'what the mirror of a disk copies' },
  vmferry_disk_dirty_bytes_per_second: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest', 'disk'], help: 'what the guest makes the mirror of a disk copy again' },
  vmferry_disk_predicted_drain_seconds: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest', 'disk'], help: 'how long the drain of a disk would take, were the guest paused now' },
  vmferry_memory_remaining_bytes: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest'], help: 'memory that is still to be sent' },
  vmferry_memory_copy_bytes_per_second: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest'], help: 'memory that is sent' },
  vmferry_memory_dirty_bytes_per_second: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest'], help: 'memory that the guest dirties' },
  vmferry_memory_predicted_downtime_seconds: { kind: 'gauge', origin: 'agent', labels: ['host', 'guest'], help: 'how long the rest of the memory would take, were the guest paused now' },
} as const satisfies Record<string, Metric>;

export type MetricName = keyof typeof METRICS;
/** Names of metrics that are like this. */
export type NamesOf<Like extends Partial<Metric>> = { [Name in MetricName]: (typeof METRICS)[Name] extends Like ? Name : never }[MetricName];
export type Labels<Name extends MetricName> = Record<(typeof METRICS)[Name]['labels'][number], string>;

/** Adds to a counter, sets a gauge, or records in a histogram. */
export function record<Name extends MetricName>(meter: MetricMeter, name: Name, amount: number, labels: Labels<Name>): void {
  const { kind, help } = METRICS[name];
  // The SDK throws at less, which would hold up a workflow for good; the clocks of two hosts can differ by more than a pause.
  const value = Math.max(0, amount);
  switch (kind) {
    case 'counter':
      return meter.createCounter(name, '', help).add(value, labels);
    case 'gauge':
      return meter.createGauge(name, 'float', '', help).set(value, labels);
    case 'histogram':
      return meter.createHistogram(name, 'float', '', help).record(value, labels);
  }
}
