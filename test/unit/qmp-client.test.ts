import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { type ConnectOptions, QmpClient } from '../../src/qmp/client.ts';
import { QmpError } from '../../src/qmp/error.ts';
import { event, GREETING, ok, QmpServer, type Request, type Responder } from './qmp-server.ts';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function serve(respond: Responder, greeting?: string | null): Promise<QmpServer> {
  const server = await QmpServer.start(respond, greeting);
  cleanups.push(() => server.stop());
  return server;
}

async function connect(server: QmpServer, options?: ConnectOptions): Promise<QmpClient> {
  const client = await QmpClient.connect(server.path, options);
  cleanups.push(() => client.close());
  return client;
}

describe('connecting', () => {
  it('negotiates and tells who is there', async () => {
    const client = await connect(await serve(ok));
    expect(client.version).toEqual({ major: 7, minor: 2, micro: 22 });
    expect(client.peer.pid).toBe(process.pid);
    expect(client.closed).toBe(false);
  });

  it('says when there is no such socket, and when it is a plain file', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'colo-qmp-'));
    cleanups.push(() => rmSync(folder, { recursive: true }));
    writeFileSync(path.join(folder, 'file'), '');
    for (const name of ['nothing', 'file']) {
      const connecting = QmpClient.connect(path.join(folder, name));
      await expect(connecting).rejects.toThrow(`cannot connect to the QMP socket ${path.join(folder, name)}`);
      await expect(connecting).rejects.toMatchObject({ name: 'QmpError', class: 'ConnectFailed' });
    }
  });

  it.each([
    ['an HMP monitor', "QEMU 7.2.22 monitor - type 'help' for more information\r\n"],
    ['JSON that is no greeting', '{"return": {}}\r\n'],
    ['a greeting without version', '{"QMP": {"capabilities": []}}\r\n'],
    ['a number', '18446744073709551615\r\n'],
  ])('says that %s is not a QMP monitor', async (_, greeting) => {
    const server = await serve(ok, greeting);
    await expect(QmpClient.connect(server.path)).rejects.toThrow(/not a QMP monitor/);
  });

  it('says that another client may be connected when QEMU does not greet', async () => {
    const server = await serve(ok, null);
    await expect(QmpClient.connect(server.path, { timeoutMs: 50 })).rejects.toThrow(
      /Another client is connected/,
    );
  });

  it('tells a refused negotiation', async () => {
    const server = await serve(
      () => null,
      `${GREETING}{"error":{"class":"GenericError","desc":"no"},"id":1}\r\n`,
    );
    await expect(QmpClient.connect(server.path)).rejects.toThrow('no');
  });

  it.each([
    ['oob', { enable: ['oob'] }],
    ['nothing else', {}],
  ])('enables what it needs of a QEMU that offers %s', async (offer, expected) => {
    const server = await serve(ok, offer === 'oob' ? GREETING : GREETING.replace('"oob"', ''));
    const client = await QmpClient.connect(server.path);
    expect(server.enabled).toEqual(expected);
    client.close();
  });

  it('keeps ids short, and has one for each of many commands in flight', async () => {
    const server = await serve(ok);
    const client = await QmpClient.connect(server.path);
    for (let i = 0; i < 250; i++) await client.execute('query-status');
    expect(Math.max(...server.requests.map(({ id }) => id))).toBe(99);
    await Promise.all(Array.from({ length: 500 }, () => client.execute('query-status')));
    expect(new Set(server.requests.slice(-500).map(({ id }) => id)).size).toBe(500);
    client.close();
  });

  it('passes over events that were meant for the client before', async () => {
    const server = await serve(ok, `${event('STOP', {})}${event('RESUME', {})}${GREETING}`);
    const client = await QmpClient.connect(server.path);
    expect(client.version).toEqual({ major: 7, minor: 2, micro: 22 });
    client.close();
  });

  it('tells a hang-up before the greeting', async () => {
    const server = await serve(ok, null);
    const connecting = QmpClient.connect(server.path);
    await vi.waitFor(() => expect(server.connections).toBe(1));
    server.hangUp();
    await expect(connecting).rejects.toMatchObject({ class: 'ConnectFailed' });
  });
});

describe('commands', () => {
  it('resolve with what QEMU returned, 64-bit integers exact', async () => {
    const client = await connect(
      await serve(({ id }) => `{"return": [{"value": 18446744073709551615}], "id": ${id}}\r\n`),
    );
    await expect(client.execute('query-jobs')).resolves.toEqual([{ value: 18446744073709551615n }]);
  });

  it('reject with class, description and command', async () => {
    const client = await connect(
      await serve(({ id }) => `{"error":{"class":"DeviceNotFound","desc":"gone"},"id":${id}}\r\n`),
    );
    const error = await client.execute('object-del', { id: 'x' }).catch((reason) => reason);
    expect(error).toBeInstanceOf(QmpError);
    expect(error).toMatchObject({ class: 'DeviceNotFound', desc: 'gone', command: 'object-del' });
    expect(error.message).toBe('QMP command object-del: gone');
    expect(client.closed).toBe(false);
  });

  it('issued in one tick leave in one write, in order', async () => {
    const server = await serve(ok);
    const client = await connect(server);
    const stopping = client.execute('stop');
    const saving = client.execute('xen-save-devices-state', { filename: '/dev/fdset/1', live: false });
    await Promise.all([stopping, saving]);
    expect(server.chunks).toHaveLength(1);
    expect(server.requests.map(({ execute }) => execute)).toEqual(['stop', 'xen-save-devices-state']);
    expect(server.requests[1]?.arguments).toEqual({ filename: '/dev/fdset/1', live: false });
  });

  it('find their replies in any order', async () => {
    const waiting: string[] = [];
    const client = await connect(
      await serve((request) => {
        waiting.unshift(ok(request, { for: request.execute }));
        return waiting.length === 2 ? waiting.join('') : null;
      }),
    );
    const replies = await client.executeAll([['query-kvm'], ['query-version']]);
    expect(replies).toEqual([{ for: 'query-kvm' }, { for: 'query-version' }]);
  });

  it('carry descriptors, between plain commands and in order', async () => {
    const server = await serve(ok);
    const sent: number[][] = [];
    const counting = {
      ...native,
      connectUnix: native.connectUnix,
      peerCredentials: native.peerCredentials,
      sendWithFds: (socket: number, bytes: Uint8Array, fds: number[]) => {
        sent.push(fds);
        native.sendWithFds(socket, bytes, fds);
      },
    };
    const client = await connect(server, { native: counting });
    const fd = openSync('/dev/null', 'r');
    cleanups.push(() => closeSync(fd));
    await Promise.all([
      client.execute('query-fdsets'),
      client.execute('getfd', { fdname: 'a' }, [fd]),
      client.execute('query-jobs'),
      client.execute('add-fd', {}, [fd]),
    ]);
    expect(server.requests.map(({ execute }) => execute)).toEqual([
      'query-fdsets',
      'getfd',
      'query-jobs',
      'add-fd',
    ]);
    expect(sent).toEqual([[fd], [fd]]);
  });

  it('with descriptors wait for the answer to the one before: QEMU keeps only the last that it has read', async () => {
    const server = await serve((request) => (request.execute === 'getfd' ? null : ok(request)));
    const client = await connect(server);
    const fd = openSync('/dev/null', 'r');
    cleanups.push(() => closeSync(fd));
    const first = client.execute('getfd', { fdname: 'a' }, [fd]);
    const second = client.execute('add-fd', {}, [fd]);
    await expect.poll(() => server.requests.length).toBe(1);
    await new Promise((resolve) => setImmediate(resolve));
    expect(server.requests.map(({ execute }) => execute)).toEqual(['getfd']);
    server.send(ok(server.requests[0] as Request));
    await Promise.all([first, second]);
    expect(server.requests.map(({ execute }) => execute)).toEqual(['getfd', 'add-fd']);
  });

  it('with descriptors wait for a large command before them', async () => {
    const server = await serve(ok);
    const client = await connect(server);
    const fd = openSync('/dev/null', 'r');
    cleanups.push(() => closeSync(fd));
    const large = 'x'.repeat(4 * 1024 * 1024);
    await Promise.all([
      client.execute('human-monitor-command', { 'command-line': large }),
      client.execute('getfd', { fdname: 'a' }, [fd]),
    ]);
    expect(server.requests.map(({ execute }) => execute)).toEqual(['human-monitor-command', 'getfd']);
  });
});

describe('events', () => {
  it('come in the order in which QEMU sent them, among the replies', async () => {
    const client = await connect(
      await serve((request) => {
        const { execute } = request;
        return (
          event('STOP', { n: `before ${execute}` }) + ok(request) + event('RESUME', { n: `after ${execute}` })
        );
      }),
    );
    const seen: string[] = [];
    client.onEvent('STOP', ({ data }) => seen.push((data as unknown as { n: string }).n));
    client.onEvent('RESUME', ({ data }) => seen.push((data as unknown as { n: string }).n));
    const first = (async () => {
      await client.execute('stop');
      seen.push('stop');
    })();
    const second = (async () => {
      await client.execute('cont');
      seen.push('cont');
    })();
    await Promise.all([first, second]);
    await vi.waitFor(() => expect(seen).toHaveLength(6));
    expect(seen).toEqual(['before stop', 'stop', 'after stop', 'before cont', 'cont', 'after cont']);
  });

  it('reach every handler until it is taken back', async () => {
    const server = await serve(ok);
    const client = await connect(server);
    const seen: string[] = [];
    const forget = client.onEvent('RESET', () => seen.push('first'));
    client.onEvent('RESET', ({ data }) => seen.push(data.reason));
    server.send(event('RESET', { guest: true, reason: 'one' }) + event('UNKNOWN_EVENT', {}));
    await vi.waitFor(() => expect(seen).toEqual(['first', 'one']));
    forget();
    server.send(event('RESET', { guest: true, reason: 'two' }));
    await vi.waitFor(() => expect(seen).toEqual(['first', 'one', 'two']));
  });
});

describe('a broken connection', () => {
  it('rejects everything in flight and everything later, and says so once', async () => {
    const server = await serve(() => null);
    const client = await connect(server);
    const reasons: string[] = [];
    client.onClosed((reason) => reasons.push(reason));
    const inFlight = [client.execute('stop'), client.execute('cont')];
    await vi.waitFor(() => expect(server.requests).toHaveLength(2));
    server.hangUp();
    await expect(inFlight[0]).rejects.toMatchObject({ class: 'ConnectionLost', command: 'stop' });
    await expect(inFlight[1]).rejects.toMatchObject({ class: 'ConnectionLost', command: 'cont' });
    await expect(client.execute('query-status')).rejects.toMatchObject({
      class: 'ConnectionLost',
      command: 'query-status',
    });
    expect(reasons).toEqual([`${server.path}: QEMU closed the connection`]);
    const late = await new Promise((resolve) => client.onClosed(resolve));
    expect(late).toBe(reasons[0]);
  });

  it('by close() rejects what is in flight', async () => {
    const server = await serve(() => null);
    const client = await connect(server);
    const inFlight = client.execute('stop');
    client.close();
    client.close();
    await expect(inFlight).rejects.toMatchObject({ class: 'ConnectionLost', command: 'stop' });
    expect(client.closed).toBe(true);
  });

  it.each([
    ['no JSON', 'hello\r\n'],
    ['an empty line', '\r\n'],
    ['a list', '[]\r\n'],
    ['a big number', '18446744073709551615\r\n'],
    ['an object that is no message', '{"id": 2}\r\n'],
    ['a reply to nothing', '{"return": {}, "id": 4711}\r\n'],
    ['a reply with an id of another type', '{"return": {}, "id": "2"}\r\n'],
    ['a reply without id', '{"return": {}}\r\n'],
    ['a second reply to the negotiation', '{"return": {}, "id": 1}\r\n'],
    ['return and error at once', '{"return": {}, "error": {"class": "x", "desc": "y"}, "id": 2}\r\n'],
    ['an error that is a text', '{"error": "no", "id": 2}\r\n'],
    ['an error without desc', '{"error": {"class": "GenericError"}, "id": 2}\r\n'],
    ['an error about our line', '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'],
    ['an event that is a number', '{"event": 1, "timestamp": {"seconds": 1, "microseconds": 1}}\r\n'],
    ['an event without time', '{"event": "STOP"}\r\n'],
    [
      'an event with a list as data',
      '{"event": "STOP", "data": [], "timestamp": {"seconds": 1, "microseconds": 1}}\r\n',
    ],
    ['bytes that are no text', Buffer.from([0xff, 0xfe, 0x0a]).toString('latin1')],
    ['a line that never ends', 'x'.repeat(2000)],
  ])('by %s rejects what is in flight and ends the connection', async (_, line) => {
    const server = await serve((_request, socket) => {
      socket.write(Buffer.from(line, 'latin1'));
      return null;
    });
    const client = await connect(server, { lineBytesMax: 1000 });
    const reasons: string[] = [];
    client.onClosed((reason) => reasons.push(reason));
    await expect(client.execute('stop')).rejects.toMatchObject({ class: 'ProtocolError', command: 'stop' });
    expect(reasons).toEqual([expect.stringContaining('malformed QMP')]);
  });
});
