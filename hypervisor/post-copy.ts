import { setTimeout as delay } from 'node:timers/promises';
import type { QmpConnection } from '../qmp/connection';
import { QmpCommandFailed, QmpDisconnected, QmpTimeout } from '../qmp/errors';
import type { Host } from './host';
import type { Lease } from './lease';
import { emulatorPath } from './launch';
import { migrationState, migrationUri, POST_COPY } from './migration';
import { isAddressInUse, noFreePort, portsInOrder } from './ports';

/** A guest that was in two hosts, of which one, or the link between them, failed: as a running one it is lost. */
export class PostCopyLost extends Error {
  override readonly name = 'PostCopyLost';
}

/** How long a QEMU that is asked whether it can do post-copy may take. */
const PROBE_MS = 20_000;
const ANSWER_MS = 2_000;
/** No page takes so long over a link that works. */
const HANG_MS = 20_000;
/** How long a post-copy that was resumed may take to go on. */
const RESUME_MS = 3_000;
const LOOK_MS = 50;

/** By how much the memory that remains must exceed what QEMU itself would take for little enough to end without post-copy. */
const SURELY = 8;

/**
 * Whether a guest that QEMU has paused in a try with `migrate-start-postcopy` will really be handed over by post-copy. QEMU ends as a pre-copy when what
 * remains can be sent within `downtime-limit`, 1 ms here, and does not say which it does before `migrate-continue`.
 */
export function switchesToPostCopy(remainingBytes: number, megabitsPerSecond: number): boolean {
  const sentInOneMsBytes = (megabitsPerSecond * 1e6) / 8 / 1000;
  return remainingBytes > SURELY * sentInOneMsBytes;
}

/** Why this host cannot receive a guest by post-copy, in QEMU's words (it needs userfaultfd); undefined if it can. Asks a QEMU that has no guest. */
export async function postCopyRefusal(host: Host, emulator: string): Promise<string | undefined> {
  const { runAs } = host.config;
  const capabilities = Object.entries(POST_COPY).filter(([, state]) => state).map(([capability, state]) => ({ capability, state }));
  const asked = [{ execute: 'qmp_capabilities' }, { execute: 'migrate-set-capabilities', arguments: { capabilities }, id: 'asked' }, { execute: 'quit' }].map((command) => `${JSON.stringify(command)}\n`).join('');
  const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-S', '-incoming', 'defer', '-qmp', 'stdio', ...(runAs ? ['-runas', runAs] : [])];
  const { stdout: said, stderr: printed } = await host.programs.converse(emulatorPath(host, emulator), args, asked, PROBE_MS);
  const answer = said.split('\n').filter((line) => line.includes('"asked"')).map((line) => JSON.parse(line) as { error?: { desc: string } })[0];
  if (!answer) return `its QEMU does not answer: ${printed.trim()}`;
  return answer.error && `${answer.error.desc} (${printed.trim() || 'userfaultfd is needed'})`;
}

/** What the destination of a post-copy knows: all pages have come, the connection is broken, or its QEMU has ended. */
export type PagesState = 'completed' | 'broken' | 'gone';

/** Waits until the last page of a guest that runs here has come, or cannot come any more by itself. */
export async function awaitPages(host: Host, guest: string, signal: AbortSignal): Promise<PagesState> {
  if (!host.process(guest)) return 'gone';
  const qmp = await host.monitor(guest).connection({ signal });
  const events = qmp.listen('MIGRATION');
  try {
    const asked = new AbortController();
    // A main loop that waits for a page answers when it comes; meanwhile an event may say that it will not.
    const answer = qmp.execute('query-migrate', undefined, { timeoutMs: HANG_MS, signal }).then((one) => one.status, unlessTimeout);
    const next = async (first: AbortSignal) => (await events.next({ signal: AbortSignal.any([signal, first]) })).data.status;
    const told = next(asked.signal);
    told.catch(() => undefined);
    const ended = qmp.closed.then(() => 'ended');
    const first: string | undefined = await Promise.race([answer, told, ended]);
    asked.abort();
    // An event that came with the answer is newer than it.
    let status = await told.catch(() => first);
    for (;;) {
      if (status === 'ended') return 'gone';
      if (status === undefined || status === 'postcopy-paused') return 'broken';
      if (status === 'completed') return 'completed';
      status = await Promise.race([next(signal), ended]);
    }
  } finally {
    events.close();
  }
}

function unlessTimeout(error: unknown): string | undefined {
  if (error instanceof QmpDisconnected) return 'ended';
  if (!(error instanceof QmpTimeout)) throw error;
  return undefined;
}

/** Lets the destination listen for the rest of the pages; says where. Out of band, since its main loop may wait for one of them. */
export async function listenForPages(host: Host, guest: string): Promise<{ host: string; port: number }> {
  const qmp = await host.monitor(guest).connection();
  // One end may have seen the connection break and the other not.
  await qmp.executeOob('migrate-pause', {}, { timeoutMs: ANSWER_MS }).catch(refusedIs);
  for (const port of portsInOrder(host.config.ports)) {
    try {
      await qmp.executeOob('migrate-recover', { uri: migrationUri(host.config.address, port) }, { timeoutMs: ANSWER_MS });
      return { host: host.config.address, port };
    } catch (error) {
      if (!isAddressInUse(error)) throw error;
    }
  }
  throw noFreePort(host.config);
}

/**
 * The next event of a source that sends pages. A link that carries nothing is no event: a post-copy that stands still for `stallMs`, or whose destination has ended by
 * the word of its agent, is cut, so that it can be mended. `over`: QEMU does not take that (7.2 waits for ever for the end of a return path whose destination died
 * with every page sent). Rejects when `leave` is aborted: pages may go for hours, and QEMU sends them by itself.
 */
export async function nextWhilePagesGo<Event extends object>(qmp: QmpConnection, events: { next(options: { signal: AbortSignal; timeoutMs: number }): Promise<Event> }, { stallMs, leave, lease }: { stallMs: number; leave: AbortSignal; lease: Lease | undefined }): Promise<Event | 'over'> {
  const over = new AbortController();
  const gone = lease?.gone(over.signal).catch(() => undefined);
  try {
    for (let [sent, cut] = [-1, false]; ; ) {
      const waiting = new AbortController();
      const next = events.next({ signal: AbortSignal.any([leave, waiting.signal]), timeoutMs: cut ? RESUME_MS : stallMs }).catch((error: unknown) => {
        if (!(error instanceof QmpTimeout)) throw error;
        return 'still' as const;
      });
      const said = await Promise.race([next, ...(gone && !cut ? [gone] : [])]);
      waiting.abort();
      // An event may have come with the word.
      const first = said === 'gone' ? await next.catch(() => said) : said;
      if (typeof first === 'object') return first;
      const { ram } = await qmp.execute('query-migrate');
      if (cut) return 'over';
      if (first === 'gone' || ram?.transferred === sent) {
        await qmp.executeOob('migrate-pause').catch(() => undefined);
        cut = true;
      }
      sent = ram?.transferred ?? -1;
    }
  } finally {
    over.abort();
  }
}

/** Lets the source go on sending pages; says whether it does. Nothing happens if all were sent, or it is under way. */
export async function resumePages(qmp: QmpConnection, host: string, port: number): Promise<'completed' | 'under-way' | 'broken'> {
  // One end may have seen the connection break and the other not.
  await qmp.executeOob('migrate-pause').catch(refusedIs);
  const until = performance.now() + RESUME_MS;
  let asked = false;
  for (;;) {
    const [state, { status }] = await Promise.all([migrationState(qmp), qmp.execute('query-migrate')]);
    if (state === 'completed') return 'completed';
    // Not while the two are still agreeing on what is missing.
    if (status === 'postcopy-active' && asked) return 'under-way';
    if (status === 'postcopy-paused' && !asked) {
      await qmp.execute('migrate', { uri: migrationUri(host, port), resume: true });
      asked = true;
    }
    if (performance.now() > until) return 'broken';
    await delay(LOOK_MS);
  }
}

function refusedIs(error: unknown): void {
  // "postcopy-pause is currently only supported during postcopy-active state": it is paused already.
  if (!(error instanceof QmpCommandFailed)) throw error;
}

