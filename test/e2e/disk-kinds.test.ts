/**
 * Disks of other kinds than a hard disk in a file: a block device on the standby and one that fails, a floppy, a CD-ROM, one that is plugged in. The guest is
 * bare metal and uses none of them; QEMU's `qemu-io` writes in its place, through the device.
 */
import { execFileSync } from 'node:child_process';
import { rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { run } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { readRecord, recordPath } from '../../src/vm/disk-record.ts';
import { compareImages, disksOf, execute, makeFolder, waitRunning } from './support/disks.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  PROTECT_MS,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const MIB = 1 << 20;
const GUEST: GuestOptions = { guest: 'baremetal', machine: 'pc' };
let cleanup = new Cleanup();

afterEach(async () => {
  await cleanup.run();
  cleanup = new Cleanup();
});

function image(folder: string, name: string, sizeBytes: number): string {
  const file = path.join(folder, name);
  writeFileSync(file, '');
  truncateSync(file, sizeBytes);
  return file;
}

const hardDisk = (file: string) => [
  ...['-drive', `if=none,id=drive,format=raw,file=${file}`],
  ...['-device', 'virtio-blk-pci,drive=drive,id=vda'],
];

interface Pair {
  primaryVm: TestVm;
  standbyVm: TestVm;
  secondary: TestAgent;
  listen: string;
}

async function startPair(primaryArgs: string[], standbyArgs: string[]): Promise<Pair> {
  const primaryVm = await startVm(cleanup, 'primary', { ...GUEST, extraArgs: primaryArgs }, false);
  await waitBooted(primaryVm, GUEST);
  const standbyVm = await startVm(cleanup, 'standby', { ...GUEST, extraArgs: standbyArgs }, true);
  const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, ['--witness', 'none']);
  return { primaryVm, standbyVm, secondary, listen };
}

async function guestWrites(vm: TestVm, device: string, command: string): Promise<void> {
  await execute(vm, 'human-monitor-command', { 'command-line': `qemu-io ${device} "${command}"` });
}

/** `blocks` of a loop device over `backing`, with its record removed afterwards. */
async function loopDevice(backing: string): Promise<string> {
  const device = execFileSync('losetup', ['--find', '--show', backing], { encoding: 'utf8' }).trim();
  cleanup.add(async () => {
    rmSync(recordPath(device), { force: true });
    await run('losetup', '--detach', device);
  });
  return device;
}

test('a block device is a standby’s disk, and its record lies elsewhere', async () => {
  const folder = makeFolder(cleanup);
  const source = image(folder, 'source.raw', 16 * MIB);
  const device = await loopDevice(image(folder, 'backing.raw', 16 * MIB));
  const { primaryVm, secondary, listen } = await startPair(hardDisk(source), hardDisk(device));
  const primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
  await guestWrites(primaryVm, 'drive', 'write -P 7 1M 3M');
  await moreCheckpoints(primary, 2);
  expect(await compareImages(source, 'raw', device)).toBe('');
  expect(readRecord(device)).toMatchObject({ vm: 'e2e', disk: 'vda', role: 'copy', generation: 1 });
  primaryVm.kill();
  await secondary.waitState('RUNNING', 60_000);
  expect(readRecord(device)).toMatchObject({ role: 'source', generation: 2 });
});

test('a standby’s disk that loses writes is not taken over', async () => {
  const folder = makeFolder(cleanup);
  const small = makeFolder(cleanup);
  await run('mount', '-t', 'tmpfs', '-o', 'size=4m', 'colo-test', small);
  cleanup.add(async () => void (await run('umount', '--lazy', small)));
  const source = image(folder, 'source.raw', 16 * MIB);
  const device = await loopDevice(image(small, 'backing.raw', 16 * MIB));
  const { primaryVm, standbyVm, secondary, listen } = await startPair(hardDisk(source), hardDisk(device));
  const primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
  // The page cache takes it; the medium has room for 4 MiB.
  await guestWrites(primaryVm, 'drive', 'write -P 7 0 12M');
  await moreCheckpoints(primary, 2);
  primaryVm.kill();
  const status = await secondary.waitState('BLOCKED', 60_000);
  expect(status.reason).toMatch(/disk vda.*(Input\/output error|No space left)/);
  expect(standbyVm.running).toBe(true);
  expect(await execute(standbyVm, 'query-status')).toMatchObject({ running: false });
});

test('a floppy that can be written follows like any disk; a CD-ROM is left alone', async () => {
  const folder = makeFolder(cleanup);
  const floppies = ['p', 's'].map((side) => image(folder, `floppy-${side}`, 1440 * 1024));
  const cd = image(folder, 'cd.iso', MIB);
  const [primaryArgs, standbyArgs] = floppies.map((floppy) => [
    ...['-drive', `if=none,id=floppy,format=raw,file=${floppy}`, '-device', 'floppy,drive=floppy,id=fd0'],
    ...['-drive', `if=none,id=cd,media=cdrom,format=raw,readonly=on,file=${cd}`],
    ...['-device', 'ide-cd,drive=cd,id=cd0'],
  ]);
  const { primaryVm, secondary, listen } = await startPair(primaryArgs ?? [], standbyArgs ?? []);
  const primary = await startPrimary(cleanup, primaryVm, listen);
  const status = await primary.waitState('PROTECTED', PROTECT_MS);
  expect(disksOf(status).map(({ id, state }) => [id, state])).toEqual([['fd0', 'mirrored']]);
  await guestWrites(primaryVm, 'floppy', 'write -P 9 64k 64k');
  await moreCheckpoints(primary, 2);
  expect(await compareImages(floppies[0] ?? '', 'raw', floppies[1] ?? '')).toBe('');
  primaryVm.kill();
  await secondary.waitState('RUNNING', 60_000);
});

test('a disk that is plugged in while protected ends protection with the reason, not the guest', async () => {
  const folder = makeFolder(cleanup);
  const [source, copy, plugged] = ['source', 'copy', 'plugged'].map((name) => image(folder, name, MIB));
  const { primaryVm, listen } = await startPair(hardDisk(source ?? ''), hardDisk(copy ?? ''));
  const primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
  const file = { driver: 'file', filename: plugged };
  await execute(primaryVm, 'blockdev-add', { 'node-name': 'plugged', driver: 'raw', file });
  await execute(primaryVm, 'device_add', { driver: 'virtio-blk-pci', drive: 'plugged', id: 'vdb' });
  await primary.waitStatus('the reason', PROTECT_MS, ({ state, reason }) => {
    return state === 'EXPOSED' && /disks have changed.*vdb is new.*restart this agent/.test(reason);
  });
  await waitRunning(primaryVm);
});

test('a copy keeps to its rate and shows how far it is', async () => {
  const folder = makeFolder(cleanup);
  const source = path.join(folder, 'source');
  execFileSync('dd', ['if=/dev/urandom', `of=${source}`, 'bs=1M', 'count=16', 'status=none']);
  const copy = image(folder, 'copy', 16 * MIB);
  const { primaryVm, listen } = await startPair(hardDisk(source), hardDisk(copy));
  const primary = await startPrimary(cleanup, primaryVm, listen, ['--sync-rate', '4']);
  const shown = new Set<number>();
  await waitFor('protection, by way of several stages of the copy', PROTECT_MS, async () => {
    const status = await primary.status();
    const [disk] = disksOf(status);
    if (status.state === 'SYNCING' && disk?.state === 'copying' && typeof status['syncPercent'] === 'number')
      shown.add(status['syncPercent']);
    return status.state === 'PROTECTED' && shown.size >= 3;
  });
  expect(await compareImages(source, 'raw', copy)).toBe('');
});
