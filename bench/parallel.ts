import type { GuestSpec, Moved, MoveSide } from './copied-guest';
import { type Column, interleave, optionsOf, printTable, runBench } from './interleaved';
import { useLink, type LinkName } from './link';
import { ProductSide } from './product-side';
import { ScriptSide } from './script-side';

const HELP = `npm run bench:parallel -- [--case NAME,...] [--runs N] [--quick] [--json FILE]

Moves a guest with 1 to 8 disks, and 1 to 4 guests at once, by vmferry and by a bare script that drives the same QEMUs, in turn.`;

interface Case {
  link: LinkName;
  guests: number;
  disks: number;
}

const DISK_MIB = 128;
const MEMORY_KIB = 262_152;
const CASES: Record<string, Case> = {};
for (const disks of [1, 2, 4, 8]) CASES[`${disks}-disk${disks > 1 ? 's' : ''}`] = { link: 'free', guests: 1, disks };
for (const guests of [1, 2, 4]) CASES[`${guests}-guest${guests > 1 ? 's' : ''}`] = { link: '1 Gbit/s', guests, disks: 1 };

const COLUMNS: Column[] = [
  { title: 'all disks, ms', figure: 'disks', digits: 0 },
  { title: 'all disks, MiB/s', figure: 'MiB/s', digits: 0, ratio: 'of values' },
  { title: 'downtime by ticks, ms: median guest', figure: 'gap', digits: 0, ratio: 'of values' },
  { title: 'worst guest', figure: 'worst gap', digits: 0, ratio: 'of values' },
  { title: 'QEMU\'s STOP → RESUME, ms: median guest', figure: 'paused', digits: 0, ratio: 'of values' },
  { title: 'all, ms', figure: 'all', digits: 0, ratio: 'of values' },
];

function figuresOf(moved: Moved[], { guests, disks }: Case): Record<string, number> {
  const first = (of: (one: Moved) => number) => Math.min(...moved.map(of));
  const last = (of: (one: Moved) => number) => Math.max(...moved.map(of));
  const middle = (of: (one: Moved) => number) => moved.map(of).sort((a, b) => a - b)[Math.floor((moved.length - 1) / 2)]!;
  const copied = last((one) => one.copied) - first((one) => one.copyBegan);
  return {
    disks: copied,
    'MiB/s': (guests * disks * DISK_MIB * 1000) / copied,
    gap: middle((one) => one.gapMs),
    'worst gap': last((one) => one.gapMs),
    paused: middle((one) => one.resumed - one.stopped),
    all: last((one) => one.ended) - first((one) => one.began),
    'memory tries': last((one) => one.memoryTries),
  };
}

async function main(): Promise<void> {
  const options = optionsOf('parallel', HELP, Object.keys(CASES), ['2-disks', '2-guests']);
  if (!options) return;
  const product = await ProductSide.open(options.folder);
  const script = new ScriptSide(options.folder);
  try {
    const runs = await interleave({
      options,
      name: 'parallel',
      sidesOf: () => [product.name, script.name],
      measure: async (name, sideName, run) => {
        const one = CASES[name]!;
        const side: MoveSide = sideName === product.name ? product : script;
        const specs: GuestSpec[] = Array.from({ length: one.guests }, (_, index) => ({ name: `p${Object.keys(CASES).indexOf(name)}-${run}-${index}`, disks: one.disks, sizeMiB: DISK_MIB, dataMiB: DISK_MIB, memoryKib: MEMORY_KIB, options: { rate: 0, dirty: '1M', memory: '32M' } }));
        useLink(one.link);
        try {
          await side.boot(specs);
          const moved = await side.move();
          await side.verify();
          return figuresOf(moved, one);
        } finally {
          await side.end();
        }
      },
    });
    printTable(runs, COLUMNS);
  } finally {
    await product.close();
  }
}

runBench(main);
