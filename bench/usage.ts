import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const CLOCK_TICKS = 100;
const PAGE_BYTES = 4096;

/** CPU seconds of a process, with those of its children that have ended (guards, tools), and its resident bytes. */
export function usage(pid: number): { cpuSeconds: number; rssBytes: number } {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  return { cpuSeconds: [11, 12, 13, 14].reduce((ticks, index) => ticks + Number(fields[index]), 0) / CLOCK_TICKS, rssBytes: Number(fields[21]) * PAGE_BYTES };
}

/** What a dev server counts of the requests to its frontend, by operation. It serves its metrics on a port of its own choice, which is looked for. Throws if it has none. */
export async function requests(serverPid: number): Promise<Map<string, number>> {
  for (const port of listening(serverPid)) {
    const text = await fetch(`http://127.0.0.1:${port}/metrics`).then((answer) => answer.text(), () => '');
    const lines = text.split('\n').filter((line) => line.startsWith('service_requests{') && line.includes('service_name="frontend"') && line.includes('namespace="default"'));
    if (lines.length === 0) continue;
    const counts = new Map<string, number>();
    for (const line of lines) {
      const operation = /operation="([^"]+)"/.exec(line)![1]!;
      counts.set(operation, (counts.get(operation) ?? 0) + Number(line.slice(line.lastIndexOf(' ') + 1)));
    }
    return counts;
  }
  throw new Error('the Temporal server serves no metrics of its frontend: nothing counts its requests');
}

function listening(pid: number): number[] {
  const lines = execFileSync('ss', ['-ltnpH'], { encoding: 'utf8' }).split('\n').filter((line) => line.includes(`pid=${pid},`));
  return lines.map((line) => Number(/:(\d+)$/.exec(line.trim().split(/\s+/)[3]!)![1]));
}
