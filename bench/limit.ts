import type { GuestSpec, Moved, MoveSide } from './copied-guest';
import { type Column, interleave, optionsOf, printTable, runBench } from './interleaved';
import { useLink, type LinkName } from './link';
import { ProductSide } from './product-side';
import { ScriptSide, type Tool } from './script-side';

const HELP = `npm run bench:limit -- [--case NAME,...] [--runs N] [--quick] [--json FILE]

Moves an idle guest by vmferry and by a bare script that drives the same QEMUs, and copies the same bytes by qemu-img convert and nbdcopy, in turn, over the same link.`;

interface Case {
  link: LinkName;
  sizeMiB: number;
  dataMiB: number;
  memoryKib: number;
  /** What the guest has filled of it. */
  memoryMiB: number;
  tools: Tool[];
}

const TOOLS: Tool[] = ['qemu-img convert', 'nbdcopy'];
const small = { memoryKib: 262_152, memoryMiB: 16 };
const large = { memoryKib: 786_440, memoryMiB: 512 };
const sparse = (sizeMiB: number): Case => ({ link: '1 Gbit/s', sizeMiB, dataMiB: 64, ...small, tools: ['qemu-img convert'] });
const CASES: Record<string, Case> = {
  'disk-free': { link: 'free', sizeMiB: 1024, dataMiB: 1024, ...small, tools: TOOLS },
  'disk-quick-acks': { link: 'free, quick ACKs', sizeMiB: 1024, dataMiB: 1024, ...small, tools: TOOLS },
  'disk-1g': { link: '1 Gbit/s', sizeMiB: 512, dataMiB: 512, ...small, tools: TOOLS },
  'memory-free': { link: 'free', sizeMiB: 16, dataMiB: 16, ...large, tools: [] },
  'memory-1g': { link: '1 Gbit/s', sizeMiB: 16, dataMiB: 16, ...large, tools: [] },
  'sparse-128m': sparse(128),
  'sparse-1g': sparse(1024),
  'sparse-8g': sparse(8192),
};

const COLUMNS: Column[] = [
  { title: 'disks, ms', figure: 'disks', digits: 0 },
  { title: 'disks, MiB/s', figure: 'MiB/s', digits: 0, ratio: 'of values' },
  { title: 'memory, ms', figure: 'memory', digits: 0, ratio: 'of speeds' },
  { title: 'between, ms', figure: 'between', digits: 0 },
  { title: 'guest paused, ms', figure: 'paused', digits: 0, ratio: 'of values' },
  { title: 'all, ms', figure: 'all', digits: 0, ratio: 'of values' },
];

function figuresOf({ began, copyBegan, copied, memoryBegan, memoryMoved, stopped, resumed, ended, memoryTries }: Moved, { dataMiB }: Case): Record<string, number> {
  const disks = copied - copyBegan;
  return { disks, 'MiB/s': (dataMiB * 1000) / disks, memory: memoryMoved - memoryBegan, before: copyBegan - began, between: memoryBegan - copied, paused: resumed - stopped, after: ended - resumed, all: ended - began, memoryTries };
}

async function main(): Promise<void> {
  const options = optionsOf('limit', HELP, Object.keys(CASES), ['disk-quick-acks', 'sparse-1g']);
  if (!options) return;
  const product = await ProductSide.open(options.folder);
  const script = new ScriptSide(options.folder);
  try {
    const runs = await interleave({
      options,
      name: 'limit',
      sidesOf: (name) => [product.name, script.name, ...CASES[name]!.tools],
      measure: async (name, sideName, run) => {
        const one = CASES[name]!;
        const side: MoveSide = sideName === product.name ? product : script;
        const { sizeMiB, dataMiB, memoryKib, memoryMiB } = one;
        const spec: GuestSpec = { name: `g${Object.keys(CASES).indexOf(name)}-${run}`, disks: 1, sizeMiB, dataMiB, memoryKib, options: { rate: 0, dirty: 0, memory: `${memoryMiB}M` } };
        useLink(one.link);
        try {
          await side.boot([spec]);
          if (one.tools.some((tool) => tool === sideName)) {
            const disks = await script.copyBy(sideName as Tool);
            script.assertCopied(spec);
            return { disks, 'MiB/s': (dataMiB * 1000) / disks };
          }
          const [moved] = await side.move();
          await side.verify();
          return figuresOf(moved!, one);
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
