import { writeFileSync } from 'node:fs';
import { bundleWorkflows, BUNDLE_PATH, TRACED_BUNDLE_PATH } from './control';

/** Run by `npm run build`: bundles the workflows once, so that a worker starts without doing so. */
Promise.all([bundleWorkflows(), bundleWorkflows({ traced: true })]).then(
  ([plain, traced]) => {
    writeFileSync(BUNDLE_PATH, plain.code);
    writeFileSync(TRACED_BUNDLE_PATH, traced.code);
  },
  (error: Error) => {
    console.error(error.message);
    process.exit(1);
  },
);
