import { afterEach, describe, expect, test, vi } from 'vitest';
import type { Readings } from '../../src/metrics/readings.ts';
import { WebServer, type WebServerOptions } from '../../src/web/server.ts';
import type { Shown, ShownEvent } from '../../src/web/shown.ts';
import { ask as askAt, dial as dialAt, whereOf } from '../support/http.ts';
import { primaryStatus } from '../support/statuses.ts';

const PATIENCE = { timeout: 30_000, interval: 10 };
const WEB1 = {
  vm: 'web1',
  role: 'primary',
  state: 'PROTECTED',
  reason: 'well',
  generation: 1,
  restarts: 0,
} as const;
const EVENTS: ShownEvent[] = [1, 2, 3].map((id) => ({
  id,
  time: '2026-01-01T00:00:00.000Z',
  vm: 'web1',
  role: 'primary',
  state: 'PROTECTED',
  reason: 'well',
}));

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

async function serve(over: Partial<WebServerOptions> = {}, connectionMs?: number): Promise<WebServer> {
  const server = await WebServer.listen(
    {
      address: { host: '127.0.0.1', port: 0 },
      version: '1.2.3',
      readings: async () => new Map([['web1', { status: primaryStatus() }]]),
      onFailure: () => {},
      vms: () => [WEB1],
      events: (after) => ({ events: EVENTS.filter(({ id }) => id > after), takeOvers: [], lastId: 3 }),
      ...over,
    },
    connectionMs,
  );
  cleanups.push(() => server.close());
  return server;
}

const ask = (server: WebServer, path: string, headers?: Record<string, string>, method?: string) =>
  askAt(whereOf(server), path, headers, method);

async function enter(server: WebServer): Promise<Record<string, string>> {
  const { pathname, search } = new URL(server.link());
  const { headers } = await ask(server, pathname + search);
  return { cookie: String(headers['set-cookie']).split(';')[0] as string };
}

async function shown(
  server: WebServer,
  session: Record<string, string>,
  query: Record<string, string> = {},
): Promise<Shown> {
  const { code, body } = await ask(server, `/vms?${new URLSearchParams(query)}`, session);
  expect(code, body).toBe(200);
  return JSON.parse(body);
}

describe('who may look', () => {
  test('nobody without a session: each path says which command gives a link', async () => {
    const server = await serve();
    for (const path of [
      '/',
      '/vms',
      '/app.js',
      '/plot/uPlot.esm.js',
      '/nothing',
      '/enter',
      '/enter?token=x',
    ]) {
      const { code, body } = await ask(server, path, { cookie: 'colo-agent-1=x' });
      expect(code, path).toBe(401);
      expect(body).toContain('<code>colo-agent web</code>');
      expect(body).not.toContain('web1');
    }
  });

  test('who comes by a link, with a cookie that scripts and other sites don’t have; the link is used up then', async () => {
    const server = await serve();
    const { pathname, search } = new URL(server.link());
    const entered = await ask(server, pathname + search);
    expect(entered).toMatchObject({ code: 200, body: expect.stringContaining('content="0;url=/"') });
    expect(String(entered.headers['set-cookie'])).toMatch(
      /^colo-agent-\d+=[\w-]{43}; HttpOnly; SameSite=Strict; Path=\/; Max-Age=43200$/,
    );
    expect((await ask(server, pathname + search)).code).toBe(401);
    const session = { cookie: String(entered.headers['set-cookie']).split(';')[0] as string };
    expect(await ask(server, '/', session)).toMatchObject({ code: 200 });
    expect((await ask(server, '/nothing', session)).code).toBe(404);
    expect((await ask(await serve(), '/', session)).code).toBe(401);
  });

  test('only by a name of this host: no page whose name was bent to our address', async () => {
    const server = await serve();
    const session = await enter(server);
    expect((await ask(server, '/vms', { ...session, host: 'evil.example' })).code).toBe(421);
    expect((await ask(server, '/vms', { ...session, host: 'localhost:9' })).code).toBe(200);
  });

  test.each(['POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS'])('%s is refused', async (method) => {
    const server = await serve();
    const answer = await ask(server, '/vms', await enter(server), method);
    expect(answer.code).toBe(405);
    expect(Object.keys(answer.headers).filter((name) => name.startsWith('access-control'))).toEqual([]);
  });

  test('every answer keeps scripts of others, frames and guesses out', async () => {
    const server = await serve();
    const session = await enter(server);
    for (const [path, headers] of [
      ['/', session],
      ['/vms', session],
      ['/', {}],
    ] as const) {
      const answer = (await ask(server, path, headers)).headers;
      expect(answer['content-security-policy']).toMatch(
        /^default-src 'none'; script-src 'self'; style-src 'self' 'sha256-[\w+/=]+'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$/,
      );
      expect(answer).toMatchObject({
        'x-content-type-options': 'nosniff',
        'referrer-policy': 'no-referrer',
        'cross-origin-resource-policy': 'same-origin',
        'cache-control': 'no-store',
      });
    }
  });
});

describe('the limits', () => {
  function dial(server: WebServer, text: string) {
    const dialled = dialAt(whereOf(server), text);
    cleanups.push(() => dialled.socket.destroy());
    return dialled;
  }

  test('who says nothing, or too much, is left', async () => {
    expect(await dial(await serve({}, 200), '').closed).toBe('');
    const server = await serve();
    const long = `GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(20_000)}\r\n\r\n`;
    expect(await dial(server, long).closed).toContain('431');
    expect((await ask(server, '/')).code).toBe(401);
  });

  test('one request a connection, however many come in one piece', async () => {
    const server = await serve();
    const many = 'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(1000);
    const answers = await dial(server, many).closed;
    expect(answers.split('HTTP/1.1 401')).toHaveLength(2);
    expect((await ask(server, '/')).code).toBe(401);
  });

  test('so many at once, and no more; who comes when they have gone is answered', async () => {
    const server = await serve({}, 120_000);
    const idle = Array.from({ length: 32 }, () => dial(server, ''));
    for (const { socket } of idle) await vi.waitFor(() => expect(socket.readyState).toBe('open'), PATIENCE);
    expect(await dial(server, 'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n').closed).toBe('');
    for (const { socket } of idle) socket.destroy();
    await vi.waitFor(async () => expect((await ask(server, '/')).code).toBe(401), PATIENCE);
  });
});

describe('the page', () => {
  test('has everything that it names, each of its type', async () => {
    const server = await serve();
    const session = await enter(server);
    const { body } = await ask(server, '/', session);
    const named = [...body.matchAll(/(?:href|src)="(\/[^"]+)"/g)].map((match) => match[1] as string);
    expect(named).toContain('/app.js');
    const scripts = new Set(['/app.js']);
    for (const path of scripts) {
      const { code, headers, body: text } = await ask(server, path, session);
      expect({ path, code, type: headers['content-type'] }).toEqual({
        path,
        code: 200,
        type: 'text/javascript; charset=utf-8',
      });
      for (const [, name] of text.matchAll(/^import .*from '\.?(\/[^']+)';$/gm)) scripts.add(name as string);
    }
    expect(scripts.size).toBeGreaterThan(5);
    for (const path of named) expect((await ask(server, path, session)).code, path).toBe(200);
  });

  test('no file is reached by its path', async () => {
    const server = await serve();
    const session = await enter(server);
    for (const path of ['/../package.json', '/..%2fpackage.json', '/plot/../app.js', '//', '*', '/app.js/'])
      expect((await ask(server, path, session)).code, path).toBe(404);
  });
});

describe('GET /vms', () => {
  test('tells of all VMs, the events, and the history of one; then what is new', async () => {
    const server = await serve();
    const session = await enter(server);
    const first = await shown(server, session, { vm: 'web1', row: '0', event: '0', run: '' });
    expect(first).toMatchObject({
      version: '1.2.3',
      vms: [{ ...WEB1, silence: null, figures: { peer: 'south:7700', heldFrames: 18 } }],
      events: EVENTS,
      lastEvent: 3,
      history: { vm: 'web1', first: 0 },
    });
    const next = first.history?.rows.length as number;
    const query = { vm: 'web1', row: `${next}`, event: '2', run: first.run };
    const then = await shown(server, session, query);
    expect(then.events.map(({ id }) => id)).toEqual([3]);
    expect(then.history).toMatchObject({ vm: 'web1', first: next });
    // Numbers of another server's mean nothing.
    expect(await shown(server, session, { ...query, run: 'x' })).toMatchObject({
      events: EVENTS,
      history: { first: 0 },
    });
    expect((await shown(server, session)).history).toBe(null);
  });

  test('an agent that says nothing has no figures, and the page says why', async () => {
    const readings: Readings = new Map([['web1', { failure: 'it hangs' }]]);
    const server = await serve({ readings: async () => readings });
    const session = await enter(server);
    await vi.waitFor(
      async () =>
        expect((await shown(server, session)).vms).toEqual([{ ...WEB1, figures: null, silence: 'it hangs' }]),
      PATIENCE,
    );
  });

  test('a look that never ends holds nobody up', async () => {
    const server = await serve({ readings: () => new Promise(() => {}) });
    expect((await shown(server, await enter(server))).vms).toEqual([
      { ...WEB1, figures: null, silence: null },
    ]);
  });

  test('a look that fails is told, and the next one is made', async () => {
    const failures: string[] = [];
    let looks = 0;
    const server = await serve({
      readings: async () => {
        looks += 1;
        if (looks === 1) throw new Error('no');
        return new Map([['web1', { status: primaryStatus() }]]);
      },
      onFailure: (reason) => failures.push(reason),
    });
    const session = await enter(server);
    await vi.waitFor(
      async () => expect((await shown(server, session)).vms[0]?.figures).not.toBe(null),
      PATIENCE,
    );
    expect(failures).toEqual(['no']);
  });
});
