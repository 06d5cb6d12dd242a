import { readFile } from 'node:fs/promises';
import { InvalidDefinition, parseWith, parseYamlWith } from '../../hypervisor/definition';
import { type Check, check, type Finding, ok, problem, type Reported, runChecks } from '../../hypervisor/doctor/findings';
import { HOST_CHECKS } from '../../hypervisor/doctor/host-checks';
import { Host } from '../../hypervisor/host';
import { type HostConfig, hostConfigSchema } from '../../hypervisor/host-config';
import { type TemporalAddress, temporalOptions } from '../../workers/connection';
import { convergencePolicySchema } from '../../workflows/messages';
import { MigrationClient } from '../migration-client';
import { TEMPORAL_CHECKS, type TemporalContext } from './temporal-checks';

/** The oldest that vmferry is tried with. */
const NODE_MAJOR = 20;

const MACHINE_CHECKS: readonly Check<object>[] = [check('node', `Node.js is version ${NODE_MAJOR} or newer`, 1_000, async () => process.versions.node, judgeNode)];

export function judgeNode(version: string): Finding[] {
  if (Number(version.split('.')[0]) < NODE_MAJOR) return [problem(`Node.js is version ${version}`, `install Node.js ${NODE_MAJOR} or newer`)];
  return [ok(`Node.js ${version}`)];
}

interface ConfigurationContext {
  file: string;
}

interface ConfigurationFacts {
  file: string;
  config?: HostConfig;
  /** What is wrong, a line a field. */
  wrong: string[];
}

const CONFIGURATION_CHECKS: readonly Check<ConfigurationContext>[] = [check('configuration', 'the file of `--config` can be read, and every field of it is valid; if not, none of the following is checked', 5_000, readConfiguration, judgeConfiguration)];

async function readConfiguration({ file }: ConfigurationContext): Promise<ConfigurationFacts> {
  try {
    const config = parseYamlWith(hostConfigSchema, await readFile(file, 'utf8'), file);
    parseWith(convergencePolicySchema.partial(), config.migration, 'migration');
    return { file, config, wrong: [] };
  } catch (error) {
    const [first, ...fields] = (error as Error).message.split('\n').map((line) => line.trim());
    return { file, wrong: error instanceof InvalidDefinition && fields.length > 0 ? fields : [first!] };
  }
}

export function judgeConfiguration({ file, config, wrong }: ConfigurationFacts): Finding[] {
  if (!config) return wrong.map((line) => problem(`${file}: ${line}`, 'correct it; docs/operating.md has every field of an agent\'s configuration'));
  return [ok(`${file} is the configuration of host ${config.name}`)];
}

/** Every check, in the order in which they are reported: for the documents. */
export const ALL_CHECKS: readonly Pick<Check<never>, 'name' | 'about'>[] = [...MACHINE_CHECKS, ...TEMPORAL_CHECKS, ...CONFIGURATION_CHECKS, ...HOST_CHECKS];

/**
 * Checks this machine, and with `file` the hypervisor that it configures. Changes nothing, and always comes to an end. `given` is where Temporal is, by
 * the command line; without it the configuration says, or the environment.
 */
export async function examine({ file, given }: { file?: string; given?: TemporalAddress }): Promise<Reported[]> {
  const configuration = file === undefined ? undefined : await readConfiguration({ file });
  const config = configuration?.config;
  const temporal = contextOf(given ?? config?.temporal);
  const host = config && new Host(config);
  try {
    const found = await Promise.all([
      runChecks(MACHINE_CHECKS, {}),
      runChecks(TEMPORAL_CHECKS, temporal),
      file === undefined ? [] : runChecks(CONFIGURATION_CHECKS, { file }),
      host ? runChecks(HOST_CHECKS, { host }) : [],
    ]);
    return found.flat();
  } finally {
    host?.close();
    await temporal.client.then((client) => client?.close());
  }
}

function contextOf(given: TemporalAddress | undefined): TemporalContext {
  const { options, namespace } = temporalOptions(given);
  const connecting = MigrationClient.connect(given).then((client) => ({ client }), (error: Error) => ({ failure: (error.cause as Error | undefined)?.message ?? error.message }));
  return {
    address: options.address ?? 'localhost:7233',
    namespace,
    client: connecting.then((one) => ('client' in one ? one.client : undefined)),
    failure: connecting.then((one) => ('failure' in one ? one.failure : undefined)),
  };
}
