import { FakeMonitor } from '../qmp/fake-monitor';

export interface ScriptedState {
  /** Of the migration, and of the machine. */
  status: string;
  run: string;
  /** Which command, or how many looks at the machine, lead on to the next state. */
  until: string | number;
}

/** A monitor whose migration goes through these states, for one client. It keeps what it is asked for beside looks. */
export async function scriptedQemu(path: string, states: ScriptedState[]): Promise<{ asked: string[]; close: () => Promise<void> }> {
  const monitor = await FakeMonitor.listen(path);
  const asked: string[] = [];
  let looks = 0;
  void (async () => {
    const client = await monitor.clients.next();
    for (;;) {
      const request = await client.requests.next();
      const [state] = states;
      if (request.execute === 'query-migrate') client.reply(request, { status: state!.status, ram: { total: 1, transferred: 1, remaining: 0, mbps: 0, 'dirty-sync-count': 1, 'postcopy-bytes': state!.status.startsWith('postcopy') ? 1 : 0 } });
      else if (request.execute === 'query-status') {
        client.reply(request, { status: state!.run, running: state!.run === 'running' });
        if (++looks === state!.until) [looks] = [0, states.shift()];
      } else {
        asked.push(`${request.execute} ${JSON.stringify(request.arguments ?? {})} while ${state!.status}`);
        if (request.execute === state!.until) states.shift();
        client.reply(request, {});
      }
    }
  })();
  return { asked, close: () => monitor.close() };
}
