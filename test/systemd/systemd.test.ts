import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, cpSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { guestArtifacts } from '../../demo/guest/artifacts';
import { hostNowMs, TestGuest } from '../../demo/guest/test-guest';
import { identify, isAlive, type ProcessIdentity } from '../../hypervisor/processes';
import { DYNAMIC_CONFIG, findTemporal } from '../../workers/temporal-server';
import { expectWhole } from '../support/expect';

const ROOT = resolve(__dirname, '../..');
jest.setTimeout(180_000);

let folder: string;
let machine: ChildProcess;
let guest: TestGuest;

/** The first process of the machine, as this one sees it. */
const systemd = () => readFileSync(`/proc/${machine.pid}/task/${machine.pid}/children`, 'utf8').trim();

/** Runs a command on the machine; its stdout. */
async function on(...command: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('nsenter', ['--target', systemd(), '--all', '--root', '--wd', '--', ...command], { env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', SYSTEMD_COLORS: '0' } }).catch((error: Error & { stderr?: string }) => {
    throw new Error(`${command.join(' ')}: ${error.stderr ?? error.message}`);
  });
  return stdout.trim();
}
const vmferry = async (...args: string[]) => await on('/opt/vmferry/bin/vmferry', ...args);

/** Tries until it does not throw. Throws what it threw last, with the machine's log. */
async function eventually(what: string, work: () => Promise<unknown>): Promise<void> {
  for (const end = Date.now() + 90_000; ; await delay(200)) {
    try {
      return void (await work());
    } catch (error) {
      if (Date.now() > end) throw new Error(`not in time: ${what}: ${(error as Error).message}\n${readFileSync(join(folder, '../log'), 'utf8').slice(-3000)}\n${await on('journalctl', '--no-pager', '-n', '30').catch(String)}`, { cause: error });
    }
  }
}

/** The guest's QEMU. */
function qemu(): ProcessIdentity {
  const pid = readdirSync('/proc').find((entry) => {
    try {
      return /^\d+$/.test(entry) && /^\/usr\/bin\/qemu-system.*\0\/run\/vmferry\/demo\//s.test(readFileSync(`/proc/${entry}/cmdline`, 'utf8'));
    } catch {
      return false;
    }
  });
  if (!pid) throw new Error('the guest has no QEMU');
  return identify(Number(pid))!;
}

beforeAll(async () => {
  const work = mkdtempSync(join(tmpdir(), 'vms-'));
  folder = join(work, 'machine');
  mkdirSync(join(folder, 'etc/systemd/system'), { recursive: true });
  mkdirSync(join(folder, 'etc/vmferry'));
  cpSync(join(ROOT, 'deploy/systemd'), join(folder, 'etc/systemd/system'), { recursive: true });
  const config = { name: 'host-a', address: '127.0.0.1', temporal: { address: '127.0.0.1:7233' }, insecure: true, stateDir: '/var/lib/vmferry', runDir: '/run/vmferry', roots: { images: '/srv/images', boot: '/srv/boot' } };
  writeFileSync(join(folder, 'etc/vmferry/agent.yaml'), JSON.stringify(config));
  writeFileSync(join(folder, 'etc/vmferry/control.env'), 'TEMPORAL_ADDRESS=127.0.0.1:7233\n');
  const log = openSync(join(work, 'log'), 'a');
  machine = spawn('unshare', ['--mount', '--pid', '--net', '--uts', '--ipc', '--cgroup', '--fork', '--kill-child', join(ROOT, 'scripts/systemd-boot.sh'), folder], { stdio: ['ignore', log, log] });
  closeSync(log);
  guest = new TestGuest();
  await eventually('systemd is up', async () => await on('systemctl', 'is-active', 'basic.target'));
});

afterAll(async () => {
  guest.close();
  machine.kill('SIGKILL');
  if (machine.exitCode === null && machine.signalCode === null) await once(machine, 'exit');
  rmSync(dirname(folder), { recursive: true, force: true });
});

test('agent and control worker come up as units, and a guest boots inside the agent\'s walls', async () => {
  await on('systemd-run', '--unit=temporal', findTemporal(), 'server', 'start-dev', '--headless', '--ip', '127.0.0.1', '--log-level', 'warn', ...DYNAMIC_CONFIG.flatMap((setting) => ['--dynamic-config-value', setting]));
  await on('mkdir', '-p', '/srv/images', '/srv/boot');
  await on('cp', ...Object.values(guestArtifacts()), '/srv/boot/');
  for (const disk of [0, 1]) await on('qemu-img', 'create', '-q', '-f', 'raw', `/srv/images/demo-${disk}.raw`, '32M');
  await on('systemctl', 'start', 'vmferry-control', 'vmferry-agent');
  await eventually('host-a is there', async () => await vmferry('host', 'show', 'host-a'));
  await vmferry('vm', 'define', '/opt/vmferry/deploy/compose/demo.yaml', '--host', 'host-a');
  await vmferry('vm', 'start', 'demo');
  await guest.attach(`/proc/${systemd()}/root/run/vmferry/demo/serial.sock`);
  await guest.ready();
});

test.each([
  ['restarted', async () => await on('systemctl', 'restart', 'vmferry-agent')],
  ['killed', async () => await on('systemctl', 'kill', '--kill-who=main', '--signal=KILL', 'vmferry-agent')],
  ['stopped, and started when its guest has ticked on', async () => {
    await on('systemctl', 'stop', 'vmferry-agent');
    for (let tick = 0; tick < 10; tick++) await guest.nextTick();
    await on('systemctl', 'start', 'vmferry-agent');
  }],
])('an agent that is %s finds its guest again, which noticed nothing', async (_what, work) => {
  const mainPid = async () => await on('systemctl', 'show', '--property=MainPID', '--value', 'vmferry-agent');
  const [before, agent, began, { sequence }] = [qemu(), await mainPid(), hostNowMs(), guest.lastTick!];
  await work();
  await eventually('another agent runs', async () => {
    if (['0', agent].includes(await mainPid())) throw new Error('not yet');
  });
  await eventually('it has reported the guest', async () => {
    if (!/\bdemo\b.*running/.test(await vmferry('vm', 'list'))) throw new Error('not yet');
  });
  await guest.nextTick();
  expect(isAlive(before)).toBe(true);
  const ticks = guest.ticksSince(began).map((tick) => tick.sequence);
  expect({ first: ticks[0], missing: ticks.filter((one, index) => index > 0 && one !== ticks[index - 1]! + 1) }).toEqual({ first: sequence + 1, missing: [] });
  console.log(`${ticks.length} ticks, the longest silence ${guest.longestGapMs(began).toFixed(0)} ms`);
});

test('and it is whole, with its QEMU in the agent\'s control group', async () => {
  await expectWhole(guest);
  expect(readFileSync(`/proc/${qemu().pid}/cgroup`, 'utf8')).toContain('/vmferry-agent.service');
});
