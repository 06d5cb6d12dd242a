import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { busyMs, busyShare, deviceOf } from '../../hypervisor/disk-busy';

test('the time that each device was busy is read from the kernel', () => {
  const text = ' 254       0 vda 102 1 5 40 300 20 9000 800 0 1234 5678 0 0 0 0 0 0\n   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0\n\n';
  expect([...busyMs(text)]).toEqual([['254:0', 1234], ['7:0', 0]]);
});

test('a device is named as the kernel names it, also one with large numbers', () => {
  const stat = statSync('/dev/null');
  expect(deviceOf({ dev: 0, rdev: stat.rdev, isBlock: true })).toBe('1:3');
  // makedev(259, 1048570) of Linux.
  expect(deviceOf({ dev: 0, rdev: (259 << 8) + 0xfa + Math.floor(1048570 / 256) * 2 ** 20, isBlock: true })).toBe('259:1048570');
  const root = statSync('/');
  expect(deviceOf({ dev: root.dev, rdev: 0, isBlock: false })).toBe(execFileSync('stat', ['-c', '%Hd:%Ld', '/'], { encoding: 'utf8' }).trim());
});

test('what is in memory is on no disk', async () => {
  expect(await busyShare(['/proc'])).toBeUndefined();
});
