/** Everything that the control worker runs. */
export { finishCleanup } from './finish-cleanup';
export { host } from './host';
export { hostCommand } from './host-command';
export { migrateVm } from './migrate-vm';
export { repairGuest } from './repair-guest';
