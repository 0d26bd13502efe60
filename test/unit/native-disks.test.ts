/** Disks as JavaScript sees them: exports, their sources, and both engines around them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  type DiskExport,
  type DiskExportOptions,
  native,
  type StagedCheckpoint,
} from '../../src/native/binding.ts';
import { FakeGuest, nothing, until } from './native-harness.ts';

const SIZE = 8 << 20;
const BLOCK = 64 << 10;
const GENERATION = 3;
const MAILBOX_BYTES = 1 << 20;
const VMSTATE = Buffer.concat([Buffer.from('QEVM\0\0\0\x03'), Buffer.from('device state'), Buffer.from([0])]);

const cleanups: (() => void | Promise<void>)[] = [];
let folder: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'colo-disks-'));
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  fs.rmSync(folder, { recursive: true });
});

function closing<T extends { close(): void }>(handle: T): T {
  cleanups.push(() => handle.close());
  return handle;
}

const failures: string[] = [];
let pressures = 0;
function newExport(options: Partial<DiskExportOptions> = {}): DiskExport {
  failures.length = 0;
  pressures = 0;
  return closing(
    new native.DiskExport({
      id: 'vda',
      sizeBytes: SIZE,
      limitBytes: 64 << 20,
      pressureBytes: 1 << 20,
      onPressure: () => {
        pressures += 1;
      },
      onFailed: (reason) => failures.push(reason),
      ...options,
    }),
  );
}

/** What QEMU's mirror is: writes one after the other, each answered before the next. */
class Mirror {
  readonly #socket: net.Socket;
  #received = Buffer.alloc(0);

  private constructor(fd: number) {
    this.#socket = new net.Socket({ fd });
    this.#socket.on('error', nothing);
    this.#socket.on('data', (bytes) => {
      this.#received = Buffer.concat([this.#received, bytes]);
    });
  }

  static async start(disk: DiskExport): Promise<Mirror> {
    const [ours, theirs] = native.streamSocketPair();
    disk.serve(theirs);
    const mirror = new Mirror(ours);
    cleanups.push(() => mirror.leave());
    const go = Buffer.alloc(4 + 16 + 6);
    go.writeUInt32BE(3, 0);
    go.write('IHAVEOPT', 4);
    go.writeUInt32BE(7, 12);
    go.writeUInt32BE(6, 16);
    mirror.#socket.write(go);
    // Greeting, two pieces of information, acknowledgement.
    await mirror.#take(18 + (20 + 12) + (20 + 14) + 20);
    return mirror;
  }

  async write(offset: number, data: Buffer): Promise<void> {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(0x25609513, 0);
    header.writeUInt16BE(1, 6);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(data.length, 24);
    this.#socket.write(Buffer.concat([header, data]));
    expect((await this.#take(16)).readUInt32BE(4)).toBe(0);
  }

  leave(): void {
    this.#socket.destroy();
  }

  async #take(bytes: number): Promise<Buffer> {
    await until(() => this.#received.length >= bytes);
    const taken = this.#received.subarray(0, bytes);
    this.#received = this.#received.subarray(bytes);
    return taken;
  }
}

/** The guest's disk, and qemu-nbd in front of it as the source. */
class Source {
  readonly file = path.join(folder, 'source.raw');
  readonly #socket = path.join(folder, 'source.socket');
  readonly #child: ChildProcess;

  constructor(sizeBytes = SIZE) {
    fs.writeFileSync(this.file, '');
    fs.truncateSync(this.file, sizeBytes);
    this.#child = spawn('qemu-nbd', ['-t', '-e', '8', '-f', 'raw', '-k', this.#socket, this.file]);
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    cleanups.push(async () => {
      this.#child.kill('SIGKILL');
      await ended;
    });
  }

  async socket(): Promise<number> {
    let fd = -1;
    await until(() => {
      try {
        fd = native.connectUnix(this.#socket);
      } catch {
        expect(this.#child.exitCode).toBe(null);
      }
      return fd >= 0;
    });
    return fd;
  }

  write(offset: number, data: Buffer): void {
    const fd = fs.openSync(this.file, 'r+');
    fs.writeSync(fd, data, 0, data.length, offset);
    fs.closeSync(fd);
  }
}

async function engines(disk: DiskExport) {
  const [primaryGuest, standbyGuest] = await Promise.all([FakeGuest.start(), FakeGuest.start()]);
  cleanups.push(
    () => primaryGuest.kill(),
    () => standbyGuest.kill(),
  );
  const primary = closing(
    new native.PrimaryEngine({
      pid: primaryGuest.pid,
      blocks: [primaryGuest.block],
      threads: 1,
      shadow: true,
      tracker: 'compare',
      stagingResidentBytes: 0,
      scrubSliceBytes: 0,
      disks: [disk],
    }),
  );
  const mailbox = native.makeMemoryFile('mailbox');
  const vmstate = native.makeMemoryFile('vmstate');
  fs.ftruncateSync(mailbox.readWriteFd, MAILBOX_BYTES);
  fs.writeSync(vmstate.writeOnlyFd, VMSTATE);
  const file = path.join(folder, 'standby.raw');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, SIZE);
  const standbyDisk = fs.openSync(file, 'r+');
  cleanups.push(() => {
    for (const { readWriteFd, writeOnlyFd } of [mailbox, vmstate]) {
      native.closeFd(readWriteFd);
      native.closeFd(writeOnlyFd);
    }
    fs.closeSync(standbyDisk);
  });
  const staged: StagedCheckpoint[] = [];
  const standby = closing(
    new native.StandbyEngine({
      pid: standbyGuest.pid,
      blocks: [standbyGuest.block],
      mailboxFd: mailbox.readWriteFd,
      mailboxStateOffset: 0,
      mailboxStateBytes: MAILBOX_BYTES,
      machine: 'pc-q35-7.2',
      preserved: [],
      disks: [{ id: 'vda', fd: standbyDisk, sizeBytes: SIZE }],
      stagingLimitBytes: 0,
      onStaged: (checkpoint) => staged.push(checkpoint),
      onFailed: nothing,
    }),
  );
  const acceptor = closing(
    new native.Acceptor({
      host: '127.0.0.1',
      port: 0,
      credentials: null,
      onAccepted: (_link, connection, preface) => standby.addConnection(connection, preface),
      onRefused: nothing,
    }),
  );
  const token = randomBytes(16);
  const connect = async (): Promise<void> => {
    staged.length = 0;
    standby.openSession(token, GENERATION, 1);
    await primary.connect('127.0.0.1', acceptor.port, token, GENERATION, 1, null);
  };
  const checkpoint = async (epoch: number) => {
    const captured = await primary.capture(epoch, null);
    standby.openEpoch(epoch);
    const sent = await primary.transmit(epoch, vmstate.readWriteFd);
    await until(() => staged.at(-1)?.epoch === epoch);
    await standby.commit(epoch);
    return { captured, sent };
  };
  return { primary, standby, staged, file, connect, checkpoint };
}

describe('a disk', () => {
  test('is copied, then follows the checkpoints, and only what differs goes across after a loss', async () => {
    const disk = newExport();
    const source = new Source();
    const world = await engines(disk);
    const equal = (): boolean => fs.readFileSync(source.file).equals(fs.readFileSync(world.file));
    source.write(BLOCK, randomBytes(5 * BLOCK));
    const mirror = await Mirror.start(disk);
    const write = async (offset: number, data: Buffer): Promise<void> => {
      source.write(offset, data);
      await mirror.write(offset, data);
    };
    expect(disk.stats()).toEqual({
      loggedBytes: 0,
      writes: 0,
      clients: 1,
      differingBlocks: SIZE / BLOCK,
    });

    await world.connect();
    await disk.connectSource(await source.socket(), '');
    const progress: { doneBytes: number; totalBytes: number }[] = [];
    await world.primary.syncDisks([true], 0, (at) => progress.push(at));
    await until(() => progress.at(-1)?.doneBytes === SIZE);
    expect(progress.at(-1)).toMatchObject({ doneBytes: SIZE, totalBytes: SIZE });
    await world.primary.protect();
    await world.primary.sync(0, nothing);
    await until(() => world.staged.at(-1)?.epoch === 0);
    expect(equal()).toBe(true);

    await write(12345, randomBytes(5000));
    expect(equal()).toBe(false);
    world.primary.hurry();
    const { captured, sent } = await world.checkpoint(1);
    expect(captured.diskBytes).toBe(5000);
    expect(sent.wireBytes).toBeGreaterThan(5000);
    expect(equal()).toBe(true);
    world.primary.confirm(1);
    expect(disk.stats()).toMatchObject({ writes: 1, differingBlocks: 0 });

    await write(3 * BLOCK, randomBytes(2 << 19));
    expect(pressures).toBe(1);
    world.primary.disconnect();
    expect(disk.stats()).toMatchObject({ loggedBytes: 0, differingBlocks: 16 });
    await write(0, randomBytes(512));
    expect(disk.stats().differingBlocks).toBe(17);
    disk.closeSource();

    await world.connect();
    await disk.connectSource(await source.socket(), '');
    const totals: number[] = [];
    await world.primary.syncDisks([false], 0, ({ totalBytes }) => totals.push(totalBytes));
    await until(() => totals.length > 0);
    expect(totals[0]).toBe(17 * BLOCK);
    await world.primary.protect();
    await world.primary.sync(0, nothing);
    await until(() => world.staged.at(-1)?.epoch === 0);
    expect(equal()).toBe(true);
    await world.checkpoint(1);
    expect(failures).toEqual([]);

    mirror.leave();
    await until(() => failures.length === 1);
    expect(failures[0]).toContain("the mirror of disk 'vda' has ended");
    await expect(world.checkpoint(2)).rejects.toMatchObject({ code: 'ERR_COLO_DISK' });
    expect(disk.stats().differingBlocks).toBe(SIZE / BLOCK);
  });

  test('without its mirror or its source is not copied', async () => {
    const disk = newExport();
    const source = new Source();
    const world = await engines(disk);
    await world.connect();
    const copy = () => world.primary.syncDisks([true], 0, nothing);
    await expect(copy()).rejects.toMatchObject({
      code: 'ERR_COLO_DISK',
      message: expect.stringContaining('no mirror'),
    });
    await Mirror.start(disk);
    await expect(copy()).rejects.toMatchObject({
      code: 'ERR_COLO_DISK',
      message: expect.stringContaining("the source of disk 'vda' isn't connected"),
    });
    await world.connect();
    await disk.connectSource(await source.socket(), '');
    await copy();
    disk.close();
    await expect(copy()).rejects.toMatchObject({ code: 'ERR_COLO_DISK' });
  });
});

describe('a source', () => {
  test('of another size, of another name, or gone, is refused', async () => {
    const disk = newExport();
    const source = new Source(SIZE / 2);
    const connecting = async (name: string) => disk.connectSource(await source.socket(), name);
    await expect(connecting('')).rejects.toMatchObject({
      code: 'ERR_COLO_DISK',
      message: expect.stringContaining(`${SIZE / 2} bytes where disk 'vda' has ${SIZE}`),
    });
    await expect(connecting('other')).rejects.toMatchObject({
      code: 'ERR_COLO_DISK',
      message: expect.stringContaining("NBD export 'other'"),
    });
    const [ours, theirs] = native.streamSocketPair();
    native.closeFd(ours);
    await expect(disk.connectSource(theirs, '')).rejects.toMatchObject({ code: 'ERR_COLO_DISK' });
  });

  test('that says nothing is ended by closeSource() and close()', async () => {
    for (const end of ['closeSource', 'close'] as const) {
      const disk = newExport();
      const [ours, theirs] = native.streamSocketPair();
      const connecting = disk.connectSource(theirs, '');
      const busy = native.streamSocketPair();
      expect(() => disk.connectSource(busy[1], '')).toThrow(
        expect.objectContaining({ code: 'ERR_COLO_BUSY' }),
      );
      native.closeFd(busy[0]);
      disk[end]();
      await expect(connecting).rejects.toMatchObject({ code: 'ERR_COLO_CLOSED' });
      native.closeFd(ours);
    }
  });
});

describe('arguments', () => {
  // biome-ignore lint/suspicious/noExplicitAny: wrong types are the point.
  const wrong = (value: unknown): any => value;
  const refused = (name: string) =>
    expect.objectContaining({ code: 'ERR_COLO_ARGUMENT', message: expect.stringContaining(`\`${name}\``) });

  test.each([
    ['options.id', { id: 3 }],
    ['options.sizeBytes', { sizeBytes: 0 }],
    ['options.limitBytes', { limitBytes: 1 << 20 }],
    ['options.pressureBytes', { pressureBytes: 128 << 20 }],
    ['options.onPressure', { onPressure: undefined }],
    ['options.onFailed', { onFailed: 1 }],
  ])('%s is checked', (name, options) => {
    expect(() => newExport(wrong(options))).toThrow(refused(name));
  });

  test('an engine takes open exports only, each once', async () => {
    const guest = await FakeGuest.start();
    cleanups.push(() => guest.kill());
    const create = (disks: unknown) =>
      new native.PrimaryEngine({
        pid: guest.pid,
        blocks: [guest.block],
        threads: 1,
        shadow: true,
        tracker: 'compare',
        stagingResidentBytes: 0,
        scrubSliceBytes: 0,
        disks: wrong(disks),
      });
    const disk = newExport();
    expect(() => create(undefined)).toThrow(refused('options.disks'));
    expect(() => create([{}])).toThrow(refused('options.disks[0]'));
    expect(() => create([disk, Object.create(native.DiskExport.prototype)])).toThrow(
      refused('options.disks[1]'),
    );
    expect(() => create([disk, disk])).toThrow(refused('options.disks[1]'));
    const engine = closing(create([disk]));
    expect(() => engine.syncDisks([], 0, nothing)).toThrow(refused('allDiffer'));
    expect(() => engine.syncDisks(wrong([1]), 0, nothing)).toThrow(refused('allDiffer[0]'));
    expect(() => engine.syncDisks([true], -1, nothing)).toThrow(refused('bytesPerSecond'));
    expect(() => engine.confirm(0)).toThrow(refused('epoch'));
    await expect(engine.syncDisks([true], 0, nothing)).rejects.toMatchObject({ code: 'ERR_COLO_LINK' });
    disk.close();
    disk.close();
    expect(() => create([disk])).toThrow(expect.objectContaining({ code: 'ERR_COLO_CLOSED' }));
    expect(() => disk.stats()).toThrow(expect.objectContaining({ code: 'ERR_COLO_CLOSED' }));
    engine.hurry();
  });
});
