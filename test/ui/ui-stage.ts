import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import puppeteer, { type Browser, type Page } from 'puppeteer-core';
import { SimulatedFleet } from '../simulated/fleet';
import { type GuestBehaviour, QUIET } from '../simulated/hypervisor';

/** Writes more than its host's link carries, at random over much. */
const BUSY: GuestBehaviour = { ...QUIET, disk: { writeBytesPerSecond: 40e6, workingSetBytes: 4e9, dataBytes: 64e6 } };
const SLOW_LINK = 20e6;
const CALM: GuestBehaviour = { ...QUIET, disk: { ...QUIET.disk, writeBytesPerSecond: 20e3 } };
/** A copy takes minutes. */
const CRAWLING_LINK = 0.3e6;

const HOSTS = {
  'host-a': [{ name: 'db-7', behaviour: CALM }],
  'host-b': [],
  'host-c': [{ name: 'mail-3', behaviour: BUSY }, { name: 'ci-4', behaviour: BUSY }],
  'host-d': [{ name: 'app-1' }, { name: 'web-2' }],
  'host-e': [{ name: 'dns-1', behaviour: CALM }, { name: 'git-1', behaviour: CALM }, { name: 'wiki-1', behaviour: CALM }, { name: 'print-1', definition: { migratable: 'never' } }],
  'host-f': [],
  /** Its disk is full. */
  'host-g': [],
};

const TAKING = ['host-b', 'host-d'];

const WIDTH = 1280;
/** Of a picture's dots: each stays below 200 KB. */
const SCALE = 0.8;
const HEIGHT = 900;
const RELOAD_MS = 10_000;
const MOST_MS = 40_000;

/** Where the pictures of docs/temporal-ui.md go, if they are to be taken (scripts/ui-pictures.sh). */
const PICTURES = process.env['VMFERRY_UI_PICTURES'] ? resolve(__dirname, '../../docs/ui') : undefined;

/** Migrations and an evacuation in every state that a person may meet, held there, and a browser that looks at Temporal's own UI. */
export class UiStage {
  private constructor(readonly fleet: SimulatedFleet, private readonly browser: Browser, readonly page: Page) {}

  static async open(): Promise<UiStage> {
    const fleet = await SimulatedFleet.open({ hosts: Object.keys(HOSTS).length, guestsPerHost: 0, named: HOSTS, speed: 20, config: (index) => ({ slots: { outgoing: 8, incoming: 8 }, labels: { takes: TAKING.includes(Object.keys(HOSTS)[index]!) ? 'guests' : 'none' } }) });
    fleet.world.host('host-g').full = true;
    fleet.world.host('host-c').setLink(SLOW_LINK);
    fleet.world.host('host-a').setLink(CRAWLING_LINK);
    const browser = await puppeteer.launch({ executablePath: process.env['VMFERRY_CHROMIUM'] ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-lcd-text'], timeout: 60_000 });
    const page = await browser.newPage();
    await page.setViewport({ width: WIDTH, height: HEIGHT });
    page.setDefaultTimeout(30_000);
    return new UiStage(fleet, browser, page);
  }

  async close(): Promise<void> {
    await this.browser.close();
    await this.fleet.close();
  }

  /** Starts everything, and resolves when each is in its state. */
  async play(): Promise<void> {
    const { client, world } = this.fleet;
    await client.migrate({ vm: 'db-7', to: 'host-b' });
    await client.migrate({ vm: 'mail-3', to: 'host-b', onDivergence: 'ask' });
    await client.migrate({ vm: 'ci-4', to: 'host-f', onDivergence: 'ask' });
    await (await client.migrate({ vm: 'app-1', to: 'host-f' })).result();
    await (await client.migrate({ vm: 'web-2', to: 'host-g' })).result().catch(() => undefined);
    const { evacuation } = await client.fleet.evacuate({ host: 'host-e', destinations: 'takes=guests', limits: { perSource: 1 } });
    for await (const { moved } of evacuation.watch()) if (moved.length > 0) break;
    world.host('host-e').setLink(CRAWLING_LINK);
    for (const vm of ['mail-3', 'ci-4']) for await (const { asks } of (await client.migration(vm)).watch()) if (asks) break;
  }

  /**
   * What a person reads at this address, once all of this is there, frames included: the UI shows Markdown in one. Throws, with what is missing. The details
   * are as of the page's load, so it is loaded anew now and then.
   */
  async read(path: string, ...expected: RegExp[]): Promise<string> {
    const deadline = Date.now() + MOST_MS;
    for (let seen = '', missing = expected; ; ) {
      await this.page.goto(`${this.fleet.uiUrl}${path}`, { waitUntil: 'domcontentloaded' });
      for (const reload = Date.now() + RELOAD_MS; Date.now() < reload; await delay(100)) {
        seen = (await Promise.all(this.page.frames().map((frame) => (frame.evaluate('document.body.innerText') as Promise<string>).catch(() => '')))).join('\n');
        missing = expected.filter((one) => !one.test(seen));
        if (missing.length === 0) return seen;
      }
      if (Date.now() >= deadline) throw new Error(`the UI does not say ${missing.join(' and ')} at ${this.page.url()}; it says:\n${seen}`);
    }
  }

  /** The tab of a workflow's page; without a run the UI goes to the last one. */
  async workflow(workflowId: string, tab: string): Promise<string> {
    const { runId } = await this.fleet.client.temporal.workflow.getHandle(workflowId).describe();
    return `/namespaces/default/workflows/${encodeURIComponent(workflowId)}/${runId}/${tab}`;
  }

  /** As a person chooses them in the list with "Configure Workflows": the browser keeps that (UI 2.42), beside status and id. */
  async showColumns(...names: string[]): Promise<void> {
    const columns = ['Status', 'Workflow ID', ...names].map((label, index) => ({ label, pinned: index < 2 }));
    await this.page.evaluate(`localStorage.setItem('namespace-workflow-table-columns', ${JSON.stringify(JSON.stringify({ default: columns }))})`);
  }

  /** Of what is seen, without scrolling, in a window of this size. */
  async picture(name: string, height = HEIGHT, width = WIDTH): Promise<void> {
    if (!PICTURES) return;
    await this.page.setViewport({ width, height, deviceScaleFactor: SCALE });
    mkdirSync(PICTURES, { recursive: true });
    await this.page.screenshot({ path: join(PICTURES, `${name}.png`) });
    await this.page.setViewport({ width: WIDTH, height: HEIGHT });
  }
}
