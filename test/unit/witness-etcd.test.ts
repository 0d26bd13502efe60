/** The etcd client against real clusters: one member, three of which some are dead or cut off, TLS, users, and a relay that loses answers. */
import { readFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { assertWitnessAccess } from '../../src/agent/witness-access.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { TestCertificates, TestEtcd } from '../../src/testbed/etcd.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { ABSENT, EtcdClient, type EtcdOptions } from '../../src/witness/etcd.ts';
import { LossyRelay, listening } from './etcd-relay.ts';

const KEY = '/colo-agent/vm/web1';

function clientOf(endpoints: string[], change: Partial<EtcdOptions> = {}): EtcdClient {
  return new EtcdClient({
    endpoints: endpoints.map((endpoint) => new URL(endpoint)),
    ca: null,
    cert: null,
    key: null,
    user: null,
    password: null,
    requestTimeoutMs: 5000,
    ...change,
  });
}

const everything = new Cleanup();
let each: Cleanup;
beforeEach(() => {
  each = new Cleanup();
});
afterEach(() => each.run());
afterAll(() => everything.run());

function connect(endpoints: string[], change: Partial<EtcdOptions> = {}): EtcdClient {
  const client = clientOf(endpoints, change);
  each.add(() => client.close());
  return client;
}

describe('one member', () => {
  let etcd: TestEtcd;
  let keys = 0;
  let key: string;
  beforeAll(async () => {
    etcd = everything.own(await TestEtcd.start());
  });
  beforeEach(() => {
    key = `${KEY}-${keys++}`;
  });

  test('a key comes into being, changes, and is never overwritten by who has not seen it', async () => {
    const client = connect(etcd.endpoints);
    expect(await client.read(key)).toBeNull();
    const made = await client.putIf(key, ABSENT, 'one');
    expect(made).toMatchObject({ succeeded: true, current: { value: 'one' } });
    const first = made.current?.revision ?? '';
    expect(await client.read(key)).toEqual({ value: 'one', revision: first });
    expect(await client.putIf(key, ABSENT, 'two')).toEqual({ succeeded: false, current: made.current });
    const changed = await client.putIf(key, first, 'two ü');
    expect(changed.succeeded).toBe(true);
    expect(await client.read(key)).toEqual(changed.current);
    expect(await client.putIf(key, first, 'three')).toEqual({ succeeded: false, current: changed.current });
  });

  test('a key that has been removed: what expects it fails, and says that there is none', async () => {
    const client = connect(etcd.endpoints);
    const { current } = await client.putIf(key, ABSENT, 'one');
    await gateway(etcd, '/v3/kv/deleterange', { key: Buffer.from(key).toString('base64') });
    expect(await client.putIf(key, current?.revision ?? '', 'two')).toEqual({
      succeeded: false,
      current: null,
    });
  });

  test('of many writers that race on one revision exactly one wins, round after round', async () => {
    const clients = Array.from({ length: 8 }, () => connect(etcd.endpoints));
    let revision = ABSENT;
    for (let round = 0; round < 20; round++) {
      const results = await Promise.all(
        clients.map((client, index) => client.putIf(key, revision, `${round} ${index}`)),
      );
      const winners = results.filter(({ succeeded }) => succeeded);
      expect(winners).toHaveLength(1);
      for (const { current } of results) expect(current).toEqual(winners[0]?.current);
      revision = winners[0]?.current?.revision ?? '';
    }
  });

  test('requests share kept connections', async () => {
    const relay = each.own(await LossyRelay.open(etcd.endpoints[0] as string));
    const client = connect([relay.endpoint]);
    for (let round = 0; round < 10; round++) await client.read(key);
    expect(relay.connections).toBe(1);
  });

  test('a kept connection that the other end has closed is no failure', async () => {
    const relay = each.own(await LossyRelay.open(etcd.endpoints[0] as string));
    const client = connect([relay.endpoint]);
    await client.read(key);
    relay.cutAtNextRequest = true;
    expect(await client.read(key)).toBeNull();
    expect(relay.connections).toBe(2);
  });

  test('an answer that is lost: nobody knows, and asking for the same again shows that it has happened', async () => {
    const relay = each.own(await LossyRelay.open(etcd.endpoints[0] as string));
    const client = connect([relay.endpoint], { requestTimeoutMs: 1000 });
    relay.losesAnswers = true;
    await expect(client.putIf(key, ABSENT, 'mine')).rejects.toMatchObject({ code: 'unreachable' });
    relay.losesAnswers = false;
    expect(await client.putIf(key, ABSENT, 'mine')).toMatchObject({
      succeeded: false,
      current: { value: 'mine' },
    });
  });
});

describe('three members', { timeout: 120_000 }, () => {
  let etcd: TestEtcd;
  beforeEach(async () => {
    etcd = each.own(await TestEtcd.start({ members: 3 }));
  }, 60_000);

  test('one is killed, another cut off: as long as two remain there are answers', async () => {
    const client = connect(etcd.endpoints);
    let { current } = await client.putIf(KEY, ABSENT, '0');
    for (const [round, signal] of (['SIGKILL', 'SIGSTOP'] as const).entries()) {
      etcd.kill(round, signal);
      const result = await untilAnswered(() => client.putIf(KEY, current?.revision ?? '', `${round + 1}`));
      // A put whose answer was lost with its member may have been the first to succeed.
      current = result.current;
      expect(current?.value).toBe(`${round + 1}`);
      if (signal === 'SIGKILL') await etcd.restart(round);
    }
  });

  test('without a majority there is no answer, also not to a read; with it everything goes on', async () => {
    const client = connect(etcd.endpoints, { requestTimeoutMs: 1000 });
    await client.putIf(KEY, ABSENT, 'one');
    etcd.kill(1, 'SIGSTOP');
    etcd.kill(2, 'SIGSTOP');
    // On a busy machine the last words of the two may still come.
    await waitFor('silence', 30_000, () =>
      client.read(KEY).then(
        () => false,
        () => true,
      ),
    );
    await expect(client.read(KEY)).rejects.toMatchObject({ code: 'unreachable' });
    etcd.kill(1, 'SIGCONT');
    expect(await untilAnswered(() => client.read(KEY))).toMatchObject({ value: 'one' });
    etcd.kill(2, 'SIGCONT');
  });
});

describe('users', () => {
  let etcd: TestEtcd;
  beforeAll(async () => {
    etcd = everything.own(await TestEtcd.start());
    await gateway(etcd, '/v3/auth/user/add', { name: 'root', password: 'master' });
    await gateway(etcd, '/v3/auth/user/grant', { user: 'root', role: 'root' });
    await gateway(etcd, '/v3/auth/user/add', { name: 'colo', password: 'secret' });
    await gateway(etcd, '/v3/auth/role/add', { name: 'colo' });
    const range = { key: base64('/colo-agent/'), range_end: base64('/colo-agent0'), permType: 'READWRITE' };
    await gateway(etcd, '/v3/auth/role/grant', { name: 'colo', perm: range });
    await gateway(etcd, '/v3/auth/user/grant', { user: 'colo', role: 'colo' });
    await gateway(etcd, '/v3/auth/enable', {});
  });

  test('with a password', async () => {
    const client = connect(etcd.endpoints, { user: 'colo', password: 'secret' });
    const { succeeded } = await client.putIf(`${KEY}-user`, ABSENT, 'one');
    expect(succeeded).toBe(true);
  });

  test('a token that etcd has forgotten is renewed', async () => {
    const client = connect(etcd.endpoints, { user: 'colo', password: 'secret' });
    await client.putIf(`${KEY}-token`, ABSENT, 'one');
    await etcd.restart(0);
    expect(await untilAnswered(() => client.read(`${KEY}-token`))).toMatchObject({ value: 'one' });
  });

  test('a token from before a change of roles is renewed', async () => {
    const client = connect(etcd.endpoints, { user: 'colo', password: 'secret' });
    await client.putIf(`${KEY}-old`, ABSENT, 'one');
    const { token } = (await (
      await fetch(new URL('/v3/auth/authenticate', etcd.endpoints[0]), {
        method: 'POST',
        body: JSON.stringify({ name: 'root', password: 'master' }),
      })
    ).json()) as { token: string };
    const changed = await fetch(new URL('/v3/auth/role/add', etcd.endpoints[0]), {
      method: 'POST',
      headers: { Authorization: token },
      body: JSON.stringify({ name: 'another' }),
    });
    expect(changed.ok).toBe(true);
    expect(await client.read(`${KEY}-old`)).toMatchObject({ value: 'one' });
  });

  test.each<[string, string, Partial<EtcdOptions>, RegExp | null]>([
    ['may', '/colo-agent', { user: 'colo', password: 'secret' }, null],
    ['may not', '/elsewhere', { user: 'colo', password: 'secret' }, /permission denied.*under \/elsewhere\//],
    ['says a wrong password', '/colo-agent', { user: 'colo', password: 'wrong' }, /authentication failed/],
    ['does not say who it is', '/colo-agent', {}, /--witness-user/],
  ])('a host that %s write is told so at the start', async (_, prefix, change, text) => {
    const client = connect(etcd.endpoints, change);
    const witness = {
      kind: 'etcd',
      client,
      key: `${prefix}/vm/web`,
      nodeKey: `${prefix}/node/north/web`,
    } as const;
    const asked = assertWitnessAccess(witness, new Log('error', () => ({})));
    if (text === null) await asked;
    else
      await expect(asked).rejects.toMatchObject({
        name: 'WitnessAccessError',
        message: expect.stringMatching(text),
      });
    // Again, with the key that is there by now.
    if (text === null) await assertWitnessAccess(witness, new Log('error', () => ({})));
  });

  test.each<[string, Partial<EtcdOptions>, string, RegExp]>([
    ['a wrong password', { user: 'colo', password: 'wrong' }, KEY, /authentication failed/],
    ['no user', {}, KEY, /user name is empty|user name not found/],
    [
      'a key that the user may not touch',
      { user: 'colo', password: 'secret' },
      '/other',
      /permission denied/,
    ],
  ])('%s', async (_, change, key, text) => {
    const client = connect(etcd.endpoints, change);
    await expect(client.read(key)).rejects.toMatchObject({
      code: 'refused',
      message: expect.stringMatching(text),
    });
  });
});

describe('TLS', () => {
  let etcd: TestEtcd;
  let certificates: TestCertificates;
  beforeAll(async () => {
    certificates = everything.own(await TestCertificates.make());
    etcd = everything.own(await TestEtcd.start({ tls: certificates }));
  });
  const pem = (file: string) => readFileSync(file, 'utf8');

  test("with the CA and a client's certificate", async () => {
    const { ca, clientCert, clientKey } = certificates;
    const client = connect(etcd.endpoints, { ca: pem(ca), cert: pem(clientCert), key: pem(clientKey) });
    expect(await client.putIf(KEY, ABSENT, 'one')).toMatchObject({ succeeded: true });
  });

  test('another CA', async () => {
    const { otherCa, clientCert, clientKey } = certificates;
    const client = connect(etcd.endpoints, { ca: pem(otherCa), cert: pem(clientCert), key: pem(clientKey) });
    await expect(client.read(KEY)).rejects.toMatchObject({
      code: 'unreachable',
      message: expect.stringMatching(
        /certificate is not accepted .* is --witness-ca the CA that signed it\?/,
      ),
    });
  });

  test("without a client's certificate", async () => {
    const client = connect(etcd.endpoints, { ca: pem(certificates.ca) });
    await expect(client.read(KEY)).rejects.toMatchObject({ code: 'unreachable' });
  });

  test('plain text to a port that speaks TLS', async () => {
    const client = connect([(etcd.endpoints[0] as string).replace('https', 'http')]);
    await expect(client.read(KEY)).rejects.toThrow(/127\.0\.0\.1/);
  });
});

describe('what is no etcd', () => {
  test.each<[string, string]>([
    ['no HTTP', 'SSH-2.0-OpenSSH_9.2\r\n'],
    ['no JSON', reply('<html>hello</html>')],
    ['a list', reply('[]')],
    ['text where revisions should be', reply('{"kvs":[{"value":"","mod_revision":"new"}]}')],
    ['no list of keys', reply('{"kvs":{}}')],
    ['nothing in the list', reply('{"kvs":[null]}')],
    ['an endless answer', `HTTP/1.1 200 OK\r\n\r\n{"a":"${'x'.repeat(200_000)}`],
    ['half an answer', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"kvs"'],
    ['an error without words', 'HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}'],
    ['nothing at all', ''],
  ])('%s', async (_, text) => {
    const server = each.own(await FakeServer.open(text));
    const client = connect([server.endpoint], { requestTimeoutMs: 500 });
    await expect(client.read(KEY)).rejects.toMatchObject({
      name: 'EtcdError',
      message: expect.stringContaining('127.0.0.1'),
    });
  });

  test('a transaction that fails without saying what is there', async () => {
    const server = each.own(await FakeServer.open(reply('{"responses":[]}')));
    await expect(connect([server.endpoint]).putIf(KEY, ABSENT, 'x')).rejects.toMatchObject({
      code: 'malformed',
    });
  });

  test('nobody, at the start: that may change', async () => {
    const server = await FakeServer.open('');
    const { endpoint } = server;
    server.destroy();
    const witness = {
      kind: 'etcd',
      client: connect([endpoint]),
      key: '/a/vm/web',
      nodeKey: '/a/node/n/web',
    } as const;
    const lines: string[] = [];
    await assertWitnessAccess(
      witness,
      new Log(
        'warn',
        () => ({}),
        (line) => lines.push(line),
      ),
    );
    expect(lines.join()).toContain('ECONNREFUSED');
  });

  test('nobody: every endpoint is named, with its reason', async () => {
    const [first, second] = [await FakeServer.open(''), await FakeServer.open('')];
    const endpoints = [first.endpoint, second.endpoint];
    first.destroy();
    second.destroy();
    const hosts = endpoints.map((endpoint) => new URL(endpoint).host);
    await expect(connect(endpoints).read(KEY)).rejects.toMatchObject({
      code: 'unreachable',
      message: expect.stringMatching(
        new RegExp(`${hosts[0]}: .*ECONNREFUSED.*; ${hosts[1]}: .*ECONNREFUSED`),
      ),
    });
  });
});

// --- the network's part -----------------------------------------------------------------------------------------------------------

function reply(body: string): string {
  return `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
}

function base64(text: string): string {
  return Buffer.from(text).toString('base64');
}

async function gateway(etcd: TestEtcd, path: string, body: object): Promise<void> {
  const answer = await fetch(new URL(path, etcd.endpoints[0]), {
    method: 'POST',
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
}

/** While the members elect a new leader there is no answer; the agents try again too. */
async function untilAnswered<T>(ask: () => Promise<T>): Promise<T> {
  for (let attempts = 0; ; attempts++) {
    try {
      return await ask();
    } catch (error) {
      if (attempts > 20) throw error;
    }
  }
}

/** Says `text` to whoever asks anything, and closes; nothing: never answers. */
class FakeServer {
  readonly endpoint: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server, endpoint: string, sockets: Set<Socket>) {
    this.#server = server;
    this.endpoint = endpoint;
    this.#sockets = sockets;
  }

  static async open(text: string): Promise<FakeServer> {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.once('data', () => text !== '' && socket.end(text));
    });
    return new FakeServer(server, await listening(server), sockets);
  }

  destroy(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
