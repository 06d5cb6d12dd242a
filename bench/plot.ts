import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Curve {
  title: string;
  points: { x: number; y: number }[];
}

/** Draws curves as an SVG by gnuplot, where it is: the figures are printed in any case. */
export function plot(file: string, { x, y, curves, also = [] }: { x: string; y: string; curves: Curve[]; /** Further commands of gnuplot. */ also?: string[] }): void {
  if (spawnSync('gnuplot', ['--version']).status !== 0) {
    process.stderr.write(`no ${file}: install gnuplot-nox and run this again\n`);
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), 'vmferry-plot-'));
  try {
    const drawn = curves.map(({ title, points }, index) => {
      const data = join(folder, `${index}.dat`);
      writeFileSync(data, points.map((point) => `${point.x.toFixed(3)} ${point.y.toFixed(3)}\n`).join(''));
      return `'${data}' using 1:2 with linespoints linewidth 2 pointsize 0.4 title '${title}'`;
    });
    const script = ["set terminal svg size 800,420 font 'sans,12' background 'white'", `set output '${file}'`, 'set grid', `set xlabel '${x}'`, `set ylabel '${y}'`, 'set yrange [0:*]', 'set key outside bottom horizontal', ...also, `plot ${drawn.join(', ')}`];
    execFileSync('gnuplot', ['-e', script.join('; ')]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
