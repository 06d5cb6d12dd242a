import { allDisks, definitionSchema, InvalidDefinition, movingDisks, parseWith, parseYamlWith } from '../../hypervisor/definition';
import { definitionOf } from './fixtures';

const disk = (fields: Record<string, unknown> = {}) => ({ id: 'd1', path: '${images}/a.raw', ...fields });
const refusal = (fields: Record<string, unknown>): string => {
  try {
    definitionOf(fields);
  } catch (error) {
    if (error instanceof InvalidDefinition) return error.message;
    throw error;
  }
  throw new Error('was accepted');
};

test.each<[string, Record<string, unknown>, string[]]>([
  ['an absolute path', { disks: [disk({ path: '/etc/shadow' })] }, ['disks.0.path', '"/etc/shadow"', '${root}/relative']],
  ['a path that climbs', { disks: [disk({ path: '${images}/../x' })] }, ['disks.0.path', '${images}/../x', 'no ".."']],
  ['a path with a comma', { disks: [disk({ path: '${images}/a,b' })] }, ['disks.0.path', 'no comma']],
  ['a path with a line break', { disks: [disk({ path: '${images}/a\nb' })] }, ['disks.0.path']],
  ['a path with NUL', { disks: [disk({ path: '${images}/a\0b' })] }, ['disks.0.path']],
  ['an unknown field', { dsks: [] }, ['unknown field "dsks"', 'correct its name']],
  ['an unknown field of a disk', { disks: [disk({ sise: 1 })] }, ['disks.0', 'unknown field "sise"']],
  ['a name that starts with a dot', { name: '.x' }, ['name:', '".x"', '1 to 48 letters']],
  ['a missing memory', { memory: undefined }, ['memory', 'it is missing']],
  ['a memory that is no size', { memory: '4 apples' }, ['memory', '4 apples', 'K, M, G, T']],
  ['a memory that QEMU would round', { memory: 100_000 }, ['memory', '100000', '104K']],
  ['aio native through the page cache', { disks: [disk({ aio: 'native' })] }, ['disks.0.aio', '"native"', 'cache "none"']],
  ['one id twice', { disks: [disk(), disk({ path: '${images}/b.raw' })] }, ['"d1" is used twice']],
  ['two writable disks on one image', { disks: [disk(), disk({ id: 'd2' })] }, ['${images}/a.raw', 'two writable disks']],
  ["an id that is too long for QEMU's node names", { disks: [disk({ id: 'd'.repeat(27) })] }, ['disks.0.id', 'up to 26']],
  ['an id of the firmware', { disks: [disk({ id: 'firmware-code' })] }, ['disks.0.id', 'are taken']],
  ['a removable virtio-blk disk', { disks: [disk({ bus: 'virtio-blk', removable: true })] }, ['disks.0.bus', 'virtio-scsi or sata']],
  ['a sata disk without a q35 machine', { machine: 'pc-i440fx-7.2', disks: [disk({ bus: 'sata' })] }, ['disks.0.bus', 'q35']],
  ['seven sata disks', { disks: [...'1234567'].map((n) => disk({ id: `d${n}`, path: `\${images}/${n}`, bus: 'sata' })) }, ['six sata ports']],
  ['a pflash disk', { disks: [disk({ bus: 'pflash' })] }, ['disks.0.bus', 'use the field firmware']],
  ['a network backend that runs a program', { nics: [{ id: 'n1', mac: '52:54:00:12:34:56', backend: 'exec,cmd=x' }] }, ['nics.0.backend', 'user, tap']],
])('%s is refused with its field, its value and what to do', (_case, fields, parts) => {
  const message = refusal(fields);
  parts.forEach((part) => expect(message).toContain(part));
});

test('all mistakes are named at once, a line each', () => {
  expect(refusal({ name: '', machine: 'a b', disks: [disk({ format: 'vmdk' })] }).split('\n')).toHaveLength(4);
});

test('an adopted guest keeps ids, firmware and buses that a new one could not have', () => {
  const disks = [disk({ id: 'd'.repeat(60) }), disk({ id: 'pflash1', path: '${images}/vars.fd', bus: 'pflash' })];
  expect(definitionOf({ commandLine: ['-S'], disks }).disks).toHaveLength(2);
});

test('read-only and removable disks do not move; the variables of the firmware do', () => {
  const disks = [disk(), disk({ id: 'd2', path: '${images}/b', readOnly: true }), disk({ id: 'd3', path: '${images}/c', removable: true })];
  const definition = definitionOf({ disks, firmware: { code: '${images}/code.fd', variables: '${images}/vars.fd' } });
  expect(movingDisks(definition).map(({ id }) => id)).toEqual(['d1', 'firmware-variables']);
  expect(allDisks(definition)).toHaveLength(4);
});

test('text that is no YAML is refused with its name', () => {
  expect(() => parseYamlWith(definitionSchema, 'a: [', 'vm.yaml')).toThrow(/vm\.yaml is not YAML/);
});

test('what is valid stays the same when it is read again', () => {
  const definition = definitionOf({ disks: [disk({ aio: 'native', cache: 'none' })], labels: { rack: '7' } });
  expect(parseWith(definitionSchema, definition, 'again')).toEqual(definition);
});
