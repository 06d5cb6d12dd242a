import { readFileSync, writeFileSync } from 'node:fs';
import type { GuardJob } from './guard';
import { finishWindow } from './guard-work';
import { Host } from './host';

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
  await finishWindow(new Host(job.config), job, leave.signal);
}

main().then(
  () => process.exit(0),
  () => process.exit(1),
);
