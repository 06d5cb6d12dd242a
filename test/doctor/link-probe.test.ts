import { once } from 'node:events';
import { createConnection } from 'node:net';
import { measureLink, openLinkProbe } from '../../hypervisor/link-probe';
import { deleteFolders, hostIn, temporaryFolder } from '../hypervisor/fixtures';

afterAll(deleteFolders);
const config = hostIn(temporaryFolder(), { address: '::1', ports: { from: 40_000, to: 40_999 } });

/** What somebody hears who says this to the probe, until it hangs up. */
async function heardBy(port: number, word: string): Promise<string> {
  const socket = createConnection({ host: '::1', port });
  let heard = '';
  socket.on('data', (chunk) => (heard += chunk.toString())).on('error', () => undefined);
  socket.end(word);
  await once(socket, 'close');
  return heard;
}

test('a link is measured once: then nobody listens any more', async () => {
  const probe = await openLinkProbe(config);
  expect(probe).toEqual({ host: '::1', port: expect.any(Number), token: expect.stringMatching(/^[0-9a-f]{32}$/) });
  expect(await measureLink(probe)).toBeGreaterThan(1_000_000);
  await expect(measureLink(probe)).rejects.toThrow(/ECONNREFUSED/);
});

test('who does not know the token hears nothing, and does not end the measurement of who does', async () => {
  const probe = await openLinkProbe(config);
  expect(await heardBy(probe.port, 'f'.repeat(32))).toBe('');
  expect(await heardBy(probe.port, '')).toBe('0');
  expect(await measureLink(probe)).toBeGreaterThan(1_000_000);
});
