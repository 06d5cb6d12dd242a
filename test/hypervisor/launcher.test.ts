import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { launchedPrograms } from '../../hypervisor/launched';
import { identify, processExit, ProcessFailed, processOfPidFile, terminate } from '../../hypervisor/processes';

/** The program as `npm run build` makes it: it runs alone in a container. */
const LAUNCHER = join(__dirname, '../../dist/hypervisor/launcher-main.js');

let folder: string;
let launcher: ChildProcess;
const socket = () => join(folder, 'launcher.sock');
const log = () => join(folder, 'log');
const parentOf = (pid: number) => Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'vml-'));
  launcher = spawn(process.execPath, [LAUNCHER, socket()], { stdio: ['ignore', 'ignore', 'pipe'] });
  await once(launcher.stderr!, 'data');
});

afterEach(async () => {
  if (launcher.exitCode === null && launcher.signalCode === null) {
    launcher.kill('SIGTERM');
    await once(launcher, 'exit');
  }
  rmSync(folder, { recursive: true, force: true });
});

/** Starts a program that writes its pid and stays; resolves with that pid. */
async function startSleeper(): Promise<number> {
  const pidFile = join(folder, 'pid');
  const ready = async (signal: AbortSignal) => {
    while (!existsSync(pidFile) || readFileSync(pidFile, 'utf8') === '') await delay(5, undefined, { signal });
  };
  await launchedPrograms(socket()).start('/bin/sh', ['-c', `echo begun; umask; echo $$ > ${pidFile}; exec sleep 600`], log(), ready);
  return Number(readFileSync(pidFile, 'utf8'));
}

test('a program is the launcher\'s child, with its output in its log, and only its user reaches the launcher', async () => {
  const pid = await startSleeper();
  expect(parentOf(pid)).toBe(launcher.pid);
  expect(readFileSync(log(), 'utf8')).toMatch(/^begun\n0177\n$/);
  expect(statSync(socket()).mode & 0o777).toBe(0o600);
  await terminate(identify(pid)!, 0);
});

test('a program that ends at start fails with what it printed, one that cannot be started with why', async () => {
  const never = (signal: AbortSignal) => new Promise<void>((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('over'))));
  const programs = launchedPrograms(socket());
  await expect(programs.start('/bin/sh', ['-c', 'echo no such machine; exit 3'], log(), never)).rejects.toThrow(new ProcessFailed('/bin/sh ended at start with exit code 3: no such machine'));
  await expect(programs.start('/nowhere', [], log(), never)).rejects.toThrow(/^\/nowhere cannot be started \(spawn \/nowhere ENOENT\)/);
});

test('a program that never gets ready is ended', async () => {
  let pid = 0;
  const ready = async () => {
    while (!/^\d+$/m.test(readFileSync(log(), 'utf8'))) await delay(5);
    pid = Number(readFileSync(log(), 'utf8'));
    throw new Error('its monitor does not answer');
  };
  await expect(launchedPrograms(socket()).start('/bin/sh', ['-c', 'echo $$; exec sleep 600'], log(), ready)).rejects.toThrow('its monitor does not answer');
  expect(identify(pid)).toBeUndefined();
});

test('without a launcher it is said which setting to look at', async () => {
  await expect(launchedPrograms(join(folder, 'none.sock')).start('/bin/true', [], log(), async () => undefined)).rejects.toThrow(/no launcher listens on .*none\.sock .* correct launcher in the host's configuration/);
});

test('a request that the launcher refuses is answered, and harms nobody', async () => {
  const bad = launchedPrograms(socket()).start('relative', [], log(), async () => await delay(60_000, undefined, { ref: false }));
  await expect(bad).rejects.toThrow(/relative cannot be started \(the launcher says: /);
  const pid = await startSleeper();
  await terminate(identify(pid)!, 0);
});

test('a guard is the launcher\'s child, watches its agent by the connection, and is this release\'s own program', async () => {
  const [jobFile, pidFile] = [join(folder, 'guard.json'), join(folder, 'guard.pid')];
  const config = { name: 'a', address: '127.0.0.1', insecure: true, stateDir: folder, runDir: folder, roots: {}, ports: { from: 50000, to: 50010 } };
  writeFileSync(jobFile, JSON.stringify({ config, guest: 'none', startedAt: '', role: 'remedy' }));
  for (const last of ['over\n', undefined]) {
    const pipe = await launchedPrograms(socket()).startGuard(jobFile, pidFile);
    const guard = processOfPidFile(pidFile)!;
    expect(parentOf(guard.pid)).toBe(launcher.pid);
    expect(readFileSync(`/proc/${guard.pid}/cmdline`, 'utf8')).toContain(`/proc/${process.pid}/root/`);
    pipe.end(last);
    await processExit(guard, AbortSignal.timeout(10_000));
  }
});

test('a guard that cannot start says so', async () => {
  await expect(launchedPrograms(socket()).startGuard(join(folder, 'no-job.json'), join(folder, 'guard.pid'))).rejects.toThrow(/the guard that was told .*no-job\.json ended at start/);
});

test('programs outlive a launcher that is killed, and are asked to end by one that is switched off', async () => {
  const pid = await startSleeper();
  launcher.kill('SIGKILL');
  await once(launcher, 'exit');
  expect(identify(pid)).toBeDefined();
  await terminate(identify(pid)!, 0);
  launcher = spawn(process.execPath, [LAUNCHER, socket()], { stdio: ['ignore', 'ignore', 'pipe'] });
  await once(launcher.stderr!, 'data');
  rmSync(join(folder, 'pid'));
  const second = identify(await startSleeper())!;
  launcher.kill('SIGTERM');
  await Promise.all([once(launcher, 'exit'), processExit(second, AbortSignal.timeout(10_000))]);
});
