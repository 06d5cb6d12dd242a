/** Resolves with the first SIGINT or SIGTERM; a second one ends the process at once. */
export async function shutdownSignal(): Promise<NodeJS.Signals> {
  return await new Promise((resolve) => {
    for (const name of ['SIGINT', 'SIGTERM'] as const) {
      process.once(name, () => {
        resolve(name);
        process.once(name, () => process.exit(130));
      });
    }
  });
}
