import { DefaultFailureConverter } from '@temporalio/common';

/** With payload encryption the words of failures, and where they came from, are payloads too: they name guests, paths and hosts. */
export const failureConverter = new DefaultFailureConverter({ encodeCommonAttributes: true });
