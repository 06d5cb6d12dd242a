import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bundleName, bundleWorkflows } from './control';

/** Run by `npm run build`: bundles the workflows once, so that a worker starts without doing so; one that encrypts payloads makes its own. */
async function main(): Promise<void> {
  for (const kind of [{}, { traced: true }]) writeFileSync(join(__dirname, bundleName(kind)), (await bundleWorkflows(kind)).code);
}

main().catch((error: Error) => {
  console.error(error.message);
  process.exit(1);
});
