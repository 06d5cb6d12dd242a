import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import { fleetActivities, sharedAsks } from '../../activities/fleet';
import type { HostState } from '../../workflows/messages';

const HOSTS = 20;
const MOVES = 30;

/** A fleet of hosts whose entities count how often they are asked. Guest `g7` is on `h7` at first. */
function fleet() {
  const guests = new Map(Array.from({ length: HOSTS }, (_, index) => [`g${index}`, `h${index}`]));
  const asked = { queries: 0 };
  const state = (name: string) => ({ name, guests: [...guests].filter(([, host]) => host === name).map(([guest]) => ({ name: guest, state: 'running' })) }) as unknown as HostState;
  const client = {
    workflow: {
      list: async function* () {
        for (let index = 0; index < HOSTS; index++) yield await Promise.resolve({ workflowId: `host/h${index}` });
      },
      getHandle: (workflowId: string) => ({
        query: async () => {
          asked.queries++;
          return await Promise.resolve(state(workflowId.replace('host/', '')));
        },
        describe: () => Promise.reject(new WorkflowNotFoundError('none', workflowId, undefined)),
      }),
    },
  } as unknown as Client;
  return { guests, asked, ...fleetActivities(client) };
}

test('of moves that begin at the same time the first asks every host, the others only those that they are about', async () => {
  const { asked, locateGuest } = fleet();
  const found = await Promise.all(Array.from({ length: MOVES }, async (_, move) => await locateGuest({ guest: `g${move % 10}`, to: 'h15' })));
  expect(found.map(({ from }) => from)).toEqual(Array.from({ length: MOVES }, (_, move) => `h${move % 10}`));
  expect(asked.queries).toBe(HOSTS + 2 * (MOVES - 1));
});

test('a guest that came to another host a moment ago is found there', async () => {
  const { guests, locateGuest } = fleet();
  expect(await locateGuest({ guest: 'g1', to: 'h2' })).toEqual({ from: 'h1' });
  guests.set('g1', 'h2');
  expect(await locateGuest({ guest: 'g1', to: 'h3' })).toEqual({ from: 'h2' });
  await expect(locateGuest({ guest: 'g1', to: 'h2' })).rejects.toThrow('guest "g1" is on h2 already');
});

test('a guest that is nowhere is looked for everywhere, twice, and what is known is said', async () => {
  const { asked, locateGuest } = fleet();
  await expect(locateGuest({ guest: 'nobody', to: 'h2' })).rejects.toThrow('no host has a guest "nobody"');
  expect(asked.queries).toBe(3 * HOSTS);
});

test('those who come while all are asked get what was said after they came, by one ask for all of them', async () => {
  const ends: (() => void)[] = [];
  const ask = sharedAsks(async () => {
    const number = ends.length;
    await new Promise<void>((resolve) => ends.push(resolve));
    if (number === 2) throw new Error('the third fails');
    return number;
  });
  const end = async (number: number) => {
    await new Promise(setImmediate);
    ends[number]!();
  };
  const first = ask();
  const [second, third] = [ask(), ask()];
  await end(0);
  expect(await first).toBe(0);
  await end(1);
  expect([await second, await third]).toEqual([1, 1]);
  const failing = ask();
  const after = ask();
  const failed = expect(failing).rejects.toThrow('the third fails');
  await end(2);
  await failed;
  await end(3);
  expect(await after).toBe(3);
});
