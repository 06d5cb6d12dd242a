import { mkdirSync } from 'node:fs';
import { guardSource } from '../../hypervisor/handover';
import type { HandOverPlan } from '../../hypervisor/handover-plan';
import { Host } from '../../hypervisor/host';
import { LeaseServer } from '../../hypervisor/lease';
import { identify } from '../../hypervisor/processes';
import { machinePrograms } from '../../hypervisor/programs';
import { definitionOf, deleteFolders, hostIn, temporaryFolder } from './fixtures';
import { type ScriptedState, scriptedQemu } from './scripted-qemu';

/**
 * What a source's guard does in a post-copy try when its agent has died around `migrate-continue` (R9): moments that a real run meets by chance, as pages of a small
 * guest go in less time than it takes to look. A monitor is in exactly these states; the destination is a lease that keeps what it is told.
 */
afterAll(deleteFolders);

async function guard(states: ScriptedState[], postCopy?: true) {
  const host = new Host(hostIn(temporaryFolder()), { ...machinePrograms, ofPidFile: () => identify(process.pid) });
  mkdirSync(host.runFile('vm1', '.'), { recursive: true });
  await host.store.setDefinition(definitionOf());
  await host.store.setOwnership('vm1', { state: 'handed-over', attempt: 'a1', to: 'host-b' });
  await host.store.setAttempt('vm1', { role: 'source', attempt: 'a1', to: 'host-b', memoryTry: 1, wasRunning: true, ...(postCopy && { postCopy }) });
  const qemu = await scriptedQemu(host.runFile('vm1', 'qmp.sock'), states);
  const lease = await LeaseServer.listen(host.config);
  const told: { run: boolean; handedOver?: true }[] = [];
  lease.hold('a1', {
    from: 'host-a',
    probe: async () => undefined,
    ended: new Promise(() => undefined),
    arm: async (run, handedOver) => void told.push({ run, ...(handedOver && { handedOver }) }),
  });
  const settings = { host: '127.0.0.1', port: 1, downtimeLimitMs: 1, ...(postCopy && { postCopy }) };
  const plan: HandOverPlan = { attempt: 'a1', memoryTry: 1, to: 'host-b', targets: [], settings, lease: { host: '127.0.0.1', port: lease.port }, maxDowntimeMs: 500, memoryDeadlineMs: 10_000, memoryStallMs: 10_000 };
  try {
    await guardSource(host, 'vm1', plan, new AbortController().signal);
    return { told: told.filter(({ handedOver }) => handedOver), asked: qemu.asked, ownership: host.store.ownership('vm1') };
  } finally {
    await lease.close();
    host.close();
    await qemu.close();
  }
}

const AWAY = { state: 'handed-over', attempt: 'a1', to: 'host-b' };

test('a post-copy whose last page went before the guard looked: the destination gets the word that it waits for', async () => {
  const { told, asked, ownership } = await guard([{ status: 'completed', run: 'postmigrate', until: Infinity }], true);
  expect(told).toEqual([{ run: true, handedOver: true }]);
  expect(asked).toEqual([]);
  expect(ownership).toEqual(AWAY);
});

test('the same when the run state follows only after "completed", of which there is no further event', async () => {
  const { told } = await guard([{ status: 'completed', run: 'finish-migrate', until: 2 }, { status: 'completed', run: 'postmigrate', until: Infinity }], true);
  expect(told).toEqual([{ run: true, handedOver: true }]);
});

test('a cancel that loses to a dead agent\'s migrate-continue of a post-copy does not give the guest back: the destination may have it', async () => {
  const { told, asked, ownership } = await guard(
    [
      { status: 'pre-switchover', run: 'finish-migrate', until: 'migrate_cancel' },
      { status: 'postcopy-active', run: 'finish-migrate', until: Infinity },
    ],
    true,
  );
  expect(asked).toEqual(['migrate_cancel {} while pre-switchover']);
  expect(told).toEqual([{ run: true, handedOver: true }]);
  expect(ownership).toEqual(AWAY);
});

test('without post-copy nobody is told to run a guest: what was handed over runs by itself', async () => {
  const { told, ownership } = await guard([{ status: 'completed', run: 'postmigrate', until: Infinity }]);
  expect(told).toEqual([]);
  expect(ownership).toEqual(AWAY);
});
