import { execFileSync } from 'node:child_process';

/** Of the hosts; the control plane, by 127.0.0.1, is never limited. scripts/link-bench.sh gives it to the loopback device of a network namespace that this process lives in. */
export const LINK_ADDRESS = '10.77.0.1';

/** What guests travel by, in bytes a second; undefined: as fast as the two cores are. */
export const LINKS = { free: undefined, '1 Gbit/s': 125_000_000 } as const;
export type LinkName = keyof typeof LINKS;

/** Limits what goes to LINK_ADDRESS, both ways together. */
export function limitLink(name: LinkName): void {
  const tc = (command: string) => execFileSync('tc', command.split(' '), { stdio: ['ignore', 'ignore', 'pipe'] });
  if (execFileSync('tc', ['qdisc', 'show', 'dev', 'lo'], { encoding: 'utf8' }).includes('htb')) tc('qdisc delete dev lo root');
  const bytesPerSecond = LINKS[name];
  if (bytesPerSecond === undefined) return;
  tc('qdisc add dev lo root handle 1: htb default 10');
  tc('class add dev lo parent 1: classid 1:10 htb rate 100gbit burst 4mb cburst 4mb quantum 60000');
  // Packets of the loopback device have up to 64 KiB.
  tc(`class add dev lo parent 1: classid 1:20 htb rate ${bytesPerSecond * 8}bit burst 256kb cburst 256kb quantum 60000`);
  tc('qdisc add dev lo parent 1:20 handle 20: bfifo limit 4mb');
  tc(`filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst ${LINK_ADDRESS}/32 flowid 1:20`);
}
