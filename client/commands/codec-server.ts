import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import type { Command } from 'commander';
import { startCodecServer } from '../../workers/codec-server';
import { KEY_FILE_VARIABLE, PayloadEncryption, readKeys } from '../../workers/payload-codec';
import { shutdownSignal } from '../../workers/shutdown';
import { UsageError } from '../exit-codes';
import { Output } from '../output';
import { collectOption, portOption } from '../quantities';

const HELP = `
Shows encrypted payloads in plain text to Temporal's UI and to the temporal command. Whoever can ask it reads everything
that is in Temporal: it listens on this machine alone, and answers browsers only on the pages that are named. On another
address it needs a token. In the UI: the glasses at the top right, "Codec Server", the address below.

Examples:
  $ ${KEY_FILE_VARIABLE}=/etc/vmferry/payload.keys vmferry codec-server
  $ ${KEY_FILE_VARIABLE}=/etc/vmferry/payload.keys vmferry codec-server --ui-origin https://temporal.example
  $ temporal workflow show --workflow-id migrate/web --codec-endpoint http://127.0.0.1:8234`;

interface Flags {
  port: number;
  listen: string;
  uiOrigin?: string[];
  tokenFile?: string;
}

export function registerCodecServer(program: Command): void {
  program
    .command('codec-server')
    .description(`decrypt payloads for Temporal's UI, with the keys of ${KEY_FILE_VARIABLE}`)
    .option('--port <port>', 'where it listens', portOption, 8234)
    .option('--listen <address>', 'the address where it listens', '127.0.0.1')
    .option('--ui-origin <origin>', 'a UI that may ask; can be repeated (default: http://localhost:8233, http://127.0.0.1:8233)', collectOption)
    .option('--token-file <file>', 'a file whose text who asks must send: "Authorization: Bearer TEXT"')
    .addHelpText('after', HELP)
    .action(async ({ port, listen, uiOrigin = ['http://localhost:8233', 'http://127.0.0.1:8233'], tokenFile }: Flags, command: Command) => {
      const keyFile = process.env[KEY_FILE_VARIABLE];
      if (!keyFile) throw new UsageError(`${KEY_FILE_VARIABLE} is not set: name the file with the payload keys`);
      if (isIP(listen) === 0) throw new UsageError(`--listen "${listen}" is no IP address`);
      const local = listen === '::1' || listen.startsWith('127.');
      if (!local && tokenFile === undefined) throw new UsageError(`whoever reaches ${listen} could read everything: give a --token-file, or listen on 127.0.0.1`);
      const server = await startCodecServer({ codec: new PayloadEncryption(readKeys(keyFile)), port, address: listen, origins: uiOrigin, ...(tokenFile !== undefined && { token: readToken(tokenFile) }) }).catch((error: NodeJS.ErrnoException) => {
        throw error.code === 'EADDRINUSE' ? new UsageError(`--port ${port} cannot be used: something listens there already`) : error;
      });
      const out = Output.of(command);
      out.say(`Codec server: ${server.url}`);
      await shutdownSignal();
      await server.close();
      out.result({ outcome: 'stopped' }, undefined);
    });
}

function readToken(file: string): string {
  let text: string;
  try {
    if ((statSync(file).mode & 0o077) !== 0) throw new Error('others may read it: chmod 600');
    text = readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new UsageError(`--token-file ${file} cannot be used: ${(error as Error).message}`);
  }
  if (text.length < 16) throw new UsageError(`--token-file ${file}: give at least 16 characters`);
  return text;
}
