/** Everything that the control worker runs. */
export { checkMove } from './check-move';
export { evacuateFleet } from './evacuate-fleet';
export { evacuateHost } from './evacuate-host';
export { finishCleanup } from './finish-cleanup';
export { host } from './host';
export { hostCommand } from './host-command';
export { migrateVm } from './migrate-vm';
export { moveCold } from './move-cold';
export { repairGuest } from './repair-guest';
