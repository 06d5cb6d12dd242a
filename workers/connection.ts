import { Connection, Client, type ClientInterceptors, type ConnectionOptions } from '@temporalio/client';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import { NativeConnection } from '@temporalio/worker';

export interface TemporalAddress {
  address: string;
  namespace: string;
}

/** Where Temporal is: what is given, or the standard TEMPORAL_* variables and profiles of the `temporal` command, TLS and API key included. */
export function temporalOptions(given?: TemporalAddress): { options: ConnectionOptions; namespace: string } {
  const { connectionOptions, namespace } = loadClientConnectConfig();
  return { options: { ...connectionOptions, ...(given && { address: given.address }) }, namespace: given?.namespace ?? namespace ?? 'default' };
}

/** Temporal cannot be reached; the message says where it was looked for. */
export class TemporalUnreachable extends Error {
  override readonly name = 'TemporalUnreachable';
}

async function explain<T>(address: string | undefined, connecting: Promise<T>): Promise<T> {
  return await connecting.catch((error: Error) => {
    throw new TemporalUnreachable(`no Temporal server answers at ${address ?? 'localhost:7233'} (${error.message}): start one (vmferry dev, or temporal server start-dev), or set TEMPORAL_ADDRESS`);
  });
}

export async function connectClient(given?: TemporalAddress, interceptors: ClientInterceptors = {}): Promise<{ client: Client; connection: Connection }> {
  const { options, namespace } = temporalOptions(given);
  const connection = await explain(options.address, Connection.connect({ connectTimeout: '10 seconds', ...options }));
  return { client: new Client({ connection, namespace, interceptors }), connection };
}

export async function connectWorker(given?: TemporalAddress): Promise<{ connection: NativeConnection; namespace: string }> {
  const { options, namespace } = temporalOptions(given);
  const { address, tls, apiKey } = options;
  return { connection: await explain(address, NativeConnection.connect({ ...(address && { address }), ...(tls && { tls }), ...(typeof apiKey === 'string' && { apiKey }) })), namespace };
}
