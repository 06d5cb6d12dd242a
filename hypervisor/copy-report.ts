import type { KeptImages, Ownership } from './guest-store';
import { guardJob } from './guard';
import type { Host } from './host';
import { migrationState, type OutgoingState } from './migration';
import { ourObjects } from './credentials';
import { OURS } from './ours';
import { storageDaemonProcess } from './storage-daemon';

/** What one host has of a guest, as `repair` sees it. Plain JSON. */
export interface CopyReport {
  defined: boolean;
  ownership?: Ownership;
  /** The attempt on record; `peer` is the other host. */
  attempt?: { role: 'source' | 'destination'; attempt: string; peer: string };
  /** Absent: no QEMU of the guest runs here. */
  qemu?: QemuReport;
  /** A storage daemon that receives its disks runs. */
  storageDaemon: boolean;
  /** A guard watches a switchover, or was told to. */
  guard: boolean;
  kept: Omit<KeptImages, 'guest'>[];
}

export type QemuReport =
  | { answers: false; problem: string }
  | {
      answers: true;
      /** QEMU's run state; `running` says whether the vCPUs run. */
      runState: string;
      running: boolean;
      /** Its outgoing migration. */
      outgoing: OutgoingState;
      /** Jobs, nodes and limits in it that only a migration makes. */
      ours: string[];
    };

/** A monitor that does not answer by then counts as silent. */
const ANSWER_MS = 5_000;

/** Looks at what this host has of a guest. Changes nothing. */
export async function inspectCopy(host: Host, guest: string): Promise<CopyReport> {
  const { store } = host;
  const ownership = store.ownership(guest);
  const attempt = store.attempt(guest);
  return {
    defined: store.definition(guest) !== undefined,
    ...(ownership && { ownership }),
    ...(attempt && { attempt: { role: attempt.role, attempt: attempt.attempt, peer: attempt.role === 'source' ? attempt.to : attempt.from } }),
    ...(host.process(guest) && { qemu: await inspectQemu(host, guest) }),
    storageDaemon: storageDaemonProcess(host, guest) !== undefined,
    guard: guardJob(host, guest) !== undefined,
    kept: store.kept().filter((kept) => kept.guest === guest).map(({ attempt: by, paths, until }) => ({ attempt: by, paths, until })),
  };
}

async function inspectQemu(host: Host, guest: string): Promise<QemuReport> {
  try {
    const qmp = await host.monitor(guest).connection({ signal: AbortSignal.timeout(ANSWER_MS) });
    const limit = { timeoutMs: ANSWER_MS };
    const [{ status, running }, jobs, nodes, blocks, objects] = await Promise.all([
      qmp.execute('query-status', undefined, limit),
      qmp.execute('query-jobs', undefined, limit),
      qmp.execute('query-named-block-nodes', { flat: true }, limit),
      qmp.execute('query-block', undefined, limit),
      ourObjects(qmp),
    ]);
    const names = [...jobs.map(({ id }) => id), ...nodes.map((node) => node['node-name'] ?? ''), ...objects].filter((name) => name.startsWith(OURS));
    const throttled = blocks.some(({ inserted }) => inserted?.group === 'vmferry');
    return { answers: true, runState: status, running, outgoing: await migrationState(qmp), ours: [...names, ...(throttled ? ['throttle'] : [])].sort() };
  } catch (error) {
    return { answers: false, problem: (error as Error).message };
  }
}
