import { execFileSync } from 'node:child_process';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { WorkflowHandle } from '@temporalio/client';
import { CONTROL_QUEUE, migrationWorkflowId, statusQuery } from '../../workflows/messages';
import type { moveCold } from '../../workflows/move-cold';
import { eventually, expectClean, expectRuns } from '../support/expect';
import { Lab, type LabGuestOptions, MIB } from '../support/lab';

/** Guests that do not run, whose move is struck by what may strike it, on real images and daemons. */
let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open({ 'host-a': '127.0.0.1', 'host-b': '::1', 'host-c': '127.0.0.1' });
}, 60_000);
afterAll(async () => await lab?.close());

const DISKS: LabGuestOptions['disks'] = [{ sizeBytes: 16 * MIB, format: 'qcow2' }, { sizeBytes: 16 * MIB }];

/** A guest that has written, and is stopped; with copies of its images as they are then. */
async function stopped(name: string): Promise<{ before: string; format: string; image: (host: string) => string }[]> {
  const guest = await lab.boot('host-a', name, { disks: DISKS!, dirtyBase: true }, 100);
  guest.close();
  await lab.client.onHost('host-a', 'stopGuest', { guest: name, graceMs: 0 });
  return DISKS!.map(({ format = 'raw' }, index) => {
    const image = (host: string) => lab.image(host, `${name}-${index}.${format}`);
    const before = join(lab.folder, `${name}-${index}.before`);
    copyFileSync(image('host-a'), before);
    return { before, format, image };
  });
}

async function move(name: string, to: string): Promise<WorkflowHandle<typeof moveCold>> {
  return await lab.client.temporal.workflow.start<typeof moveCold>('moveCold', { workflowId: migrationWorkflowId(name), taskQueue: CONTROL_QUEUE, args: [{ vm: name, to, sourceDisks: 'wipe', bandwidthBytesPerSecond: 8_000_000 }] });
}

const copies = async (migration: WorkflowHandle<typeof moveCold>) => await eventually(async () => ((await migration.query(statusQuery)).phase === 'mirror' ? true : undefined));

test('a destination that dies between the last part and its taking over has every block; one that is away when the move is undone is cleaned when it returns', async () => {
  const images = await stopped('taken');
  await stopped('stays');
  const undone = await move('stays', 'host-c');
  await copies(undone);
  await lab.stopAgent('host-c');
  await undone.cancel();

  const moved = await move('taken', 'host-b');
  await copies(moved);
  await lab.stopAgent('host-b');
  await eventually(async () => (JSON.parse(readFileSync(join(lab.config('host-a').stateDir, 'guests/taken/ownership.json'), 'utf8')) as { state: string }).state === 'handed-over' || undefined);
  for (const daemon of lab.processes('host-b')) process.kill(Number.parseInt(daemon, 10), 'SIGKILL');
  await lab.startAgent('host-b');
  expect(await moved.result()).toMatchObject({ outcome: 'completed', from: 'host-a', to: 'host-b' });
  for (const { before, format, image } of images) execFileSync('qemu-img', ['compare', '-f', format, '-F', format, before, image('host-b')]);
  await lab.client.onHost('host-b', 'startGuest', { guest: 'taken' });
  await expectRuns(lab, 'host-b', 'taken');

  await expect(undone.result()).rejects.toMatchObject({ cause: { name: 'CancelledFailure' } });
  expect(await lab.client.leftovers()).toEqual([expect.objectContaining({ vm: 'stays', host: 'host-c', step: 'discardDestination' })]);
  await lab.client.onHost('host-a', 'startGuest', { guest: 'stays' });
  await expectRuns(lab, 'host-a', 'stays');
  await lab.startAgent('host-c');
  await eventually(async () => ((await lab.client.leftovers()).length === 0 ? true : undefined));
  await expectClean(lab, { 'host-a': ['stays'], 'host-b': ['taken'] });
}, 180_000);
