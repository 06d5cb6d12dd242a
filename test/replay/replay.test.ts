import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Recorded by `scripts/record-histories.sh`. They must replay on today's workflow code: else a migration that is under way while control
 * workers are upgraded would get stuck. A deliberate change is guarded with `patched`, and recorded anew.
 */
const folder = join(__dirname, 'histories');

test('every recorded history of a migration, good and bad, replays on this code', () => {
  const recorded = readdirSync(folder).length;
  expect(recorded).toBeGreaterThan(10);
  expect(JSON.parse(execFileSync(process.execPath, [join(__dirname, 'replay.js'), folder], { encoding: 'utf8' }))).toEqual({ replayed: recorded, failures: [] });
}, 120_000);
