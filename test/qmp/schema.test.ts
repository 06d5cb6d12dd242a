import { QmpSchema } from '../../qmp/schema';

const schema = new QmpSchema([
  { name: 'blockdev-add', 'meta-type': 'command', 'arg-type': '1', 'ret-type': '9' },
  { name: 'query-jobs', 'meta-type': 'command', 'arg-type': '9', 'ret-type': '[7]' },
  { name: 'STOP', 'meta-type': 'event', 'arg-type': '9' },
  { name: 'MIGRATION', 'meta-type': 'event', 'arg-type': '7' },
  { name: '1', 'meta-type': 'object', members: [{ name: 'driver', type: 'str' }], variants: [{ case: 'nbd', type: '2' }, { case: 'raw', type: '5' }] },
  { name: '2', 'meta-type': 'object', members: [{ name: 'server', type: '3' }, { name: 'export', type: 'str' }] },
  { name: '3', 'meta-type': 'object', members: [{ name: 'type', type: 'str' }], variants: [{ case: 'inet', type: '4' }] },
  { name: '4', 'meta-type': 'object', members: [{ name: 'host', type: 'str' }] },
  { name: '5', 'meta-type': 'object', members: [{ name: 'file', type: '6' }] },
  { name: '6', 'meta-type': 'alternate', members: [{ type: '1' }, { type: 'str' }] },
  { name: '7', 'meta-type': 'object', members: [{ name: 'status', type: 'str' }] },
  { name: '[7]', 'meta-type': 'array', 'element-type': '7' },
  { name: '9', 'meta-type': 'object', members: [] },
  { name: 'str', 'meta-type': 'builtin' },
]);

test('commands and events are told apart, and types are neither', () => {
  expect([schema.hasCommand('blockdev-add'), schema.hasCommand('STOP'), schema.hasCommand('1'), schema.hasCommand('none')]).toEqual([true, false, false, false]);
  expect([schema.hasEvent('STOP'), schema.hasEvent('blockdev-add'), schema.hasEvent('none')]).toEqual([true, false, false]);
});

test.each(['driver', 'server', 'export', 'server.type', 'server.host', 'file', 'file.driver', 'file.server.host', 'file.file.file.driver'])('the argument %s is found, in members, variants and alternates', (path) => {
  expect(schema.hasArgument('blockdev-add', path)).toBe(true);
});

test.each(['host', 'driver.x', 'server.port', 'file.x', '', 'server.'])('the argument "%s" is not there', (path) => {
  expect(schema.hasArgument('blockdev-add', path)).toBe(false);
});

test('members of events and of replies, also of lists, are found', () => {
  expect([schema.hasEventMember('MIGRATION', 'status'), schema.hasEventMember('STOP', 'status'), schema.hasEventMember('query-jobs', 'status')]).toEqual([true, false, false]);
  expect([schema.hasReturnMember('query-jobs', 'status'), schema.hasReturnMember('query-jobs', 'x'), schema.hasArgument('query-jobs', 'status')]).toEqual([true, false, false]);
});
