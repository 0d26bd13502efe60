/** The addon and the life of what loads it: worker threads that end at any moment, processes that exit, callbacks that throw. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { native } from '../../src/native/binding.ts';
import { FakeGuest } from './native-harness.ts';

const root = path.join(import.meta.dirname, '..', '..');
const addon: string = createRequire(import.meta.url)('node-gyp-build').path(root);

/** Loads the addon and gives every object something to do that takes long. */
const BUSY = `
  const native = require(${JSON.stringify(addon)});
  const nothing = () => {};
  function busy(pid, block) {
    const gate = new native.OutputGate({ limitBytes: 1 << 20, pressureBytes: 1 << 19, onOutputHeld: nothing, onPressure: nothing, onBroken: nothing });
    const [theirs, held] = native.streamSocketPair();
    const [reader, release] = native.streamSocketPair();
    gate.addPort(held, release);
    require('node:fs').writeSync(theirs, Buffer.alloc(8));
    gate.flush(600000).then(nothing);
    const options = { pid, blocks: [{ name: 'ram', hostAddress: BigInt(block.hostAddress), sizeBytes: block.sizeBytes }] };
    const mailbox = native.makeMemoryFile('mailbox');
    const standby = new native.StandbyEngine({ ...options, mailboxFd: mailbox.readWriteFd, mailboxStateOffset: 0, mailboxStateBytes: 65536, machine: 'pc', preserved: [], disks: [], stagingLimitBytes: 0, onStaged: nothing, onFailed: nothing });
    const token = new Uint8Array(16);
    standby.openSession(token, 1, 1);
    const acceptor = new native.Acceptor({ host: '127.0.0.1', port: 0, credentials: null, onAccepted: (link, connection, preface) => standby.addConnection(connection, preface), onRefused: nothing });
    new native.ProcessWatch(process.ppid, nothing, nothing);
    const disk = new native.DiskExport({ id: 'disk', sizeBytes: 1 << 20, limitBytes: 1 << 23, pressureBytes: 1 << 22, onPressure: nothing, onFailed: nothing });
    const [mirror, served] = native.streamSocketPair();
    disk.serve(served);
    const [silent, source] = native.streamSocketPair();
    disk.connectSource(source, '').catch(nothing);
    const primary = new native.PrimaryEngine({ ...options, threads: 2, shadow: true, tracker: 'compare', stagingResidentBytes: 0, scrubSliceBytes: 0, disks: [] });
    new native.PrimaryEngine({ ...options, threads: 1, shadow: true, tracker: 'compare', stagingResidentBytes: 0, scrubSliceBytes: 0, disks: [disk] });
    const fds = [theirs, reader, mirror, silent, mailbox.readWriteFd, mailbox.writeOnlyFd];
    const syncing = primary.protect()
      .then(() => primary.connect('127.0.0.1', acceptor.port, token, 1, 1, null))
      .then(() => primary.sync(4096, () => {}));
    return { fds, syncing, gate, primary };
  }
`;

const WORKER = `${BUSY}
  const { parentPort, workerData } = require('node:worker_threads');
  const { fds } = busy(workerData.pid, workerData.block);
  parentPort.postMessage(fds);
  setInterval(nothing, 1000);
`;

const openDescriptors = (): string[] =>
  fs.readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [`${fd} ${fs.readlinkSync(`/proc/self/fd/${fd}`)}`];
    } catch {
      return []; // the listing's own
    }
  });
/** The core's threads and the workers'; Node's own come and go with its pools, so only growth counts. */
const threads = (): number => fs.readdirSync('/proc/self/task').length;

describe('a worker thread', () => {
  test('ends at any moment with everything in flight, and leaves no thread and no descriptor', async () => {
    const guest = await FakeGuest.start();
    const workerData = {
      pid: guest.pid,
      block: { hostAddress: String(guest.block.hostAddress), sizeBytes: guest.block.sizeBytes },
    };
    const round = async (delayMs: number): Promise<void> => {
      const worker = new Worker(WORKER, { eval: true, workerData });
      const fds = await new Promise<number[]>((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      expect(await worker.terminate()).toBe(1);
      for (const fd of fds) fs.closeSync(fd);
    };
    await round(20); // whatever Node opens once
    const before = { descriptors: openDescriptors(), threads: threads() };
    for (let i = 0; i < 12; i += 1) await round(i * 3);
    expect(openDescriptors()).toEqual(before.descriptors);
    expect(threads()).toBeLessThanOrEqual(before.threads);
    await guest.kill();
  });

  test('may be terminated before it has loaded the addon whole', async () => {
    const guest = await FakeGuest.start();
    const workerData = {
      pid: guest.pid,
      block: { hostAddress: String(guest.block.hostAddress), sizeBytes: guest.block.sizeBytes },
    };
    for (let i = 0; i < 12; i += 1) {
      const worker = new Worker(WORKER, { eval: true, workerData });
      await new Promise((resolve) => setTimeout(resolve, i * 5));
      await worker.terminate();
    }
    await guest.kill();
  });
});

test('a standby engine that is closed gives its descriptors back at once, not when the garbage is collected', async () => {
  const guest = await FakeGuest.start();
  const mailbox = native.makeMemoryFile('mailbox');
  const before = openDescriptors();
  const engine = new native.StandbyEngine({
    pid: guest.pid,
    blocks: [guest.block],
    mailboxFd: mailbox.readWriteFd,
    mailboxStateOffset: 0,
    mailboxStateBytes: 65536,
    machine: 'pc',
    preserved: [],
    disks: [],
    stagingLimitBytes: 0,
    onStaged: () => {},
    onFailed: () => {},
  });
  expect(openDescriptors().length).toBeGreaterThan(before.length);
  engine.close();
  expect(openDescriptors()).toEqual(before);
  native.closeFd(mailbox.readWriteFd);
  native.closeFd(mailbox.writeOnlyFd);
  await guest.kill();
});

describe('a process', () => {
  function run(program: string): {
    status: number | null;
    signal: string | null;
    stdout: string;
    stderr: string;
  } {
    const result = spawnSync(process.execPath, ['-e', program], { encoding: 'utf8', timeout: 20_000 });
    return { status: result.status, signal: result.signal, stdout: result.stdout, stderr: result.stderr };
  }
  const OPEN = `
    const native = require(${JSON.stringify(addon)});
    const nothing = () => {};
    const gateOptions = { limitBytes: 1 << 20, pressureBytes: 1 << 19, onOutputHeld: nothing, onPressure: nothing, onBroken: nothing };
    const acceptorOptions = { host: '127.0.0.1', port: 0, credentials: null, onAccepted: nothing, onRefused: nothing };
  `;

  test('is not kept alive by idle objects', () => {
    const result = run(`${OPEN}
      new native.OutputGate(gateOptions);
      new native.Acceptor(acceptorOptions);
      new native.ProcessWatch(process.ppid, nothing, nothing);
      new native.Heartbeat({ end: { host: '127.0.0.1', port: 1, token: new Uint8Array(16), credentials: null }, generation: 1, intervalMs: 50, timeoutMs: 800,
        firstTimeoutMs: 5000, stallTimeoutMs: 10000, closedGraceMs: 0, onVerdict: nothing, onPrivileges: nothing });
    `);
    expect(result).toMatchObject({ status: 0, stderr: '' });
  });

  test('is kept alive by an operation', () => {
    const result = run(`${OPEN}
      const gate = new native.OutputGate(gateOptions);
      const [theirs, held] = native.streamSocketPair();
      const [reader, release] = native.streamSocketPair();
      gate.addPort(held, release);
      require('node:fs').writeSync(theirs, Buffer.alloc(8));
      gate.flush(100).then((done) => console.log('flushed', done));
    `);
    expect(result).toMatchObject({ status: 0, stdout: 'flushed false\n', stderr: '' });
  });

  test('may exit with everything in flight', async () => {
    const guest = await FakeGuest.start();
    const block = { hostAddress: String(guest.block.hostAddress), sizeBytes: guest.block.sizeBytes };
    const result = run(`${BUSY}
      busy(${guest.pid}, ${JSON.stringify(block)});
      setTimeout(() => process.exit(7), 50);
    `);
    expect(result).toMatchObject({ status: 7, stderr: '' });
    await guest.kill();
  });

  test('may exit inside a callback', () => {
    const result = run(`${OPEN}
      const acceptor = new native.Acceptor({ ...acceptorOptions, onRefused: () => process.exit(5) });
      require('node:net').connect(acceptor.port, '127.0.0.1').write('nonsense');
      setTimeout(nothing, 15_000); // the connection may have ended before the callback comes, and then nothing else keeps the process
    `);
    expect(result).toMatchObject({ status: 5, stderr: '' });
  });

  test('hears of a callback that throws, and the next callback still comes', () => {
    const result = run(`${OPEN}
      process.on('uncaughtException', (error) => console.log('uncaught', error.message));
      let calls = 0;
      const acceptor = new native.Acceptor({ ...acceptorOptions, onRefused: () => {
        calls += 1;
        console.log('call', calls);
        if (calls === 2) process.exit(0);
        throw new Error('mine');
      } });
      const net = require('node:net');
      net.connect(acceptor.port, '127.0.0.1').on('error', nothing).write('nonsense');
      net.connect(acceptor.port, '127.0.0.1').on('error', nothing).write('nonsense');
    `);
    expect(result.stdout.split('\n').filter(Boolean)).toEqual(['call 1', 'uncaught mine', 'call 2']);
    expect(result.status).toBe(0);
  });

  test('does not lose an object whose JavaScript was forgotten', () => {
    const result = spawnSync(
      process.execPath,
      [
        '--expose-gc',
        '-e',
        `${OPEN}
        let port = (() => new native.Acceptor({ ...acceptorOptions, onRefused: () => { console.log('alive'); process.exit(0); } }).port)();
        for (let i = 0; i < 10; i += 1) gc();
        require('node:net').connect(port, '127.0.0.1').on('error', nothing).write('nonsense');
      `,
      ],
      { encoding: 'utf8', timeout: 20_000 },
    );
    expect(result.stdout).toBe('alive\n');
  });
});
