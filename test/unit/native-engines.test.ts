/** The addon's engines, acceptor and gate together: a checkpoint from one process's memory into another's, driven from JavaScript. */
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  type Acceptor,
  type NativeError,
  native,
  type OutputGate,
  type PrimaryEngine,
  type StagedCheckpoint,
  type StandbyEngine,
} from '../../src/native/binding.ts';
import { FakeGuest, frame, nothing, until } from './native-harness.ts';

const MACHINE = 'pc-q35-7.2';
const MAILBOX_BYTES = 1 << 20;
const GENERATION = 3;
const PRESERVED = { block: 0, offsetBytes: 1000, sizeBytes: 9000 };

/** What the standby's mailbox accepts: QEMU's file header, a section's worth of bytes, the end. */
const VMSTATE = Buffer.concat([Buffer.from('QEVM\0\0\0\x03'), Buffer.from('device state'), Buffer.from([0])]);

class World {
  primaryGuest!: FakeGuest;
  standbyGuest!: FakeGuest;
  primary!: PrimaryEngine;
  standby!: StandbyEngine;
  acceptor!: Acceptor;
  gate!: OutputGate;
  readonly token = randomBytes(16);
  readonly mailbox = native.makeMemoryFile('mailbox');
  readonly vmstate = native.makeMemoryFile('vmstate');
  readonly staged: StagedCheckpoint[] = [];
  readonly failures: NativeError[] = [];
  readonly refused: NativeError[] = [];
  heldEvents = 0;

  async start(tracker: 'auto' | 'compare'): Promise<void> {
    [this.primaryGuest, this.standbyGuest] = await Promise.all([FakeGuest.start(), FakeGuest.start()]);
    this.primary = new native.PrimaryEngine({
      pid: this.primaryGuest.pid,
      blocks: [this.primaryGuest.block],
      threads: 1,
      shadow: true,
      tracker,
      stagingResidentBytes: 1 << 20,
      scrubSliceBytes: 0,
      disks: [],
    });
    fs.ftruncateSync(this.mailbox.readWriteFd, MAILBOX_BYTES);
    this.standby = new native.StandbyEngine({
      pid: this.standbyGuest.pid,
      blocks: [this.standbyGuest.block],
      mailboxFd: this.mailbox.readWriteFd,
      mailboxStateOffset: 0,
      mailboxStateBytes: MAILBOX_BYTES,
      machine: MACHINE,
      stagingLimitBytes: 0,
      preserved: [PRESERVED],
      disks: [],
      onStaged: (checkpoint) => this.staged.push(checkpoint),
      onFailed: (error) => this.failures.push(error),
    });
    this.acceptor = new native.Acceptor({
      host: '127.0.0.1',
      port: 0,
      credentials: null,
      onAccepted: (link, connection, preface) => {
        expect(link).toBe('bulk');
        try {
          this.standby.addConnection(connection, preface);
        } catch (error) {
          this.refused.push(error as NativeError);
        }
      },
      onRefused: nothing,
    });
    this.gate = new native.OutputGate({
      limitBytes: 1 << 20,
      pressureBytes: 1 << 19,
      onOutputHeld: () => {
        this.heldEvents += 1;
      },
      onPressure: nothing,
      onBroken: nothing,
    });
  }

  async openSession(connections: number): Promise<void> {
    this.standby.openSession(this.token, GENERATION, connections);
    await this.primary.protect();
    await this.primary.connect('127.0.0.1', this.acceptor.port, this.token, GENERATION, connections, null);
    await this.primary.sync(0, nothing);
    await until(() => this.staged.some((checkpoint) => checkpoint.epoch === 0));
  }

  saveVmstate(): void {
    native.rewindMemoryFile(this.vmstate);
    fs.writeSync(this.vmstate.writeOnlyFd, VMSTATE);
  }

  async stop(): Promise<void> {
    for (const handle of [this.primary, this.standby, this.acceptor, this.gate]) handle?.close();
    for (const file of [this.mailbox, this.vmstate]) {
      native.closeFd(file.readWriteFd);
      native.closeFd(file.writeOnlyFd);
    }
    await Promise.all([this.primaryGuest?.kill(), this.standbyGuest?.kill()]);
  }
}

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.stop());

describe.each([
  { tracker: 'auto', connections: 1 },
  { tracker: 'compare', connections: 3 },
] as const)('with the $tracker tracker and $connections connections', ({ tracker, connections }) => {
  test('checkpoints carry memory and device state across', async () => {
    await world.start(tracker);
    const info = world.primary.info();
    expect(info.access).toEqual(['remote']);
    expect(info.kind === 'userfaultfd').toBe(info.reason === '' && tracker === 'auto');

    await world.primaryGuest.write();
    await world.openSession(connections);
    expect(world.standbyGuest.read().equals(world.primaryGuest.read())).toBe(true);

    for (let epoch = 1; epoch <= 3; epoch += 1) {
      world.standby.openEpoch(epoch);
      await world.primaryGuest.write();
      const captured = await world.primary.capture(epoch, world.gate);
      expect(captured.pages).toBe(world.primaryGuest.block.sizeBytes / 4096);
      const before = world.standbyGuest.read();
      world.saveVmstate();
      const sent = await world.primary.transmit(epoch, world.vmstate.readWriteFd);
      expect(sent.deltaPages + sent.rawPages).toBe(captured.pages);
      expect(sent.wireBytes).toBeGreaterThan(0);
      await until(() => world.staged.at(-1)?.epoch === epoch);
      expect(world.staged.at(-1)).toMatchObject({ pages: captured.pages, vmstateBytes: VMSTATE.length });

      expect(world.standbyGuest.read().equals(before)).toBe(true); // staged is not committed
      await world.standby.commit(epoch);
      expect(world.standbyGuest.read().equals(world.primaryGuest.read())).toBe(true);
      const mailbox = Buffer.alloc(100);
      fs.readSync(world.mailbox.readWriteFd, mailbox, 0, mailbox.length, 0);
      expect(mailbox.includes(MACHINE) && mailbox.includes('device state')).toBe(true);
    }
    expect(world.failures).toEqual([]);

    // The standby's memory changes everywhere, as a load of device state may do; only the preserved range comes back.
    const { offsetBytes, sizeBytes } = PRESERVED;
    const committed = world.standbyGuest.read().subarray(offsetBytes, offsetBytes + sizeBytes);
    await world.standbyGuest.write();
    const expected = world.standbyGuest.read();
    expect(expected.includes(committed)).toBe(false);
    committed.copy(expected, offsetBytes);
    world.standby.restorePreserved();
    expect(world.standbyGuest.read().equals(expected)).toBe(true);
  });
});

test('a capture seals the gate, a release lets the epoch go', async () => {
  await world.start('compare');
  const [heldFd, gateHeld] = native.streamSocketPair();
  const [releaseFd, gateRelease] = native.streamSocketPair();
  const held = new net.Socket({ fd: heldFd });
  const release = new net.Socket({ fd: releaseFd });
  const out: Buffer[] = [];
  release.on('data', (bytes) => out.push(bytes));
  expect(world.gate.addPort(gateHeld, gateRelease)).toBe(0);

  held.write(frame('passes'));
  await until(() => Buffer.concat(out).equals(frame('passes')));
  expect(await world.gate.flush(10_000)).toBe(true);

  await world.primary.protect();
  await world.primary.capture(1, world.gate);
  expect(world.gate.stats().holding).toBe(true);
  world.primary.abandon();
  held.write(frame('waits'));
  await until(() => world.heldEvents === 1);
  // The machine asks for the same epoch again.
  await world.primary.capture(1, world.gate);
  expect(world.gate.stats()).toMatchObject({ heldFrames: 1, releasedFrames: 1 });
  await expect(async () => world.gate.flush(0)).rejects.toMatchObject({ code: 'ERR_COLO_GATE_HOLDS' });
  world.gate.release(1);
  await until(() => Buffer.concat(out).equals(Buffer.concat([frame('passes'), frame('waits')])));
  held.destroy();
  release.destroy();
});

test('a sync reports progress and fails with the link', async () => {
  await world.start('compare');
  world.standby.openSession(world.token, GENERATION, 1);
  await world.primary.protect();
  await world.primary.connect('127.0.0.1', world.acceptor.port, world.token, GENERATION, 1, null);
  const totals: number[] = [];
  const sync = world.primary.sync(64 * 1024, ({ totalBytes }) => totals.push(totalBytes));
  sync.catch(nothing);
  await until(() => totals.length > 0);
  expect(totals[0]).toBe(world.primaryGuest.block.sizeBytes);
  await expect(async () => world.primary.protect()).rejects.toMatchObject({ code: 'ERR_COLO_BUSY' });
  world.primary.disconnect();
  await expect(sync).rejects.toMatchObject({ code: 'ERR_COLO_LINK' });
});

test('close() fails the operation in progress, and a closed object says so', async () => {
  await world.start('compare');
  world.standby.openSession(world.token, GENERATION, 1);
  await world.primary.protect();
  await world.primary.connect('127.0.0.1', world.acceptor.port, world.token, GENERATION, 1, null);
  const sync = world.primary.sync(1024, nothing);
  world.primary.close();
  world.primary.close();
  await expect(sync).rejects.toMatchObject({ code: 'ERR_COLO_CLOSED' });
  expect(() => world.primary.info()).toThrow(expect.objectContaining({ code: 'ERR_COLO_CLOSED' }));
});

test('a bulk connection with a wrong token is refused', async () => {
  await world.start('compare');
  world.standby.openSession(world.token, GENERATION, 1);
  await world.primary.protect();
  await world.primary.connect('127.0.0.1', world.acceptor.port, randomBytes(16), GENERATION, 1, null);
  await until(() => world.refused.length === 1);
  expect(world.refused[0]).toMatchObject({ code: 'ERR_COLO_PEER' });
});

test('QEMU is gone: the capture says so with its errno', async () => {
  await world.start('compare');
  await world.primary.protect();
  await world.primaryGuest.kill();
  await expect(world.primary.capture(1, null)).rejects.toMatchObject({
    code: 'ERR_COLO_GUEST_MEMORY',
    errno: 3,
  });
  world.primaryGuest = await FakeGuest.start();
});
