import { Connection, Client, type ConnectionOptions } from '@temporalio/client';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import { NativeConnection } from '@temporalio/worker';
import { payloadConverter } from './payload-codec';
import { isUnauthenticated, tlsTrouble } from './temporal-trouble';

export interface TemporalAddress {
  address: string;
  namespace: string;
}

/** Where Temporal is: what is given, or the standard TEMPORAL_* variables and profiles of the `temporal` command, TLS and API key included. */
export function temporalOptions(given?: TemporalAddress): { options: ConnectionOptions; namespace: string } {
  const { connectionOptions, namespace } = readEnvironment();
  return { options: { ...connectionOptions, ...(given && { address: given.address }) }, namespace: given?.namespace ?? namespace ?? 'default' };
}

function readEnvironment(): ReturnType<typeof loadClientConnectConfig> {
  try {
    return loadClientConnectConfig();
  } catch (error) {
    throw new TemporalUnreachable(`where Temporal is cannot be read from the TEMPORAL_* variables and profiles: ${(error as Error).message.split('\n')[0]}`);
  }
}

/** Temporal cannot be reached; the message says where it was looked for. */
export class TemporalUnreachable extends Error {
  override readonly name = 'TemporalUnreachable';
}

/** Throws `TemporalUnreachable` with what to correct. */
async function connected<T>(options: ConnectionOptions, connect: () => Promise<T>): Promise<T> {
  const trouble = await tlsTrouble(options);
  if (trouble) throw new TemporalUnreachable(trouble);
  return await connect().catch((error: Error) => {
    const address = options.address ?? 'localhost:7233';
    if (isUnauthenticated(error)) throw new TemporalUnreachable(`the Temporal server at ${address} does not let us in (${error.message}): correct the API key (TEMPORAL_API_KEY)${options.tls ? '' : ', or the certificate (TEMPORAL_TLS_CLIENT_CERT_PATH)'}`);
    throw new TemporalUnreachable(`no Temporal server answers at ${address} (${error.message}): start one (vmferry dev, or temporal server start-dev), or set TEMPORAL_ADDRESS${options.tls ? '' : '; one that speaks TLS needs TEMPORAL_TLS=true or a profile'}`);
  });
}

/** Throws `TemporalUnreachable`, and `InvalidDefinition` for payload keys that cannot be used. */
export async function connectClient(given?: TemporalAddress): Promise<{ client: Client; connection: Connection }> {
  const { options, namespace } = temporalOptions(given);
  const dataConverter = payloadConverter();
  const connection = await connected(options, () => Connection.connect({ connectTimeout: '10 seconds', ...options }));
  return { client: new Client({ connection, namespace, ...(dataConverter && { dataConverter }) }), connection };
}

export async function connectWorker(given?: TemporalAddress): Promise<{ connection: NativeConnection; namespace: string }> {
  const { options, namespace } = temporalOptions(given);
  const { address, tls, apiKey, metadata } = options;
  return { connection: await connected(options, () => NativeConnection.connect({ ...(address && { address }), ...(tls && { tls }), ...(typeof apiKey === 'string' && { apiKey }), ...(metadata && { metadata }) })), namespace };
}
