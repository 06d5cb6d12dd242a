import { createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import type { Host } from '../host';
import { type Finding, ok, problem, warning } from './findings';

export interface AddressFacts {
  address: string;
  /** Those of this machine. */
  mine: string[];
}

export async function lookAtAddress({ host }: { host: Host }): Promise<AddressFacts> {
  return { address: host.config.address, mine: Object.values(networkInterfaces()).flatMap((addresses) => (addresses ?? []).map(({ address }) => address)) };
}

export function judgeAddress({ address, mine }: AddressFacts): Finding[] {
  const others = mine.filter((one) => !isLoopback(one) && !one.startsWith('fe80:'));
  const give = `address: ${others[0] ?? 'an address of this machine that other hosts reach'}`;
  if (['0.0.0.0', '::'].includes(address)) return [problem(`address ${address} is no address that another host could connect to`, give)];
  // All of 127.0.0.0/8 is the machine's, though only one of it is listed.
  if (!mine.includes(address) && !address.startsWith('127.')) return [problem(`address ${address} is none of this machine's (it has ${mine.join(', ') || 'none'})`, give)];
  if (isLoopback(address)) return [warning(`address ${address} is reached from this machine only`, `${give}, unless all hosts are on this machine`)];
  return [ok(`${address} is an address of this machine`)];
}

const isLoopback = (address: string) => address.startsWith('127.') || address === '::1';

export interface PortFacts {
  address: string;
  from: number;
  to: number;
  /** Those that cannot be bound, and why: `EADDRINUSE`. */
  taken: { port: number; code: string }[];
  /** Guests that may arrive at once. */
  incoming: number;
}

/** How many are tried at once. */
const AT_ONCE = 64;

export async function lookAtPorts({ host }: { host: Host }, signal: AbortSignal): Promise<PortFacts> {
  const { address, ports: { from, to }, slots } = host.config;
  const taken: PortFacts['taken'] = [];
  for (let first = from; first <= to && !signal.aborted; first += AT_ONCE) {
    const ports = Array.from({ length: Math.min(AT_ONCE, to - first + 1) }, (_, index) => first + index);
    const codes = await Promise.all(ports.map((port) => bindFailure(address, port)));
    codes.forEach((code, index) => code !== undefined && taken.push({ port: ports[index]!, code }));
  }
  return { address, from, to, taken, incoming: slots.incoming };
}

/** Why nobody could listen there now; undefined if somebody could. */
async function bindFailure(address: string, port: number): Promise<string | undefined> {
  const server = createServer();
  return await new Promise((resolve) => {
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen(port, address, () => server.close(() => resolve(undefined)));
  });
}

export function judgePorts({ address, from, to, taken, incoming }: PortFacts): Finding[] {
  const [all, free] = [to - from + 1, to - from + 1 - taken.length];
  // Disks and memory of each guest that arrives, and the lease.
  const needed = 1 + 2 * incoming;
  const range = `ports ${from} to ${to} on ${address}`;
  if (all > 0 && taken.length === all && taken.every(({ code }) => code === 'EADDRNOTAVAIL')) return [problem(`none of ${range} can be listened on: that address is not this machine's`, 'correct address in the configuration')];
  const who = `ss -ltnp 'sport >= :${from} and sport <= :${to}' says who has them; widen ports in the configuration, such as ports: { from: ${from}, to: ${Math.min(65_535, to + 256)} }`;
  const saw = `${free} of ${all} ${range} are free${taken.length > 0 ? ` (not ${taken.slice(0, 5).map(({ port, code }) => `${port}: ${code}`).join(', ')}${taken.length > 5 ? ' …' : ''})` : ''}`;
  if (free < 2) return [problem(`${saw}; each guest that arrives needs 2`, who)];
  if (free < needed) return [warning(`${saw}; ${incoming} guests that arrive at once need ${needed}`, who)];
  return [ok(saw)];
}
