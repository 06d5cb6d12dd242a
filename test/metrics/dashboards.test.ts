import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parse, stringify } from 'yaml';
import { METRICS, type Metric } from '../../workflows/metric-table';
import { anchorOf, readPage, tableOf } from '../docs/markdown';

/** The table in the code, the page, the dashboard and the alerts speak of the same metrics; Prometheus's own tool has read every expression. */
const ROOT = resolve(__dirname, '../..');
const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const ALERTS = join(ROOT, 'deploy/prometheus/alerts.yml');

interface Rule { alert?: string; record?: string; expr: string; annotations?: Record<string, string> }
interface Panel { id: number; type: string; title: string; gridPos: { x: number; y: number; w: number; h: number }; targets?: { expr: string; legendFormat: string }[] }

const rules = (parse(read('deploy/prometheus/alerts.yml')) as { groups: { rules: Rule[] }[] }).groups.flatMap((group) => group.rules);
const alerts = rules.filter(({ alert }) => alert !== undefined);
const dashboard = JSON.parse(read('deploy/grafana/vmferry.json')) as { panels: Panel[] };
const shown = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map(({ expr, legendFormat }) => ({ where: `panel "${title}"`, expr, legendFormat })));
const expressions = [...rules.map(({ alert, record, expr }) => ({ where: (alert ?? record)!, expr, legendFormat: '' })), ...shown];
const named = (expr: string, pattern: RegExp) => [...new Set([...expr.matchAll(pattern)].map(([name]) => name))];
const metricOf = (name: string): Metric | undefined => (METRICS as Record<string, Metric>)[name] ?? (METRICS as Record<string, Metric>)[name.replace(/_(bucket|sum|count)$/, '')];

let promtool: string;
let folder: string;
beforeAll(() => {
  // Downloads it, once a machine.
  promtool = execFileSync(join(ROOT, 'scripts/promtool.sh'), { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
  folder = mkdtempSync(join(tmpdir(), 'promtool-'));
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function check(...args: string[]): { ok: boolean; said: string } {
  const { status, stdout, stderr } = spawnSync(promtool, args, { encoding: 'utf8' });
  return { ok: status === 0, said: status === 0 ? '' : `${stdout}${stderr}` };
}

test('promtool takes the alerts, and each comes and goes as its test says', () => {
  expect(check('check', 'rules', '--lint-fatal', ALERTS)).toEqual({ ok: true, said: '' });
  expect(check('test', 'rules', join(__dirname, 'alerts.test.yml'))).toEqual({ ok: true, said: '' });
  const tested = read('test/metrics/alerts.test.yml');
  expect(alerts.map(({ alert }) => alert).filter((alert) => !new RegExp(`alertname: ${alert}\\n\\s+exp_alerts:\\n`).test(tested))).toEqual([]);
});

test('promtool reads every expression of the dashboard, and finds one that is wrong', () => {
  const asRules = (all: string[]) => stringify({ groups: [{ name: 'dashboard', rules: all.map((expr, index) => ({ record: `panel:${index}`, expr: expr.replaceAll('$__rate_interval', '5m').replaceAll('$__range', '6h').replaceAll('$host', '.*') })) }] });
  const file = join(folder, 'dashboard.yml');
  writeFileSync(file, asRules(shown.map(({ expr }) => expr)));
  expect(check('check', 'rules', file)).toEqual({ ok: true, said: '' });
  writeFileSync(file, asRules(['sum(vmferry_guests']));
  expect(check('check', 'rules', file).ok).toBe(false);
});

test('promtool takes the example of a configuration, with the jobs that the alerts name', () => {
  expect(check('check', 'config', join(ROOT, 'deploy/prometheus/prometheus.yml'))).toEqual({ ok: true, said: '' });
  const jobs = (parse(read('deploy/prometheus/prometheus.yml')) as { scrape_configs: { job_name: string }[] }).scrape_configs.map(({ job_name }) => job_name);
  for (const { expr } of expressions) for (const [, job] of expr.matchAll(/job="([^"]+)"/g)) expect(jobs).toContain(job);
});

test('alerts and dashboard use only metrics and labels that there are, counters only by their growth, and leave none out', () => {
  const used = new Set<string>();
  const recorded = rules.flatMap(({ record }) => record ?? []);
  for (const { where, expr, legendFormat } of expressions) {
    for (const name of named(expr, /\bvmferry:[a-z_:]+/g)) expect({ where, name, known: recorded.includes(name) }).toEqual({ where, name, known: true });
    const names = named(expr, /\bvmferry_[a-z_]+/g);
    for (const name of names) {
      const metric = metricOf(name);
      expect({ where, name, known: metric !== undefined, part: metric?.kind === 'histogram' }).toEqual({ where, name, known: true, part: /_(bucket|sum|count)$/.test(name) });
      used.add(Object.keys(METRICS).includes(name) ? name : name.replace(/_(bucket|sum|count)$/, ''));
      const [, selected = ''] = new RegExp(`${name}\\{([^}]*)\\}`).exec(expr) ?? [];
      for (const [, label] of selected.matchAll(/(\w+)\s*[=!]/g)) expect({ where, name, label, known: metric!.labels.includes(label!) }).toEqual({ where, name, label, known: true });
      if (metric!.kind !== 'gauge') expect({ where, expr, grows: /\b(rate|increase)\(/.test(expr) }).toEqual({ where, expr, grows: true });
    }
    if (names.length > 0) for (const [, list] of [...expr.matchAll(/\bby \(([^)]*)\)/g), ...legendFormat.matchAll(/\{\{(\w+)\}\}/g)]) {
      for (const label of list!.split(',').map((one) => one.trim())) expect({ where, label, known: names.some((name) => metricOf(name)!.labels.includes(label)) || label === 'le' }).toEqual({ where, label, known: true });
    }
  }
  expect(Object.keys(METRICS).filter((name) => !used.has(name))).toEqual([]);
});

test('of the SDK they use what its core has and the page lists', () => {
  const used = [...new Set(expressions.flatMap(({ expr }) => named(expr, /\btemporal_[a-z_]+/g)).map((name) => name.replace(/_bucket$/, '')))];
  expect(tableOf(readPage(join(ROOT, 'docs/metrics.md')), 'Of the SDK', 'metric').map(([name]) => name!.replaceAll('`', '')).sort()).toEqual(used.sort());
  const core = join(ROOT, 'node_modules/@temporalio/core-bridge/sdk-core/crates');
  const code = readdirSync(core, { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith('metrics.rs')).map((path) => readFileSync(join(core, path), 'utf8')).join('\n');
  expect(used.filter((name) => !code.includes(`"${name.replace('temporal_', '')}"`))).toEqual([]);
});

test('every alert is in the operator\'s guide, and its runbook is there', () => {
  expect(tableOf(readPage(join(ROOT, 'docs/operating.md')), 'Alerts', 'alert').map(([alert]) => alert!.replaceAll('`', ''))).toEqual(expect.arrayContaining(alerts.map(({ alert }) => alert)));
  expect(tableOf(readPage(join(ROOT, 'docs/operating.md')), 'Alerts', 'alert')).toHaveLength(alerts.length);
  for (const { alert, annotations } of alerts) {
    const [page, anchor] = annotations!['runbook_url']!.split('#') as [string, string];
    expect({ alert, there: readPage(join(ROOT, page)).headings.map(anchorOf).includes(anchor), summary: annotations!['summary'] !== undefined }).toEqual({ alert, there: true, summary: true });
  }
});

test('docs/metrics.md has every metric with its kind, labels and meaning, and each is counted somewhere', () => {
  const page = readPage(join(ROOT, 'docs/metrics.md'));
  const sections = { workflow: 'Counted by workflows', 'control worker': 'Shown by control workers', agent: 'Shown by agents' };
  for (const [origin, section] of Object.entries(sections)) {
    const ours = Object.entries(METRICS as Record<string, Metric>).filter(([, metric]) => metric.origin === origin);
    expect(tableOf(page, section, 'metric')).toEqual(ours.map(([name, { kind, labels, help }]) => [`\`${name}\``, kind, labels.map((label) => `\`${label}\``).join(', '), help]));
  }
  const code = ['workflows', 'activities', 'workers'].flatMap((part) => readdirSync(join(ROOT, part)).filter((file) => file.endsWith('.ts') && file !== 'metric-table.ts').map((file) => read(join(part, file)))).join('\n');
  expect(Object.keys(METRICS).filter((name) => !code.includes(`'${name}'`))).toEqual([]);
});

test('names and units are as Prometheus has them, and only figures of moving guests carry a guest', () => {
  for (const [name, { kind, labels, buckets }] of Object.entries(METRICS as Record<string, Metric>)) {
    expect(name).toMatch(kind === 'counter' ? /_total$/ : /^(?!.*(_total|_bucket|_sum|_count)$)/);
    expect(name).not.toMatch(/_(ms|milliseconds|mb|gb|minutes)(_|$)/);
    expect({ name, buckets: kind === 'histogram' }).toEqual({ name, buckets: buckets !== undefined });
    expect(buckets ?? []).toEqual([...(buckets ?? [])].sort((a, b) => a - b));
    if (labels.includes('guest')) expect(name).toMatch(/^vmferry_(disk|memory|guest)_/);
  }
});

test('no two panels of the dashboard lie on each other, and each has a name of its own', () => {
  const { panels } = dashboard;
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  expect(new Set(panels.map(({ title }) => title)).size).toBe(panels.length);
  const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) => Array.from({ length: w * h }, (_, index) => `${x + (index % w)} ${y + Math.floor(index / w)}`));
  expect(new Set(cells).size).toBe(cells.length);
});
