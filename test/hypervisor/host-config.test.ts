import fc from 'fast-check';
import { mkdirSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { hostConfigSchema, expandArgument, PathRefused, readHostConfig, resolvePath } from '../../hypervisor/host-config';
import { InvalidDefinition, parseWith } from '../../hypervisor/definition';
import { pathProblem, toPortable } from '../../hypervisor/portable-paths';
import { deleteFolders, hostIn, temporaryFolder } from './fixtures';

const folder = temporaryFolder();
const config = hostIn(folder, {}, { nested: join(folder, 'images', 'nested'), volumes: { path: join(folder, 'volumes'), blockDevices: true } });
const images = join(folder, 'images');

beforeAll(() => {
  mkdirSync(join(images, 'nested'));
  mkdirSync(join(folder, 'volumes'));
  mkdirSync(join(folder, 'outside'));
  writeFileSync(join(folder, 'outside', 'secret'), '');
  symlinkSync(join(folder, 'outside'), join(images, 'away'));
  symlinkSync(join(folder, 'outside', 'secret'), join(images, 'link'));
  symlinkSync('/dev/null', join(folder, 'volumes', 'null'));
  symlinkSync(join(folder, 'outside', 'secret'), join(folder, 'volumes', 'file'));
  symlinkSync('/nowhere/at/all', join(images, 'dangling'));
});
afterAll(deleteFolders);

test.each([
  ['an unknown root', '${gold}/a.raw', 'has no root "gold" (it has images, nested, volumes)'],
  ['no root', '/etc/shadow', 'is not of the form'],
  ['..', '${images}/../outside/secret', '".."'],
  ['.. at the end', '${images}/a/..', '".."'],
  ['an empty part', '${images}//a', 'an empty part'],
  ['a comma', '${images}/a,b', 'a comma'],
  ['NUL', '${images}/a\0b', 'control characters'],
  ['a link out of the root', '${images}/link', 'outside the root "images"'],
  ['a folder linked out of the root', '${images}/away/secret', 'outside the root "images"'],
  ['a new file in a folder linked out of the root', '${images}/away/new', 'outside the root "images"'],
  ['.. into the run folder of another guest', '${run}/../vm2/qmp.sock', '".."'],
  ['a link to a file in a root for block devices', '${volumes}/file', 'outside the root "volumes"'],
  ['a link to a character device in a root for block devices', '${volumes}/null', 'outside the root "volumes"'],
])('%s in a path is refused', (_case, portable, reason) => {
  expect(() => resolvePath(config, 'vm1', portable)).toThrow(PathRefused);
  expect(() => resolvePath(config, 'vm1', portable)).toThrow(reason);
});

test('an argument may not make a file through a link to nowhere', () => {
  expect(pathProblem(config, 'vm1', join(images, 'dangling'))).toMatch(/a link to nowhere/);
  expect(pathProblem(config, 'vm1', join(images, 'dangling/deep'))).toMatch(/a link to nowhere/);
});

// resolvePath takes a dangling link for a file that does not exist yet.
test.failing('a link to nowhere is not a way out of a root', () => {
  expect(() => resolvePath(config, 'vm1', '${images}/dangling')).toThrow(PathRefused);
});

// lstat's own error comes out of a root for block devices.
test.failing('a path below a device is refused as every other', () => {
  expect(() => resolvePath(config, 'vm1', '${volumes}/null/x')).toThrow(PathRefused);
});

test('a path in a root is found, whether its file is there or not', () => {
  expect(resolvePath(config, 'vm1', '${images}/deep/new.raw')).toBe(join(images, 'deep/new.raw'));
  expect(resolvePath(config, 'vm1', '${run}/qmp.sock')).toBe(join(folder, 'run/vm1/qmp.sock'));
});

test('no path, however it is made, leads out of the roots', () => {
  const part = fc.oneof(fc.constantFrom('..', '.', '', 'away', 'link', 'dangling', 'nested', 'a', 'null', 'file', '~', '$', '${run}', '\\..', 'a\n', ',', '\0', '%2e%2e'), fc.string());
  const portable = fc.tuple(fc.constantFrom('images', 'run', 'nested', 'volumes', 'other'), fc.array(part, { maxLength: 6 })).map(([root, parts]) => `\${${root}}/${parts.join('/')}`);
  fc.assert(
    fc.property(portable, (text) => {
      let path: string;
      try {
        path = resolvePath(config, 'vm1', text);
      } catch {
        return;
      }
      const existing = (at: string): string => {
        try {
          return realpathSync(at);
        } catch {
          return existing(dirname(at));
        }
      };
      expect([images, join(folder, 'run'), join(folder, 'volumes')].some((root) => `${existing(path)}/`.startsWith(`${root}/`))).toBe(true);
    }),
    { numRuns: 2_000 },
  );
});

test('the longest root names a path, and finds it again', () => {
  expect(toPortable(config, join(images, 'nested/x.raw'))).toBe('${nested}/x.raw');
  expect(toPortable(config, join(images, 'x.raw'))).toBe('${images}/x.raw');
  expect(toPortable(config, `${images}-2/x.raw`)).toBeUndefined();
  const name = fc.stringMatching(/^[a-z0-9][a-z0-9 ._-]{0,12}$/);
  fc.assert(
    fc.property(fc.array(name, { minLength: 1, maxLength: 4 }), (parts) => {
      const path = join(images, 'new', ...parts);
      expect(resolvePath(config, 'vm1', toPortable(config, path)!)).toBe(path);
    }),
  );
});

test('placeholders in an argument are replaced, unknown ones refused', () => {
  expect(expandArgument(config, 'vm1', 'unix:${run}/s.sock,server=on,id=${name}')).toBe(`unix:${folder}/run/vm1/s.sock,server=on,id=vm1`);
  expect(() => expandArgument(config, 'vm1', 'file=${gold}')).toThrow(PathRefused);
});

test('the run folder of another guest is not a guest\'s own', () => {
  expect(pathProblem(config, 'vm1', join(folder, 'run/vm1/x'))).toBeUndefined();
  expect(pathProblem(config, 'vm1', join(folder, 'run/vm2/x'))).toMatch(/outside the roots/);
});

const valid = { name: 'host-a', address: '::1', insecure: true, stateDir: '/s', runDir: '/r', roots: {} };
test.each<[string, Record<string, unknown>, string[]]>([
  ['an unknown field', { adress: 'x' }, ['unknown field "adress"']],
  ['an address that is a name', { address: 'host.example' }, ['address', '"host.example"', 'IPv4 or IPv6']],
  ['a name in capitals', { name: 'Host' }, ['name', '"Host"', 'lower-case']],
  ['a relative folder', { stateDir: 'state' }, ['stateDir', '"state"', 'absolute path']],
  ['a folder with a comma', { runDir: '/a,b' }, ['runDir', 'comma']],
  ['a root that climbs', { roots: { images: '/a/../etc' } }, ['roots.images', '/a/../etc']],
  ['a root named run', { roots: { run: '/a' } }, ['roots.run']],
  ['no word on how disks and memory travel', { insecure: undefined }, ['tls: { dir: /etc/vmferry/tls }', 'psk: {', 'insecure: true', 'here is none of them']],
  ['two words on it', { tls: { dir: '/t' } }, ['exactly one', 'here are tls and insecure']],
  ['TLS that is not insecure', { tls: { dir: '/t' }, insecure: false }, ['insecure', 'leave it out, or give true', 'false']],
  ['a missing runDir', { runDir: undefined }, ['runDir', 'it is missing']],
])('%s in a configuration is refused with its field, its value and what to do', (_case, fields, parts) => {
  const read = () => parseWith(hostConfigSchema, { ...valid, ...fields }, 'host.yaml');
  expect(read).toThrow(InvalidDefinition);
  parts.forEach((part) => expect(read).toThrow(part));
});

test('a configuration is read from YAML', () => {
  writeFileSync(join(folder, 'host.yaml'), 'name: h1\naddress: 10.0.0.1\ntls: { dir: /etc/vmferry/tls }\nstateDir: /s\nrunDir: /r\nroots: {images: /i}\n');
  expect(readHostConfig(join(folder, 'host.yaml'))).toMatchObject({ name: 'h1', roots: { images: { path: '/i', blockDevices: false } }, binaries: { qemu: ['/usr/bin/qemu-system-x86_64'] } });
});
