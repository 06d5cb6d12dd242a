import { parseArgs } from 'node:util';
import { VmferryError } from '../client/migration-client';
import { MigrationDisplay } from '../client/migration-display';
import { formatBytes } from '../hypervisor/size';
import { installRuntime, createLogger } from '../workers/logger';
import { shutdownSignal } from '../workers/shutdown';
import { hostNowMs } from './guest/test-guest';
import { runNaive } from './naive';
import { crossingGapMs, GUEST, Stage, type Summary } from './stage';

const HELP = `npm run demo -- [--keep] [--json] [--naive] [--verbose]

Moves a running guest, which writes to both its disks all the while, between two hosts on this machine, and lets it check every block.
  --keep     leave the stack and the guest running afterwards, to look at them; Ctrl-C ends them
  --json     one JSON object as the last line of stdout; everything else goes to stderr
  --naive    the WRONG way, as in the report that began this project: shows what migrate-continue with dirty mirrors costs
  --verbose  every step's log line`;

const say = (text: string) => process.stderr.write(`${text}\n`);

async function demo({ keep, json, verbose }: { keep: boolean; json: boolean; verbose: boolean }): Promise<number> {
  const logger = createLogger({ pretty: true, level: verbose ? 'info' : 'error' });
  installRuntime(logger);
  const interrupted = shutdownSignal();
  say('Starting a Temporal server, the control worker and two host agents …');
  const stage = await Stage.open(logger);
  try {
    say(`Temporal UI: ${stage.stack.server.uiUrl}`);
    say('Booting a guest on host-a whose two disks are written at random …');
    const work = run(stage);
    const summary = await Promise.race([work, interrupted.then((signal) => Promise.reject(new Error(`interrupted by ${signal}`)))]);
    if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
    if (keep) {
      say(`\nStill running below ${stage.folder}: Temporal at ${stage.stack.server.address}. Ctrl-C ends it.`);
      await interrupted;
    }
    return summary.outcome === 'completed' && summary.blocksLost === 0 ? 0 : 1;
  } finally {
    await stage.close();
  }
}

async function run(stage: Stage): Promise<Summary> {
  await stage.boot({ diskMiB: 128, rate: '8M', writtenBytes: 64 * 2 ** 20 });
  const { guest, client } = stage;
  const began = hostNowMs();
  const migration = await client.migrate({ vm: GUEST, to: 'host-b', sourceDisks: 'wipe' });
  say(`Migrating it to host-b: ${workflowUrl(stage, migration)}`);
  const attached = guest.attach(stage.serialSocket('host-b')).catch(() => undefined);
  const display = new MigrationDisplay(process.stderr);
  for await (const view of migration.watch()) display.show(view);
  display.end();
  const summary: Summary = { vm: GUEST, from: 'host-a', to: 'host-b', outcome: 'failed', totalMs: 0, downtimeMs: null, blocksWritten: 0, blocksLost: null, workflowId: migration.workflowId, runId: migration.runId };
  try {
    const result = await migration.result();
    await attached;
    summary.outcome = result.outcome;
    summary.totalMs = result.totalMs;
    if (result.window) {
      const { source, destination } = result.window;
      const part = (name: string, from: number, to: number) => `${name} ${(to - from).toFixed(0)} ms`;
      say(
        `QEMU's own account of the pause: ${[
          part('stop → pre-switchover', source.stopped, source.preSwitchover),
          part('disks drained', source.preSwitchover, source.drained),
          part('mirrors ended', source.drained, source.mirrorsEnded),
          part('last look', source.mirrorsEnded, source.continued),
          part('rest of memory', source.continued, destination.completed),
          part('images released', destination.completed, destination.released),
          part('resume', destination.released, destination.resumed),
        ].join(', ')}`,
      );
    }
  } catch (error) {
    summary.outcome = error instanceof VmferryError ? error.type : 'failed';
    say((error as Error).message);
  }
  say('The guest reads every block back …');
  const verified = await guest.verify();
  const gap = crossingGapMs(guest.ticksSince(began));
  summary.downtimeMs = gap === undefined ? null : Math.round(gap);
  summary.blocksWritten = verified.writesCompleted;
  summary.blocksLost = verified.blocksLost;
  say(`${summary.outcome}: ${verified.writesCompleted} blocks written, ${verified.blocksLost} lost; ${verified.memoryErrors} bad pages of memory; two copies seen: ${guest.duplicateTicks > 0 ? guest.duplicateEvidence.join('; ') : 'never'}`);
  say(`Guest on host-b after ${(summary.totalMs / 1000).toFixed(1)} s; it noticed a pause of ${summary.downtimeMs ?? '?'} ms. Disks: 2 × ${formatBytes(128 * 2 ** 20)}.`);
  say(`History: ${workflowUrl(stage, migration)}`);
  return summary;
}

function workflowUrl(stage: Stage, { workflowId, runId }: { workflowId: string; runId: string }): string {
  return `${stage.stack.server.uiUrl}/namespaces/default/workflows/${encodeURIComponent(workflowId)}/${runId}/history`;
}

async function main(): Promise<number> {
  let values;
  try {
    ({ values } = parseArgs({ options: { keep: { type: 'boolean', default: false }, json: { type: 'boolean', default: false }, naive: { type: 'boolean', default: false }, verbose: { type: 'boolean', default: false }, help: { type: 'boolean', default: false } } }));
  } catch (error) {
    say(`${(error as Error).message}\n\n${HELP}`);
    return 2;
  }
  if (values.help) {
    say(HELP);
    return 0;
  }
  return values.naive ? await runNaive(say, values.json) : await demo(values);
}

main().then(
  (code) => process.exit(code),
  (error: Error) => {
    say(`The demo failed: ${error.message}`);
    process.exit(1);
  },
);
