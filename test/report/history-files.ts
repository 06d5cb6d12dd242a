import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { defaultFailureConverter, defaultPayloadConverter } from '@temporalio/common';
import { historyFromJSON } from '@temporalio/common/lib/proto-utils';
import { readHistory, type RecordedRun } from '../../client/report/history';

const FOLDER = join(__dirname, '../replay/histories');
/** Real ones: see scripts/record-histories.sh. */
export const RECORDED = readdirSync(FOLDER).map((file) => file.replace('.json', ''));

/** Of the move that docs/report.md shows: a guest that wrote faster than its link, steered three times. */
export const DIVERGED = join(__dirname, 'histories/db-7.json');

export async function recorded(name: string, file = join(FOLDER, `${name}.json`)): Promise<RecordedRun> {
  const { events } = historyFromJSON(JSON.parse(readFileSync(file, 'utf8')));
  return await readHistory(events!, `migrate/${name}`, `run-of-${name}`, { payloadConverter: defaultPayloadConverter, failureConverter: defaultFailureConverter, payloadCodecs: [] });
}
