import { mkdtempSync, renameSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ControlServer } from '../../src/agent/control-server.ts';
import { listenAtPath } from '../../src/agent/socket-path.ts';
import type { Status } from '../../src/agent/status.ts';
import { formatHttpAddress, type HttpAddress, parseHttpAddress } from '../../src/http/address.ts';
import { CONTENT_TYPE } from '../../src/metrics/exposition.ts';
import { askAgents, type Readings } from '../../src/metrics/readings.ts';
import { MetricsServer } from '../../src/metrics/server.ts';
import { ask as askAt, dial as dialAt, whereOf } from '../support/http.ts';
import { parseOpenMetrics } from '../support/openmetrics.ts';
import { primaryStatus, secondaryStatus } from '../support/statuses.ts';

const LOOPBACK = { host: '127.0.0.1', port: 0 };
const PATIENCE = { timeout: 30_000, interval: 10 };

const cleanups: (() => unknown)[] = [];
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'colo-metrics-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const PROTECTED: Readings = new Map([
  ['web1', { status: primaryStatus() }],
  ['db', { status: secondaryStatus({ vm: 'db' }) }],
]);

async function serve(
  readings: () => Readings | Promise<Readings> = () => PROTECTED,
  address: HttpAddress = LOOPBACK,
  connectionMs?: number,
): Promise<MetricsServer> {
  const server = await MetricsServer.listen({ address, version: '1.2.3', readings }, connectionMs);
  cleanups.push(() => server.close());
  return server;
}

const ask = (server: MetricsServer, url: string, headers?: Record<string, string>, method?: string) =>
  askAt(whereOf(server), url, headers, method);

function dial(server: MetricsServer, text = '') {
  const dialled = dialAt(whereOf(server), text);
  cleanups.push(() => dialled.socket.destroy());
  return dialled;
}

describe('GET /metrics', () => {
  test('on a port, in the format that is asked for', async () => {
    const server = await serve();
    const text = await ask(server, '/metrics?x=1');
    expect(text).toMatchObject({ code: 200, headers: { 'content-type': CONTENT_TYPE.text } });
    expect(text.body).toContain('colo_agent_up{vm="web1"} 1');
    const accept = 'application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5';
    const openmetrics = await ask(server, '/metrics', { accept });
    expect(openmetrics).toMatchObject({ code: 200, headers: { 'content-type': CONTENT_TYPE.openmetrics } });
    expect(parseOpenMetrics(openmetrics.body).get('colo_agent_up')?.samples).toHaveLength(2);
  });

  test('on a unix socket, which is not for everybody; a dead one is replaced, and none is left', async () => {
    const socketPath = path.join(folder, 'sub', 'metrics.sock');
    const server = await serve(undefined, { path: socketPath });
    expect((await ask(server, '/metrics')).code).toBe(200);
    expect(statSync(socketPath).mode & 0o777).toBe(0o660);
    await expect(serve(undefined, { path: socketPath })).rejects.toThrow(
      `metrics can't be served at unix:${socketPath}: somebody already listens there`,
    );
    server.close();
    expect(() => statSync(socketPath)).toThrow('ENOENT');
    const dead = createServer();
    await listenAtPath(dead, `${socketPath}.dead`);
    renameSync(`${socketPath}.dead`, socketPath);
    await new Promise((resolve) => dead.close(resolve));
    expect((await ask(await serve(undefined, { path: socketPath }), '/metrics')).code).toBe(200);
  });

  test('an address that is taken is named', async () => {
    const { address } = await serve();
    await expect(serve(undefined, address)).rejects.toMatchObject({
      name: 'HttpListenError',
      message: expect.stringMatching(/^metrics can't be served at 127\.0\.0\.1:\d+: .*EADDRINUSE/),
    });
  });

  test('who asks at the same time shares an answer; who asks later gets a new one', async () => {
    let asked = 0;
    let answer = () => {};
    const first = new Promise<Readings>((resolve) => {
      answer = () => resolve(PROTECTED);
    });
    const server = await serve(() => {
      asked += 1;
      return asked === 1 ? first : PROTECTED;
    });
    const both = ['/metrics', '/health'].map((url) => dial(server, `GET ${url} HTTP/1.0\r\n\r\n`));
    await vi.waitFor(() => expect(asked).toBe(1), PATIENCE);
    // The server has seen the second one by the time it has answered this.
    expect((await ask(server, '/nothing')).code).toBe(404);
    expect(asked).toBe(1);
    answer();
    for (const { closed } of both) expect(await closed).toContain('200 OK');
    const before = asked;
    expect((await ask(server, '/metrics')).code).toBe(200);
    expect(asked).toBe(before + 1);
  });

  test('what can’t be told is an error, and the next one is answered', async () => {
    let fails = true;
    const server = await serve(() => {
      if (fails) throw new Error('no list of VMs');
      return PROTECTED;
    });
    expect(await ask(server, '/metrics')).toMatchObject({ code: 500, body: 'no list of VMs\n' });
    expect(await ask(server, '/health')).toMatchObject({ code: 500 });
    fails = false;
    expect(await ask(server, '/metrics')).toMatchObject({ code: 200 });
  });
});

describe('GET /health', () => {
  const health = async (readings: Readings) => {
    const { code, body, headers } = await ask(await serve(() => readings), '/health');
    expect(headers['content-type']).toBe('application/json; charset=utf-8');
    return { code, ...JSON.parse(body) };
  };

  test('200 while every VM is protected, seen from either side, and when there is none', async () => {
    expect(await health(PROTECTED)).toMatchObject({
      code: 200,
      healthy: true,
      vms: [
        { vm: 'web1', healthy: true, role: 'primary', state: 'PROTECTED' },
        { vm: 'db', healthy: true, role: 'secondary', state: 'STANDBY' },
      ],
    });
    expect(await health(new Map())).toEqual({ code: 200, healthy: true, vms: [] });
  });

  test.each([
    primaryStatus({ state: 'STARTING' }),
    primaryStatus({ state: 'SYNCING' }),
    primaryStatus({ state: 'EXPOSED' }),
    primaryStatus({ state: 'FENCED' }),
    primaryStatus({ state: 'STOPPED' }),
    secondaryStatus({ state: 'STARTING' }),
    secondaryStatus({ state: 'SYNCING' }),
    secondaryStatus({ state: 'TAKING-OVER' }),
    secondaryStatus({ state: 'RUNNING' }),
    secondaryStatus({ state: 'BLOCKED' }),
  ])('503 for one that is not: $role $state', async (status) => {
    const { state, role } = status;
    expect(await health(new Map([...PROTECTED, ['odd', { status }]]))).toMatchObject({
      code: 503,
      healthy: false,
      vms: [
        { healthy: true },
        { healthy: true },
        { vm: 'odd', healthy: false, role, state, reason: 'because' },
      ],
    });
  });

  test('503 for one whose agent does not run, with what the daemon says of it', async () => {
    const resting = { role: 'primary', state: 'WAITING' } as const;
    expect(await health(new Map([['rests', { failure: 'no QEMU', resting }]]))).toMatchObject({
      code: 503,
      vms: [{ vm: 'rests', healthy: false, role: 'primary', state: 'WAITING', reason: 'no QEMU' }],
    });
  });

  test('503 for one whose agent does not answer', async () => {
    expect(await health(new Map([['gone', { failure: 'nobody there' }]]))).toEqual({
      code: 503,
      healthy: false,
      vms: [{ vm: 'gone', healthy: false, role: null, state: null, reason: 'nobody there' }],
    });
  });
});

describe('the server', () => {
  test.each([
    ['GET', '/'],
    ['GET', '/metrics/'],
    ['GET', '/metricsx'],
    ['GET', '/..%2fmetrics'],
    ['POST', '/metrics'],
    ['HEAD', '/metrics'],
    ['DELETE', '/health'],
  ])('404 for %s %s', async (method, url) => {
    expect((await ask(await serve(), url, {}, method)).code).toBe(404);
  });

  test('one answer a connection', async () => {
    const server = await serve();
    const request = 'GET /health HTTP/1.1\r\nHost: x\r\n\r\n';
    const received = await dial(server, request + request).closed;
    expect(received.match(/HTTP\/1\.1/g)).toHaveLength(1);
    expect(received).toContain('Connection: close');
  });

  test('what is no HTTP, or too much of it, is refused, and others are served', async () => {
    const server = await serve();
    expect(await dial(server, 'hello\r\n\r\n').closed).toContain('400 Bad Request');
    const long = `GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: ${'x'.repeat(20_000)}\r\n\r\n`;
    expect(await dial(server, long).closed).not.toContain('200 OK');
    expect((await ask(server, '/health')).code).toBe(200);
  });

  test('who says nothing, or not all, is left when its time is over', async () => {
    const server = await serve(undefined, LOOPBACK, 200);
    expect(await dial(server).closed).toBe('');
    expect(await dial(server, 'GET /metrics HTTP/1.1\r\nX-Slow: ').closed).toBe('');
  });

  test('an answer that takes too long is not waited for', async () => {
    const server = await serve(() => new Promise(() => {}), LOOPBACK, 200);
    expect(await dial(server, 'GET /metrics HTTP/1.0\r\n\r\n').closed).toBe('');
  });

  test('so many connections at once, and no more; who comes when they have gone is served', async () => {
    const server = await serve(undefined, LOOPBACK, 120_000);
    const idle = Array.from({ length: 16 }, () => dial(server));
    for (const { socket } of idle) await vi.waitFor(() => expect(socket.readyState).toBe('open'), PATIENCE);
    expect(await dial(server, 'GET /health HTTP/1.0\r\n\r\n').closed).toBe('');
    for (const { socket } of idle) socket.destroy();
    await vi.waitFor(async () => expect((await ask(server, '/health')).code).toBe(200), PATIENCE);
  });

  test('its end is the end of its connections', async () => {
    let asked = false;
    const never = (): Promise<Readings> => {
      asked = true;
      return new Promise(() => {});
    };
    const server = await serve(never, LOOPBACK, 120_000);
    const { closed } = dial(server, 'GET /metrics HTTP/1.0\r\n\r\n');
    await vi.waitFor(() => expect(asked).toBe(true), PATIENCE);
    server.close();
    expect(await closed).toBe('');
  });
});

describe('askAgents', () => {
  async function agent(name: string, status: Status): Promise<string> {
    const socketPath = path.join(folder, name);
    const refuse = async (): Promise<never> => {
      throw new Error('no');
    };
    const handler = {
      status: () => status,
      takeOvers: () => [],
      failover: refuse,
      drill: refuse,
      stop: refuse,
    };
    const control = await ControlServer.listen(socketPath, handler);
    cleanups.push(() => control.close());
    return socketPath;
  }

  test('each tells of its own, or why it does not, in order', async () => {
    const { histograms: _, ...older } = primaryStatus({ vm: 'old' });
    const readings = await askAgents(
      new Map([
        ['web1', await agent('web1', primaryStatus())],
        ['gone', path.join(folder, 'gone')],
        ['old', await agent('old', older as Status)],
        ['other', await agent('other', secondaryStatus({ vm: 'db' }))],
        ['db', await agent('db', secondaryStatus({ vm: 'db' }))],
      ]),
      30_000,
    );
    expect([...readings]).toEqual([
      ['web1', { status: primaryStatus() }],
      ['gone', { failure: expect.stringContaining('no colo-agent answers') }],
      ['old', { failure: expect.stringContaining('older one: restart it') }],
      ['other', { failure: expect.stringContaining('is that of VM db') }],
      ['db', { status: secondaryStatus({ vm: 'db' }) }],
    ]);
  });

  test('one that hangs is not waited for', async () => {
    const hangs = path.join(folder, 'hangs');
    const mute = createServer().listen(hangs);
    cleanups.push(() => mute.close());
    const failure = `the agent at ${hangs} did not answer within 0.1 s`;
    expect([...(await askAgents(new Map([['hangs', hangs]]), 100))]).toEqual([['hangs', { failure }]]);
  });
});

describe('the address', () => {
  test.each([
    ['9464', { host: '127.0.0.1', port: 9464 }, '127.0.0.1:9464'],
    ['10.0.0.1:9464', { host: '10.0.0.1', port: 9464 }, '10.0.0.1:9464'],
    ['[::1]:0', { host: '::1', port: 0 }, '[::1]:0'],
    [':9464', { host: '::', port: 9464 }, '[::]:9464'],
    ['unix:/run/x.sock', { path: '/run/x.sock' }, 'unix:/run/x.sock'],
  ])('%s', (text, address, shown) => {
    expect(parseHttpAddress(text)).toEqual(address);
    expect(formatHttpAddress(address)).toBe(shown);
  });

  test.each(['', 'host', '99999', 'unix:', `unix:/${'x'.repeat(100)}`, '::1:9464'])('not %s', (text) => {
    expect(() => parseHttpAddress(text)).toThrow(RangeError);
  });
});
