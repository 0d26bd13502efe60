/** The guests with disks, on plain QEMU: what the end-to-end tests of disks take for granted. */
import { copyFileSync, existsSync } from 'node:fs';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { run } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { benchDisk, checkDisks, DatabaseClient } from '../../src/testbed/disk-clients.ts';
import type { DiskOptions } from '../../src/testbed/disks.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { TestVm, type VmOptions } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { execute, makeFolder, waitSteps } from './support/disks.ts';

const BOOT_MS = 120_000;
const MINUTES = 60_000;

const cleanup = new Cleanup();
afterEach(() => cleanup.run());

async function boot(options: Partial<VmOptions>): Promise<{ network: TestNetwork; vm: TestVm }> {
  const network = cleanup.own(await TestNetwork.create());
  const nics = [{ tap: await network.addTap() }];
  const vm = cleanup.own(await TestVm.start({ name: 'disks', guest: 'linux', network, nics, ...options }));
  await vm.waitConsole('GUEST-READY', BOOT_MS);
  expect(vm.console()).not.toContain('GUEST-FAILED');
  return { network, vm };
}

describe('diskcheck', () => {
  test.each<[string, Partial<VmOptions>]>([
    [
      'virtio-blk and virtio-scsi, qcow2 and raw, by -drive and by -blockdev',
      {
        disks: [
          { id: 'd0', sizeMiB: 16, format: 'qcow2' },
          { id: 'd1', sizeMiB: 16, cache: 'none', aio: 'native', namedNodes: true },
          { id: 'd2', sizeMiB: 16, bus: 'virtio-scsi', cache: 'none', aio: 'io_uring' },
        ],
      },
    ],
    [
      'IDE, and a disk with a thread of its own',
      {
        machine: 'pc',
        disks: [
          { id: 'd0', sizeMiB: 16, bus: 'ide', cache: 'writethrough' },
          { id: 'd1', sizeMiB: 16, iothread: true, cache: 'directsync', format: 'qcow2' },
        ],
      },
    ],
  ])('%s', async (_name, options) => {
    const { network, vm } = await boot({ ...options, append: 'colo.services=diskcheck' });
    await waitSteps(vm, 40);
    const { steps, writes } = await checkDisks(network, MINUTES);
    // At each step every disk's counter, and five in eight of its four areas.
    expect(writes).toBeGreaterThan(steps * vm.disks.length * 2);
    await vm.destroy();
    for (const image of vm.disks) expect(existsSync(image.path)).toBe(false);
  });

  test('finds a disk that is older than memory, and one that is newer', async () => {
    const folder = makeFolder(cleanup);
    const file = path.join(folder, 'd0');
    const disk: DiskOptions = { id: 'd0', sizeMiB: 16, path: file };
    const memory = path.join(folder, 'memory');
    await run('qemu-img', 'create', '-q', '-f', 'qcow2', memory, '512M');
    const { network, vm } = await boot({
      disks: [disk],
      append: 'colo.services=diskcheck',
      extraArgs: ['-blockdev', `driver=qcow2,node-name=memory,file.driver=file,file.filename=${memory}`],
    });
    await waitSteps(vm, 20);
    await moveMemory(vm, 'snapshot-save');
    vm.kill('SIGSTOP');
    copyFileSync(file, `${file}.old`);
    vm.kill('SIGCONT');
    await waitSteps(vm, 20);

    // The image is written in place: QEMU has it open.
    vm.kill('SIGSTOP');
    copyFileSync(`${file}.old`, file);
    vm.kill('SIGCONT');
    const older = await failure(vm, '');
    expect(older.onDisk).toBeLessThan(older.inMemory);
    await expect(checkDisks(network, MINUTES)).rejects.toThrow(/diskcheck: vda sector/);

    const seen = vm.console();
    await moveMemory(vm, 'snapshot-load');
    const newer = await failure(vm, seen);
    expect(newer.onDisk).toBeGreaterThan(newer.inMemory);
  });
});

/** Saves the memory and devices of a VM without its disks, or goes back to it: the disks are then newer. */
async function moveMemory(vm: TestVm, command: 'snapshot-save' | 'snapshot-load'): Promise<void> {
  await execute(vm, command, { 'job-id': command, tag: 'old', vmstate: 'memory', devices: ['memory'] });
  await waitFor('end of the job', MINUTES, async () => {
    const [job] = (await execute(vm, 'query-jobs')) as { status: string; error?: string }[];
    if (job?.error) throw new Error(`${command}: ${job.error}`);
    return job?.status === 'concluded';
  });
  await execute(vm, 'job-dismiss', { id: command });
}

/** What diskcheck complained about on the console, after `seen`. */
async function failure(vm: TestVm, seen: string): Promise<{ onDisk: number; inMemory: number }> {
  const complaint = /DISKCHECK FAILED vda sector \d+: of step (\d+), memory says (\d+)/;
  return waitFor('complaint of diskcheck', MINUTES, () => {
    const [, onDisk, inMemory] = complaint.exec(vm.console().slice(seen.length)) ?? [];
    return onDisk !== undefined && { onDisk: Number(onDisk), inMemory: Number(inMemory) };
  });
}

test.each(['wal', 'delete'])('the database, journal mode %s', async (journal) => {
  const { network, vm } = await boot({
    disks: [{ id: 'd0', sizeMiB: 32, content: 'ext4', format: 'qcow2' }],
    append: `colo.services=sqld colo.sqld=${journal}`,
  });
  const client = cleanup.own(await DatabaseClient.connect(network));
  await client.waitAcknowledged(50, MINUTES);
  expect(await client.check(MINUTES)).toBeGreaterThanOrEqual(50);
  await client.waitAcknowledged(10, MINUTES);
  expect(vm.console()).not.toContain('FAILED');
});

test('the disk benchmark', async () => {
  const { network, vm } = await boot({
    disks: [{ id: 'd0', sizeMiB: 16 }],
    append: 'colo.services=diskbench',
  });
  for (const depth of [1, 32]) {
    const { iops, p50Us, p99Us } = await benchDisk(network, depth, 500, MINUTES);
    expect(iops).toBeGreaterThan(0);
    expect(p99Us).toBeGreaterThanOrEqual(p50Us);
    await vm.waitConsole(`diskbench depth=${depth} writes=500 iops=${iops}`, MINUTES);
  }
  await expect(benchDisk(network, 33, 1, MINUTES)).rejects.toThrow(/DEPTH COUNT/);
});
