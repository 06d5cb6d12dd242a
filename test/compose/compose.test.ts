import { setTimeout as delay } from 'node:timers/promises';
import { MigrationClient } from '../../client/migration-client';
import { hostNowMs, TestGuest } from '../../demo/guest/test-guest';
import { isAlive } from '../../hypervisor/processes';
import { expectWhole } from '../support/expect';
import { type ComposeHost, ComposeStack, qemus } from './stack';

/** A few seconds of copying, in which something can be restarted. */
const BANDWIDTH = '12MB/s';
jest.setTimeout(600_000);

let stack: ComposeStack;
let guest: TestGuest;

/** The guest's console on a host: now, or as soon as it is there. */
async function attach(host: ComposeHost): Promise<void> {
  await guest.attach(await stack.file(host, 'run', 'demo', 'serial.sock'));
}

/** Does something to containers, and says how long the guest was silent meanwhile. Throws if its QEMU is not the same one afterwards. */
async function unnoticed(what: string, work: () => Promise<unknown>): Promise<void> {
  const before = qemus();
  const [began, { sequence }] = [hostNowMs(), guest.lastTick!];
  await work();
  await guest.nextTick();
  expect({ what, left: before.filter((one) => !isAlive(one)) }).toEqual({ what, left: [] });
  const ticks = guest.ticksSince(began).map((tick) => tick.sequence);
  expect({ what, first: ticks[0], missing: ticks.filter((one, index) => index > 0 && one !== ticks[index - 1]! + 1) }).toEqual({ what, first: sequence + 1, missing: [] });
  console.log(`${what}: ${ticks.length} ticks, the longest silence ${guest.longestGapMs(began).toFixed(0)} ms`);
}

async function move(to: ComposeHost, meanwhile: () => Promise<void> = async () => undefined): Promise<void> {
  const moving = stack.cli('migrate', 'demo', '--to', to, '--bandwidth', BANDWIDTH, '--max-downtime', '2s', '--source-disks', 'wipe');
  moving.catch(() => undefined);
  const attached = attach(to);
  attached.catch(() => undefined);
  // A move that is refused is not waited for.
  await Promise.race([meanwhile(), moving.then(() => undefined)]);
  await moving;
  await attached;
}

describe.each(['dev', 'cluster'] as const)('docker compose --profile %s', (profile) => {
  beforeAll(async () => {
    stack = new ComposeStack(profile);
    guest = new TestGuest();
  });

  afterAll(async () => {
    guest.close();
    await stack.down();
  });

  test('up brings everything up and well, with a guest on host-a', async () => {
    await stack.up();
    const health = await stack.health();
    expect(Object.entries(health).filter(([service, state]) => state !== 'healthy' && !['temporal-server', 'temporal-ui'].includes(service))).toEqual([]);
    expect(Object.keys(health)).toEqual(expect.arrayContaining(['control', 'agent-a', 'agent-b', 'hypervisor-a', 'hypervisor-b']));
    await attach('host-a');
    await guest.ready();
    expect((await fetch('http://127.0.0.1:8233/')).status).toBe(200);
  });

  test('an agent\'s container that is restarted, killed or replaced is not noticed by its guest', async () => {
    await unnoticed('restart', async () => await stack.compose('restart', 'agent-a'));
    await unnoticed('kill', async () => {
      await stack.compose('kill', 'agent-a');
      await stack.compose('up', '--detach', '--no-build', '--no-deps', 'agent-a');
    });
    await unnoticed('replace', async () => await stack.compose('up', '--detach', '--no-build', '--no-deps', '--force-recreate', 'agent-a'));
  });

  test('a guest is moved while the agents of both hosts are restarted, and loses no block', async () => {
    const client = await MigrationClient.connect({ address: '127.0.0.1:7233', namespace: 'default' });
    try {
      await move('host-b', async () => {
        let migration = await client.migration('demo').catch(() => undefined);
        for (; !migration; await delay(100)) migration = await client.migration('demo').catch(() => undefined);
        for await (const view of migration.watch()) if (view.phase === 'converge') break;
        await unnoticed('restart of both agents while disks are copied', async () => await stack.compose('restart', 'agent-a', 'agent-b'));
      });
    } finally {
      await client.close();
    }
    await expectWhole(guest);
    const shown = JSON.parse(await stack.cli('vm', 'show', 'demo', '--json')) as { host: string; state: string };
    expect(shown).toMatchObject({ host: 'host-b', state: 'running' });
  });

  test('it moves back the same way', async () => {
    await move('host-a');
    await expectWhole(guest);
  });

  test('down leaves nothing', async () => {
    await stack.down();
    expect(await stack.left()).toEqual([]);
  });
});
