import type { MetricMeter } from '@temporalio/common';
import type { Progress } from '../../activities/context';
import { HostMeter } from '../../activities/host-meter';

/** What a Prometheus endpoint would serve: series stay for ever. */
class Endpoint {
  readonly series = new Map<string, number>();
  readonly meter = {
    createCounter: (name: string) => ({ add: (value: number, labels: object) => this.set(name, labels, (before) => before + value) }),
    createGauge: (name: string) => ({ set: (value: number, labels: object) => this.set(name, labels, () => value) }),
  } as unknown as MetricMeter;

  private set(name: string, labels: object, next: (before: number) => number): void {
    const key = `${name} ${Object.values(labels).join(' ')}`;
    this.series.set(key, next(this.series.get(key) ?? 0));
  }

  /** Of gauges of guests, those that are not 0. */
  shown(): string[] {
    return [...this.series].filter(([key, value]) => value !== 0 && /^vmferry_(disk|memory|guest)_/.test(key)).map(([key]) => key);
  }
}

const disk = (copiedBytes: number, remainingBytes = 100): Progress => ({ phase: 'converge', disks: [{ id: 'd', remainingBytes, lengthBytes: 1000, ready: false, bytesPerSecond: 5, copiedBytes }], verdict: { verdict: 'converging', message: '' } });
const nothing = { states: [], attempts: [], keptImages: 0 };
const copied = 'vmferry_copied_bytes_total h disk';
let endpoint: Endpoint;
let meter: HostMeter;
beforeEach(() => {
  endpoint = new Endpoint();
  meter = new HostMeter(endpoint.meter, 'h');
});

test('what is copied is counted by what it has grown, also when the copy is begun anew', () => {
  for (const bytes of [40, 70, 70, 30]) meter.progress('g', disk(bytes), false);
  expect(endpoint.series.get(copied)).toBe(100);
});

test('a step that an agent takes up again counts nothing of what was copied before', () => {
  meter.progress('g', disk(500), true);
  meter.progress('g', disk(520), true);
  expect(endpoint.series.get(copied)).toBe(20);
});

test('a verdict that is over, and a disk of which nothing is said any more, are 0', () => {
  meter.progress('g', disk(0), false);
  meter.progress('g', { phase: 'converge', verdict: { verdict: 'diverging', message: '' } }, false);
  expect(endpoint.shown()).toEqual(['vmferry_guest_verdict h g diverging']);
});

test('a guest whose move is over has no figures, nor one that nobody watches any more; one that moves keeps them', () => {
  for (const guest of ['over', 'terminated', 'moving']) meter.progress(guest, disk(0), false, guest === 'terminated' ? 0 : 50_000);
  meter.show({ ...nothing, attempts: [{ guest: 'terminated', role: 'source' }, { guest: 'moving', role: 'source' }] }, 70_000);
  expect(endpoint.shown().map((key) => key.split(' ')[2])).toEqual(['moving', 'moving', 'moving']);
  expect(endpoint.series.get('vmferry_attempts h source')).toBe(2);
});

test('guests are shown by state without the names of other hosts', () => {
  meter.show({ ...nothing, states: ['running', 'running', 'arriving from b', 'arriving from c', 'handed over to b'] });
  meter.show({ ...nothing, states: ['running'] });
  expect([...endpoint.series].filter(([key]) => key.startsWith('vmferry_guests'))).toEqual([['vmferry_guests h running', 1], ['vmferry_guests h arriving', 0], ['vmferry_guests h handed over', 0]]);
});

test('the names of guests that a process shows are bounded', () => {
  for (let number = 0; number < 2_000; number++) meter.progress(`g${number}`, disk(1), false);
  expect([...endpoint.series.keys()].filter((key) => key.startsWith('vmferry_disk_remaining_bytes')).length).toBe(500);
});
