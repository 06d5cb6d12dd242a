import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import { evacuationWorkflowId, fleetWorkflowId } from '../../workflows/evacuation';
import { migrationWorkflowId } from '../../workflows/messages';
import { VmferryError } from '../errors';
import { Charts } from './charts';
import { evacuationPage, fleetPage } from './evacuation-page';
import { type EvacuationRecord, evacuationRecord, type FleetRecord, fleetRecord } from './evacuation-record';
import { readHistory, type RecordedRun } from './history';
import { migrationPage } from './migration-page';
import { type MigrationRecord, migrationRecord } from './record';

export type Recorded = MigrationRecord | EvacuationRecord | FleetRecord;

/** What is on record of a migration or an evacuation, and a page that shows it. */
export interface Report {
  record: Recorded;
  /** Self-contained: no script, nothing from a network. */
  html: string;
}

/** How many runs that were continued as new are followed back. */
const MOST_RUNS = 100;

/**
 * Reads what Temporal has on record; asks no agent and no control worker. `id`: a guest's name, `migrate/<vm>`, `evacuate/<host>` or `fleet/<name>`.
 * Without `runId` the last run is meant. Throws `VmferryError` (`NotFound`) if there is no such thing.
 */
export async function reportOf(temporal: Client, id: string, runId?: string): Promise<Report> {
  const run = await read(temporal, workflowIdOf(id), runId);
  switch (run.type) {
    case 'migrateVm':
    case 'moveCold':
      return await drawn(migrationRecord(run), migrationPage);
    case 'evacuateHost':
      return await drawn(evacuationRecord(run), evacuationPage);
    case 'evacuateFleet': {
      const runs = [run];
      while (runs[0]!.continues !== undefined && runs.length < MOST_RUNS) runs.unshift(await read(temporal, run.workflowId, runs[0]!.continues));
      const evacuations: EvacuationRecord[] = [];
      for (const child of runs.flatMap(({ children }) => children)) {
        // One that Temporal keeps no more is left out: what became of its host is on record all the same.
        const of = await read(temporal, child.workflowId, child.runId).catch((error: unknown) => (error instanceof VmferryError ? undefined : Promise.reject(error as Error)));
        if (of) evacuations.push(evacuationRecord(of));
      }
      return await drawn(fleetRecord(runs, evacuations), fleetPage);
    }
    default:
      throw new VmferryError('NotFound', `${run.workflowId} is no migration and no evacuation: ${KNOWN}`);
  }
}

const KNOWN = 'give a guest\'s name, migrate/<vm>, evacuate/<host> or fleet/<name>';

function workflowIdOf(id: string): string {
  const [kind, ...rest] = id.split('/');
  if (rest.length === 0 && kind) return migrationWorkflowId(kind);
  const name = rest.join('/');
  switch (kind) {
    case 'migrate':
      return migrationWorkflowId(name);
    case 'evacuate':
      return evacuationWorkflowId(name);
    case 'fleet':
      return fleetWorkflowId(name);
    default:
      throw new VmferryError('NotFound', `there are no reports of "${id}": ${KNOWN}`);
  }
}

async function drawn<R extends Recorded>(record: R, page: (record: R, charts: Charts) => string): Promise<Report> {
  return { record, html: page(record, await Charts.load()) };
}

async function read(temporal: Client, workflowId: string, wanted?: string): Promise<RecordedRun> {
  try {
    const { runId } = await temporal.workflow.getHandle(workflowId, wanted).describe();
    const { events } = await temporal.workflow.getHandle(workflowId, runId).fetchHistory();
    return await readHistory(events ?? [], workflowId, runId, temporal.options.loadedDataConverter);
  } catch (error) {
    // A run id that is no UUID is an invalid argument.
    const none = error instanceof WorkflowNotFoundError || (wanted !== undefined && /invalid.*run ?id/i.test(`${(error as Error).message} ${((error as Error).cause as Error | undefined)?.message ?? ''}`));
    if (!none) throw error;
    throw new VmferryError('NotFound', wanted === undefined ? `there is nothing on record of ${workflowId}: ${KNOWN}; Temporal forgets what ended longer ago than its namespace's retention` : `there is no run ${wanted} of ${workflowId} on record: leave --run out for the last one`);
  }
}
