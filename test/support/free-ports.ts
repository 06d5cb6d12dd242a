import { randomInt } from 'node:crypto';
import { type AddressInfo, createServer, type Server } from 'node:net';

/**
 * Below the ports that the kernel gives to connections: a server that is killed comes back on its own. And no greater than PostgreSQL's `smallint`, in which
 * Temporal's table of its members keeps a port: with a greater one the server ends at start.
 */
const PORTS = { from: 20_000, to: 32_767 } as const;

/** Different ports that nobody listens on now. Throws if there are none. */
export async function freePorts(count: number, host = '127.0.0.1'): Promise<number[]> {
  const held: Server[] = [];
  try {
    for (let tries = 0; held.length < count; tries++) {
      if (tries > 1_000) throw new Error(`no free ports on ${host} between ${PORTS.from} and ${PORTS.to}`);
      const server = createServer();
      const free = await new Promise<boolean>((resolve) => {
        server.once('error', () => resolve(false));
        server.listen(randomInt(PORTS.from, PORTS.to + 1), host, () => resolve(true));
      });
      if (free) held.push(server);
    }
    return held.map((server) => (server.address() as AddressInfo).port);
  } finally {
    for (const server of held) await new Promise((resolve) => server.close(resolve));
  }
}
