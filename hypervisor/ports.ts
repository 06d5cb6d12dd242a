import { QmpCommandFailed } from '../qmp/errors';
import { GuestStateError } from './host';
import type { HostConfig } from './host-config';

/**
 * Every port of a range once, from a random one on, so that agents with the same range seldom try the same port. The bind itself is
 * the proof that a port is free: asking first would leave a gap for somebody else.
 */
export function portsInOrder({ from, to }: { from: number; to: number }): number[] {
  const count = to - from + 1;
  const start = Math.floor(Math.random() * count);
  return Array.from({ length: count }, (_, index) => from + ((start + index) % count));
}

export function isAddressInUse(error: unknown): boolean {
  return (error instanceof QmpCommandFailed && /Address already in use/.test(error.desc)) || (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
}

export function noFreePort({ name, address, ports }: HostConfig): GuestStateError {
  return new GuestStateError(`host ${name} has no free port between ${ports.from} and ${ports.to} on ${address}: widen ports in its configuration`);
}
