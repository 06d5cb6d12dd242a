import { readFileSync } from 'node:fs';

/** What the kernel says of a process's privileges (proc(5)). */
export function confinement(pid: number): { seccomp: string; noNewPrivileges: boolean; capabilities: bigint; uids: number[] } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name: string) => new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status)![1]!;
  return {
    seccomp: { 0: 'none', 1: 'strict', 2: 'filter' }[field('Seccomp')] ?? 'unknown',
    noNewPrivileges: field('NoNewPrivs') === '1',
    capabilities: BigInt(`0x${field('CapEff')}`),
    uids: [...new Set(field('Uid').split(/\s+/).map(Number))],
  };
}
