/** What the addon's objects refuse, and the small services. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { type Acceptor, native, type OutputGate, type PrimaryEngine } from '../../src/native/binding.ts';
import { FakeGuest, nothing, until } from './native-harness.ts';

const cleanups: (() => void | Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function closing<T extends { close(): void }>(handle: T): T {
  cleanups.push(() => handle.close());
  return handle;
}

const gateOptions = {
  limitBytes: 1 << 20,
  pressureBytes: 1 << 19,
  onOutputHeld: nothing,
  onPressure: nothing,
  onBroken: nothing,
};
const newGate = (): OutputGate => closing(new native.OutputGate(gateOptions));
const newAcceptor = (): Acceptor =>
  closing(
    new native.Acceptor({
      host: '127.0.0.1',
      port: 0,
      credentials: null,
      onAccepted: nothing,
      onRefused: nothing,
    }),
  );

async function newEngine(): Promise<PrimaryEngine> {
  const guest = await FakeGuest.start();
  cleanups.push(() => guest.kill());
  return closing(
    new native.PrimaryEngine({
      pid: guest.pid,
      blocks: [guest.block],
      threads: 1,
      shadow: true,
      tracker: 'compare',
      stagingResidentBytes: 0,
      scrubSliceBytes: 0,
      disks: [],
    }),
  );
}

function sleeper(): ChildProcess {
  const child = spawn('sleep', ['1000']);
  cleanups.push(() => {
    child.kill('SIGKILL');
  });
  return child;
}

/** Calls with values that TypeScript would not let through. */
// biome-ignore lint/suspicious/noExplicitAny: wrong types are the point.
const wrong = (value: unknown): any => value;

describe('arguments', () => {
  const block = { name: 'ram', hostAddress: 4096n, sizeBytes: 4096 };
  const engine = {
    pid: 1,
    blocks: [block],
    threads: 1,
    shadow: true,
    tracker: 'compare',
    stagingResidentBytes: 0,
    scrubSliceBytes: 0,
    disks: [],
  };
  const heartbeat = {
    end: { host: 'a', port: 1, token: new Uint8Array(16), credentials: null },
    generation: 1,
    intervalMs: 50,
    timeoutMs: 800,
    firstTimeoutMs: 5000,
    stallTimeoutMs: 10_000,
    closedGraceMs: 0,
    onVerdict: nothing,
    onPrivileges: nothing,
  };
  const acceptorBase = {
    host: '127.0.0.1',
    port: 0,
    credentials: null,
    onAccepted: nothing,
    onRefused: nothing,
  };
  const cases: [string, () => unknown][] = [
    ['`options` must be an object', () => new native.OutputGate(wrong(undefined))],
    [
      '`options.limitBytes` must be an integer from 131072 to 9007199254740991',
      () => new native.OutputGate({ ...gateOptions, limitBytes: 1 }),
    ],
    [
      '`options.pressureBytes` must be an integer from 1 to 1048576',
      () => new native.OutputGate({ ...gateOptions, pressureBytes: 1.5 }),
    ],
    [
      '`options.onBroken` must be a function',
      () => new native.OutputGate({ ...gateOptions, onBroken: wrong('call me') }),
    ],
    [
      '`options.port` must be an integer from 0 to 65535',
      () => new native.Acceptor(wrong({ ...acceptorBase, port: 65536 })),
    ],
    ['`options.host` must be a string', () => new native.Acceptor(wrong({ ...acceptorBase, host: 7 }))],
    [
      '`pid` must be an integer from 1 to 2147483647',
      () => new native.ProcessWatch(Number.NaN, nothing, nothing),
    ],
    ['`options.blocks` must be an array', () => new native.PrimaryEngine(wrong({ ...engine, blocks: {} }))],
    [
      '`options.blocks` must be an array of at least one block',
      () => new native.PrimaryEngine(wrong({ ...engine, blocks: [] })),
    ],
    [
      '`options.blocks[0].hostAddress` must be a bigint from 0 to 2^64 - 1',
      () => new native.PrimaryEngine(wrong({ ...engine, blocks: [{ ...block, hostAddress: 4096 }] })),
    ],
    [
      '`options.blocks[0].hostAddress` must be a bigint from 0 to 2^64 - 1',
      () => new native.PrimaryEngine(wrong({ ...engine, blocks: [{ ...block, hostAddress: -4096n }] })),
    ],
    [
      '`options.blocks[0].sizeBytes` must be a multiple of 4096',
      () => new native.PrimaryEngine(wrong({ ...engine, blocks: [{ ...block, sizeBytes: 5000 }] })),
    ],
    [
      "`options.tracker` must be 'auto', 'userfaultfd' or 'compare'",
      () => new native.PrimaryEngine(wrong({ ...engine, tracker: 'magic' })),
    ],
    ['`options.shadow` must be a boolean', () => new native.PrimaryEngine(wrong({ ...engine, shadow: 1 }))],
    ['`path` must be a string', () => native.connectUnix(wrong(3))],
    ['`bytes` must be a Uint8Array', () => native.sendWithFds(1, wrong([1, 2]), [])],
    ['`bytes` must be a Uint8Array', () => native.sendWithFds(1, wrong(new Uint16Array(2)), [])],
    [
      '`fds[1]` must be an integer from 0 to 2147483647',
      () => native.sendWithFds(1, new Uint8Array(1), [1, -1]),
    ],
    ['`fd` must be an integer from 0 to 2147483647', () => native.closeFd(wrong('1'))],
    [
      '`options.intervalMs` must be an integer from 10 to 1000000000',
      () => new native.Heartbeat({ ...heartbeat, intervalMs: 9 }),
    ],
    ['`options.end.host` must be a string', () => new native.Heartbeat({ ...heartbeat, end: wrong({}) })],
    [
      '`options.end.token` must be a Uint8Array of 16 bytes',
      () => new native.Heartbeat({ ...heartbeat, end: { ...heartbeat.end, token: new Uint8Array(15) } }),
    ],
    [
      '`options.end.credentials` must be TlsCredentials or null',
      () => new native.Heartbeat({ ...heartbeat, end: { ...heartbeat.end, credentials: wrong({}) } }),
    ],
    ['`timeoutS` must be an integer from 1 to 3600', () => new native.Watchdog('/dev/null', 0)],
  ];

  test.each(cases)('%s', (message, call) => {
    expect(call).toThrow(expect.objectContaining({ name: 'TypeError', code: 'ERR_COLO_ARGUMENT', message }));
  });

  test('a getter that throws is passed on', () => {
    const options = {
      get host(): string {
        throw new RangeError('mine');
      },
      port: 0,
      credentials: null,
      onAccepted: nothing,
      onRefused: nothing,
    };
    expect(() => new native.Acceptor(options)).toThrow(new RangeError('mine'));
  });

  test('classes are constructed with new', () => {
    expect(() => wrong(native.OutputGate)(gateOptions)).toThrow(TypeError);
  });
});

describe('handles', () => {
  test('of another class are refused, whatever their prototype', async () => {
    const engine = await newEngine();
    const acceptor = newAcceptor();
    const disguised = Object.setPrototypeOf(newAcceptor(), native.OutputGate.prototype);
    const expected = {
      name: 'TypeError',
      code: 'ERR_COLO_ARGUMENT',
      message: '`gate` must be an OutputGate or null',
    };
    for (const gate of [acceptor, disguised, {}, undefined, Object.create(native.OutputGate.prototype)]) {
      expect(() => engine.capture(1, wrong(gate))).toThrow(expect.objectContaining(expected));
    }
    Object.setPrototypeOf(disguised, native.Acceptor.prototype);
  });

  test("can't lend each other their methods", () => {
    const gate = newGate();
    const acceptor = newAcceptor();
    for (const method of [gate.close, gate.stats, gate.open]) {
      expect(() => method.call(wrong(acceptor))).toThrow(TypeError);
      expect(() => method.call(wrong({}))).toThrow(TypeError);
    }
    expect(acceptor.port).toBeGreaterThan(0);
  });

  test('close once, twice, and are closed', async () => {
    const engine = await newEngine();
    const gate = newGate();
    gate.close();
    gate.close();
    const closed = expect.objectContaining({ code: 'ERR_COLO_CLOSED', message: 'OutputGate is closed' });
    expect(() => gate.stats()).toThrow(closed);
    expect(() => gate.flush(0)).toThrow(closed);
    expect(() => engine.capture(1, gate)).toThrow(closed);
  });

  test('one operation at a time', async () => {
    const gate = newGate();
    const [theirs, held] = native.streamSocketPair();
    const [reader, release] = native.streamSocketPair();
    cleanups.push(
      () => native.closeFd(theirs),
      () => native.closeFd(reader),
    );
    gate.addPort(held, release);
    fs.writeSync(theirs, Buffer.alloc(8));
    const first = gate.flush(60_000);
    expect(() => gate.flush(0)).toThrow(expect.objectContaining({ code: 'ERR_COLO_BUSY' }));
    gate.close();
    expect(await first).toBe(false);
  });
});

describe('Acceptor', () => {
  test('hands a control connection over as a working socket', async () => {
    const sockets: net.Socket[] = [];
    const refused: string[] = [];
    const acceptor = closing(
      new native.Acceptor({
        host: '127.0.0.1',
        port: 0,
        credentials: null,
        onAccepted: (link, connection, preface, peer) => {
          expect(link).toBe('control');
          expect(Buffer.from(preface).subarray(0, 8).toString()).toBe('COLOCTL1');
          expect(peer).toMatch(/^127\.0\.0\.1:\d+$/);
          sockets.push(new net.Socket({ fd: connection.openSocket() }));
        },
        onRefused: (peer, reason) => refused.push(`${peer} ${reason}`),
      }),
    );
    const client = net.connect(acceptor.port, '127.0.0.1');
    client.write(Buffer.concat([Buffer.from('COLOCTL1'), Buffer.alloc(56), Buffer.from('hello')]));
    await until(() => sockets.length === 1);
    const [socket] = sockets as [net.Socket];
    const [hello] = await once(socket, 'data');
    expect(hello.toString()).toBe('hello');
    socket.end('bye');
    const [bye] = await once(client, 'data');
    expect(bye.toString()).toBe('bye');
    client.destroy();
    socket.destroy();

    const stranger = net.connect(acceptor.port, '127.0.0.1');
    stranger.write('GET / HTTP/1.0\r\n\r\n');
    await until(() => refused.length === 1);
    expect(refused[0]).toMatch(/^127\.0\.0\.1:\d+ the connection's preface is not colo-agent's$/);
    stranger.destroy();
  });

  test('names the address it can not listen on', () => {
    const { port } = newAcceptor();
    expect(
      () =>
        new native.Acceptor({
          host: '127.0.0.1',
          port,
          credentials: null,
          onAccepted: nothing,
          onRefused: nothing,
        }),
    ).toThrow(
      expect.objectContaining({
        code: 'ERR_COLO_LISTEN',
        errno: os.constants.errno.EADDRINUSE,
        message: `can't listen on 127.0.0.1:${port}: Address already in use`,
      }),
    );
  });
});

describe('ProcessWatch', () => {
  test('signals a process and tells of its death', async () => {
    const child = sleeper();
    const told: string[] = [];
    await new Promise<void>((resolve) => {
      const onEnded = () => {
        told.push('ended');
        resolve();
      };
      const watch = closing(new native.ProcessWatch(child.pid as number, () => told.push('dying'), onEnded));
      watch.signal(os.constants.signals.SIGTERM);
    });
    expect(told).toEqual(['dying', 'ended']);
  });

  test('says nothing after close()', async () => {
    const child = sleeper();
    let called = false;
    const call = () => {
      called = true;
    };
    const watch = new native.ProcessWatch(child.pid as number, call, call);
    watch.close();
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(called).toBe(false);
    expect(() => new native.ProcessWatch(child.pid as number, nothing, nothing)).toThrow(
      expect.objectContaining({ code: 'ERR_COLO_PROCESS', errno: os.constants.errno.ESRCH }),
    );
  });
});

describe('descriptors', () => {
  test('a unix peer is known and gets descriptors', async () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'colo-native-'));
    cleanups.push(() => fs.rmSync(folder, { recursive: true }));
    const server = net.createServer().listen(path.join(folder, 'socket'));
    await once(server, 'listening');
    const accepted = once(server, 'connection');
    const fd = native.connectUnix(path.join(folder, 'socket'));
    const [peer] = await accepted;
    expect(native.peerCredentials(fd)).toEqual({
      pid: process.pid,
      uid: process.getuid?.(),
      gid: process.getgid?.(),
      groups: expect.any(Array),
    });
    const file = native.makeMemoryFile('passed');
    native.sendWithFds(fd, Buffer.from('with a file'), [file.readWriteFd, file.writeOnlyFd]);
    const [bytes] = await once(peer, 'data');
    expect(bytes.toString()).toBe('with a file');
    for (const each of [fd, file.readWriteFd, file.writeOnlyFd]) native.closeFd(each);
    peer.destroy();
    server.close();
    expect(() => native.closeFd(fd)).toThrow(
      expect.objectContaining({ code: 'ERR_COLO_DESCRIPTOR', errno: os.constants.errno.EBADF }),
    );
  });

  test("a duplicate of another process's descriptor shares its offset", () => {
    const file = native.makeMemoryFile('shared');
    const twin = native.duplicateForeignFd(process.pid, file.writeOnlyFd);
    fs.writeSync(file.writeOnlyFd, 'one');
    fs.writeSync(twin, 'two');
    expect(fs.readFileSync(`/proc/self/fd/${file.readWriteFd}`, 'utf8')).toBe('onetwo');
    for (const each of [twin, file.readWriteFd, file.writeOnlyFd]) native.closeFd(each);
    expect(() => native.duplicateForeignFd(process.pid, twin)).toThrow(
      expect.objectContaining({ code: 'ERR_COLO_DESCRIPTOR', errno: os.constants.errno.EBADF }),
    );
  });

  test('a memory file is empty after a rewind', () => {
    const file = native.makeMemoryFile('vmstate');
    fs.writeSync(file.writeOnlyFd, 'a long save');
    native.rewindMemoryFile(file);
    fs.writeSync(file.writeOnlyFd, 'short');
    expect(fs.fstatSync(file.readWriteFd).size).toBe(5);
    native.closeFd(file.readWriteFd);
    native.closeFd(file.writeOnlyFd);
  });
});
