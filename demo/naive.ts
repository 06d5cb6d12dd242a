import { setTimeout as delay } from 'node:timers/promises';
import { formatBytes } from '../hypervisor/size';
import { QmpDisconnected } from '../qmp/errors';
import type { QmpEventQueue } from '../qmp/event-queue';
import type { BlockJobInfo } from '../qmp/structures';
import { shutdownSignal } from '../workers/shutdown';
import { freePort } from '../workers/temporal-server';
import { hostNowMs, type TestGuest, type VerifyResult } from './guest/test-guest';
import { type Fate, type NaiveQemu, NaiveStage } from './naive-stage';
import { crossingGapMs, demoDefinition, GUEST, HOSTS, type Summary } from './stage';

type Say = (text: string) => void;

const MIB = 2 ** 20;
const WRITTEN_BYTES = 64 * MIB;
/** Per disk, and so twice that in all: before the mirrors are READY, and after, when the link is slower than the guest. */
const CALM = '4M';
const BUSY = '24M';
const LINK_BYTES_PER_SECOND = 12 * MIB;
/**
 * How far the mirrors are behind when `migrate` begins. A residue of a few MiB often works by chance, and stopping the guest drains what
 * is in flight (up to 16 MiB a mirror): this leaves tens of MiB.
 */
const LAG_BYTES = 96 * MIB;

/** Every wait ends: a QEMU treated like this may hang. */
const READY_MS = 60_000;
const LAG_MS = 40_000;
const SWITCHOVER_MS = 90_000;
const ARRIVAL_MS = 45_000;
const SETTLE_MS = 20_000;
const ANSWER_MS = 5_000;
const VERIFY_MS = 60_000;

const LABEL = 'THE WRONG WAY: migrate-continue at pre-switchover, because the mirrors say "ready". None of vmferry\'s own migration code runs here.';

export interface NaiveResult {
  /** `naive-` and the worst thing that happened; `naive-nothing-lost` if nothing bad did. */
  outcome: string;
  /** The mirrors as `query-block-jobs` showed them when migrate-continue was sent. */
  mirrors: BlockJobInfo[];
  source: Fate;
  destination: Fate;
  /** Of the copy that runs, if one does and answers. */
  verified?: VerifyResult;
  /** Writes that the guest had completed when it was last asked. */
  writesCompleted: number;
  totalMs: number;
  downtimeMs: number | null;
}

/** Runs the flow of the report that began this project, and tells what it costs. The exit code is 0 only if it cost nothing this time. */
export async function runNaive(say: Say, json: boolean): Promise<number> {
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Error(`interrupted by ${signal}`)));
  const { outcome, totalMs, downtimeMs, writesCompleted, verified } = await naiveMigration(say, interrupted);
  const [from, to] = HOSTS;
  const summary: Summary = { vm: GUEST, from, to, outcome, totalMs, downtimeMs, blocksWritten: writesCompleted, blocksLost: verified?.blocksLost ?? null, workflowId: null, runId: null };
  if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  return outcome === 'naive-nothing-lost' ? 0 : 1;
}

/** The wrong flow itself, on QEMUs of its own, which are gone afterwards with all their files. Throws if it cannot even be begun, and when `interrupted` rejects. */
export async function naiveMigration(say: Say, interrupted?: Promise<never>): Promise<NaiveResult> {
  const stage = new NaiveStage({ rate: CALM }, say);
  try {
    const flow = wrongFlow(stage, say);
    return await (interrupted ? Promise.race([flow, interrupted]) : flow);
  } finally {
    await stage.close();
  }
}

async function wrongFlow(stage: NaiveStage, say: Say): Promise<NaiveResult> {
  const { guest } = stage;
  say(`\n${LABEL}\n`);
  say('Booting the guest on host-a; it writes to both its disks at random …');
  const source = await stage.start('host-a', false);
  await guest.attach(source.serial);
  await source.qmp.execute('cont');
  await guest.ready();
  while ((await written(guest)).bytes < WRITTEN_BYTES) await guest.nextTick();

  say('Starting an incoming QEMU on host-b with an NBD server in it, and a mirror of each disk to it …');
  const began = hostNowMs();
  const destination = await stage.start('host-b', true);
  await guest.attach(destination.serial);
  await destination.enable('events', 'late-block-activate');
  const nbdPort = await freePort();
  const disks = demoDefinition({}).disks.map(({ id }) => id);
  await destination.qmp.execute('nbd-server-start', { addr: { type: 'inet', data: { host: '127.0.0.1', port: String(nbdPort) } } });
  for (const id of disks) await destination.qmp.execute('block-export-add', { type: 'nbd', id: `export-${id}`, 'node-name': id, name: id, writable: true });
  const link = await stage.openLink(nbdPort);
  const ready = source.qmp.listen('BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED');
  for (const id of disks) {
    const target = `nbd-${id}`.replace('drive-', '');
    await source.qmp.execute('blockdev-add', { driver: 'nbd', 'node-name': target, server: { type: 'inet', host: '127.0.0.1', port: String(link.port) }, export: id });
    await source.qmp.execute('blockdev-mirror', { 'job-id': `mirror-${id}`, device: id, target, sync: 'full' });
  }
  for (let mirrors = 0; mirrors < disks.length; mirrors++) {
    const { event, data } = await ready.next({ timeoutMs: READY_MS });
    if (event !== 'BLOCK_JOB_READY') throw new Error(`a mirror ended before it was ready: ${JSON.stringify(data)}`);
  }

  say(`Both mirrors are "ready". Now the guest gets busier (2 × ${BUSY}B/s) than the link (${formatBytes(LINK_BYTES_PER_SECOND)}/s) …`);
  link.setRate(LINK_BYTES_PER_SECOND);
  await guest.command(`rate ${BUSY}`);
  for (const until = hostNowMs() + LAG_MS; hostNowMs() < until && behind(await source.qmp.execute('query-block-jobs')) < LAG_BYTES; ) await guest.nextTick();

  say('Migrating the memory, to pause before the switchover …');
  let { writes: writesCompleted } = await written(guest);
  await source.enable('events', 'pause-before-switchover');
  const uri = await destination.incomingUri();
  const leaving = source.qmp.listen('MIGRATION');
  const arriving = destination.qmp.listen('MIGRATION');
  await source.qmp.execute('migrate', { uri });
  const paused = await reached(leaving, ['pre-switchover', 'failed', 'cancelled'], SWITCHOVER_MS);
  if (paused !== 'pre-switchover') throw new Error(`the migration did not get to pre-switchover: ${paused}`);
  const mirrors = await source.qmp.execute('query-block-jobs');
  say('At pre-switchover the guest is paused, and query-block-jobs says:');
  for (const { device, ready, status, offset, len } of mirrors) say(`  ${device}: ready ${ready}, status ${status}, offset ${offset}, len ${len}: ${formatBytes(len - offset)} behind`);
  say('The mistake: "ready" is read as "equal". migrate-continue, now:');
  await source.qmp.execute('migrate-continue', { state: 'pre-switchover' }, { timeoutMs: ANSWER_MS }).catch((error: Error) => say(`  source: ${error.message}`));

  const arrival = await reached(arriving, ['completed', 'failed'], ARRIVAL_MS);
  say(`  The destination: ${arrival}`);
  if (arrival === 'completed') {
    say('  "completed", so the orchestrator runs the guest there (cont).');
    await destination.qmp.execute('cont', undefined, { timeoutMs: ANSWER_MS }).catch((error: Error) => say(`  destination: ${error.message}`));
    // Its writers would write over what is missing, and so hide some of it.
    await guest.command('pause', ANSWER_MS).catch((error: Error) => say(`  guest: ${error.message}`));
  } else {
    await Promise.race([destination.ended, delay(ANSWER_MS, undefined, { ref: false })]);
  }
  await mirrorsGone(source);
  const totalMs = Math.round(hostNowMs() - began);

  const fates = { source: await source.fate(), destination: await destination.fate() };
  say('\nWho is left:');
  say(`  the source's QEMU: ${describe(fates.source)}`);
  say(`  the destination's QEMU: ${describe(fates.destination)}`);
  let verified: VerifyResult | undefined;
  if (fates.source.status?.running || fates.destination.status?.running) {
    say('The guest that still runs reads every block back …');
    verified = await guest.verify(VERIFY_MS).catch((error: Error) => (say(`  ${error.message}`), undefined));
    writesCompleted = verified?.writesCompleted ?? writesCompleted;
  }
  const gap = crossingGapMs(guest.ticksSince(began));
  const downtimeMs = gap === undefined ? null : Math.round(gap);
  const result: NaiveResult = { outcome: judge(fates, verified), mirrors, ...fates, ...(verified && { verified }), writesCompleted, totalMs, downtimeMs };
  report(result, say);
  return result;
}

/** One word for it all: of two evils the one that the user's data feels. */
export function judge({ source, destination }: { source: Fate; destination: Fate }, verified: VerifyResult | undefined): string {
  if (verified && verified.blocksLost > 0) return 'naive-blocks-lost';
  if (source.exit && destination.exit) return 'naive-both-died';
  if (source.exit) return 'naive-source-died';
  if (destination.exit) return 'naive-destination-died';
  if (source.status?.running && destination.status?.running) return 'naive-two-copies';
  if (!verified) return 'naive-hung';
  return verified.memoryErrors > 0 ? 'naive-memory-damaged' : 'naive-nothing-lost';
}

function report({ outcome, mirrors, verified, writesCompleted, downtimeMs }: NaiveResult, say: Say): void {
  if (verified) {
    const { blocksLost, blocksWritten, first } = verified;
    say(blocksLost > 0 ? `  Of ${blocksWritten} blocks that it had written, ${blocksLost} are lost: the disk told it "done", and has something else.` : `  All ${blocksWritten} blocks that it had written are there.`);
    for (const bad of first.slice(0, 4)) {
      const [disk, block, expected, found] = bad.split(':');
      say(`    disk ${disk}, block ${block}: write ${expected} was completed, the disk has ${/^\d+$/.test(found!) ? `write ${found}` : found}`);
    }
    if (blocksLost > 0 && downtimeMs !== null) say(`  It noticed a pause of ${downtimeMs} ms, and nothing else: neither an error nor an event says that they are missing.`);
  } else {
    say(`  No guest runs that could be asked. It had completed ${writesCompleted} writes when it left.`);
  }
  if (outcome === 'naive-nothing-lost') say(`This time nothing was lost, though the mirrors were ${formatBytes(behind(mirrors))} behind: the fault did not show. It does so "rarely, but steadily".`);
  say(`\n${outcome}. This was ${LABEL}\nWithout --naive you see the right one.`);
}

function describe({ exit, status }: Fate): string {
  if (exit) return `dead (${exit})`;
  return status ? `alive, the guest ${status.running ? 'running' : `not running (${status.status})`}` : 'alive, but does not answer';
}

/** Bytes that the mirrors have still to copy, as far as they know. */
function behind(jobs: BlockJobInfo[]): number {
  return jobs.reduce((sum, { len, offset }) => sum + len - offset, 0);
}

async function written(guest: TestGuest): Promise<{ writes: number; bytes: number }> {
  const [, writes, bytes] = /written=(\d+) bytes=(\d+)/.exec(await guest.command('stats'))!;
  return { writes: Number(writes), bytes: Number(bytes) };
}

/** The first of these states that the migration comes to, or in words why none came. */
async function reached(events: QmpEventQueue<'MIGRATION'>, states: string[], timeoutMs: number): Promise<string> {
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    for (;;) {
      const { status } = (await events.next({ signal })).data;
      if (states.includes(status)) return status;
    }
  } catch (error) {
    if (error instanceof QmpDisconnected) return 'its QEMU is gone';
    if (signal.aborted) return `silent for ${timeoutMs / 1000} s`;
    throw error;
  } finally {
    events.close();
  }
}

/** Waits, with a limit, until the source's QEMU has ended or its mirrors have, one way or another. */
async function mirrorsGone(source: NaiveQemu): Promise<void> {
  for (const until = hostNowMs() + SETTLE_MS; hostNowMs() < until && !source.exit; ) {
    const jobs = await source.qmp.execute('query-block-jobs', undefined, { timeoutMs: ANSWER_MS }).catch(() => undefined);
    if (jobs?.length === 0) return;
    await Promise.race([source.ended, delay(100, undefined, { ref: false })]);
  }
}
