import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { historyFromJSON } from '@temporalio/common/lib/proto-utils';
import { Worker } from '@temporalio/worker';
import { bundleWorkflows } from '../../workers/control';

/**
 * Recorded by `scripts/record-histories.sh`. They must replay on today's workflow code: else a migration that is under way while control
 * workers are upgraded would get stuck. A deliberate change is guarded with `patched`, and recorded anew.
 */
const folder = join(__dirname, 'histories');
const recorded = readdirSync(folder).filter((file) => file.endsWith('.json'));

test('every recorded history of a migration replays on this code', async () => {
  const histories = recorded.map((file) => ({ workflowId: `migrate/${file.replace('.json', '')}`, history: historyFromJSON(JSON.parse(readFileSync(join(folder, file), 'utf8'))) }));
  expect(histories.length).toBeGreaterThan(0);
  const failures: string[] = [];
  for await (const { workflowId, error } of Worker.runReplayHistories({ workflowBundle: await bundleWorkflows() }, histories)) if (error) failures.push(`${workflowId}: ${error.message}`);
  expect(failures).toEqual([]);
}, 120_000);
