/** What programs import: `import { MigrationClient } from 'vmferry'`. */
export { type Leftover, Migration, MigrationClient, type MigrationView, Repair, VmferryError } from './migration-client';
export { TemporalUnreachable, type TemporalAddress } from '../workers/connection';
export type { Steer } from '../workflows/steer';
export type { DecisionRecord, Fence, HostState, HostWait, MigrateVmInput, MigrationResult, MigrationStatus, RepairResult, RepairStatus } from '../workflows/messages';
export type { GuestDetails, GuestSummary } from '../activities/guests';
export type { Definition } from '../hypervisor/definition';
