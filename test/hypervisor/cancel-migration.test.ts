import { cancelMigration } from '../../hypervisor/migration';
import { QmpConnection } from '../../qmp/connection';
import { socketFolder } from '../qmp/fake-monitor';
import { type ScriptedState, scriptedQemu } from './scripted-qemu';

/**
 * QEMU 7.2's own race, which real runs met by chance: `migrate_cancel` between STOP and `pre-switchover` leaves it `cancelling`, guest paused, for
 * ever. Here a monitor is in exactly these states, and says what it is asked for.
 */
const folder = socketFolder();
afterAll(() => folder.remove());

/** A QEMU in these states, and the connection that asks it. */
async function qemu(name: string, states: ScriptedState[]) {
  const { asked, close } = await scriptedQemu(folder.path(name), states);
  const qmp = await QmpConnection.connect(folder.path(name));
  return { qmp, asked, close: async () => (qmp.close(), await close()) };
}

test('a cancel waits until a guest that is being paused has come to pre-switchover', async () => {
  const { qmp, asked, close } = await qemu('pausing', [
    { status: 'active', run: 'finish-migrate', until: 3 },
    { status: 'pre-switchover', run: 'finish-migrate', until: 'migrate_cancel' },
    { status: 'cancelled', run: 'running', until: Infinity },
  ]);
  expect(await cancelMigration(qmp, 2_000)).toBe('cancelled');
  expect(asked).toEqual(['migrate_cancel {} while pre-switchover']);
  await close();
});

test('a migration that stays cancelling with its guest paused is woken, and only in that state', async () => {
  const { qmp, asked, close } = await qemu('stuck', [
    { status: 'active', run: 'running', until: 'migrate_cancel' },
    { status: 'cancelling', run: 'finish-migrate', until: 'migrate-continue' },
    { status: 'cancelled', run: 'running', until: Infinity },
  ]);
  expect(await cancelMigration(qmp, 2_000)).toBe('cancelled');
  expect(asked).toEqual(['migrate_cancel {} while active', 'migrate-continue {"state":"cancelling"} while cancelling']);
  await close();
});

test('a cancel that comes too late says so', async () => {
  const { qmp, asked, close } = await qemu('late', [
    { status: 'completed', run: 'finish-migrate', until: 2 },
    { status: 'completed', run: 'postmigrate', until: Infinity },
  ]);
  expect(await cancelMigration(qmp, 2_000)).toBe('completed');
  expect(asked).toEqual([]);
  await close();
});
