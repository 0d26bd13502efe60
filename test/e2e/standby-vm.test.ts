/** The standby's VM as the secondary's effects meet it, where a disk or QEMU itself doesn't do as it should. No guest runs in these QEMUs. */
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, it, vi } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { attachStandby } from '../../src/agent/standby-attach.ts';
import type { StandbyVm } from '../../src/agent/standby-vm.ts';
import { TakeOvers } from '../../src/agent/take-overs.ts';
import { native } from '../../src/native/binding.ts';
import { DEFAULT_TIMINGS, type SecondaryEvent } from '../../src/protocol/machine.ts';
import { describeVm, type VmDescription } from '../../src/vm/description.ts';
import { readRecord, writeRecord } from '../../src/vm/disk-record.ts';
import { findRamBlocks } from '../../src/vm/ram-blocks.ts';
import { QemuProcess } from './qemu-process.ts';

const MIB = 1 << 20;
const OWNER = 'bb'.repeat(16);
const [FIRST, SECOND] = ['11'.repeat(16), '22'.repeat(16)];
const LOST = 'standby disk vda: syncing: Input/output error';
const PATIENCE = { timeout: 60_000, interval: 10 };

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

type EventBody = Parameters<Parameters<StandbyVm['listen']>[0]>[0];

interface Standby {
  vm: StandbyVm;
  qemu: QemuProcess;
  image: string;
  /** What a primary of the same make says in its HELLO. */
  description: VmDescription;
  events: EventBody[];
  wait<Type extends SecondaryEvent['type']>(type: Type): Promise<Extract<EventBody, { type: Type }>>;
}

async function start(): Promise<Standby> {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-standby-vm-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const image = path.join(folder, 'disk');
  writeFileSync(image, '');
  truncateSync(image, MIB);
  const qemu = await QemuProcess.start(
    ...['-S', '-m', '64', '-drive', `if=none,id=d,format=raw,file=${image}`],
    ...['-device', 'virtio-blk-pci,drive=d,id=vda'],
  );
  cleanups.push(() => qemu.stop());
  const description = await describeAsPrimary(qemu);
  const vm = await attach(qemu);
  const events: EventBody[] = [];
  vm.listen((event) => events.push(event));
  const wait: Standby['wait'] = (type) =>
    vi.waitFor(() => {
      const index = events.findIndex((event) => event.type === type);
      expect(index, JSON.stringify(events)).not.toBe(-1);
      return events.splice(index, 1)[0] as never;
    }, PATIENCE);
  return { vm, qemu, image, description, events, wait };
}

async function describeAsPrimary(qemu: QemuProcess): Promise<VmDescription> {
  const qmp = await qemu.connect();
  try {
    const blocks = await findRamBlocks(qmp, qemu.pid);
    const disks = { ungatedDisks: [], sharedDisks: [], owner: OWNER, bufferBytes: MIB };
    return await describeVm(qmp, qemu.pid, blocks, null, disks);
  } finally {
    qmp.close();
  }
}

function attach(qemu: QemuProcess): Promise<StandbyVm> {
  const options = {
    vm: 'web1',
    qmpPath: qemu.qmpPath,
    listen: { host: '127.0.0.1', port: 0 },
    credentials: null,
    witness: { kind: 'none' as const },
    node: 'south',
    stateFolder: qemu.folder,
    overwriteDisks: [],
    succeed: null,
    fence: null,
    timings: DEFAULT_TIMINGS,
    traceFile: null,
    log: new Log(
      'info',
      () => ({}),
      () => {},
    ),
  };
  return attachStandby(options, null, new TakeOvers(options.vm));
}

/** The medium fails a write: the one thing here that isn't real. */
class FailingDisks extends native.StandbyEngine {
  override syncDisks(): Promise<void> {
    return Promise.reject(new Error(LOST));
  }
}

function failDisks(): void {
  const { StandbyEngine } = native;
  native.StandbyEngine = FailingDisks;
  cleanups.push(() => {
    native.StandbyEngine = StandbyEngine;
  });
}

async function openSession({ vm, description, wait }: Standby, generation: number, lineage: string) {
  vm.perform({ type: 'compare', description, generation, lineage });
  expect((await wait('compared')).difference).toBeNull();
  vm.perform({ type: 'open-session', generation, connections: 1 });
  return (await wait('session-opened')).lineages;
}

/** As after a session's first checkpoint. */
async function becomeCopy({ image }: Standby, generation: number, lineage: string): Promise<void> {
  const record = readRecord(image);
  if (record === null) throw new Error('the disk has no record');
  await writeRecord(image, { ...record, role: 'copy', generation, lineage });
}

it('INVARIANT 3: after a lost write nothing is known of a disk, whoever asks, until it has been compared whole', async () => {
  failDisks();
  const standby = await start();
  const { vm, image, wait } = standby;
  cleanups.push(() => vm.detach());
  await openSession(standby, 1, FIRST);
  await becomeCopy(standby, 1, FIRST);
  expect(await openSession(standby, 2, SECOND)).toEqual([FIRST]);
  await becomeCopy(standby, 2, SECOND);

  vm.perform({ type: 'settle-disks' });
  expect(await wait('settle-failed')).toEqual({ type: 'settle-failed', reason: LOST });
  expect(readRecord(image)).toMatchObject({ role: 'copying', generation: 2, lineage: null });
  expect(await openSession(standby, 3, SECOND)).toEqual([null]);
});

it('INVARIANT 3: so also where the record beside it could not be written', async () => {
  failDisks();
  const standby = await start();
  const { vm, image, wait } = standby;
  cleanups.push(() => vm.detach());
  await openSession(standby, 1, FIRST);
  await becomeCopy(standby, 1, FIRST);

  mkdirSync(`${image}.colo.new`); // in the way
  vm.perform({ type: 'settle-disks' });
  expect((await wait('settle-failed')).reason).toMatch(
    /Input.output error; .*disk\.colo: .*remove it before/,
  );
  rmSync(`${image}.colo.new`, { recursive: true });
  expect(readRecord(image)).toMatchObject({ lineage: FIRST });
  expect(await openSession(standby, 2, SECOND)).toEqual([null]);
  expect(readRecord(image)).toMatchObject({ role: 'copying', lineage: null });
});

it('INVARIANT 4: a QEMU that hangs in the middle of something is killed all the same when it is to end', async () => {
  const { vm, qemu, description } = await start();
  cleanups.push(() => vm.detach());
  qemu.child.kill('SIGSTOP');
  vm.perform({ type: 'compare', description, generation: 1, lineage: FIRST });
  vm.perform({ type: 'quit-vm' });
  await vi.waitFor(() => expect(qemu.child.signalCode).toBe('SIGKILL'), PATIENCE);
});
