import type { Command } from 'commander';
import { MigrationClient } from './migration-client';
import { type TemporalAddress, temporalOptions } from '../workers/connection';

/** What every command gets besides its own arguments. */
export interface GlobalOptions {
  temporalAddress?: string;
  namespace?: string;
}

/** Where Temporal is, by the global options of the command line; undefined leaves it to the environment. */
export function givenAddress(command: Command): TemporalAddress | undefined {
  return addressOf(command.optsWithGlobals<GlobalOptions>());
}

export function addressOf({ temporalAddress, namespace }: GlobalOptions): TemporalAddress | undefined {
  if (temporalAddress === undefined && namespace === undefined) return undefined;
  const environment = temporalOptions();
  return { address: temporalAddress ?? environment.options.address ?? 'localhost:7233', namespace: namespace ?? environment.namespace };
}

/** Connects, works, and closes whatever happens. */
export async function withClient<T>(command: Command, work: (client: MigrationClient) => Promise<T>): Promise<T> {
  const client = await MigrationClient.connect(givenAddress(command));
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}
