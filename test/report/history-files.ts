import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { defaultFailureConverter, defaultPayloadConverter } from '@temporalio/common';
import { historyFromJSON } from '@temporalio/common/lib/proto-utils';
import { readHistory, type RecordedRun } from '../../client/report/history';

const FOLDER = join(__dirname, '../replay/histories');
/** Real ones: see scripts/record-histories.sh. */
export const RECORDED = readdirSync(FOLDER).map((file) => file.replace('.json', ''));

export async function recorded(name: string): Promise<RecordedRun> {
  const { events } = historyFromJSON(JSON.parse(readFileSync(join(FOLDER, `${name}.json`), 'utf8')));
  return await readHistory(events!, `migrate/${name}`, `run-of-${name}`, { payloadConverter: defaultPayloadConverter, failureConverter: defaultFailureConverter, payloadCodecs: [] });
}
