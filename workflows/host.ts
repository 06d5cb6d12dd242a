import { allHandlersFinished, ApplicationFailure, condition, continueAsNew, setHandler, setWorkflowOptions, workflowInfo } from '@temporalio/workflow';
import { control } from './activities';
import { refuseReservation, slotsOf } from './capacity';
import { type Slots, slotsSchema } from './fleet';
import { cordonUpdate, DEPLOYMENT, EVACUATION, type HostReport, type HostState, hostQuery, type Reservation, releaseUpdate, reportSignal, reserveUpdate, setSlotsUpdate } from './messages';

/** How often reservations of workflows that have ended without releasing them, as one that was terminated, are looked for. */
const LOOK = '1 minute';

/**
 * A host as an entity: its agent starts and refreshes it; it remembers what the agent said last, whether the host is cordoned, and who has reserved what of
 * it. Truth about guests stays with the host.
 */
export async function host(name: string, last?: HostState): Promise<void> {
  let state: HostState | undefined = last;
  const known = (): HostState => {
    if (!state) throw ApplicationFailure.nonRetryable(`host ${name} has not reported yet: start its agent`, 'HostUnreachable');
    return state;
  };
  setHandler(hostQuery, () => state);
  setHandler(reportSignal, (report: HostReport) => {
    state = { ...state, ...report, reservations: state?.reservations ?? [], reportedAt: new Date().toISOString() };
  });
  setHandler(
    reserveUpdate,
    (reservation: Reservation) => {
      const host = known();
      state = { ...host, reservations: [...host.reservations.filter((one) => !isSame(one, reservation)), reservation] };
    },
    {
      validator: (reservation: Reservation) => {
        const host = known();
        if (host.reservations.some((one) => isSame(one, reservation))) return;
        const refused = refuseReservation(host, reservation, Date.now());
        if (refused) throw ApplicationFailure.nonRetryable(refused.why, refused.type);
      },
    },
  );
  setHandler(releaseUpdate, ({ workflowId, runId }) => {
    const host = known();
    state = { ...host, reservations: host.reservations.filter((one) => one.workflowId !== workflowId || one.runId !== runId) };
  });
  setHandler(
    cordonUpdate,
    ({ cordon }) => {
      const host = { ...known() };
      // A person's word stays: it may be about more than this evacuation.
      if (cordon?.by === EVACUATION && host.cordoned && host.cordoned.by !== EVACUATION) return;
      delete host.cordoned;
      state = cordon ? { ...host, cordoned: { ...cordon, at: new Date().toISOString() } } : host;
    },
    {
      validator: ({ cordon }: { cordon?: { by: string; reason: string } }) => {
        known();
        if (cordon && (!cordon.by.trim() || !cordon.reason.trim())) throw ApplicationFailure.nonRetryable('by, reason: say who cordons the host, and why', 'InvalidDefinition');
      },
    },
  );
  setHandler(
    setSlotsUpdate,
    ({ slots }) => {
      const host = { ...known() };
      delete host.slots;
      state = slots ? { ...host, slots: { ...slotsOf(known()), ...slots } } : host;
    },
    {
      validator: ({ slots = {} }: { slots?: Partial<Slots> }) => {
        known();
        const parsed = slotsSchema.partial().safeParse(slots);
        if (!parsed.success) throw ApplicationFailure.nonRetryable(parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'slots'}: ${message}`).join('; '), 'InvalidDefinition');
      },
    },
  );

  while (!workflowInfo().continueAsNewSuggested) {
    await condition(() => workflowInfo().continueAsNewSuggested || (state?.reservations.length ?? 0) > 0);
    await condition(() => workflowInfo().continueAsNewSuggested || state!.reservations.length === 0, LOOK);
    const ended = state!.reservations.length > 0 ? await control.endedWorkflows(state!.reservations.map(({ workflowId, runId }) => ({ workflowId, runId }))).catch(() => []) : [];
    if (ended.length > 0) state = { ...state!, reservations: state!.reservations.filter((one) => !ended.includes(one.runId)) };
  }
  await condition(allHandlersFinished);
  await continueAsNew<typeof host>(name, state);
}

// It never ends: with worker versioning it goes on with whatever build is current.
setWorkflowOptions(() => (workflowInfo().currentDeploymentVersion?.deploymentName === DEPLOYMENT ? { versioningBehavior: 'AUTO_UPGRADE' } : {}), host);

const isSame = (a: Reservation, b: Reservation) => a.workflowId === b.workflowId && a.runId === b.runId && a.direction === b.direction;
