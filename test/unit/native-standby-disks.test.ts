/** The standby engine's disks as JavaScript sees them. The frames are made by hand, byte for byte as docs/protocol.md has them. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  type Acceptor,
  type NativeError,
  native,
  type PeerConnection,
  type StagedCheckpoint,
  type StandbyEngine,
} from '../../src/native/binding.ts';
import { FakeGuest, until } from './native-harness.ts';

const GENERATION = 3;
const TOKEN = Buffer.alloc(16, 7);
const DISK_BYTES = 3 * 65536;
const DATA = Buffer.from('guest data');
const VMSTATE = Buffer.concat([Buffer.from('QEVM\0\0\0\x03'), Buffer.from('device state')]);

const FRAME = { vmstate: 2, end: 3, disk: 4, diskHashes: 5, diskDiffers: 6 };

function frame(type: number, epoch: number, payload: Uint8Array): Buffer {
  const header = Buffer.alloc(32);
  header.write('CBLK', 'latin1');
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(type, 6);
  header.writeBigUInt64BE(BigInt(GENERATION), 8);
  header.writeBigUInt64BE(BigInt(epoch), 16);
  header.writeUInt32BE(payload.length, 24);
  return Buffer.concat([header, payload]);
}

/** One entry: data, or a number of zeros. */
function diskEntry(offset: number, what: Buffer | number): Buffer {
  const header = Buffer.alloc(24);
  header.writeUInt16LE(typeof what === 'number' ? 1 : 2, 0);
  header.writeBigUInt64LE(BigInt(offset), 8);
  header.writeBigUInt64LE(BigInt(typeof what === 'number' ? what : what.length), 16);
  if (typeof what === 'number') return header;
  return Buffer.concat([header, what, Buffer.alloc(-what.length & 7)]);
}

function end(payloadBytes: number, hash: bigint): Buffer {
  const payload = Buffer.alloc(32);
  payload.writeBigUInt64BE(BigInt(payloadBytes), 8);
  payload.writeBigUInt64BE(hash, 16);
  return payload;
}

/** XXH3-64 of nothing, and of the payloads of epoch 1 below. */
const HASH_OF_NOTHING = 0x2d06800538d394c2n;
const HASH_OF_EPOCH_1 = 0x81c06b242424f35cn;
/** XXH3-128 of 64 KiB of zeros. */
const HASH_OF_ZEROS = Buffer.from('fd5ee061c8433a0f33b202d302b65caa', 'hex');

let folder: string;
let diskPath: string;
let guest: FakeGuest;
let standby: StandbyEngine;
let acceptor: Acceptor;
let acceptConnection: (connection: PeerConnection, preface: Uint8Array) => void;
let link: net.Socket;
const mailboxes: { readWriteFd: number; writeOnlyFd: number }[] = [];
let staged: StagedCheckpoint[];
let failures: NativeError[];
let received: Buffer;

function newStandby(disks: { id: string; fd: number; sizeBytes: number }[]): StandbyEngine {
  const mailbox = native.makeMemoryFile('mailbox');
  mailboxes.push(mailbox);
  return new native.StandbyEngine({
    pid: guest.pid,
    blocks: [guest.block],
    mailboxFd: mailbox.readWriteFd,
    mailboxStateOffset: 0,
    mailboxStateBytes: 1 << 20,
    machine: 'pc-q35-7.2',
    preserved: [],
    disks,
    stagingLimitBytes: 0,
    onStaged: (checkpoint) => staged.push(checkpoint),
    onFailed: (error) => failures.push(error),
  });
}

/** A session on one bulk connection, of which the test holds the other end. */
async function openSession(): Promise<void> {
  standby.openSession(TOKEN, GENERATION, 1);
  const preface = Buffer.alloc(64);
  preface.write('COLOBLK1', 'latin1');
  TOKEN.copy(preface, 8);
  preface.writeBigUInt64BE(BigInt(GENERATION), 24);
  preface.writeUInt16BE(1, 34);
  const accepted = new Promise<void>((resolve) => {
    acceptConnection = (connection, sent) => {
      standby.addConnection(connection, sent);
      resolve();
    };
  });
  link = net.connect(acceptor.port, '127.0.0.1');
  link.write(preface);
  link.on('error', () => {}); // the engine may close it first
  link.on('data', (bytes) => {
    received = Buffer.concat([received, bytes]);
  });
  await accepted;
}

const disk = (): Buffer => fs.readFileSync(diskPath);

beforeEach(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'colo-standby-disks-'));
  diskPath = path.join(folder, 'disk.raw');
  fs.writeFileSync(diskPath, '');
  fs.truncateSync(diskPath, DISK_BYTES);
  guest = await FakeGuest.start();
  [staged, failures, received] = [[], [], Buffer.alloc(0)];
  const fd = fs.openSync(diskPath, 'r+');
  standby = newStandby([{ id: 'sda', fd, sizeBytes: DISK_BYTES }]);
  fs.closeSync(fd); // the engine has its own
  acceptor = new native.Acceptor({
    host: '127.0.0.1',
    port: 0,
    credentials: null,
    onAccepted: (_link, connection, preface) => acceptConnection(connection, preface),
    onRefused: () => {},
  });
  await openSession();
});

afterEach(async () => {
  standby.close();
  acceptor.close();
  link.destroy();
  for (const mailbox of mailboxes.splice(0)) {
    native.closeFd(mailbox.readWriteFd);
    native.closeFd(mailbox.writeOnlyFd);
  }
  await guest.kill();
  fs.rmSync(folder, { recursive: true });
});

test('a checkpoint reaches the disk when it is committed', async () => {
  const first = diskEntry(100, DATA);
  link.write(frame(FRAME.disk, 0, first));
  await until(() => disk().subarray(100, 110).equals(DATA)); // epoch 0 is applied as it comes
  standby.closeSession();
  link.destroy();

  await openSession();
  link.write(frame(FRAME.end, 0, end(0, HASH_OF_NOTHING)));
  await until(() => staged.length === 1);
  standby.openEpoch(1);
  const payload = Buffer.concat([diskEntry(5000, DATA), diskEntry(102, 4)]);
  link.write(frame(FRAME.disk, 1, payload));
  link.write(frame(FRAME.vmstate, 1, VMSTATE));
  link.write(frame(FRAME.end, 1, end(payload.length + VMSTATE.length, HASH_OF_EPOCH_1)));
  await until(() => staged.length === 2 || failures.length > 0);
  expect(failures).toEqual([]);
  expect(staged[1]).toMatchObject({ epoch: 1, diskBytes: payload.length, vmstateBytes: VMSTATE.length });

  const expected = Buffer.alloc(DISK_BYTES);
  DATA.copy(expected, 100);
  expect(disk().equals(expected)).toBe(true);
  await standby.commit(1);
  expected.fill(0, 102, 106);
  DATA.copy(expected, 5000);
  expect(disk().equals(expected)).toBe(true);
  await standby.syncDisks();
});

test('hashes are answered on the same connection', async () => {
  const hashes = Buffer.alloc(16 + 3 * 16);
  hashes.writeUInt32LE(3, 4);
  HASH_OF_ZEROS.copy(hashes, 16);
  HASH_OF_ZEROS.copy(hashes, 48);
  link.write(frame(FRAME.disk, 0, diskEntry(2 * 65536, DATA)));
  link.write(frame(FRAME.diskHashes, 0, hashes));
  await until(() => received.length >= 40);
  const bits = Buffer.alloc(8);
  bits[0] = 0b110; // the second was asked about with a wrong hash, the third was written to
  expect(received.equals(frame(FRAME.diskDiffers, 0, bits))).toBe(true);
});

test('what a disk frame gets wrong ends the session with the reason', async () => {
  link.write(frame(FRAME.disk, 0, diskEntry(DISK_BYTES - 4, DATA)));
  await until(() => failures.length === 1);
  expect(failures[0]).toMatchObject({
    code: 'ERR_COLO_STREAM',
    message: 'bulk connection 0: disk entry at byte 0: it reaches past the end of its disk',
  });
});

describe('refused', () => {
  const message = (text: string) => expect.objectContaining({ message: expect.stringContaining(text) });

  test('disks that can’t be used, by name', () => {
    const readOnly = fs.openSync(diskPath, 'r');
    const short = fs.openSync(diskPath, 'r+');
    const refusal = (fd: number, sizeBytes: number) => () => newStandby([{ id: 'web1-vda', fd, sizeBytes }]);
    expect(refusal(readOnly, 512)).toThrow(
      message('standby disk web1-vda: it must be open for reading and writing'),
    );
    expect(refusal(short, DISK_BYTES + 1)).toThrow(
      message(`it has ${DISK_BYTES} bytes and the guest's disk`),
    );
    expect(refusal(short, DISK_BYTES + 1)).toThrow(expect.objectContaining({ code: 'ERR_COLO_DISK' }));
    fs.closeSync(readOnly);
    fs.closeSync(short);
  });

  test('options of a wrong type', () => {
    const given = (disks: unknown) => () => newStandby(disks as []);
    expect(given(undefined)).toThrow(message('`options.disks` must be an array'));
    expect(given([7])).toThrow(message('`options.disks[0]` must be an object'));
    expect(given([{ id: 1 }])).toThrow(message('`options.disks[0].id` must be a string'));
    expect(given([{ id: 'a', fd: -1 }])).toThrow(message('`options.disks[0].fd` must be an integer'));
    expect(given([{ id: 'a', fd: 0, sizeBytes: 0 }])).toThrow(
      message('`options.disks[0].sizeBytes` must be'),
    );
  });

  test('to sync while a sync is in progress, or when closed', async () => {
    const sync = standby.syncDisks();
    await expect(async () => standby.syncDisks()).rejects.toMatchObject({ code: 'ERR_COLO_BUSY' });
    await sync;
    standby.close();
    await expect(async () => standby.syncDisks()).rejects.toMatchObject({ code: 'ERR_COLO_CLOSED' });
  });
});
