import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { hostNowMs, TestGuest } from '../demo/guest/test-guest';
import { crossingGapMs } from '../demo/stage';
import { ensureCertificates } from '../hypervisor/lab-certificates';
import { shutdownSignal } from '../workers/shutdown';
import { LibvirtSide, libvirtVersion } from './libvirt-side';
import { type ControllerMs, HOST_SIDES, LINK_ADDRESSES, Namespaces } from './namespaces';
import { plot } from './plot';
import { DISK_MIB, DISKS, type Side } from './side';
import { spread } from './statistics';
import { VmferrySide } from './vmferry-side';

const HELP = `npm run bench:libvirt -- [--runs N] [--load NAME,...] [--side NAME] [--tls] [--json FILE]

Moves the same guest by vmferry and by virsh migrate --live --copy-storage-all --auto-converge, in turn, between two hosts on this machine.
  --runs N         of each side, a load (default 5)
  --load NAME,...  of idle, moderate, heavy and curve (default: idle,moderate,heavy); curve is several loads, and writes docs/libvirt-*.svg
  --side NAME      only vmferry, or only libvirt
  --tls            disks and memory by TLS with x509 certificates on both sides, instead of as plain text
  --json FILE      where every run's figures go (default test-results/bench-libvirt.json)`;

interface Load {
  /** Written a second to each disk, in random blocks of 16 KiB. */
  rateBytes: number;
  dirty: string;
  linkBytesPerSecond?: number;
  deadlineMs: number;
}

const MB = 1e6;
const LOADS: Record<string, Load> = {
  idle: { rateBytes: 0, dirty: '0', deadlineMs: 60_000 },
  moderate: { rateBytes: 5 * MB, dirty: '4M', deadlineMs: 60_000 },
  // More than the link carries: each write of 16 KiB makes a mirror copy its 64 KiB again.
  heavy: { rateBytes: 15 * MB, dirty: '4M', linkBytesPerSecond: 50 * MB, deadlineMs: 60_000 },
};
/** From what a link carries easily to what it cannot. */
const CURVE_MB = [2, 5, 8, 10, 15, 25];
const curveName = (mb: number) => `curve-${mb}`;
for (const mb of CURVE_MB) LOADS[curveName(mb)] = { ...LOADS['heavy']!, rateBytes: mb * MB };
/** Both disks together, before the move. */
const WRITTEN_BYTES = 128 * 2 ** 20;

interface Run {
  side: Side['name'];
  load: string;
  finished: boolean;
  totalMs: number;
  /** The longest silence between two of the guest's 10 ms ticks, from the beginning of the move to its end. */
  longestGapMs: number;
  /** The silence between its last tick on one host and its first on the other. */
  crossingGapMs: number | null;
  wireBytes: number;
  controllerMs: ControllerMs;
  /** The machine's, over the last minute. */
  loadAverage: number;
}

const say = (text: string) => process.stderr.write(`${text}\n`);

async function measure(side: Side, loadName: string, name: string, namespaces: Namespaces): Promise<Run> {
  const load = LOADS[loadName]!;
  const guest = new TestGuest();
  try {
    namespaces.limit(load.linkBytesPerSecond);
    await side.boot(name, guest, { rate: '64M', memory: '32M', dirty: load.dirty });
    await guest.ready();
    while (Number(/bytes=(\d+)/.exec(await guest.command('stats'))![1]) < WRITTEN_BYTES) await guest.nextTick();
    await guest.command(`rate ${load.rateBytes}`);
    const wireBefore = namespaces.linkBytes();
    const meter = namespaces.watchControllers();
    const began = hostNowMs();
    const finished = await side.move(name, guest, load.deadlineMs).finally(() => meter.stop());
    const totalMs = hostNowMs() - began;
    const controllerMs = meter.stop();
    const wireBytes = namespaces.linkBytes() - wireBefore;
    await guest.nextTick();
    const longestGapMs = guest.longestGapMs(began);
    const { blocksLost, memoryErrors, first } = await guest.verify();
    if (blocksLost > 0 || memoryErrors > 0 || guest.duplicateTicks > 0) throw new Error(`${side.name}, ${loadName}: ${blocksLost} blocks lost (${first.join(', ')}), ${memoryErrors} pages damaged, ${guest.duplicateTicks} ticks twice: these figures are worth nothing`);
    return { side: side.name, load: loadName, finished, totalMs, longestGapMs, crossingGapMs: crossingGapMs(guest.ticksSince(began)) ?? null, wireBytes, controllerMs, loadAverage: loadavg()[0]! };
  } finally {
    guest.close();
    await side.end(name);
  }
}

const COLUMNS: { title: string; digits: number; of: (run: Run) => number }[] = [
  { title: 'total, s', digits: 2, of: ({ totalMs }) => totalMs / 1000 },
  { title: 'longest gap between ticks, ms', digits: 0, of: ({ longestGapMs }) => longestGapMs },
  { title: 'on the wire, MB', digits: 0, of: ({ wireBytes }) => wireBytes / MB },
  { title: 'CPU of controllers, ms', digits: 0, of: ({ side, controllerMs }) => controllerMs[side] },
];

/** Median (lowest–highest) of the runs that finished, and their ratio. */
function print(runs: Run[]): void {
  console.log(`| load | side | finished | ${COLUMNS.map(({ title }) => title).join(' | ')} |\n|---|---|---|${'---|'.repeat(COLUMNS.length)}`);
  for (const load of new Set(runs.map((run) => run.load))) {
    const medians: Record<string, number[]> = {};
    for (const side of ['vmferry', 'libvirt'] as const) {
      const all = runs.filter((run) => run.load === load && run.side === side);
      const finished = all.filter((run) => run.finished);
      if (all.length === 0) continue;
      const cells = COLUMNS.map(({ of, digits }) => {
        if (finished.length === 0) return '–';
        const { median, low, high } = spread(finished.map(of));
        (medians[side] ??= []).push(median);
        return `${median.toFixed(digits)} (${low.toFixed(digits)}–${high.toFixed(digits)})`;
      });
      const outcome = `${finished.length} of ${all.length}${finished.length < all.length ? ` in ${LOADS[load]!.deadlineMs / 1000} s` : ''}`;
      console.log(`| ${load} | ${side} | ${outcome} | ${cells.join(' | ')} |`);
    }
    const { vmferry, libvirt } = medians;
    if (vmferry && libvirt) console.log(`| ${load} | **ratio** | | ${vmferry.map((median, index) => `${(median / libvirt[index]!).toFixed(2)}×`).join(' | ')} |`);
  }
}

/** What a side took and how long its guest was silent, by what the guest writes; moves that did not finish have no point. */
function plotCurves(runs: Run[]): void {
  const curves = (of: (run: Run) => number) =>
    (['vmferry', 'libvirt'] as const).map((side) => ({
      title: side,
      points: CURVE_MB.flatMap((mb) => {
        const finished = runs.filter((run) => run.load === curveName(mb) && run.side === side && run.finished);
        return finished.length > 0 ? [{ x: mb, y: spread(finished.map(of)).median }] : [];
      }),
    }));
  const x = 'MB/s that the guest writes to each of its 2 disks; the link carries 50 MB/s';
  const also = [`set xrange [0:${Math.max(...CURVE_MB) + 1}]`];
  plot('docs/libvirt-total.svg', { x, y: 'seconds, median of the moves that finished', curves: curves(({ totalMs }) => totalMs / 1000), also });
  plot('docs/libvirt-pause.svg', { x, y: 'longest gap between ticks, ms', curves: curves(({ longestGapMs }) => longestGapMs), also });
}

interface Options {
  loads: string[];
  count: number;
  sides: Side['name'][];
  tls: boolean;
  json: string;
}

async function compare(namespaces: Namespaces, folder: string, { loads, count, sides: names, tls, json }: Options): Promise<void> {
  const sides: Side[] = [];
  const runs: Run[] = [];
  const record = () => {
    mkdirSync(dirname(json), { recursive: true });
    writeFileSync(json, `${JSON.stringify({ at: new Date().toISOString(), libvirt: libvirtVersion(), tls, disks: DISKS, diskMiB: DISK_MIB, loads: LOADS, runs }, undefined, 2)}\n`);
  };
  try {
    const certificates = tls ? join(folder, 'tls') : undefined;
    if (certificates) await ensureCertificates(certificates, HOST_SIDES.map((name) => ({ name, addresses: [LINK_ADDRESSES[name]] })), 1);
    if (names.includes('vmferry')) sides.push(await VmferrySide.open(folder, namespaces, certificates));
    if (names.includes('libvirt')) sides.push(await LibvirtSide.open(folder, namespaces, certificates));
    for (const load of loads) {
      for (let run = 1; run <= count; run++) {
        // Neither always goes first.
        for (const side of run % 2 === 1 ? sides : sides.toReversed()) {
          const measured = await measure(side, load, `bench-${load}-${run}`, namespaces);
          runs.push(measured);
          record();
          say(`${load}, ${run} of ${count}, ${side.name}: ${measured.finished ? '' : 'not finished, given up after '}${(measured.totalMs / 1000).toFixed(2)} s, longest gap ${measured.longestGapMs.toFixed(0)} ms, ${(measured.wireBytes / MB).toFixed(0)} MB, controllers ${measured.controllerMs[side.name].toFixed(0)} ms; load ${measured.loadAverage.toFixed(1)}`);
        }
      }
    }
  } finally {
    for (const side of sides) await side.close().catch((error: Error) => say(error.message));
    if (runs.length > 0) {
      const averages = spread(runs.map(({ loadAverage }) => loadAverage));
      console.log(`\nvmferry and libvirt ${libvirtVersion()} in turn, ${DISKS} disks of ${DISK_MIB} MiB, ${tls ? 'TLS' : 'plain text'}; median (lowest–highest); the machine's load ${averages.low.toFixed(1)} to ${averages.high.toFixed(1)}\n`);
      print(runs);
      if (CURVE_MB.every((mb) => loads.includes(curveName(mb)))) plotCurves(runs);
    }
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { prefix: { type: 'string' }, folder: { type: 'string' }, runs: { type: 'string', default: '5' }, load: { type: 'string', default: 'idle,moderate,heavy' }, side: { type: 'string', default: 'vmferry,libvirt' }, tls: { type: 'boolean', default: false }, json: { type: 'string', default: 'test-results/bench-libvirt.json' }, help: { type: 'boolean', default: false } } });
  if (values.help) return console.log(HELP);
  const loads = values.load.split(',').flatMap((load) => (load === 'curve' ? CURVE_MB.map(curveName) : [load]));
  const unknown = loads.find((load) => !Object.hasOwn(LOADS, load));
  if (unknown !== undefined) throw new Error(`--load ${unknown}: give some of curve, ${Object.keys(LOADS).join(', ')}, separated by commas`);
  const sides = values.side.split(',').map((name) => {
    if (name !== 'vmferry' && name !== 'libvirt') throw new Error(`--side ${name}: give vmferry or libvirt`);
    return name;
  });
  const count = Number(values.runs);
  if (!Number.isInteger(count) || count < 1) throw new Error(`--runs ${values.runs}: give a whole number above 0`);
  if (values.prefix === undefined || values.folder === undefined) throw new Error('run this by npm run bench:libvirt, which makes the network');
  const interrupted = shutdownSignal().then((signal) => Promise.reject(new Error(`interrupted by ${signal}`)));
  // What lives is ended by the script, with its namespaces.
  await Promise.race([compare(new Namespaces(values.prefix), values.folder, { loads, count, sides, tls: values.tls, json: values.json }), interrupted]);
}

main().then(
  () => process.exit(0),
  (error: Error) => {
    say(`bench: ${error.message}`);
    process.exit(1);
  },
);
