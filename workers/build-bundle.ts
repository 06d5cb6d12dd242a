import { writeFileSync } from 'node:fs';
import { bundlePath, bundleWorkflows } from './control';

/** Run by `npm run build`: bundles the workflows once, so that a worker starts without doing so. */
async function main(): Promise<void> {
  for (const sealed of [false, true]) writeFileSync(bundlePath(sealed), (await bundleWorkflows(sealed)).code);
}

main().catch((error: Error) => {
  console.error(error.message);
  process.exit(1);
});
