import { LineSplitter, parseLine, parseVerify, TickLog } from '../../demo/guest/ticks';

describe('a line from the test guest', () => {
  test('is a tick, an answer with or without an id, or something else', () => {
    expect(parseLine('t 12 3456')).toEqual({ kind: 'tick', sequence: 12, guestMs: 3456 });
    expect(parseLine('= rate 1048576 #7')).toEqual({ kind: 'answer', command: 'rate', text: '1048576', id: '#7' });
    expect(parseLine('= pause #8')).toEqual({ kind: 'answer', command: 'pause', text: '', id: '#8' });
    expect(parseLine('= ready disks=2')).toEqual({ kind: 'answer', command: 'ready', text: 'disks=2' });
    for (const text of ['Kernel panic - not syncing', 't 12', '12 3456', 't 12 34x', '']) expect(parseLine(text)).toEqual({ kind: 'other', text });
  });

  test('is put together from pieces', () => {
    const lines = new LineSplitter();
    expect(lines.push('t 1 10\nt 2')).toEqual(['t 1 10']);
    expect(lines.push(' 20\r\n= ')).toEqual(['t 2 20']);
    expect(lines.tail).toBe('= ');
  });

  test('of verify becomes figures, and an answer cut short is an error', () => {
    const text = 'written=90 blocks=70 checked=100 lost=2 memory=1 errors=0 first=0:7:12:zeros,1:3:0:foreign';
    expect(parseVerify(text)).toEqual({ writesCompleted: 90, blocksWritten: 70, blocksChecked: 100, blocksLost: 2, memoryErrors: 1, writeErrors: 0, first: ['0:7:12:zeros', '1:3:0:foreign'] });
    expect(parseVerify(text.replace(/first=.*/, 'first=-')).first).toEqual([]);
    expect(() => parseVerify(text.slice(0, 40))).toThrow('no end');
    expect(() => parseVerify(text.replace('lost=2 ', ''))).toThrow('no lost');
  });
});

describe('the record of ticks', () => {
  const record = (log: TickLog, console: string, from: number, to: number, hostMs: number): void => {
    for (let sequence = from; sequence <= to; sequence++) log.record(console, { sequence, guestMs: sequence * 10 }, hostMs + (sequence - from) * 10);
  };

  test('a guest that moves is one guest, also if its last ticks at the source are read late', () => {
    const log = new TickLog();
    record(log, 'a', 1, 50, 1000);
    record(log, 'b', 53, 60, 1600);
    record(log, 'a', 51, 52, 1700);
    record(log, 'b', 61, 70, 1710);
    expect(log.duplicates).toBe(0);
    expect(log.currentConsole).toBe('b');
  });

  test('a source that goes on after the destination has ticked is a second copy', () => {
    const log = new TickLog();
    record(log, 'a', 1, 50, 1000);
    record(log, 'b', 51, 60, 1600);
    record(log, 'a', 51, 52, 1700);
    expect(log.duplicates).toBe(2);
    expect(log.evidence[0]).toBe('tick 51 on a, though b had gone on from 51');
  });

  test('a second copy is found however much later it runs', () => {
    const log = new TickLog(10);
    record(log, 'a', 1, 50, 1000);
    record(log, 'b', 51, 10_000, 1600);
    record(log, 'a', 51, 51, 200_000);
    expect(log.duplicates).toBe(1);
  });

  test('a destination that starts behind the source is a second copy', () => {
    const log = new TickLog();
    record(log, 'a', 1, 50, 1000);
    record(log, 'b', 45, 45, 1600);
    expect(log.evidence).toEqual(['tick 45 on b, though a had reached 50']);
  });

  test('the same tick twice on one console is reported', () => {
    const log = new TickLog();
    record(log, 'a', 1, 5, 1000);
    record(log, 'a', 5, 5, 1100);
    expect(log.evidence).toEqual(['tick 5 twice on a']);
  });

  test('a guest that moves there and back is one guest', () => {
    const log = new TickLog();
    record(log, 'a (1)', 1, 50, 1000);
    record(log, 'b (2)', 51, 90, 1600);
    record(log, 'a (3)', 91, 99, 2100);
    expect(log.duplicates).toBe(0);
  });

  test('a guest that boots again counts as restarted, and beside a running one as a second copy', () => {
    const log = new TickLog();
    log.booted('a');
    record(log, 'a', 1, 50, 1000);
    log.booted('a');
    record(log, 'a', 1, 9, 3000);
    expect([log.restarts, log.duplicates]).toEqual([1, 0]);
    log.booted('b');
    record(log, 'b', 1, 2, 4000);
    record(log, 'a', 10, 10, 4100);
    expect([log.restarts, log.duplicates]).toEqual([2, 1]);
  });

  test('the longest gap spans consoles, counts whole if it began before the time asked for, and may still go on', () => {
    const log = new TickLog();
    record(log, 'a', 1, 3, 1000);
    record(log, 'b', 4, 5, 1220);
    expect(log.longestGapMs(0, 1240)).toBe(200);
    expect(log.longestGapMs(1100, 1240)).toBe(200);
    expect(log.longestGapMs(1221, 1240)).toBe(10);
    expect(log.longestGapMs(1221, 1900)).toBe(670);
    expect(log.longestGapMs(5000, 5010)).toBe(3780);
    expect(new TickLog().longestGapMs(0, 1000)).toBe(0);
  });

  test('keeps a bounded number of ticks', () => {
    const log = new TickLog(100);
    record(log, 'a', 1, 1000, 0);
    expect(log.since(0).length).toBeLessThanOrEqual(200);
    expect(log.since(0).at(-1)!.sequence).toBe(1000);
  });
});
