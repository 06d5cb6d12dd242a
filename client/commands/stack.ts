import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { Logger } from 'pino';
import { parseYamlWith } from '../../hypervisor/definition';
import { hostConfigSchema, type HostConfig } from '../../hypervisor/host-config';
import { type RunningWorker, startControlWorker } from '../../workers/control';
import { startDevStack } from '../../workers/dev';
import { startHostAgent } from '../../workers/host-agent';
import { createLogger, installRuntime } from '../../workers/logger';
import { shutdownSignal } from '../../workers/shutdown';
import { UsageError } from '../exit-codes';
import { print, say } from '../output';
import { portOption } from '../quantities';
import { givenAddress } from '../session';

const AGENT_HELP = `
Runs beside the QEMUs of one host, as a user who may open their images and sockets. It can be stopped, killed and
upgraded at any time: guests run on. SIGTERM and Ctrl-C stop it gracefully; logs are lines of JSON on stderr
(VMFERRY_LOG=debug shows more).

A configuration names the host, the address where other hosts reach it, and the folders that it may touch:
  name: host-a
  address: 10.0.0.11
  temporal: { address: "temporal.example:7233" }
  tls: { dir: /etc/vmferry/tls }       # "vmferry certs init" makes it for a lab; or psk, or insecure: true
  stateDir: /var/lib/vmferry
  runDir: /run/vmferry
  roots:
    images: /var/lib/vmferry-images
Every field is in docs/operating.md.

Example:
  $ vmferry agent --config /etc/vmferry/agent.yaml`;

const DEV_HELP = `
Needs QEMU, qemu-utils and the temporal program (scripts/setup.sh installs them). Everything is kept below the folder:
guests that are defined are there again the next time. Each host has an images folder FOLDER/HOST/images, which
definitions call \${images}. Guests outlive it: stop them first if they should not.

Examples:
  $ vmferry dev
  $ vmferry dev --folder /tmp/lab --hosts a,b,c --root boot=/boot
  $ vmferry dev --port 7300 --ui-port 8300 --address ::1`;

interface DevFlags {
  folder: string;
  hosts: string[];
  port: number;
  uiPort: number;
  address: string;
  root: Record<string, string>;
}

export function registerStackCommands(program: Command): void {
  program
    .command('dev')
    .description('run everything on this machine until Ctrl-C: Temporal with its UI, the control worker, agents')
    .option('--folder <folder>', 'where everything is kept', join(homedir(), '.vmferry'))
    .option('--hosts <names>', 'the hosts, separated by commas', hostsOption, ['host-a', 'host-b'])
    .option('--port <port>', "Temporal's port", portOption, 7233)
    .option('--ui-port <port>', "the port of Temporal's UI", portOption, 8233)
    .option('--address <address>', 'the address that the hosts share, 127.0.0.1 or ::1', '127.0.0.1')
    .option('--root <name=path>', 'a further folder that definitions may name; can be repeated', rootOption, {})
    .addHelpText('after', DEV_HELP)
    .action(runDev);
  program
    .command('control')
    .description('run a control worker: it runs the workflows, and any number may run')
    .addHelpText('after', '\nHolds no state and touches no guest. SIGTERM and Ctrl-C stop it gracefully; logs are lines of JSON on stderr.\n\nExample:\n  $ vmferry --temporal-address temporal.example:7233 control')
    .action(async (_options: unknown, command: Command) => {
      const logger = workerLogger();
      const temporal = givenAddress(command);
      await untilStopped(logger, await startControlWorker({ logger, ...(temporal && { temporal }) }));
    });
  program
    .command('agent')
    .description('run the agent of one host')
    .requiredOption('--config <file>', 'its configuration, YAML')
    .addHelpText('after', AGENT_HELP)
    .action(async ({ config: file }: { config: string }, command: Command) => {
      const config = readConfig(file);
      const temporal = givenAddress(command);
      const logger = workerLogger();
      await untilStopped(logger, await startHostAgent(temporal ? { ...config, temporal } : config, logger));
    });
}

async function runDev({ folder, hosts, port, uiPort, address, root }: DevFlags): Promise<void> {
  for (const [option, wanted] of [['--port', port], ['--ui-port', uiPort]] as const) await assertFree(option, wanted);
  const logger = createLogger({ pretty: true });
  installRuntime(logger);
  // Before anything is started: a Ctrl-C meanwhile ends it all the same.
  const stopped = shutdownSignal();
  const stack = await startDevStack({ folder: resolve(folder), hosts, port, uiPort, address, roots: root, logger });
  try {
    const other = port === 7233 ? '' : ` --temporal-address ${stack.server.address}`;
    print(
      [
        `Temporal UI: ${stack.server.uiUrl}`,
        `Temporal:    ${stack.server.address}`,
        ...Object.values(stack.configs).map((config) => `${config.name}: images are in ${config.roots['images']!.path}`),
        `Go on in another terminal:  vmferry${other} host list;  vmferry${other} vm define --help`,
        'Ready. Ctrl-C ends it; guests run on.',
      ].join('\n'),
    );
    await Promise.race([stopped, stack.done]);
    say('Stopping …');
  } finally {
    await stack.stop();
  }
}

function workerLogger(): Logger {
  const logger = createLogger({ pretty: false });
  installRuntime(logger);
  return logger;
}

/** Until a signal asks it to stop, or it fails. */
async function untilStopped(logger: Logger, worker: RunningWorker): Promise<void> {
  try {
    const signal = await Promise.race([shutdownSignal(), worker.done]);
    logger.info({ signal }, 'stopping');
  } finally {
    await worker.stop();
    logger.info('stopped');
  }
}

/** Read here and not where it is used, so that an unreadable file is said in one line. */
function readConfig(file: string): HostConfig {
  let text;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new Error(`the configuration cannot be read (--config): ${(error as Error).message}`, { cause: error });
  }
  return parseYamlWith(hostConfigSchema, text, file);
}

function hostsOption(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  const wrong = names.find((name) => !hostConfigSchema.shape.name.safeParse(name).success);
  if (wrong !== undefined) throw new InvalidArgumentError(`"${wrong}" is no host name: give lower-case letters, digits, "." or "-", such as host-a,host-b.`);
  if (new Set(names).size < names.length) throw new InvalidArgumentError('Give each host its own name.');
  return names;
}

function rootOption(text: string, before: Record<string, string>): Record<string, string> {
  const [, name, path] = /^([a-z][a-z0-9-]*)=(.+)$/.exec(text) ?? [];
  if (!name || !path) throw new InvalidArgumentError('Give name=/path, such as boot=/boot; the name has lower-case letters, digits or "-".');
  if (['run', 'name', 'images'].includes(name)) throw new InvalidArgumentError(`The name "${name}" is taken.`);
  return { ...before, [name]: resolve(path) };
}

/** Another Temporal server on the port would answer in place of ours. */
async function assertFree(option: string, port: number): Promise<void> {
  const server = createServer();
  await new Promise<void>((done, reject) => server.once('error', reject).listen(port, '127.0.0.1', done)).catch((error: NodeJS.ErrnoException) => {
    throw new UsageError(`${option} ${port} cannot be used (${error.code === 'EADDRINUSE' ? 'something listens there already' : error.message}): end that, or give another port`);
  });
  await new Promise((done) => server.close(done));
}
