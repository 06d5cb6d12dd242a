/** What programs import: `import { MigrationClient } from 'vmferry'`. */
export { Migration, MigrationClient, type MigrationView, VmferryError } from './migration-client';
export { TemporalUnreachable, type TemporalAddress } from '../workers/connection';
export type { Steer } from '../workflows/steer';
export type { DecisionRecord, HostState, MigrateVmInput, MigrationResult, MigrationStatus } from '../workflows/messages';
export type { GuestDetails, GuestSummary } from '../activities/guests';
export type { Definition } from '../hypervisor/definition';
