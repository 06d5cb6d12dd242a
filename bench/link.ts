import { execFileSync } from 'node:child_process';

/** Of the hosts; the control plane, by 127.0.0.1, is never limited. scripts/link-bench.sh gives it to the loopback device of a network namespace that this process lives in. */
export const LINK_ADDRESS = '10.77.0.1';

/** What guests travel by. Without a rate it is as fast as the two cores are. */
export const LINKS = {
  free: {},
  /** The receiver acknowledges at once: nothing waits for a delayed ACK, as an NBD server of QEMU 7.2 else does. */
  'free, quick ACKs': { quickAck: true },
  '1 Gbit/s': { bytesPerSecond: 125_000_000 },
} satisfies Record<string, { bytesPerSecond?: number; quickAck?: true }>;
export type LinkName = keyof typeof LINKS;

/** Makes this the link: limits what goes to LINK_ADDRESS, both ways together. */
export function useLink(name: LinkName): void {
  const run = (command: string) => {
    const [program, ...args] = command.split(' ');
    return execFileSync(program!, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  };
  const { bytesPerSecond, quickAck }: { bytesPerSecond?: number; quickAck?: true } = LINKS[name];
  run(`ip route replace local ${LINK_ADDRESS} dev lo table local proto kernel scope host src ${LINK_ADDRESS} quickack ${quickAck ? 1 : 0}`);
  if (run('tc qdisc show dev lo').includes('htb')) run('tc qdisc delete dev lo root');
  if (bytesPerSecond === undefined) return;
  run('tc qdisc add dev lo root handle 1: htb default 10');
  run('tc class add dev lo parent 1: classid 1:10 htb rate 100gbit burst 4mb cburst 4mb quantum 60000');
  // Packets of the loopback device have up to 64 KiB.
  run(`tc class add dev lo parent 1: classid 1:20 htb rate ${bytesPerSecond * 8}bit burst 256kb cburst 256kb quantum 60000`);
  run('tc qdisc add dev lo parent 1:20 handle 20: bfifo limit 4mb');
  run(`tc filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst ${LINK_ADDRESS}/32 flowid 1:20`);
}
