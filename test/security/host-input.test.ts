import fc from 'fast-check';
import { createHostActivities } from '../../activities';
import type { HostDependencies } from '../../activities/context';
import { checkInput } from '../../activities/host-input';
import { InvalidDefinition } from '../../hypervisor/definition';
import { GuestStore } from '../../hypervisor/guest-store';
import { PathRefused, runFolder } from '../../hypervisor/host-config';
import { definitionOf, deleteFolders, hostIn, temporaryFolder } from '../hypervisor/fixtures';

afterAll(deleteFolders);

const ref = { guest: 'vm1', attempt: 'abcd1234', from: 'host-a', to: 'host-b' };
const target = { id: 'd', device: '#block1', sizeBytes: 512, host: '10.0.0.2', port: 49152, exportName: 'd-1b4e28ba-2fa1-11d2-883f-0016d3cca427' };
const disk = { id: 'd', path: '${images}/a', format: 'raw', cache: 'writeback', device: 'd', sizeBytes: 512, allocatedBytes: 0, blockDevice: false };
const plan = { definition: definitionOf(), disks: [disk] };

test.each<[string, object, string[]]>([
  ['a guest that climbs', { ...ref, guest: '../../etc' }, ['guest', '"../../etc"', 'a guest name']],
  ['a guest that is no text', { ...ref, guest: { toString: 'x' } }, ['guest']],
  ['an attempt in another folder', { ...ref, attempt: '/../../../tmp/x' }, ['attempt', 'letters']],
  ['a host that is an option', { ...ref, targets: [{ ...target, host: '10.0.0.2,file.driver=ssh' }] }, ['targets.0.host', 'no IP address']],
  ['an export with a further option', { ...ref, targets: [{ ...target, exportName: 'd,file.server.host=evil' }] }, ['targets.0.exportName']],
  ['a port below zero', { ...ref, targets: [{ ...target, port: -1 }] }, ['targets.0.port']],
  ['a URI where an address belongs', { ...ref, handOver: { settings: { host: 'exec:sh', port: 1 }, lease: { host: '10.0.0.2', port: 2 } } }, ['handOver.settings.host']],
  ['a lease somewhere else', { ...ref, handOver: { settings: { host: '10.0.0.2', port: 1 }, lease: { host: 'evil.example', port: 2 } } }, ['handOver.lease.host']],
  ['a disk outside the roots', { ...ref, plan: { ...plan, disks: [{ ...disk, path: '/etc/shadow' }] } }, ['plan.disks.0.path', '"/etc/shadow"']],
  ['a disk of another format', { ...ref, plan: { ...plan, disks: [{ ...disk, format: 'vmdk' }] } }, ['plan.disks.0.format']],
  ['a size that is none', { ...ref, plan: { ...plan, disks: [{ ...disk, sizeBytes: -1 }] } }, ['plan.disks.0.sizeBytes', '-1']],
  ['another guest\'s definition', { ...ref, guest: 'vm2', plan }, ['plan.definition.name', 'not the guest']],
  ['an invalid definition', { ...ref, plan: { ...plan, definition: { ...plan.definition, emulator: '/bin/sh' } } }, ['plan.definition.emulator', '/bin/sh']],
  ['the pid of init', { pid: 1 }, ['pid']],
])('an activity does not begin with %s, and says which field is wrong', async (_case, input, parts) => {
  const host = hostIn(temporaryFolder());
  const activities = createHostActivities({ host: { name: host.name, store: {} } } as unknown as HostDependencies);
  const failure = await activities.prepareDestination(input as never).then(() => undefined, (error: Error & { type?: string; nonRetryable?: boolean }) => error);
  expect(failure).toMatchObject({ type: 'InvalidDefinition', nonRetryable: true });
  for (const part of parts) expect(failure!.message).toContain(part);
});

test('what the workflows send is taken', () => {
  checkInput('prepareDestination', { ...ref, plan });
  checkInput('moveMemory', { ...ref, handOver: { attempt: ref.attempt, targets: [target], settings: { host: '::1', port: 49153, downtimeLimitMs: 1 }, lease: { host: '::1', port: 49154 } } });
  checkInput('listGuests', undefined);
});

test('a guest\'s name leads to no other folder, wherever it comes from', () => {
  const folder = temporaryFolder();
  const config = hostIn(folder);
  const store = new GuestStore(config.stateDir);
  for (const name of ['..', '.', '', '../x', 'a/b', '/etc', 'a\0b', 'x\n']) {
    expect(() => runFolder(config, name)).toThrow(PathRefused);
    expect(() => store.ownership(name)).toThrow(PathRefused);
  }
});

test('no input, whatever it is, does anything but pass or fail with one clear message', () => {
  const value = fc.oneof(fc.jsonValue({ maxDepth: 3 }), fc.constantFrom('..', '/etc', 1e400, -1, 2 ** 70, 'a,b=c'));
  const keys = [...Object.keys(ref), 'plan', 'targets', 'host', 'port', 'handOver', 'pid', '__proto__', 'constructor'];
  fc.assert(
    fc.property(fc.dictionary(fc.constantFrom(...keys), value), (input) => {
      try {
        checkInput('x', input);
      } catch (error) {
        expect(error).toBeInstanceOf(InvalidDefinition);
        expect((error as Error).message).toMatch(/^the input of x/);
      }
    }),
    { numRuns: 500 },
  );
});
