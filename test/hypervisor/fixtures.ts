import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Definition, definitionSchema, parseWith } from '../../hypervisor/definition';
import { type HostConfig, hostConfigSchema } from '../../hypervisor/host-config';

const folders: string[] = [];

/** A folder of its own, in a short path (a socket's has 107 bytes), deleted after the tests of the file. */
export function temporaryFolder(): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'vh-')));
  folders.push(folder);
  return folder;
}

export function deleteFolders(): void {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
}

/** A host below one folder, with the root `images` and what is added. */
export function hostIn(folder: string, more: Record<string, unknown> = {}, roots: Record<string, unknown> = {}): HostConfig {
  for (const name of ['images', 'run', 'state']) mkdirSync(join(folder, name), { recursive: true });
  const config = { name: 'host-a', address: '127.0.0.1', insecure: true, stateDir: join(folder, 'state'), runDir: join(folder, 'run'), roots: { images: join(folder, 'images'), ...roots }, ...more };
  return parseWith(hostConfigSchema, config, 'the test host');
}

export function definitionOf(fields: Record<string, unknown> = {}): Definition {
  return parseWith(definitionSchema, { name: 'vm1', machine: 'pc-q35-7.2', memory: '32776K', ...fields }, 'the definition');
}
