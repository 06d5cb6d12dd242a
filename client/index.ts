/** What programs import: `import { MigrationClient } from 'vmferry'`. */
export { type Leftover, Migration, MigrationClient, type MigrationView, Repair } from './migration-client';
export { Evacuation, FleetClient, FleetEvacuation } from './fleet-client';
export { type ScheduleDetails, type ScheduleRequest, Schedules, type ScheduleSummary } from './schedules';
export type { Recorded, Report } from './report/report';
export { VmferryError } from './errors';
export { TemporalUnreachable, type TemporalAddress } from '../workers/connection';
export type { Steer } from '../workflows/steer';
export type { EvacuateFleetInput, EvacuateHostInput, EvacuationLimits, EvacuationReport, EvacuationStatus, FleetEvacuationStatus, Moved, PlannedMove, Signed, Stay } from '../workflows/evacuation';
export type { Slots } from '../workflows/fleet';
export type { DecisionRecord, Fence, HostState, HostWait, MigrateVmInput, MigrationResult, MigrationStatus, MoveColdInput, RepairResult, RepairStatus } from '../workflows/messages';
export type { GuestDetails, GuestSummary } from '../activities/guests';
export type { Definition } from '../hypervisor/definition';
