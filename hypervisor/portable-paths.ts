import { normalize } from 'node:path';
import { type HostConfig, resolvePath, runFolder } from './host-config';

/** Devices that every host has, and that hold nothing. */
const HARMLESS = new Set(['/dev/null', '/dev/zero', '/dev/full', '/dev/random', '/dev/urandom']);

export function isHarmlessDevice(path: string): boolean {
  return HARMLESS.has(path);
}

/** `${root}/relative` of an absolute path, by the longest root that holds it; just `${root}` for a root itself. Undefined if none does. */
export function toPortable(config: HostConfig, path: string): string | undefined {
  const clean = normalize(path).replace(/(.)\/$/, '$1');
  const roots = Object.entries(config.roots).map(([name, root]) => ({ name, path: root.path }));
  return relativeToLongest(roots, clean);
}

function relativeToLongest(roots: { name: string; path: string }[], path: string): string | undefined {
  const [root] = roots.filter((one) => path === one.path || path.startsWith(one.path === '/' ? '/' : `${one.path}/`)).sort((a, b) => b.path.length - a.path.length);
  if (!root) return undefined;
  const relative = path.slice(root.path.length).replace(/^\//, '');
  return relative ? `\${${root.name}}/${relative}` : `\${${root.name}}`;
}

/** Why a guest may not use this absolute path: it, or what it links to, is in none of the host's roots and not in the guest's run folder (without a guest: in none). Undefined if it may. */
export function pathProblem(config: HostConfig, guest: string | undefined, path: string): string | undefined {
  if (HARMLESS.has(path)) return undefined;
  const roots = [...(guest === undefined ? [] : [{ name: 'run', path: runFolder(config, guest) }]), ...Object.entries(config.roots).map(([name, root]) => ({ name, path: root.path }))];
  const portable = relativeToLongest(roots, path);
  if (portable === undefined) {
    const known = Object.entries(config.roots).map(([name, root]) => `${name}=${root.path}`).join(', ') || 'none';
    return `${path} is outside the roots of host ${config.name} (${known}): move it, or add a root that holds it`;
  }
  if (!portable.includes('/')) return undefined;
  try {
    resolvePath(config, guest ?? '', portable);
  } catch (error) {
    return (error as Error).message;
  }
  return undefined;
}
