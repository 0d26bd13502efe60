/** The mirror and the source of a disk, put on and taken off a real QEMU. Its monitor's `qemu-io` writes as a guest would, through the device's backend. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type DiskExport, native } from '../../src/native/binding.ts';
import type { QmpClient } from '../../src/qmp/client.ts';
import { run } from '../../src/testbed/child.ts';
import { DISK_PREFIX, DiskMirror, removeLeftMirrors, type WhileStopped } from '../../src/vm/disk-mirror.ts';
import { DiskSource, removeLeftSources } from '../../src/vm/disk-source.ts';
import { type Disk, findDisks } from '../../src/vm/disks.ts';
import { QemuProcess } from './qemu-process.ts';

const MIB = 1 << 20;
const SIZE_BYTES = 4 * MIB;
const SLOW_MS = 300;
/** Of a mirror job, with a bit for each 64 KiB. */
const BITMAP_BYTES = 256 * 1024;
const HUGE_BYTES = BITMAP_BYTES * 8 * 64 * 1024;
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  vi.unstubAllEnvs();
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Vm {
  qemu: QemuProcess;
  qmp: QmpClient;
  disk: Disk;
  target: DiskExport;
  failures: string[];
}

const hmp = (qmp: QmpClient, line: string) => qmp.execute('human-monitor-command', { 'command-line': line });

/** As -drive names its nodes, as -blockdev does, and a disk that takes its time. */
const ATTACHED = {
  drive: (file: string) => ['-drive', `if=none,id=d,format=raw,file=${file}`],
  blockdev: (file: string) => ['-blockdev', `driver=raw,node-name=d,file.driver=file,file.filename=${file}`],
  slow: () => ['-blockdev', `driver=null-co,node-name=d,size=${HUGE_BYTES},latency-ns=${SLOW_MS * 1e6}`],
};

async function start(
  how: keyof typeof ATTACHED = 'drive',
  device = 'virtio-blk-pci,drive=d,id=vda',
): Promise<Vm> {
  const qemu = await QemuProcess.start('-S', '-m', '64', '-object', 'iothread,id=t', ...rest(how, device));
  cleanups.push(() => qemu.stop());
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  const [disk] = await findDisks(qmp);
  if (!disk) throw new Error('QEMU lists no disk');
  const failures: string[] = [];
  const target = new native.DiskExport({
    id: disk.id,
    sizeBytes: disk.sizeBytes,
    limitBytes: 4 * MIB,
    pressureBytes: 3 * MIB,
    onPressure: () => {},
    onFailed: (reason) => failures.push(reason),
  });
  cleanups.push(() => target.close());
  return { qemu, qmp, disk, target, failures };
}

function newFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-mirror-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  return folder;
}

function rest(how: keyof typeof ATTACHED, device: string): string[] {
  const file = path.join(newFolder(), 'disk.raw');
  writeFileSync(file, '');
  truncateSync(file, SIZE_BYTES);
  return [...ATTACHED[how](file), ...device.split(' ').flatMap((one) => ['-device', one])];
}

/** What HMP says is QEMU's own: an error would be in it. */
async function guestWrites({ qmp, disk }: Vm, command = 'write -P 7 64k 8k'): Promise<void> {
  const device = (await qmp.execute('query-block')).find(({ inserted }) => inserted !== undefined);
  const name = device?.device || `-d ${device?.qdev}`;
  expect(await hmp(qmp, `qemu-io ${name} "${command}"`), disk.id).toMatch(/^(wrote|discard|$)/);
}

/** Also with a VM that stands, as here, QEMU ends all I/O before it answers. */
const whileStopped =
  ({ qmp }: Vm): WhileStopped =>
  async (body) => {
    await qmp.execute('stop');
    await body();
  };

const startMirror = (vm: Vm, onFailed: (reason: string) => void = () => {}) =>
  DiskMirror.start(vm.qmp, vm.disk, vm.target, { whileStopped: whileStopped(vm), onFailed });

async function nothingIsLeft({ qmp, disk }: Vm): Promise<void> {
  expect(await qmp.execute('query-jobs')).toEqual([]);
  expect(await qmp.execute('query-block-exports')).toEqual([]);
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  expect(nodes.filter(({ 'node-name': node }) => node?.startsWith(DISK_PREFIX))).toEqual([]);
  expect((await findDisks(qmp))[0]?.node).toBe(disk.node);
}

describe('a mirror', () => {
  it.each<[string, keyof typeof ATTACHED, string]>([
    ['-drive', 'drive', 'virtio-blk-pci,drive=d,id=vda'],
    ['-blockdev', 'blockdev', 'virtio-blk-pci,drive=d,id=vda'],
    ['an iothread', 'blockdev', 'virtio-blk-pci,drive=d,id=vda,iothread=t'],
    ['SCSI', 'drive', 'virtio-scsi-pci,id=s scsi-hd,drive=d,id=sda'],
  ])('brings every write to the export and comes off without a trace: %s', async (_, how, device) => {
    const vm = await start(how, device);
    const mirror = await startMirror(vm, (reason) => vm.failures.push(reason));
    const before = vm.target.stats();
    await guestWrites(vm);
    expect(vm.target.stats().writes).toBe(before.writes + 1);
    await guestWrites(vm, 'write -z 1M 64k');
    expect(vm.target.stats().writes).toBe(before.writes + 2);
    await mirror.stop(whileStopped(vm));
    await guestWrites(vm);
    expect(vm.target.stats().writes).toBe(before.writes + 2);
    await nothingIsLeft(vm);
    expect(vm.failures).toEqual([]);
  });

  it('that somebody cancels says so, and can be begun again', async () => {
    const vm = await start();
    const mirror = await startMirror(vm, (reason) => vm.failures.push(reason));
    const [job] = await vm.qmp.execute('query-jobs');
    await vm.qmp.execute('block-job-cancel', { device: job?.id ?? '', force: true });
    await vi.waitFor(() =>
      expect(vm.failures).toEqual([expect.stringMatching(/^the mirror job of disk vda has ended/)]),
    );
    await mirror.stop(whileStopped(vm));
    await nothingIsLeft(vm);
    const again = await startMirror(vm);
    await again.stop(whileStopped(vm));
  });

  it('whose export goes away leaves the guest alone', async () => {
    const vm = await start();
    const mirror = await startMirror(vm, (reason) => vm.failures.push(reason));
    vm.target.close();
    await guestWrites(vm);
    await guestWrites(vm, 'write -P 9 0 4k');
    await vi.waitFor(() => expect(vm.failures).not.toEqual([]));
    await mirror.stop(whileStopped(vm));
    await nothingIsLeft(vm);
  });

  it.each(['virtio-blk-pci,drive=d,id=vda', 'virtio-blk-pci,drive=d,id=vda,iothread=t'])(
    'of an agent that died is taken away by the next, also with its source: %s',
    async (device) => {
      const vm = await start('blockdev', device);
      await startMirror(vm);
      await DiskSource.open(vm.qmp, [{ disk: vm.disk, export: vm.target }]);
      vm.target.close();
      await removeLeftMirrors(vm.qmp, whileStopped(vm));
      await removeLeftSources(vm.qmp);
      await nothingIsLeft(vm);
    },
  );

  // QEMU frees a cancelled job's bitmap of the writes in flight, in which each of these clears its bits when it ends. No such write goes unnoticed.
  const catchUseAfterFree = async () => {
    const library = path.join(newFolder(), 'use_after_free.so');
    const source = path.join(import.meta.dirname, 'support', 'use_after_free.c');
    await run('cc', '-shared', '-fPIC', '-O1', `-DWATCHED_BYTES=${BITMAP_BYTES}`, '-o', library, source);
    vi.stubEnv('LD_PRELOAD', library);
  };
  const SLOW_WRITE = 'aio_write -P 7 0 1M';

  it.each(['virtio-blk-pci,drive=d,id=vda', 'virtio-blk-pci,drive=d,id=vda,iothread=t'])(
    'comes off under a write that its disk is still busy with: %s',
    async (device) => {
      await catchUseAfterFree();
      const vm = await start('slow', device);
      for (let round = 0; round < 3; round++) {
        const mirror = await startMirror(vm);
        await guestWrites(vm, SLOW_WRITE);
        await mirror.stop(whileStopped(vm));
        await sleep(2 * SLOW_MS); // should the write outlive the mirror
        await nothingIsLeft(vm);
      }
    },
  );

  it('of an agent that died comes off under a write that its disk is still busy with', async () => {
    await catchUseAfterFree();
    const vm = await start('slow');
    await startMirror(vm);
    await guestWrites(vm, SLOW_WRITE);
    vm.target.close();
    await removeLeftMirrors(vm.qmp, whileStopped(vm));
    await sleep(2 * SLOW_MS);
    await nothingIsLeft(vm);
  });

  it('of an agent that died harms no write that its disk is still busy with when the mirror fails', async () => {
    await catchUseAfterFree();
    const vm = await start('slow');
    await startMirror(vm, (reason) => vm.failures.push(reason));
    await guestWrites(vm, SLOW_WRITE);
    await sleep(0.7 * SLOW_MS);
    await guestWrites(vm, 'aio_write -P 7 8M 1M');
    vm.target.close();
    await vi.waitFor(
      () => expect(vm.failures).toEqual([expect.stringMatching(/has lost its export/)]),
      10_000,
    );
    await sleep(2 * SLOW_MS);
    await removeLeftMirrors(vm.qmp, whileStopped(vm));
    await nothingIsLeft(vm);
  });

  it('on a disk that has a job already is refused, and leaves nothing behind', async () => {
    const vm = await start();
    const first = await startMirror(vm);
    await expect(startMirror(vm)).rejects.toThrow(/busy|in use|root block node/i);
    await first.stop(whileStopped(vm));
    await nothingIsLeft(vm);
  });
});

describe('a source', () => {
  it.each([
    'virtio-blk-pci,drive=d,id=vda',
    // QEMU 7.2.22 aborts when a client leaves such a disk's export before it is deleted.
    'virtio-blk-pci,drive=d,id=vda,iothread=t',
  ])('is opened again and again, beside the mirror: %s', async (device) => {
    const vm = await start('blockdev', device);
    const mirror = await startMirror(vm);
    for (let round = 0; round < 10; round++) {
      const source = await DiskSource.open(vm.qmp, [{ disk: vm.disk, export: vm.target }]);
      await source.close();
    }
    await mirror.stop(whileStopped(vm));
    await nothingIsLeft(vm);
  });

  it("says so when QEMU's NBD server is in use", async () => {
    const vm = await start();
    const listener = path.join(vm.qemu.folder, 'nbd');
    await hmp(vm.qmp, `nbd_server_start unix:${listener}`);
    await expect(DiskSource.open(vm.qmp, [{ disk: vm.disk, export: vm.target }])).rejects.toThrow(
      /NBD server is in use by somebody else, .*nbd-server-stop/,
    );
    const info = spawn('qemu-img', ['info', `nbd+unix:///?socket=${listener}`]);
    await once(info, 'exit'); // the server of the other one still answers
    await vm.qmp.execute('nbd-server-stop');
    await nothingIsLeft(vm);
  });
});
