import type { MetricMeter } from '@temporalio/common';
import { type Client, type WorkflowExecutionInfo, WorkflowNotFoundError } from '@temporalio/client';
import type { Logger } from 'pino';
import { knownHosts } from '../activities/fleet';
import { Gauges, type Reading, reading } from '../activities/gauges';
import { tally } from '../activities/host-meter';
import { placementHost } from '../workflows/capacity';
import { type HostWait, type MigrationStatus, type RepairStatus, repairStatusQuery, SEARCH_ATTRIBUTES, statusQuery } from '../workflows/messages';

const EVERY_MS = 15_000;
/** Workflows that are asked what they wait for, in one census: those whose verdict or phase lets them wait, the oldest first. */
const MOST_ASKED = 100;

type Attributes = Pick<WorkflowExecutionInfo, 'typedSearchAttributes'>;

/**
 * Counts what is under way, from Temporal itself and not from memory: a control worker may start or end at any time, and several may run, each of which
 * shows the same figures. Without `--metrics` there is none.
 */
export class Census {
  private readonly gauges: Gauges;
  private timer: NodeJS.Timeout | undefined;
  private running: Promise<void> = Promise.resolve();
  private stopped = false;

  constructor(private readonly client: Client, meter: MetricMeter, private readonly logger: Logger) {
    this.gauges = new Gauges(meter);
  }

  start(): void {
    this.running = this.take()
      .catch((error: Error) => this.logger.warn({ error: error.message }, 'the figures of the fleet cannot be taken'))
      .finally(() => {
        if (!this.stopped) this.timer = setTimeout(() => this.start(), EVERY_MS);
      });
  }

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    await this.running;
  }

  /** One census. After one that failed the figures are those of the last, and `vmferry_census_timestamp_seconds` tells how old they are. */
  async take(): Promise<void> {
    const nowMs = Date.now();
    const [hosts, moves, leftovers, repairs, evacuations] = await Promise.all([knownHosts(this.client), this.list('migrateVm', 'moveCold'), this.list('finishCleanup'), this.list('repairGuest'), this.list('evacuateHost')]);
    const phaseOf = (one: Attributes) => one.typedSearchAttributes.get(SEARCH_ATTRIBUTES.phase) ?? 'preflight';
    const verdictOf = (one: Attributes) => one.typedSearchAttributes.get(SEARCH_ATTRIBUTES.verdict);
    const mayWait = moves.filter((one) => ['memory', 'switchover', 'cleanup', 'preflight'].includes(phaseOf(one)) || (verdictOf(one) ?? 'converging') !== 'converging');
    const statuses = await this.ask<MigrationStatus>(statusQuery.name, mayWait);
    const waits: HostWait[] = [...statuses.map(({ waitsFor = [] }) => waitsFor), ...(await this.ask<RepairStatus>(repairStatusQuery.name, repairs)).map(({ waitsFor }) => waitsFor)].flat();
    this.gauges.show([
      ...tally(moves.map(phaseOf)).map(([phase, number]) => reading('vmferry_migrations_running', number, { phase })),
      ...tally(moves.map(verdictOf).filter((verdict) => verdict !== undefined)).map(([verdict, number]) => reading('vmferry_migrations_by_verdict', number, { verdict })),
      reading('vmferry_migrations_asking', statuses.filter(({ asks }) => asks).length, {}),
      reading('vmferry_migrations_postponed', statuses.filter(({ postponedUntil }) => postponedUntil).length, {}),
      ...tally(waits.map(({ host }) => host)).map(([host, number]) => reading('vmferry_migrations_waiting_for_host', number, { host })),
      // leftover/GUEST/ATTEMPT/HOST
      ...tally(leftovers.map(({ workflowId }) => workflowId.split('/')[3]!)).map(([host, number]) => reading('vmferry_leftovers_pending', number, { host })),
      reading('vmferry_evacuations_running', evacuations.length, {}),
      ...hosts.flatMap((host): Reading[] => {
        const { name, slots, moving, reachable, cordoned, freeMemoryBytes } = placementHost(host, nowMs);
        const sides = (['outgoing', 'incoming'] as const).flatMap((direction) => [reading('vmferry_host_slots', slots[direction], { host: name, direction }), reading('vmferry_host_slots_taken', moving[direction], { host: name, direction })]);
        return [
          ...sides,
          reading('vmferry_host_silent', reachable ? 0 : 1, { host: name }),
          reading('vmferry_host_cordoned', cordoned ? 1 : 0, { host: name }),
          reading('vmferry_host_reserved_memory_bytes', host.reservations.filter(({ direction }) => direction === 'incoming').reduce((sum, { memoryBytes }) => sum + memoryBytes, 0), { host: name }),
          reading('vmferry_host_free_memory_bytes', freeMemoryBytes, { host: name }),
        ];
      }),
      reading('vmferry_census_timestamp_seconds', nowMs / 1000, {}),
    ]);
  }

  private async list(...types: string[]): Promise<WorkflowExecutionInfo[]> {
    const found: WorkflowExecutionInfo[] = [];
    for await (const one of this.client.workflow.list({ query: `WorkflowType IN (${types.map((type) => `"${type}"`).join(', ')}) AND ExecutionStatus = "Running"` })) found.push(one);
    return found;
  }

  /** What workflows say of themselves. One that has ended meanwhile, or that no worker answers for, says nothing. */
  private async ask<T>(query: string, of: WorkflowExecutionInfo[]): Promise<T[]> {
    const oldest = [...of].sort((a, b) => a.startTime.getTime() - b.startTime.getTime()).slice(0, MOST_ASKED);
    const said = await Promise.all(
      oldest.map(async ({ workflowId, runId }) => {
        try {
          return await this.client.workflow.getHandle(workflowId, runId).query<T>(query);
        } catch (error) {
          if (!(error instanceof WorkflowNotFoundError)) this.logger.debug({ workflowId, error: (error as Error).message }, 'a workflow does not say what it waits for');
          return undefined;
        }
      }),
    );
    return said.filter((one) => one !== undefined);
  }
}
