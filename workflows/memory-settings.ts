import type { MigrationSettings } from '../hypervisor/migration';
import type { MigrationRequest } from './messages';

/** A migration's memory settings by QEMU's names. */
export interface QemuMemorySettings {
  capabilities: Record<string, boolean>;
  parameters: Record<string, number>;
}

/** What a request asks of QEMU's memory migration. With `auto`, auto-converge is on: it slows the guest only when QEMU sees no progress. */
export function qemuMemorySettings({ memory, onDivergence }: Pick<MigrationRequest, 'memory' | 'onDivergence'>): QemuMemorySettings {
  const wanted: [string, boolean | undefined][] = [['auto-converge', memory.autoConverge ?? (onDivergence === 'auto' ? true : undefined)], ['xbzrle', memory.xbzrle], ['zero-blocks', memory.zeroBlocks], ['compress', memory.compress]];
  const numbers: [string, number | undefined][] = [['cpu-throttle-initial', memory.cpuThrottleInitial], ['cpu-throttle-increment', memory.cpuThrottleIncrement]];
  return {
    capabilities: Object.fromEntries(wanted.filter((one): one is [string, boolean] => one[1] !== undefined)),
    parameters: Object.fromEntries(numbers.filter((one): one is [string, number] => one[1] !== undefined)),
  };
}

/** The same for a try that switches to post-copy: QEMU refuses `compress` with it. Both ends need the capability. */
export function postCopySettings({ capabilities, parameters }: QemuMemorySettings): QemuMemorySettings & Pick<MigrationSettings, 'postCopy'> {
  return { capabilities: { ...capabilities, compress: false, 'postcopy-ram': true }, parameters, postCopy: true };
}

/** The settings that this QEMU does not have: each is ignored, and said. */
export function ignoredSettings({ capabilities, parameters }: QemuMemorySettings, features: string[]): string[] {
  return [...Object.keys(capabilities).filter((name) => capabilities[name]), ...Object.keys(parameters)].filter((name) => !features.includes(name)).map((name) => `the source's QEMU has no migration setting "${name}": it is ignored`);
}
