import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import puppeteer, { type Browser } from 'puppeteer-core';
import { execute } from '../../client/cli';
import { QUIET } from '../simulated/hypervisor';
import { SimulatedFleet } from '../simulated/fleet';
import { recorded } from './history-files';
import { Charts } from '../../client/report/charts';
import { migrationPage } from '../../client/report/migration-page';
import { migrationRecord } from '../../client/report/record';

/** Real workflows and agents on simulated QEMUs, until they have ended: then only Temporal is left, and a browser. */
const ada = { by: 'ada', reason: 'the disk shelf is exchanged' };
const [GONE, STAYED] = ['h00-g000', 'h00-g002'];
let fleet: SimulatedFleet;
let browser: Browser;
beforeAll(async () => {
  fleet = await SimulatedFleet.open({ hosts: 3, guestsPerHost: 4, speed: 20, behaviour: () => ({ ...QUIET, disk: { ...QUIET.disk, writeBytesPerSecond: 4e6 } }) });
  browser = await puppeteer.launch({ executablePath: process.env['VMFERRY_CHROMIUM'] ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'], timeout: 60_000 });
  const { evacuation } = await fleet.client.fleet.evacuate({ host: 'h00', mode: 'approve', limits: { fleet: 4, perSource: 2, perDestination: 1 } });
  await evacuation.skip(STAYED, ada);
  await evacuation.setLimits({ perSource: 3, perDestination: 3 }, ada);
  await evacuation.pause(ada);
  await evacuation.approve(ada);
  await evacuation.resume(ada);
  await evacuation.result();
  for (const name of [...fleet.agents.keys()]) await fleet.stopAgent(name);
  await fleet.stopControl();
}, 120_000);
afterAll(async () => {
  await browser?.close();
  await fleet?.close();
});

/** What a person meets who opens a page at this width, and what the page did besides. */
async function open(html: string, width: number) {
  const file = join(fleet.folder, 'report.html');
  writeFileSync(file, html);
  const tab = await browser.newPage();
  try {
    const noise: string[] = [];
    tab.on('console', (message) => noise.push(message.text()));
    tab.on('pageerror', (error) => noise.push(String(error)));
    tab.on('request', (request) => {
      if (!/^data:/.test(request.url()) && request.url() !== `file://${file}`) noise.push(request.url());
    });
    await tab.setViewport({ width, height: 900 });
    await tab.goto(`file://${file}`);
    const seen = await tab.evaluate(`({
      text: document.body.innerText,
      overflows: document.documentElement.scrollWidth > document.documentElement.clientWidth,
      pictures: [...document.querySelectorAll('svg')].filter((one) => one.checkVisibility()).map((one) => ({ kind: one.getAttribute('class'), label: one.getAttribute('aria-label'), text: one.textContent, right: one.getBoundingClientRect().right })),
    })`) as { text: string; overflows: boolean; pictures: { kind: string; label: string; text: string; right: number }[] };
    return { ...seen, noise };
  } finally {
    await tab.close();
  }
}

test.each([[390, 'narrow'], [1280, 'wide']])('a migration and an evacuation are read at %i pixels, after agents and control workers have ended', async (width, kind) => {
  const migration = await open((await fleet.client.report(GONE)).html, width);
  expect(migration.text).toMatch(new RegExp(`${GONE} runs on h0[12]: it moved from h00 in .* and was paused for .* of the`));
  expect(migration.pictures[0]!.text).toMatch(/preflight.*prepare.*mirror.*converge.*memory.*switchover.*cleanup/s);
  expect(migration.pictures.map(({ label }) => label)).toEqual(expect.arrayContaining([expect.stringMatching(/^disk disk0 over time: at most .* remained/), expect.stringMatching(/^The pause of /)]));
  const evacuation = await open((await fleet.client.report('evacuate/h00')).html, width);
  expect(evacuation.text).toContain('Host h00 has only guests that were to stay: 3 guests moved');
  expect(evacuation.text).toContain(`skipped by ada: ${ada.reason}`);
  expect(evacuation.text).toContain('sets limits: perSource 3, perDestination 3');
  expect(evacuation.pictures[0]!.text).toMatch(/h00-g000.*h0[12], [\d.]+ m?s/s);
  for (const page of [migration, evacuation]) {
    expect(page.noise).toEqual([]);
    expect(page.overflows).toBe(false);
    for (const { kind: drawn, label, right } of page.pictures) {
      expect([drawn, label]).toEqual([kind, expect.stringMatching(/\w+ \w+/)]);
      expect(right).toBeLessThanOrEqual(width);
    }
  }
}, 60_000);

test('on paper it has the wide pictures, and no more pages than it needs', async () => {
  const tab = await browser.newPage();
  await tab.setContent(migrationPage(migrationRecord(await recorded('r3')), await Charts.load()));
  const paper = Buffer.from(await tab.pdf({ format: 'A4', preferCSSPageSize: true })).toString('latin1');
  await tab.emulateMediaType('print');
  expect(await tab.evaluate(`[...document.querySelectorAll('svg')].filter((one) => one.checkVisibility()).every((one) => one.getAttribute('class') === 'wide')`)).toBe(true);
  expect(paper.match(/\/Type\s*\/Page\b/g)!.length).toBeLessThanOrEqual(3);
  await tab.close();
});

const cli = async (...words: string[]) => {
  const said: string[] = [];
  const spies = [jest.spyOn(process.stderr, 'write'), jest.spyOn(process.stdout, 'write')].map((spy) => spy.mockImplementation((text) => said.push(String(text)) > 0));
  try {
    return { code: await execute(['--temporal-address', fleet.temporal.address, 'report', ...words]), said: said.join('') };
  } finally {
    spies.forEach((spy) => spy.mockRestore());
  }
};

test.each([
  ['a guest that never moved', ['nobody'], 3, /nothing on record of migrate\/nobody: give a guest's name/],
  ['a host that was never emptied', ['evacuate/h01'], 3, /nothing on record of evacuate\/h01/],
  ['a kind that has no report', ['host/h00'], 3, /no reports of "host\/h00": give a guest's name, migrate\/<vm>, evacuate\/<host> or fleet\/<name>/],
  ['a run that is not there', [GONE, '--run', '01a20cd3-320d-795b-9dc2-0f7040fd4a04'], 3, /no run 01a20cd3-320d-795b-9dc2-0f7040fd4a04 of migrate\/h00-g000 on record: leave --run out/],
  ['a run id that is none', [GONE, '--run', 'last'], 3, /no run last of migrate\/h00-g000/],
  ['a file that cannot be written', [GONE, '-o', '/nowhere/report.html'], 2, /--output \/nowhere\/report.html cannot be written: ENOENT/],
])('%s is one clear error', async (_what, words, code, message) => {
  const { code: ended, said } = await cli(...words);
  expect(said).toMatch(message);
  expect(said.trim().split('\n')).toHaveLength(1);
  expect(ended).toBe(code);
});

test('the command writes the page, or prints what is on record as JSON', async () => {
  const folder = join(fleet.folder, 'out');
  mkdirSync(folder);
  expect(await cli('evacuate/h00', '-o', join(folder, 'e.html'))).toEqual({ code: 0, said: `The report of evacuate/h00 is in ${join(folder, 'e.html')}.\n` });
  const { said } = await cli('evacuate/h00', '--json');
  const { record } = JSON.parse(said) as { record: { orders: { by: string; what: string }[] } };
  expect(record).toMatchObject({ kind: 'evacuation', host: 'h00', outcome: 'completed' });
  expect(record.orders.map(({ by, what }) => `${by} ${what}`)).toEqual([`ada lets ${STAYED} stay`, 'ada sets limits: perSource 3, perDestination 3', 'ada pauses: no other guest starts', 'ada approves the plan', 'ada resumes']);
});
