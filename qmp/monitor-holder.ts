import { execFile } from 'node:child_process';
import type { MonitorHolder } from './errors';

/** Bounds the search on a host with very many sockets; the caller has waited for a greeting already. */
const SEARCH_MS = 2_000;

/**
 * Who is connected to the socket at `path`, as far as `ss` and our rights let us see: a process of another user stays unknown unless we
 * are root. Never throws; undefined if unknown.
 */
export async function findMonitorHolder(path: string, ss = 'ss'): Promise<MonitorHolder | undefined> {
  return new Promise((resolve) => {
    try {
      execFile(ss, ['-xpH'], { timeout: SEARCH_MS, maxBuffer: 64 * 2 ** 20 }, (error, stdout) => resolve(error ? undefined : holderInSocketList(stdout, path)));
    } catch {
      resolve(undefined);
    }
  });
}

interface Socket {
  path: string;
  inode: string;
  peer: string;
  owner?: MonitorHolder;
}

/**
 * The holder according to the output of `ss -xpH`. The server's end of a connection bears the path. One that QEMU has accepted has an
 * owner, QEMU; connections that only wait, like the one that made the caller ask, have none: so the holder is the peer of the accepted one.
 */
export function holderInSocketList(list: string, path: string): MonitorHolder | undefined {
  const sockets = list.split('\n').flatMap(parseSocket);
  const accepted = sockets.find((socket) => socket.path === path && socket.owner !== undefined && socket.peer !== '0');
  return accepted && sockets.find(({ inode }) => inode === accepted.peer)?.owner;
}

/** `u_str ESTAB 0 0 <path> <inode> * <peer inode> users:(("name",pid=1,fd=2),…)` */
const SOCKET = /^\S+\s+ESTAB\s+\d+\s+\d+\s+(.*?)\s(\d+)\s+\S+\s+(\d+)(?:\s+users:\(\("(.*?)",pid=(\d+).*)?\s*$/;

function parseSocket(line: string): Socket[] {
  const [, path, inode, peer, name, pid] = SOCKET.exec(line) ?? [];
  if (path === undefined || inode === undefined || peer === undefined) return [];
  return [{ path, inode, peer, ...(name !== undefined && { owner: { name, pid: Number(pid) } }) }];
}
