import { appendFileSync, readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs';
import { judgeGuest, judgeLeftovers } from './judge';
import { GUEST, HOSTS, type HostName, type Program, Stage } from './stage';

/**
 * Not a part of CI: scripts/soak.sh runs this. One guest moves back and forth under load. In the first half nothing is restarted: the agents must not grow.
 * In the second an agent or the control worker is ended at random moments, and nothing may be left behind, or be lost.
 */
const moves = Number(process.env['VMFERRY_SOAK_MOVES'] ?? 200);
const results = process.env['VMFERRY_SOAK_RESULTS'];
/** The first moves warm up: caches are filled, code is compiled. */
const WARM_UP = 10;
/** What an agent's memory may grow by from its level after the warm-up: a leak of 1 MB a move would be a hundred. */
const MOST_GROWTH_BYTES = 60e6;

function say(line: string): void {
  // Past Jest, which keeps what is printed until the end.
  writeSync(2, `${line}\n`);
}

interface Size {
  rssBytes: number;
  files: number;
  sockets: number;
}

function sizeOf(pid: number): Size {
  const rss = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]!;
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return '';
    }
  });
  return { rssBytes: Number(rss) * 1024, files: links.length, sockets: links.filter((link) => link.startsWith('socket:')).length };
}

test('soak', async () => {
  const stage = await Stage.open();
  const programs: Program[] = ['control', ...HOSTS];
  const problems: string[] = [];
  const sizes = () => Object.fromEntries(programs.map((program) => [program, sizeOf(stage.pidOfProgram(program))])) as Record<Program, Size>;
  let warm: Record<Program, Size> | undefined;
  let level: Record<Program, Size> | undefined;
  let restarts = 0;
  try {
    let home: HostName = 'host-a';
    for (let move = 1; move <= moves; move++) {
      const to = HOSTS.find((host) => host !== home)!;
      const migration = await stage.client.migrate({ vm: GUEST, to, sourceDisks: 'wipe', maxDowntimeMs: 1_000 });
      const victim = move > moves / 2 ? programs[Math.floor(Math.random() * programs.length)] : undefined;
      if (victim) {
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 4_000));
        await (await stage.end(victim, Math.random() < 0.5 ? 'SIGKILL' : 'SIGTERM'))();
        restarts++;
      }
      await migration.result().then(() => (home = to), (error: Error) => problems.push(`move ${move}: ${error.message}`));
      if (move % 10 === 0) {
        problems.push(...(await judgeGuest(stage)).map((problem) => `after ${move}: ${problem}`), ...(await judgeLeftovers(stage, home)).map((problem) => `after ${move}: ${problem}`));
        const now = sizes();
        if (results) appendFileSync(results, `${JSON.stringify({ at: new Date().toISOString(), move, restarts, sizes: now, problems: problems.length })}\n`);
        say(`${move} of ${moves}: ${programs.map((program) => `${program} ${(now[program].rssBytes / 1e6).toFixed(0)} MB, ${now[program].files} files, ${now[program].sockets} sockets`).join('; ')}; ${restarts} restarts, ${problems.length} problems`);
      }
      if (move === WARM_UP) warm = sizes();
      if (move === Math.floor(moves / 2)) level = sizes();
    }
    problems.push(...stage.unexpectedEnds);
    for (const program of programs) {
      const [before, after] = [warm![program], level![program]];
      if (after.rssBytes - before.rssBytes > MOST_GROWTH_BYTES) problems.push(`${program} grew from ${before.rssBytes} to ${after.rssBytes} bytes`);
      if (after.files > before.files + 5) problems.push(`${program} holds ${after.files} files, ${before.files} after the warm-up`);
    }
  } finally {
    await stage.close();
  }
  expect(problems).toEqual([]);
}, 2 ** 31 - 1);
