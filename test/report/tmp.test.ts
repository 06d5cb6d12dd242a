import { recorded } from './history-files';
import { migrationRecord } from '../../client/report/record';
test('x', async () => {
  for (const name of (process.env['N'] ?? 'r3').split(',')) console.log(JSON.stringify(migrationRecord(await recorded(name)), null, 1));
});
