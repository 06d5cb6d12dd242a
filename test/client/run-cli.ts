import { execute } from '../../client/cli';

export interface Said {
  code: number;
  out: string;
  err: string;
}

/** Runs a command line as `bin/vmferry` does, in this process. What workers of this process log meanwhile is in `err` too. */
export async function runCli(temporal: string, ...args: string[]): Promise<Said> {
  const said = { out: '', err: '' };
  const spies = (['stdout', 'stderr'] as const).map((name) =>
    jest.spyOn(process[name], 'write').mockImplementation((text) => {
      said[name === 'stdout' ? 'out' : 'err'] += String(text);
      return true;
    }),
  );
  try {
    const code = await execute(['--temporal-address', temporal, ...args]);
    return { code, ...said };
  } finally {
    process.exitCode = undefined;
    spies.forEach((spy) => spy.mockRestore());
  }
}
