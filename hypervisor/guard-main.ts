import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpMonitorBusy } from '../qmp/errors';
import { endRemedy } from './copy-mode';
import type { GuardJob } from './guard';
import { guardSource } from './handover';
import { Host } from './host';
import { takeOver } from './takeover';

/** The program of `Guard`: watches its standard input, and acts when that ends without a word. SIGTERM: somebody else goes on. */
const [jobFile, pidFile] = process.argv.slice(2) as [string, string];
const job = JSON.parse(readFileSync(jobFile, 'utf8')) as GuardJob;
const leave = new AbortController();
process.on('SIGTERM', () => leave.abort(new Error('somebody else goes on')));

async function main(): Promise<void> {
  writeFileSync(pidFile, String(process.pid), { mode: 0o600 });
  process.stdout.on('error', () => undefined).write('watching\n');
  let said = '';
  process.stdin.setEncoding('utf8').on('data', (text: string) => (said += text));
  await new Promise<void>((resolve) => {
    process.stdin.on('end', resolve).on('error', () => resolve());
    leave.signal.addEventListener('abort', () => resolve());
  });
  if (said !== '' || leave.signal.aborted) return;
  const host = new Host(job.config);
  while (!leave.signal.aborted && host.process(job.guest)) {
    try {
      await act(host);
      return;
    } catch (error) {
      // The kernel closes a dead agent's connections, and QEMU notices a moment later.
      if (!(error instanceof QmpMonitorBusy)) throw error;
      await delay(5);
    }
  }
}

async function act(host: Host): Promise<void> {
  const { guest } = job;
  switch (job.role) {
    case 'source':
      return await guardSource(host, guest, job.plan, leave.signal);
    case 'destination':
      return void (await takeOver(host, undefined, guest, job.attempt, leave.signal));
    case 'remedy':
      return await endRemedy(host, guest);
  }
}

main().then(
  () => process.exit(0),
  () => process.exit(1),
);
