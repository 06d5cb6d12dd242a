import { cancelMigration } from '../../hypervisor/migration';
import { QmpConnection } from '../../qmp/connection';
import { FakeMonitor, socketFolder } from '../qmp/fake-monitor';

/**
 * QEMU 7.2's own race, which real runs met by chance: `migrate_cancel` between STOP and `pre-switchover` leaves it `cancelling`, guest paused, for
 * ever. Here a monitor is in exactly these states, and says what it is asked for.
 */
const folder = socketFolder();
afterAll(() => folder.remove());

/** Answers as a QEMU whose migration goes through these states; `next` says which command, or how many looks, lead on. */
async function qemu(name: string, states: { status: string; run: string; until: string | number }[]) {
  const monitor = await FakeMonitor.listen(folder.path(name));
  const connecting = QmpConnection.connect(monitor.path);
  const client = await monitor.clients.next();
  const asked: string[] = [];
  let looks = 0;
  void (async () => {
    for (;;) {
      const request = await client.requests.next();
      const [state] = states;
      if (request.execute === 'query-migrate') client.reply(request, { status: state!.status });
      else if (request.execute === 'query-status') {
        client.reply(request, { status: state!.run, running: state!.run === 'running' });
        if (++looks === state!.until) [looks] = [0, states.shift()];
      } else {
        asked.push(`${request.execute} ${JSON.stringify(request.arguments ?? {})} while ${state!.status}`);
        if (request.execute === state!.until) states.shift();
        client.reply(request, {});
      }
    }
  })();
  const qmp = await connecting;
  return { qmp, asked, close: () => (qmp.close(), monitor.close()) };
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
