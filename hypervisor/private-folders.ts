import { statSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { InvalidDefinition } from './definition';
import type { HostConfig } from './host-config';

const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

/**
 * Makes the folders of state and run files, for this user alone. Throws `InvalidDefinition` if somebody else may write there: who owns which guest
 * would be his to say. Gives what is wrong with the roots: whoever may write there can put a link in an image's place between a look and a use.
 */
export async function makePrivateFolders(config: HostConfig): Promise<string[]> {
  for (const field of ['stateDir', 'runDir'] as const) {
    await mkdir(config[field], { recursive: true, mode: 0o700 });
    const problem = writableByOthers(config[field]);
    if (problem) throw new InvalidDefinition(`${field}: ${config[field]} ${problem}: let it belong to the agent's user alone (chown, chmod 700)`);
  }
  return Object.entries(config.roots).flatMap(([name, { path }]) => {
    const problem = writableByOthers(path, 'is fine');
    return problem ? [`root ${name}: ${path} ${problem}, who may change images while they are used: let only the agent's user write there`] : [];
  });
}

/** In a sticky folder others cannot replace what is there, but they can be first to make it. */
function writableByOthers(path: string, sticky: 'is fine' | 'is not' = 'is not'): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) return undefined;
  const us = process.getuid?.();
  if (stat.uid !== us && stat.uid !== 0) return `belongs to user ${stat.uid}`;
  if ((stat.mode & OTHERS_WRITE) !== 0 && !(sticky === 'is fine' && (stat.mode & STICKY) !== 0)) return `may be written by others (mode ${(stat.mode & 0o7777).toString(8)})`;
  return undefined;
}
