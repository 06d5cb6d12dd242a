import { writeFileSync } from 'node:fs';
import { bundleWorkflows, BUNDLE_PATH } from './control';

/** Run by `npm run build`: bundles the workflows once, so that a worker starts without doing so. */
bundleWorkflows().then(
  ({ code }) => writeFileSync(BUNDLE_PATH, code),
  (error: Error) => {
    console.error(error.message);
    process.exit(1);
  },
);
