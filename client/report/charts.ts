import type * as Echarts from 'echarts';
import type { EChartsOption } from 'echarts';
import { formatDuration } from '../quantities';
import { escape, html, Markup } from './markup';

/** Text and lines on white have a contrast of at least 4.5 to 1. */
export const COLOURS = { ink: '#1f2328', faint: '#57606a', grid: '#d8dee4', blue: '#0b5cad', orange: '#b3450a', green: '#1a7f4b', red: '#b42318', purple: '#6d3fc0', grey: '#6b7280', yellow: '#8a6100' };
/** Taken out again: text has the page's. */
const FONT = 'sans-serif';
/** A picture for screens and paper, and one for phones, whose text is as large. */
const WIDTHS = { wide: 920, narrow: 350 };
const BAR_PX = 20;
const TEXT_PX = 11;
/** Of a character, in the mean: nobody measures text on a server. */
const CHARACTER_PX = 6.2;
/** Nearer marks share a label. */
const LABEL_PX = 22;
const STEPS_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000, 21_600_000, 43_200_000, 86_400_000, 172_800_000, 604_800_000];

export interface Bar {
  row: number;
  fromMs: number;
  toMs: number;
  colour: string;
  label: string;
  /** Did not come to its end: told by a pattern too, not by colour alone. */
  broken?: boolean;
}

/** A moment, with the number under which the text tells of it. */
export interface Mark {
  atMs: number;
  number: number;
}

export interface Band {
  fromMs: number;
  toMs: number;
  colour: string;
  label: string;
}

export interface Curve {
  name: string;
  colour: string;
  dashed?: boolean;
  filled?: boolean;
  /** `null` begins anew. */
  points: [ms: number, value: number | null][];
}

/** Draws charts as SVG by Apache ECharts: no browser, no script in the page. It is large, so it is loaded only for a report. */
export class Charts {
  private constructor(private readonly init: typeof Echarts.init) {}

  static async load(): Promise<Charts> {
    const { init } = await import('echarts');
    return new Charts(init);
  }

  /** Bars in rows over time, from `fromMs` on. Moments and bands are of the same clock as the bars. */
  gantt({ rows, bars, fromMs, toMs, marks = [], bands = [], describes }: { rows: string[]; bars: Bar[]; fromMs: number; toMs: number; marks?: Mark[]; bands?: Band[]; describes: string }): Markup {
    return this.figure(describes, (width) => {
      const left = Math.min(width * 0.32, Math.max(...rows.map((row) => row.length)) * 6.6 + 14);
      const top = marks.length > 0 ? 24 : 6;
      const height = top + rows.length * (BAR_PX + 8) + 26;
      const box: Box = { left, right: width - 14, top, bottom: height - 26, fromMs, toMs };
      const rowPx = (box.bottom - box.top) / rows.length;
      const option: EChartsOption = {
        grid: { left, right: 14, top, bottom: 26 },
        xAxis: timeAxis(box),
        yAxis: { type: 'category', data: rows, inverse: true, axisTick: { show: false }, axisLine: { show: false }, axisLabel: { color: COLOURS.ink, fontSize: 12, interval: 0, width: left - 10, overflow: 'truncate' } },
        series: [
          {
            type: 'custom',
            silent: true,
            data: bars.map((_, index) => [index]),
            renderItem: ({ dataIndex }) => {
              const bar = bars[dataIndex]!;
              return { type: 'group', children: barShape(bar, box, box.top + (bar.row + 0.5) * rowPx) };
            },
          },
        ],
        graphic: [...bandShapes(bands, box, box.top, box.bottom, 0.14), ...markShapes(marks, box, box.top, box.bottom)],
      };
      return { option, height };
    });
  }

  /** What remained, and below it the rates, over time; above both a strip that says what was told of it. */
  curves({ upper, lower, unit, fromMs, toMs, marks, bands, describes }: { upper: Curve[]; lower: Curve[]; unit: string; fromMs: number; toMs: number; marks: Mark[]; bands: Band[]; describes: string }): Markup {
    return this.figure(describes, (width) => {
      const [left, strip] = [62, 20];
      const top = (marks.length > 0 ? 24 : 6) + strip;
      const [first, second, height] = [{ top, bottom: top + 130 }, { top: top + 160, bottom: top + 260 }, top + 286];
      const box: Box = { left, right: width - 14, top: first.top, bottom: second.bottom, fromMs, toMs };
      const grid = ({ top: from, bottom }: { top: number; bottom: number }) => ({ left, right: 14, top: from, height: bottom - from });
      const yAxis = (index: number, name: string) => ({ gridIndex: index, type: 'value' as const, name, nameLocation: 'middle' as const, nameGap: 48, nameTextStyle: { color: COLOURS.faint, fontSize: TEXT_PX }, min: 0, splitNumber: 3, axisLabel: { color: COLOURS.faint, fontSize: TEXT_PX }, splitLine: { lineStyle: { color: COLOURS.grid } } });
      const series = (curve: Curve, index: number) => ({
        type: 'line' as const, silent: true, symbol: 'none', xAxisIndex: index, yAxisIndex: index, data: curve.points.map(([ms, value]) => [Math.round(ms - fromMs), value]),
        lineStyle: { color: curve.colour, width: 1.6, type: curve.dashed ? ('dashed' as const) : ('solid' as const) },
        ...(curve.filled && { areaStyle: { color: curve.colour, opacity: 0.12 } }),
      });
      const option: EChartsOption = {
        grid: [grid(first), grid(second)],
        xAxis: [{ ...timeAxis(box), gridIndex: 0, axisLabel: { show: false } }, { ...timeAxis(box), gridIndex: 1 }],
        yAxis: [yAxis(0, unit), yAxis(1, `${unit}/s`)],
        series: [...upper.map((curve) => series(curve, 0)), ...lower.map((curve) => series(curve, 1))],
        graphic: [...bandShapes(bands, box, top - strip, top - 4, 1), ...markShapes(marks, box, top - strip, box.bottom)],
      };
      return { option, height };
    });
  }

  private figure(describes: string, chart: (width: number) => { option: EChartsOption; height: number }): Markup {
    const drawn = Object.entries(WIDTHS).map(([name, width]) => {
      const { option, height } = chart(width);
      const canvas = this.init(null, null, { renderer: 'svg', ssr: true, width, height });
      canvas.setOption({ animation: false, textStyle: { fontFamily: FONT }, ...option });
      const svg = canvas.renderToSVGString().replace(/^<svg [^>]*?width="\d+" height="\d+"/, `<svg class="${name}" role="img" aria-label="${escape(describes)}"`);
      canvas.dispose();
      // What would answer to a pointer is of no use in a picture. Two in a page must not share the names of their clips, and do not: zrender counts them.
      return new Markup(svg.replace(/<style[^]*?<\/style>/g, '').replace(/ class="zr[^"]*"| pointer-events="visible"| xml:space="preserve"|font-family:sans-serif;/g, '').replace(/(\.\d{2})\d+/g, '$1'));
    });
    return html`${drawn}`;
  }
}

/** Where time is drawn, in pixels. */
interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
  fromMs: number;
  toMs: number;
}
type Shape = { type: 'rect' | 'line' | 'text' | 'circle'; shape?: Record<string, number>; style: Record<string, unknown>; silent: true; z?: number };

const xOf = ({ left, right, fromMs, toMs }: Box, ms: number) => left + (Math.min(1, Math.max(0, (ms - fromMs) / Math.max(1, toMs - fromMs))) * (right - left));
const widthOf = (text: string) => text.length * CHARACTER_PX;

function timeAxis({ left, right, fromMs, toMs }: Box) {
  const spanMs = Math.max(1, toMs - fromMs);
  const interval = STEPS_MS.find((step) => spanMs / step <= (right - left) / 70) ?? spanMs;
  return { type: 'value' as const, min: 0, max: spanMs, interval, axisLabel: { color: COLOURS.faint, fontSize: TEXT_PX, showMaxLabel: spanMs % interval === 0, formatter: (ms: number) => clockOf(ms, interval) }, splitLine: { lineStyle: { color: COLOURS.grid } } };
}

/** Time since the start, as exact as the steps of an axis. */
function clockOf(ms: number, stepMs: number): string {
  if (ms === 0) return '0';
  if (stepMs >= 3_600_000) return `${Math.round(ms / 3_600_000)} h`;
  if (stepMs >= 60_000) return `${Math.round(ms / 60_000)} min`;
  if (ms >= 60_000) return `${Math.floor(ms / 60_000)}:${String(Math.round((ms % 60_000) / 1000)).padStart(2, '0')}`;
  return stepMs >= 1_000 ? `${Math.round(ms / 1_000)} s` : formatDuration(ms);
}

/** Its label is inside, if there is room, else beside it. */
function barShape({ fromMs, toMs, colour, label, broken }: Bar, box: Box, middle: number): Shape[] {
  const from = xOf(box, fromMs);
  const width = Math.max(2, xOf(box, toMs) - from);
  const shape = { x: from, y: middle - BAR_PX / 2, width, height: BAR_PX, r: 2 };
  const fits = widthOf(label) + 8 < width;
  const right = from + width + 4 + widthOf(label) < box.right || from - box.left < widthOf(label) + 4;
  const x = fits ? from + 5 : right ? from + width + 4 : from - 4;
  return [
    { type: 'rect', shape, silent: true, style: broken ? { fill: '#fff', stroke: colour, lineWidth: 2, lineDash: [4, 3] } : { fill: colour } },
    { type: 'text', silent: true, style: { text: label, x, y: middle, fontSize: TEXT_PX, fontFamily: FONT, verticalAlign: 'middle', align: fits || right ? 'left' : 'right', fill: fits && !broken ? '#fff' : COLOURS.ink } },
  ];
}

function bandShapes(bands: Band[], box: Box, top: number, bottom: number, opacity: number): Shape[] {
  return bands.flatMap(({ fromMs, toMs, colour, label }): Shape[] => {
    const from = xOf(box, fromMs);
    const width = Math.max(1, xOf(box, toMs) - from);
    return [
      { type: 'rect', silent: true, shape: { x: from, y: top, width, height: bottom - top }, style: { fill: colour, opacity } },
      ...(widthOf(label) + 6 < width ? [{ type: 'text' as const, silent: true as const, style: { text: label, x: from + 4, y: opacity < 1 ? bottom - 8 : (top + bottom) / 2, fontSize: TEXT_PX, fontFamily: FONT, verticalAlign: 'middle', fill: opacity < 1 ? COLOURS.faint : '#fff' } }] : []),
    ];
  });
}

/** A thin line at each moment; those that are near one another have one label for all. */
function markShapes(marks: Mark[], box: Box, top: number, bottom: number): Shape[] {
  const groups: { x: number; first: number; last: number }[] = [];
  const shapes: Shape[] = [];
  for (const { atMs, number } of [...marks].sort((a, b) => a.atMs - b.atMs)) {
    const x = xOf(box, atMs);
    const near = groups.at(-1);
    if (near && x - near.x < LABEL_PX) near.last = number;
    else groups.push({ x, first: number, last: number });
    shapes.push({ type: 'line', silent: true, z: 5, shape: { x1: x, y1: top - 6, x2: x, y2: bottom }, style: { stroke: COLOURS.ink, lineWidth: 1, lineDash: [2, 2], opacity: 0.7 } });
  }
  for (const { x, first, last } of groups) {
    const text = first === last ? `${first}` : `${first}–${last}`;
    const width = Math.max(16, widthOf(text) + 8);
    const middle = Math.min(Math.max(x, width / 2), box.right + 14 - width / 2);
    shapes.push({ type: 'rect', silent: true, z: 6, shape: { x: middle - width / 2, y: top - 22, width, height: 16, r: 8 }, style: { fill: COLOURS.ink } });
    shapes.push({ type: 'text', silent: true, z: 7, style: { text, x: middle, y: top - 14, fontSize: TEXT_PX, fontFamily: FONT, fontWeight: 'bold', align: 'center', verticalAlign: 'middle', fill: '#fff' } });
  }
  return shapes;
}
