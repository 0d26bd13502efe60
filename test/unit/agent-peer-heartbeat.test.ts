/** Both ends of a session's heartbeats, over the addon's own sockets. */
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { hostCredentials, trustCertificate } from '../../src/agent/credential-files.ts';
import { monotonicMs } from '../../src/agent/driver.ts';
import { openCredentials } from '../../src/agent/link-security.ts';
import { Log } from '../../src/agent/log.ts';
import { PeerHeartbeat } from '../../src/agent/peer-heartbeat.ts';
import {
  type Heartbeat,
  type HeartbeatOptions,
  native,
  type TlsCredentials,
} from '../../src/native/binding.ts';
import { DEFAULT_TIMINGS, type Timings } from '../../src/protocol/machine.ts';
import { encodePreface } from '../../src/protocol/preface.ts';
import { pairedFolders } from '../../src/testbed/credentials.ts';

const TOKEN = '00112233445566778899aabbccddeeff';
const GENERATION = 3;
const PATIENCE = { timeout: 60_000, interval: 10 };

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

interface End {
  heartbeat: PeerHeartbeat;
  told: { what: 'silent' | 'malformed'; reason: string; heardMs?: number }[];
}

const warnings: string[] = [];
const log = new Log(
  'warn',
  () => ({}),
  (line) => warnings.push(line),
);

function end(peer: 'primary' | 'secondary', timings: Partial<Timings> = {}): End {
  const told: End['told'] = [];
  const heartbeat = new PeerHeartbeat({
    peer,
    timings: { ...DEFAULT_TIMINGS, heartbeatMs: 20, peerTimeoutMs: 60_000, ...timings },
    log,
    onSilent: (reason, heardMs) => told.push({ what: 'silent', reason, heardMs }),
    onMalformed: (reason) => told.push({ what: 'malformed', reason }),
  });
  cleanups.push(() => heartbeat.end());
  return { heartbeat, told };
}

/** The secondary's end behind a port of its own. */
function listen(
  timings: Partial<Timings> = {},
  credentials: TlsCredentials | null = null,
): End & { port: number } {
  const secondary = end('primary', timings);
  const acceptor = new native.Acceptor({
    host: '127.0.0.1',
    port: 0,
    credentials,
    onAccepted: (link, connection, preface, peer) => {
      expect(link).toBe('heartbeat');
      secondary.heartbeat.accept(connection, preface, peer);
    },
    onRefused: () => {},
  });
  cleanups.push(() => acceptor.close());
  return { ...secondary, port: acceptor.port };
}

async function pair(
  timings: Partial<Timings> = {},
  primaryTimings: Partial<Timings> = {},
): Promise<[End, End]> {
  const secondary = listen(timings);
  secondary.heartbeat.expect(TOKEN, GENERATION);
  const primary = end('secondary', primaryTimings);
  primary.heartbeat.connect({ host: '127.0.0.1', port: secondary.port }, TOKEN, GENERATION, null);
  await vi.waitFor(() => {
    for (const { heartbeat } of [primary, secondary]) expect(heartbeat.stats()?.received).toBeGreaterThan(5);
  }, PATIENCE);
  return [primary, secondary];
}

function connection(port: number, preface: Uint8Array): Socket {
  const socket = connect(port, '127.0.0.1');
  cleanups.push(() => socket.destroy());
  socket.resume(); // else its end is never seen
  socket.write(preface);
  return socket;
}

const refusal = (text: string) =>
  vi.waitFor(() => expect(warnings.some((line) => line.includes(text))).toBe(true), PATIENCE);

test('both ends hear each other, as long as there is a session', async () => {
  const [primary, secondary] = await pair();
  expect(primary.heartbeat.stats()?.rttUs.max).toBeGreaterThan(0);
  primary.heartbeat.end();
  expect(primary.heartbeat.stats()).toBeNull();
  expect([...primary.told, ...secondary.told]).toEqual([]);
});

test('they do so through TLS, and who is not believed learns why', async () => {
  const folders = pairedFolders();
  const open = (folder: string): TlsCredentials => {
    const credentials = openCredentials({ vm: 'web1', folder, peerName: '' }, log);
    cleanups.push(() => credentials.close());
    return credentials;
  };
  const secondary = listen({}, open(folders.secondary));
  secondary.heartbeat.expect(TOKEN, GENERATION);
  const address = { host: '127.0.0.1', port: secondary.port };
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-stranger-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  hostCredentials(folder, null);
  trustCertificate(folder, new X509Certificate(hostCredentials(folders.secondary, null).certificate));
  const stranger = end('secondary');
  stranger.heartbeat.connect(address, TOKEN, GENERATION, open(folder));
  await vi.waitFor(() => expect(stranger.told).toHaveLength(1), PATIENCE);
  expect(stranger.told[0]?.reason).toMatch(
    /^the secondary breaks its heartbeats: .*the peer doesn't trust our certificate/,
  );
  const primary = end('secondary');
  primary.heartbeat.connect(address, TOKEN, GENERATION, open(folders.primary));
  await vi.waitFor(() => {
    for (const { heartbeat } of [primary, secondary]) expect(heartbeat.stats()?.received).toBeGreaterThan(5);
  }, PATIENCE);
  expect([...primary.told, ...secondary.told]).toEqual([]);
});

test('an end that goes is told to the other: soon to a primary', async () => {
  const [primary, secondary] = await pair();
  secondary.heartbeat.end();
  await vi.waitFor(() => expect(primary.told).toHaveLength(1), PATIENCE);
  expect(primary.told[0]?.reason).toMatch(/^the secondary has ended its heartbeats: /);
  expect(Math.abs((primary.told[0]?.heardMs ?? 0) - monotonicMs())).toBeLessThan(60_000);
});

test('and to a secondary after its time-out', async () => {
  const [primary, secondary] = await pair({ peerTimeoutMs: 300 });
  primary.heartbeat.end();
  await vi.waitFor(() => expect(secondary.told).toHaveLength(1), PATIENCE);
  expect(secondary.told[0]?.reason).toMatch(/^the primary has ended its heartbeats: /);
});

test('a session that ends first is told nothing', async () => {
  const [primary, secondary] = await pair({ peerTimeoutMs: 300 });
  primary.heartbeat.end();
  secondary.heartbeat.end();
  await new Promise((resolve) => setTimeout(resolve, 600));
  expect(secondary.told).toEqual([]);
});

test('what its thread is not given is said once, not in every session', () => {
  const { heartbeat } = end('secondary');
  const given = vi.spyOn(native, 'Heartbeat').mockImplementation(
    class implements Heartbeat {
      constructor(options: HeartbeatOptions) {
        options.onPrivileges('Operation not permitted', null);
      }
      progress = () => {};
      stats = (): never => expect.unreachable();
      close = () => {};
    },
  );
  cleanups.push(() => given.mockRestore());
  const before = warnings.length;
  for (let session = 1; session <= 3; session += 1)
    heartbeat.connect({ host: '127.0.0.1', port: 1 }, TOKEN, session, null);
  expect(given).toHaveBeenCalledTimes(3);
  expect(warnings.slice(before)).toHaveLength(1);
  expect(warnings[before]).toMatch(/no real-time priority.*CAP_SYS_NICE.*Operation not permitted/);
});

test('a host that can begin none ends the session, at either end, and takes its peer for no dead one', async () => {
  const secondary = listen();
  secondary.heartbeat.expect(TOKEN, GENERATION);
  const given = vi.spyOn(native, 'Heartbeat').mockImplementation(
    class {
      constructor() {
        throw new Error('Too many open files');
      }
    } as unknown as typeof native.Heartbeat,
  );
  cleanups.push(() => given.mockRestore());
  const primary = end('secondary');
  primary.heartbeat.connect({ host: '127.0.0.1', port: secondary.port }, TOKEN, GENERATION, null);
  const preface = encodePreface({ link: 'heartbeat', bulkToken: TOKEN, generation: GENERATION });
  await once(connection(secondary.port, preface), 'close');
  const told = { what: 'malformed', reason: "this host can't begin its heartbeats: Too many open files" };
  expect([primary.told, secondary.told]).toEqual([[told], [told]]);
  expect([primary.heartbeat.stats(), secondary.heartbeat.stats()]).toEqual([null, null]);
});

test('settings that contradict each other end the session with advice', async () => {
  const secondary = listen({ peerTimeoutMs: 200 });
  secondary.heartbeat.expect(TOKEN, GENERATION);
  const primary = end('secondary', { heartbeatMs: 1000 });
  primary.heartbeat.connect({ host: '127.0.0.1', port: secondary.port }, TOKEN, GENERATION, null);
  await vi.waitFor(() => expect(secondary.told).toHaveLength(1), PATIENCE);
  expect(secondary.told[0]).toMatchObject({ what: 'malformed' });
  expect(secondary.told[0]?.reason).toMatch(/raise --peer-timeout here or lower --heartbeat there/);
});

test('a connection of another session is refused, and harms none', async () => {
  const secondary = listen();
  secondary.heartbeat.expect(TOKEN, GENERATION);
  const token = 'f'.repeat(32);
  connection(secondary.port, encodePreface({ link: 'heartbeat', bulkToken: token, generation: GENERATION }));
  await refusal('its token or generation is not that of the session');
  expect(secondary.heartbeat.stats()).toBeNull();
  connection(secondary.port, encodePreface({ link: 'heartbeat', bulkToken: TOKEN, generation: GENERATION }));
  await vi.waitFor(() => expect(secondary.heartbeat.stats()).not.toBeNull(), PATIENCE);
  connection(secondary.port, encodePreface({ link: 'heartbeat', bulkToken: TOKEN, generation: GENERATION }));
  await refusal('this session has its heartbeats');
});

test('a connection without a session is refused', async () => {
  const { port } = listen();
  const socket = connection(port, encodePreface({ link: 'heartbeat', bulkToken: TOKEN, generation: 1 }));
  await Promise.all([once(socket, 'close'), refusal('there is no session that it could belong to')]);
});

test('a primary that opens no heartbeat connection is not waited for for ever', () => {
  vi.useFakeTimers();
  try {
    const { heartbeat, told } = end('primary');
    heartbeat.expect(TOKEN, GENERATION);
    vi.advanceTimersByTime(4999);
    expect(told).toEqual([]);
    vi.advanceTimersByTime(1);
    vi.advanceTimersToNextTimer();
    expect(told[0]?.reason).toBe('the primary has opened no heartbeat connection in 5000 ms');
  } finally {
    vi.useRealTimers();
  }
});

test('an event loop that stood still reads its peer’s last words before it learns the verdict', async () => {
  const [primary, secondary] = await pair({ peerTimeoutMs: 100 });
  const verdictsBefore: number[] = [];
  const control = createServer((socket) =>
    socket.on('data', () => verdictsBefore.push(secondary.told.length)),
  );
  cleanups.push(() => control.close());
  await new Promise<void>((resolve) => control.listen(0, '127.0.0.1', resolve));
  const { port } = control.address() as AddressInfo;
  const speaker = connect(port, '127.0.0.1');
  cleanups.push(() => speaker.destroy());
  await Promise.all([once(control, 'connection'), once(speaker, 'connect')]);
  primary.heartbeat.end();
  standStill(500);
  speaker.write('bye'); // behind the verdict, which lies in the queue by now
  await vi.waitFor(() => expect(secondary.told).toHaveLength(1), PATIENCE);
  expect(verdictsBefore).toEqual([0]);
});

function standStill(forMs: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, forMs);
}
