/** Prints the line that CI reads, `N passed, N failed`, after everything else. A file that could not run counts as a failure. */
module.exports = class ClosingLineReporter {
  onRunComplete(_contexts, results) {
    const failed = results.numFailedTests + results.numRuntimeErrorTestSuites;
    const skipped = results.numPendingTests > 0 ? `, ${results.numPendingTests} skipped` : '';
    // By the file descriptor: Jest silences the streams when it is told to exit.
    process.on('exit', () => require('node:fs').writeSync(1, `${results.numPassedTests} passed, ${failed} failed${skipped}\n`));
  }
};
