import { join } from 'node:path';
import { execute } from '../../client/cli';
import { EXIT } from '../../client/exit-codes';
import { inspectTls } from '../../hypervisor/tls-files';
import { deleteFolders, temporaryFolder } from '../hypervisor/fixtures';

/** The command line, in this process. */
async function vmferry(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const heard = { out: '', err: '' };
  const spies = [jest.spyOn(process.stdout, 'write').mockImplementation((text) => !!(heard.out += String(text))), jest.spyOn(process.stderr, 'write').mockImplementation((text) => !!(heard.err += String(text)))];
  try {
    return { code: await execute(args), ...heard };
  } finally {
    spies.forEach((spy) => spy.mockRestore());
    process.exitCode = 0;
  }
}
afterAll(deleteFolders);

test('vmferry certs init makes folders that a host can use as they are, and keeps what is there', async () => {
  const dir = join(temporaryFolder(), 'certs');
  const first = await vmferry('certs', 'init', dir, '--host', 'host-a', '--address', '10.0.0.11');
  expect(first).toMatchObject({ code: EXIT.done, err: '', out: expect.stringMatching(/^made {3}.*host-a {2}valid until \d{4}-\d\d-\d\d\n[^]*tls: \{ dir: \/etc\/vmferry\/tls \}\n.*ca-key\.pem signs.*keep it/) });
  const second = await vmferry('certs', 'init', dir, '--host', 'host-a', '--host', 'host-b', '--days', '10');
  expect(second).toMatchObject({ code: EXIT.done, out: expect.stringMatching(/^there {2}.*host-a .*\nmade {3}.*host-b /), err: expect.stringMatching(/^warning: .*host-b\/server-cert\.pem expires in 9 days/) });
  for (const name of ['host-a', 'host-b']) expect(inspectTls({ name, tls: { dir: join(dir, name) } }).filter(({ severity }) => severity === 'blocker')).toEqual([]);
});

test.each<[string, string[], RegExp]>([
  ['no host', [], /required option '--host <host>' not specified/],
  ['a host name in capitals', ['--host', 'Host'], /'--host <host>' argument 'Host' is invalid. A host name has up to 63 lower-case letters/],
  ['an address that is a name', ['--host', 'a', '--address', 'a=b.example'], /argument 'a=b.example' is invalid. Give an IPv4 or IPv6 address, such as host-a=10.0.0.11/],
  ['an address of one of many hosts', ['--host', 'a', '--host', 'b', '--address', '10.0.0.1'], /there are 2 hosts: say whose it is, such as a=10.0.0.1/],
  ['an address of another host', ['--host', 'a', '--address', 'b=10.0.0.1'], /b is not one of --host a/],
  ['certificates for no day', ['--host', 'a', '--days', '0'], /Give a whole number from 1 to 3650/],
  ['an address with shared keys', ['--host', 'a', '--psk', '--address', '10.0.0.1'], /leave it out with --psk/],
])('%s is refused in one line, and nothing is made', async (_case, args, words) => {
  const { code, err } = await vmferry('certs', 'init', join(temporaryFolder(), 'certs'), ...args);
  expect(code).toBe(EXIT.usage);
  expect(err).toMatch(words);
});
