/** The web pages of two hosts' daemons in a browser: a VM is protected, its charts have figures, its host dies, and the standby's page shows the take-over. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { Browser, type Page } from './support/browser.ts';
import { colo } from './support/cli.ts';
import { TestDaemon } from './support/daemon.ts';
import { freePort, type GuestOptions, startVm, waitBooted } from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal' };
const SIZES = [
  { name: 'desk', width: 1280, height: 900 },
  { name: 'dark', width: 1280, height: 900, dark: true },
  { name: 'phone', width: 390, height: 844 },
  { name: 'wall', width: 3840, height: 2160 },
];

let cleanup: Cleanup;
let primary: TestDaemon;
let standby: TestDaemon;
let vm: TestVm;
let browser: Browser;
let page: Page;
/** COLO_PICTURES keeps them, for somebody to look at. */
const kept = process.env['COLO_PICTURES'] || undefined;
const pictures = kept ?? mkdtempSync(path.join(tmpdir(), 'colo-web-'));

beforeAll(async () => {
  cleanup = new Cleanup();
  browser = cleanup.own(await Browser.start());
  vm = await startVm(cleanup, 'web1', GUEST, false);
  await waitBooted(vm, GUEST);
  const twin = await startVm(cleanup, 'web1-standby', GUEST, true);
  const peer = `127.0.0.1:${await freePort()}`;
  primary = new TestDaemon('primary');
  standby = new TestDaemon('secondary');
  primary.writeVm('web1', [`qmp = "${vm.qmpPath}"`, `peer = "${peer}"`]);
  standby.writeVm('web1', [`qmp = "${twin.qmpPath}"`, `listen = "${peer}"`]);
  // Agents end before their VMs do: nothing is left then that could say something of a VM's end.
  cleanup.own(standby);
  cleanup.own(primary);
  await standby.start();
  await primary.start();
  page = await browser.page();
});
afterAll(async () => {
  if (kept === undefined) rmSync(pictures, { recursive: true });
  await cleanup.run();
});

async function link(daemon: TestDaemon): Promise<string> {
  const { stdout, stderr } = await colo('web', '--control', daemon.controlPath);
  expect(stderr).toBe('');
  return stdout.trim();
}

/** What stands in a column of the VM's row. */
const CELL = (heading: string) => `document.querySelector('#vms td[data-heading="${heading}"]').textContent`;

/** Keeps what the page says to who only hears it. */
const HEAR = `
  globalThis.heard = [];
  const announcer = document.getElementById('announcer');
  new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, { childList: true });
`;

test('without a link the browser is told which command gives one', async () => {
  const stranger = await browser.page();
  await stranger.open(new URL('/', await link(primary)).href);
  await stranger.waitUntil('refusal', 'document.body.innerText.includes("colo-agent web")');
  expect(await stranger.value('document.body.innerText')).not.toContain('web1');
});

test('by a link it sees the VM protected, with its figures, and charts that fill', async () => {
  await page.look({ width: 1280, height: 900 });
  await page.open(await link(primary));
  await page.waitUntil('protection', `${CELL('State')}.startsWith("PROTECTED")`, 120_000);
  await page.waitUntil('a pause', `${CELL('Pause (median, p99)')}.includes("ms")`);
  expect(await page.value(CELL('This host is'))).toMatch(/^primary to 127\.0\.0\.1:/);
  expect(await page.value(CELL('If the primary dies now'))).toContain('checkpoint');
  await page.waitUntil(
    'charts',
    `[...document.querySelectorAll('figure .value')].filter((each) => /^\\d/.test(each.textContent)).length >= 6`,
  );
  expect(await page.value('location.pathname + location.search')).toBe('/');
  expect(await page.value('document.cookie')).toBe('');
  expect(await page.value('document.querySelectorAll("figure canvas").length')).toBe(4);
  await page.waitUntil('its lane', `document.querySelector('.track').ariaLabel.includes("PROTECTED from")`);
});

test.each(SIZES)(
  'it fits a screen of $width x $height ($name), nothing beside it',
  async ({ name, ...size }) => {
    await page.look(size);
    await page.waitUntil(
      'charts of their new size',
      `[...document.querySelectorAll('figure')].every((each) => each.querySelector('.uplot').clientWidth <= each.clientWidth)`,
    );
    await page.waitUntil('no more than its width', `document.documentElement.scrollWidth === ${size.width}`);
    const paper = size.dark ? 'rgb(17, 21, 27)' : 'rgb(255, 255, 255)';
    await page.waitUntil(`paper ${paper}`, `getComputedStyle(document.body).backgroundColor === "${paper}"`);
    await page.screenshot(path.join(pictures, `${name}.png`));
  },
);

test('the primary’s death: the standby’s page shows that it has taken over', async () => {
  const other = await browser.page();
  await other.look({ width: 1280, height: 900 });
  await other.open(await link(standby));
  await other.waitUntil('standby', `${CELL('State')}.startsWith("STANDBY")`, 120_000);
  await other.waitUntil('figures of it', `/^\\d/.test(document.querySelector('figure .value').textContent)`);
  await other.value(HEAR);
  vm.kill();
  await vm.exited;
  await waitFor('take-over', 60_000, async () => {
    await standby.failover('web1').catch(() => {}); // refused until the loss is noticed
    return (await standby.vm('web1')).state === 'RUNNING';
  });
  await other.waitUntil('RUNNING', `${CELL('State')}.startsWith("RUNNING")`);
  await other.waitUntil(
    'word of it for who only hears',
    'heard.some((text) => text.includes("web1 is RUNNING"))',
  );
  expect(await other.value('document.getElementById("events").innerText')).toMatch(/RUNNING.*STANDBY/s);
  const steps = 'document.querySelectorAll("#take-overs tbody tr").length';
  await other.waitUntil('the timeline of the take-over', `${steps} > 2`);
  expect(await other.value('document.querySelector("#take-overs details").innerText')).toMatch(
    /web1 took over in .*\sms, at checkpoint \d+.*decided by a person/s,
  );
  await other.screenshot(path.join(pictures, 'failover.png'));
  await page.look({ width: 1280, height: 900 });
  await page.waitUntil('the loss', `${CELL('State')}.startsWith("WAITING")`);
  expect(other.complaints).toEqual([]);
  expect(page.complaints).toEqual([]);
});

test('where it is served is the configuration’s; one that can’t be is told, and nothing is changed', async () => {
  const text = readFileSync(standby.configFile, 'utf8');
  const say = (web: string) => writeFileSync(standby.configFile, text.replace('web = "127.0.0.1:0"\n', web));
  const { port } = new URL(await link(primary));
  const { origin } = new URL(await link(standby));
  say(`web = ${port}\n`);
  await expect(standby.reload()).rejects.toMatchObject({
    message: expect.stringContaining(`web pages can't be served at 127.0.0.1:${port}`),
  });
  expect((await fetch(new URL('/', await link(standby)))).status).toBe(401);
  say('');
  await standby.reload();
  await expect(fetch(origin)).rejects.toThrow();
  expect(await colo('web', '--control', standby.controlPath)).toMatchObject({
    code: 69,
    stderr: expect.stringContaining('`web = true`'),
  });
});

test('a daemon that is away is told, and what was there stays to be read', async () => {
  await primary.end('SIGKILL');
  await page.waitUntil(
    'its absence',
    'document.getElementById("connection").innerText.startsWith("No answer")',
  );
  expect(await page.value(CELL('State'))).toMatch(/^WAITING/);
  await page.screenshot(path.join(pictures, 'away.png'));
});

test('the next daemon wants another link; a browser that has lost its session is told what to do', async () => {
  await primary.start();
  const stranger = await browser.page();
  await stranger.open(await link(primary));
  await stranger.waitUntil('the page', 'document.getElementById("connection")?.innerText.startsWith("Live")');
  await stranger.forgetCookies();
  await stranger.waitUntil(
    'refusal',
    'document.getElementById("connection").innerText.includes("colo-agent web")',
  );
});
