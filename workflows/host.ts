import { condition, continueAsNew, setHandler, workflowInfo } from '@temporalio/workflow';
import { type HostReport, type HostState, hostQuery, reportSignal } from './messages';

/** A host as an entity: its agent starts and refreshes it; it remembers what the agent said last. Truth about guests stays with the host. */
export async function host(name: string, last?: HostState): Promise<void> {
  let state = last;
  setHandler(hostQuery, () => state);
  setHandler(reportSignal, (report: HostReport) => {
    state = { ...report, reportedAt: new Date().toISOString() };
  });
  await condition(() => workflowInfo().continueAsNewSuggested);
  await continueAsNew<typeof host>(name, state);
}
