import { setTimeout as delay } from 'node:timers/promises';
import { findBlock } from '../../hypervisor/blocks';
import { beginMigration, cancelMigration, listenForMigration, migrationState } from '../../hypervisor/migration';
import { ensureMirrors, finishMirrors, mirrorNames, mirrorStates, type MirrorTarget } from '../../hypervisor/mirrors';
import { QmpConnection } from '../../qmp/connection';
import { Stage, DISK_BYTES, type Kind } from './stage';

/** The same script on a real QEMU 7.2 and on a simulated one: what our code sees, replies, errors and the order of events, is the same. */
const ATTEMPT = 'conform0';
const { job, node, filter } = mirrorNames(ATTEMPT, 0);

async function transcript(kind: Kind, script: (stage: Stage) => Promise<void>): Promise<string[]> {
  const stage = new Stage(kind);
  try {
    await script(stage);
    return stage.transcript;
  } finally {
    await stage.close();
  }
}

function sameOnBoth(name: string, script: (stage: Stage) => Promise<void>): void {
  test(name, async () => {
    const real = await transcript('real', script);
    const simulated = await transcript('simulated', script);
    expect(simulated).toEqual(real);
    expect(real.length).toBeGreaterThan(5);
  });
}

const targets = ({ exports }: Stage): MirrorTarget[] => [{ id: 'disk0', device: 'disk0', sizeBytes: DISK_BYTES, host: exports.host, port: exports.port, exportName: exports.names['disk0']! }];
const nbd = ({ exports }: Stage, more: object = {}) => ({ driver: 'nbd', 'node-name': node, server: { type: 'inet', host: exports.host, port: String(exports.port) }, export: exports.names['disk0']!, 'open-timeout': 1, 'reconnect-delay': 0, ...more });
const mirror = { 'job-id': job, device: 'disk0', target: node, sync: 'full', 'filter-node-name': filter, 'auto-dismiss': false, 'on-target-error': 'report' };
const look = async (stage: Stage) => stage.note(JSON.stringify(await mirrorStates(stage.qmp('source'), targets(stage), ATTEMPT)));
const write = async (stage: Stage, bytes: string) => await stage.say('source', 'human-monitor-command', { 'command-line': `qemu-io -d disk0-device "write 0 ${bytes}"` }, false);

async function mirrored(stage: Stage): Promise<void> {
  await stage.start('source');
  await stage.export();
  await stage.say('source', 'cont');
  await stage.until('source', 'RESUME');
  await ensureMirrors(stage.qmp('source'), targets(stage), ATTEMPT, { sync: 'full', copyMode: 'background', channel: undefined });
  await stage.until('source', 'BLOCK_JOB_READY');
}

/** The same with a job that an error ends. */
async function mirroredToTheEnd(stage: Stage): Promise<void> {
  await stage.start('source');
  await stage.export();
  await stage.say('source', 'cont');
  await stage.say('source', 'blockdev-add', nbd(stage));
  await stage.say('source', 'blockdev-mirror', mirror);
  await stage.until('source', 'BLOCK_JOB_READY');
}

async function atPreSwitchover(stage: Stage, port: number): Promise<void> {
  await stage.start('destination');
  await listenForMigration(stage.qmp('destination'), '127.0.0.1', port, undefined);
  await beginMigration(stage.qmp('source'), { host: '127.0.0.1', port, downtimeLimitMs: 100 }, undefined);
  await stage.until('source', 'MIGRATION', { status: 'pre-switchover' });
  stage.note(await migrationState(stage.qmp('source')));
  await stage.say('source', 'query-status');
}

/** Below the ephemeral ports and above those of hosts' configurations: only bookkeeping on one side, and bound on the other. */
const port = () => 21_000 + Math.floor(Math.random() * 9_000);

sameOnBoth('greeting, negotiation, one client at a time, unknown commands and arguments, and the machine that our code reads', async (stage) => {
  await stage.start('source');
  const { greeting, path, oob } = stage.qmp('source');
  stage.note(JSON.stringify([greeting.version.qemu, greeting.capabilities, oob]));
  stage.note(await QmpConnection.connect(path, { timeoutMs: 200 }).then(() => 'a second client', (error: Error) => error.name));
  for (const [command, args] of [['nonsense'], ['qmp_capabilities'], ['query-status', { x: 1 }], ['blockdev-del'], ['query-status'], ['query-migrate'], ['query-version'], ['query-migrate-capabilities'], ['query-migrate-parameters'], ['query-yank'], ['query-jobs'], ['query-block-jobs'], ['query-block'], ['query-block-exports'], ['qom-get', { path: '/machine', property: 'type' }]] as [string, object?][]) await stage.say('source', command, args);
  stage.note(JSON.stringify(await stage.qmp('source').executeOob('query-yank')));
  stage.note(JSON.stringify(findBlock(await stage.qmp('source').execute('query-block'), { id: 'disk0' })).replace(/"[^"]*images/, '"'));
  await stage.say('source', 'cont');
  await stage.until('source', 'RESUME');
  for (const command of ['cont', 'stop', 'stop', 'query-status', 'cont', 'migrate_cancel']) await stage.say('source', command);
  await stage.quiet('source');
  await stage.say('source', 'migrate-incoming', { uri: 'tcp:127.0.0.1:21999' });
  await stage.say('source', 'migrate-continue', { state: 'pre-switchover' });
  await stage.say('source', 'migrate-set-capabilities', { capabilities: [{ capability: 'nonsense', state: true }] });
  await stage.say('source', 'migrate-set-parameters', { 'downtime-limit': 3_000_000 });
});

sameOnBoth('a mirror to ready, writes after that with an offset that lags, a graceful and a forced cancel, and what is refused on the way', async (stage) => {
  await stage.start('source');
  await stage.export();
  await stage.say('source', 'cont');
  await stage.until('source', 'RESUME');
  await stage.say('source', 'blockdev-add', nbd(stage, { export: 'nonsense', 'open-timeout': 0 }));
  await stage.say('source', 'blockdev-add', nbd(stage, { server: { type: 'inet', host: '127.0.0.1', port: '9' } }));
  await stage.say('source', 'blockdev-add', nbd(stage));
  await stage.say('source', 'blockdev-add', nbd(stage));
  await stage.say('source', 'query-yank');
  await stage.say('source', 'blockdev-mirror', { ...mirror, device: 'nonsense' });
  await stage.say('source', 'blockdev-mirror', { ...mirror, target: 'nonsense' });
  await stage.say('source', 'blockdev-mirror', mirror);
  await stage.say('source', 'blockdev-mirror', mirror);
  await stage.until('source', 'BLOCK_JOB_READY');
  await stage.say('source', 'query-jobs');
  await stage.say('source', 'query-block-jobs');
  await stage.say('source', 'query-block');
  await look(stage);
  await write(stage, '4M');
  // facts/qemu.md §1.2: equal still, though four megabytes are missing at the target.
  const [state] = await mirrorStates(stage.qmp('source'), targets(stage), ATTEMPT);
  stage.note(`just after the write: ready ${state!.ready}, remaining ${state!.remainingBytes}`);
  await delay(300);
  await look(stage);
  for (const [command, args] of [['blockdev-del', { 'node-name': node }], ['blockdev-del', { 'node-name': 'nonsense' }], ['job-dismiss', { id: job }], ['job-dismiss', { id: 'nonsense' }], ['block-job-cancel', { device: 'nonsense' }]] as const) await stage.say('source', command, args);
  const limits = { id: 'disk0-device', bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };
  await stage.say('source', 'block_set_io_throttle', { ...limits, bps_wr: 1_000_000, group: 'vmferry' });
  await stage.say('source', 'query-block');
  await stage.say('source', 'block_set_io_throttle', { ...limits, bps: 5, bps_wr: 6 });
  await stage.say('source', 'block_set_io_throttle', { ...limits, id: 'nonsense' });
  await stage.say('source', 'block_set_io_throttle', limits);
  await stage.say('source', 'block-job-cancel', { device: job });
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'concluded' });
  await look(stage);
  await stage.say('source', 'block-job-cancel', { device: job });
  await stage.say('source', 'job-dismiss', { id: job });
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'null' });
  await stage.say('source', 'blockdev-mirror', mirror);
  await stage.until('source', 'BLOCK_JOB_READY');
  await stage.say('source', 'block-job-cancel', { device: job, force: true });
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'concluded' });
  await stage.say('source', 'query-jobs');
  await stage.say('source', 'query-block-jobs');
  await stage.say('source', 'job-dismiss', { id: job });
  await stage.say('source', 'blockdev-del', { 'node-name': node });
  await stage.say('source', 'query-jobs');
  await stage.say('source', 'query-yank');
  await stage.say('source', 'query-block');
});

sameOnBoth('a mirror whose target is gone is well until its next write, then ends with an error', async (stage) => {
  await mirroredToTheEnd(stage);
  await stage.killDaemon();
  await stage.quiet('source', 50);
  await look(stage);
  await write(stage, '64k');
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'concluded' });
  await stage.say('source', 'query-jobs');
  await stage.say('source', 'query-block-jobs');
});

sameOnBoth('a mirror whose connection was yanked ends with its next write, and one that stops at errors never goes on after that', async (stage) => {
  await mirroredToTheEnd(stage);
  await stage.qmp('source').executeOob('yank', { instances: [{ type: 'block-node', 'node-name': node }] });
  await stage.quiet('source', 50);
  await look(stage);
  await write(stage, '64k');
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'concluded' });
  await stage.say('source', 'job-dismiss', { id: job });
  await stage.say('source', 'blockdev-del', { 'node-name': node });
  await stage.say('source', 'blockdev-add', nbd(stage));
  await stage.say('source', 'blockdev-mirror', { ...mirror, 'on-target-error': 'stop' });
  await stage.until('source', 'BLOCK_JOB_READY');
  await stage.qmp('source').executeOob('yank', { instances: [{ type: 'block-node', 'node-name': node }] });
  await write(stage, '64k');
  await stage.until('source', 'BLOCK_JOB_ERROR');
  await stage.quiet('source', 100);
  await stage.say('source', 'query-block-jobs');
  await stage.say('source', 'query-jobs');
  for (let round = 0; round < 3; round++) {
    await stage.say('source', 'job-resume', { id: job });
    await stage.quiet('source', 300);
    await look(stage);
    await stage.say('source', 'query-block-jobs');
  }
});

sameOnBoth('a migration to nobody fails, a second incoming is refused, a cancel at pre-switchover lets the guest run with its mirror ready', async (stage) => {
  await mirrored(stage);
  await stage.say('source', 'migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
  await stage.say('source', 'migrate', { uri: 'tcp:127.0.0.1:9' });
  await stage.until('source', 'MIGRATION', { status: 'failed' });
  await stage.say('source', 'query-migrate');
  await stage.start('destination');
  await stage.say('destination', 'query-status');
  const first = port();
  await stage.say('destination', 'migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
  await stage.say('destination', 'migrate-incoming', { uri: `tcp:127.0.0.1:${stage.exports.port}` });
  await stage.say('destination', 'query-migrate');
  await stage.say('destination', 'migrate-incoming', { uri: `tcp:127.0.0.1:${first}` });
  await stage.say('destination', 'migrate-incoming', { uri: `tcp:127.0.0.1:${first + 1}` });
  await stage.say('destination', 'cont');
  await stage.say('destination', 'query-status');
  await stage.say('destination', 'query-yank');
  await beginMigration(stage.qmp('source'), { host: '127.0.0.1', port: first, downtimeLimitMs: 100 }, undefined);
  await stage.say('source', 'migrate', { uri: 'tcp:127.0.0.1:9' });
  await stage.until('source', 'MIGRATION', { status: 'pre-switchover' });
  stage.note(await migrationState(stage.qmp('source')));
  for (const command of ['query-status', 'query-yank', 'query-block-jobs']) await stage.say('source', command);
  await stage.say('source', 'query-migrate');
  await stage.say('source', 'migrate-continue', { state: 'device' });
  await stage.say('source', 'migrate', { uri: 'tcp:127.0.0.1:9' });
  stage.note(await cancelMigration(stage.qmp('source'), 2_000));
  await stage.until('source', 'MIGRATION', { status: 'cancelled' });
  await stage.say('source', 'query-migrate');
  await stage.say('source', 'query-status');
  await look(stage);
});

sameOnBoth('the whole hand-over: mirrors finished, migrate-continue, completed at both ends, and the guest runs there', async (stage) => {
  await mirrored(stage);
  await atPreSwitchover(stage, port());
  await finishMirrors(stage.qmp('source'), targets(stage), ATTEMPT, new AbortController().signal);
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'null' });
  await stage.say('source', 'migrate-continue', { state: 'pre-switchover' });
  await stage.until('source', 'MIGRATION', { status: 'completed' });
  await stage.until('destination', 'MIGRATION', { status: 'completed' });
  await delay(50);
  stage.note(await migrationState(stage.qmp('source')));
  for (const command of ['query-status', 'query-yank', 'migrate_cancel', 'query-migrate']) await stage.say('source', command);
  await stage.say('source', 'migrate', { uri: 'tcp:127.0.0.1:9' });
  for (const command of ['query-status', 'query-migrate']) await stage.say('destination', command);
  // The storage daemon has the image.
  await stage.say('destination', 'cont');
  await stage.say('destination', 'query-status');
  await stage.release();
  await stage.say('destination', 'cont');
  await stage.until('destination', 'RESUME');
  stage.note(await migrationState(stage.qmp('destination')));
  for (const command of ['query-status', 'stop', 'cont']) await stage.say('destination', command);
});

sameOnBoth('a destination that is killed at pre-switchover is reported by nothing; migrate-continue then fails, and the guest runs on', async (stage) => {
  await mirrored(stage);
  await atPreSwitchover(stage, port());
  await stage.kill('destination');
  await stage.quiet('source', 200);
  await stage.say('source', 'query-status');
  stage.note(await migrationState(stage.qmp('source')));
  await finishMirrors(stage.qmp('source'), targets(stage), ATTEMPT, new AbortController().signal);
  await stage.until('source', 'JOB_STATUS_CHANGE', { status: 'null' });
  await stage.say('source', 'migrate-continue', { state: 'pre-switchover' });
  await stage.until('source', 'RESUME');
  stage.note(await migrationState(stage.qmp('source')));
  await stage.say('source', 'query-status');
});

test('migrate-continue with a mirror left is a violation, and costs the source as it does in QEMU 7.2', async () => {
  const stage = new Stage('simulated');
  try {
    await mirrored(stage);
    await atPreSwitchover(stage, port());
    await write(stage, '4M');
    const { closed } = stage.qmp('source');
    await stage.say('source', 'migrate-continue', { state: 'pre-switchover' });
    await closed;
    await stage.release();
    await stage.say('destination', 'cont');
    expect(stage.world.ledger.violations).toEqual([expect.stringMatching(/migrate-continue with 1 mirrors, \d+ bytes behind/), expect.stringContaining('with a disk that lacks')]);
  } finally {
    await stage.close();
  }
});
