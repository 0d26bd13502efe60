/** The web page's parts on the agent's side, each alone. */
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test, vi } from 'vitest';
import { STEP_BOUNDS_MS } from '../../src/agent/durations.ts';
import type { Status } from '../../src/agent/status.ts';
import { parseHttpAddress } from '../../src/http/address.ts';
import type { Reading, Readings } from '../../src/metrics/readings.ts';
import { Access, SESSION_MS } from '../../src/web/access.ts';
import { isForOthers } from '../../src/web/address.ts';
import { figuresOf, noFigures } from '../../src/web/figures.ts';
import { COLUMNS, History } from '../../src/web/history.ts';
import { isOwnHost } from '../../src/web/host.ts';
import { cookieName, cookieOf, linkTo } from '../../src/web/link.ts';
import { Sampler } from '../../src/web/sampler.ts';
import { counted, primaryStatus, secondaryStatus } from '../support/statuses.ts';

describe('Access', () => {
  test('a link lets in once, and what is not its token never', () => {
    const access = new Access();
    const token = access.link(0);
    expect(token).toMatch(/^[\w-]{43}$/);
    expect(access.enter('', 0)).toBe(null);
    expect(access.enter(`${token}x`, 0)).toBe(null);
    const session = access.enter(token, 0) as string;
    expect(access.mayLook(session, 0)).toBe(true);
    expect(access.enter(token, 0)).toBe(null);
    expect([access.mayLook(token, 0), access.mayLook('', 0)]).toEqual([false, false]);
    expect(access.enter(session, 0)).toBe(null);
  });

  test('both end when their time is over', () => {
    const access = new Access();
    const [early, late] = [access.link(0), access.link(0)];
    const session = access.enter(early, 119_999) as string;
    expect(access.enter(late, 120_000)).toBe(null);
    expect(access.mayLook(session, 119_998 + SESSION_MS)).toBe(true);
    expect(access.mayLook(session, 119_999 + SESSION_MS)).toBe(false);
  });

  test('there are so many at once, and the oldest goes', () => {
    const access = new Access();
    const links = Array.from({ length: 17 }, () => access.link(0));
    expect(access.enter(links[0] as string, 0)).toBe(null);
    const first = access.enter(links[1] as string, 0) as string;
    for (let more = 0; more < 63; more++) access.enter(access.link(0), 0);
    expect(access.mayLook(first, 0)).toBe(true);
    access.enter(access.link(0), 0);
    expect(access.mayLook(first, 0)).toBe(false);
  });
});

describe('isOwnHost', () => {
  test.each([
    '127.0.0.1:7780',
    'localhost',
    'LOCALHOST:1',
    '[::1]:7780',
    '10.0.0.1:7780',
    'north',
    'North:7780',
  ])('%s is', (host) => expect(isOwnHost(host, 'north')).toBe(true));

  test.each([
    undefined,
    '',
    'evil.example:7780',
    '127.0.0.1.evil.example',
    'localhost.evil.example:7780',
    'localhost@evil.example',
    'north.evil.example',
    '[::1].evil.example',
    '::1',
    ':7780',
    '127.0.0.1:7780 x',
  ])('%s isn’t', (host) => expect(isOwnHost(host, 'north')).toBe(false));

  test('nobody is the host that has no name', () => expect(isOwnHost(':1', '')).toBe(false));
});

describe('the link and its cookie', () => {
  test.each([
    ['7780', 'http://127.0.0.1:7780/enter?token=T'],
    [':7780', 'http://127.0.0.1:7780/enter?token=T'],
    ['0.0.0.0:7780', 'http://127.0.0.1:7780/enter?token=T'],
    ['[fd00::1]:80', 'http://[fd00::1]:80/enter?token=T'],
    ['unix:/run/w.sock', 'unix:/run/w.sock /enter?token=T'],
  ])('of %s', (address, link) => expect(linkTo(parseHttpAddress(address), 'T')).toBe(link));

  test('each address has a cookie of its own', () => {
    const names = ['1', '2', 'unix:/a', 'unix:/b'].map((text) => cookieName(parseHttpAddress(text)));
    expect(new Set(names).size).toBe(4);
    for (const name of names) expect(name).toMatch(/^[\w-]+$/);
  });

  test('is found among others, and nothing else is taken for it', () => {
    expect(cookieOf('a=1; colo-agent-1=x; b=2', 'colo-agent-1')).toBe('x');
    expect(cookieOf('xcolo-agent-1=x', 'colo-agent-1')).toBe(null);
    expect(cookieOf('colo-agent-1', 'colo-agent-1')).toBe(null);
    expect(cookieOf(undefined, 'colo-agent-1')).toBe(null);
  });

  test.each([
    ['7780', false],
    ['127.8.0.1:1', false],
    ['[::1]:1', false],
    ['localhost:1', false],
    ['unix:/x', false],
    [':1', true],
    ['10.0.0.1:1', true],
    ['north:1', true],
  ])('%s is for others than this host: %s', (address, expected) =>
    expect(isForOthers(parseHttpAddress(address))).toBe(expected),
  );
});

describe('History', () => {
  const at = (timeMs: number) => ({ ...noFigures(timeMs), pauseMs: timeMs / 3 });

  test('has each row under its number, also when the oldest have gone', () => {
    const history = new History();
    expect([history.rows, history.from(0)]).toEqual([0, []]);
    for (let row = 0; row < 1000; row++) history.add(at(row));
    expect(history.rows).toBe(1000);
    expect(history.from(0)).toHaveLength(480);
    expect(history.from(0)[0]?.[0]).toBe(520);
    expect(history.from(998).map((row) => row.slice(0, 3))).toEqual([
      [998, 332.667, null],
      [999, 333, null],
    ]);
    expect(history.from(1000)).toEqual([]);
    expect(history.from(5000)).toEqual([]);
  });
});

describe('figuresOf', () => {
  const pause = (...ms: number[]) => ({
    pause: counted(STEP_BOUNDS_MS, ...ms),
    checkpoint: counted(STEP_BOUNDS_MS, ...ms.map((each) => 2 * each)),
  });
  const before = {
    timeMs: 10_000,
    status: primaryStatus({
      histograms: pause(100),
      dirtyPages: { last: 1, p50: 1, total: 50 },
      sentBytes: 1000,
    }),
  };
  const status = primaryStatus({
    histograms: pause(100, 2, 4),
    dirtyPages: { last: 1, p50: 1, total: 250 },
    sentBytes: 5000,
    pauseMs: { last: 1, p50: 2, p99: 9, max: 9 },
    checkpointMs: { p50: 3, p99: 18 },
  });

  test('means and rates are those since the look before', () => {
    expect(figuresOf({ timeMs: 12_000, status }, before)).toEqual({
      ...noFigures(12_000),
      pauseMs: 3,
      pauseP99Ms: 9,
      checkpointMs: 6,
      checkpointP99Ms: 18,
      dirtyPagesPerSecond: 100,
      bytesPerSecond: 2000,
    });
  });

  test.each<[string, number, Status, typeof before | null]>([
    ['the first look', 12_000, status, null],
    ['another agent', 12_000, { ...status, agentPid: 4 }, before],
    ['a clock that was set back', 9000, status, before],
  ])('%s: no rates', (_, timeMs, now, earlier) => {
    const { dirtyPagesPerSecond, bytesPerSecond } = figuresOf({ timeMs, status: now }, earlier);
    expect([dirtyPagesPerSecond, bytesPerSecond]).toEqual([null, null]);
  });

  test('an agent that went from standby to primary has no rates yet, and no negative ones', () => {
    const standby = { timeMs: 10_000, status: secondaryStatus() };
    expect(figuresOf({ timeMs: 12_000, status }, standby)).toMatchObject({
      pauseMs: null,
      bytesPerSecond: null,
    });
  });

  test('no checkpoint in between: no mean', () => {
    const same = { timeMs: 12_000, status: before.status };
    expect(figuresOf(same, before)).toMatchObject({ pauseMs: null, dirtyPagesPerSecond: 0 });
  });

  test('of a standby: how long checkpoints took to come in', () => {
    const histograms = { flush: counted(STEP_BOUNDS_MS, 1), load: counted(STEP_BOUNDS_MS, 10) };
    const earlier = { timeMs: 0, status: secondaryStatus({ histograms, receivedBytes: 0 }) };
    const later = secondaryStatus({
      histograms: { flush: counted(STEP_BOUNDS_MS, 1, 5), load: counted(STEP_BOUNDS_MS, 10, 30) },
      receivedBytes: 300,
    });
    expect(figuresOf({ timeMs: 1000, status: later }, earlier)).toEqual({
      ...noFigures(1000),
      flushMs: 5,
      loadMs: 30,
      bytesPerSecond: 300,
    });
  });

  test('there is one for each column', () => {
    expect(Object.keys(noFigures(0))).toEqual([...COLUMNS]);
  });
});

describe('Sampler', () => {
  const PATIENCE = { timeout: 30_000, interval: 5 };

  test('looks seldom until somebody watches, and keeps what was before', async () => {
    let looks = 0;
    const readings = async (): Promise<Readings> => {
      looks += 1;
      return new Map([['web1', { status: primaryStatus() }]]);
    };
    const sampler = new Sampler({ readings, onFailure: () => {}, watchedMs: 10, unwatchedMs: 1e8 });
    await vi.waitFor(() => expect(sampler.sample('web1')).not.toBe(null), PATIENCE);
    await sleep(50);
    expect(looks).toBe(1);
    sampler.watch();
    await vi.waitFor(() => expect(looks).toBeGreaterThan(4), PATIENCE);
    expect(sampler.history('web1')?.from(0).length).toBeGreaterThan(2);
    sampler.close();
  });

  test('an agent that says nothing leaves a gap, and a VM that has gone nothing', async () => {
    const [web1, db] = [{ status: primaryStatus() }, { failure: 'it hangs' }];
    const each: Readings[] = [
      new Map<string, Reading>([
        ['web1', web1],
        ['db', db],
      ]),
      new Map([['web1', db]]),
    ];
    let looks = 0;
    const readings = async () => each[Math.min(looks++, 1)] as Readings;
    const sampler = new Sampler({ readings, onFailure: () => {}, watchedMs: 10, unwatchedMs: 1e8 });
    await vi.waitFor(
      () => expect(sampler.sample('db')).toMatchObject({ reading: db, figures: null }),
      PATIENCE,
    );
    sampler.watch();
    await vi.waitFor(() => expect(sampler.sample('db')).toBe(null), PATIENCE);
    const rows = sampler.history('web1')?.from(0) ?? [];
    expect(rows[1]?.slice(1).every((cell) => cell === null)).toBe(true);
    sampler.close();
  });
});
