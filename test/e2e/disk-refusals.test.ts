/** Disks that can't be protected, or that a copy would destroy, are refused with the reason and the remedy, and without harm to the VM. */
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { DiskOptions } from '../../src/testbed/disks.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { compareImages, disksOf, execute, makeFolder } from './support/disks.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  protect,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const SIZE_MIB = 8;
const DISK: DiskOptions = { id: 'd0', sizeMiB: SIZE_MIB };

let cleanup: Cleanup;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  folder = makeFolder(cleanup);
});
afterEach(() => cleanup.run());

function guestWith(disk: DiskOptions): GuestOptions {
  return { guest: 'baremetal', disks: [disk] };
}

/** A raw image with a few bytes of somebody's at one place. */
function imageWithData(name: string, atBytes: number): string {
  const file = path.join(folder, name);
  writeFileSync(file, '');
  truncateSync(file, SIZE_MIB * 1024 * 1024);
  const fd = openSync(file, 'r+');
  writeSync(fd, 'precious', atBytes);
  closeSync(fd);
  return file;
}

async function start(primaryDisk: DiskOptions, standbyDisk: DiskOptions, secondaryArgs: string[] = []) {
  const primaryVm = await startVm(cleanup, 'primary', guestWith(primaryDisk), false);
  await waitBooted(primaryVm, guestWith(primaryDisk));
  const standbyVm = await startVm(cleanup, 'standby', guestWith(standbyDisk), true);
  const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, secondaryArgs);
  return { primaryVm, standbyVm, secondary, listen };
}

/** The guest runs, and no checkpoint was ever taken of it. */
async function expectUntouched(vm: TestVm): Promise<void> {
  expect(await execute(vm, 'query-status')).toMatchObject({ running: true });
  expect(await execute(vm, 'query-block-jobs')).toEqual([]);
}

describe('a standby’s disk', () => {
  test.each<[string, DiskOptions, RegExp]>([
    ['that is larger', { ...DISK, sizeMiB: 2 * SIZE_MIB }, /d0.*16777216.*8388608/],
    ['that is a qcow2', { ...DISK, format: 'qcow2' }, /d0.*qcow2.*raw/],
    ['that is read-only', { ...DISK, readOnly: true }, /d0.*read-only|read-only.*d0/],
    ['that is missing', { ...DISK, id: 'other' }, /d0/],
  ])('%s', async (_name, standbyDisk, text) => {
    const { primaryVm, listen } = await start(DISK, standbyDisk);
    const primary = await startPrimary(cleanup, primaryVm, listen);
    const status = await primary.waitStatus('the refusal', 30_000, ({ reason }) => text.test(reason));
    expect(status).toMatchObject({ state: 'EXPOSED', pauseMs: { last: null } });
    await expectUntouched(primaryVm);
  });

  test.each([
    ['at the beginning', 0],
    ['further on', 5 << 20],
  ])('that holds data of unknown origin %s is overwritten only when it is named', async (_name, atBytes) => {
    const precious = imageWithData('precious', atBytes);
    const { primaryVm, standbyVm, secondary, listen } = await start(DISK, { ...DISK, path: precious });
    const primary = await startPrimary(cleanup, primaryVm, listen);
    await primary.waitStatus('the refusal', 30_000, ({ reason }) => /d0.*--overwrite-disk d0/.test(reason));
    await expectUntouched(primaryVm);
    expect(readFileSync(precious).toString('latin1', atBytes, atBytes + 8)).toBe('precious');

    // The primary is started anew, too: after a refusal it doesn't ask again for a while.
    for (const agent of [primary, secondary]) {
      await agent.command('stop');
      await agent.exited;
    }
    await startSecondary(cleanup, standbyVm, ['--overwrite-disk', 'd0'], listen);
    await moreCheckpoints(await startPrimary(cleanup, primaryVm, listen), 2);
    expect(await compareImages(primaryVm.disks[0]?.path ?? '', 'raw', precious)).toBe('');
  });

  test('that a VM ran on later isn’t overwritten by the older one; the other way round it is', async () => {
    const files = { old: path.join(folder, 'old'), new: path.join(folder, 'new') };
    const first = await protect(cleanup, {
      guest: guestWith({ ...DISK, path: files.old }),
      standbyDisks: [{ ...DISK, path: files.new }],
      secondaryArgs: ['--witness', 'none'],
    });
    first.primaryVm.kill();
    await first.secondary.waitState('RUNNING', 60_000);
    first.primary.kill();
    await first.primary.exited;
    await first.secondary.command('stop');
    await first.secondary.exited;
    await first.standbyVm.destroy();

    const wrong = await start({ ...DISK, path: files.old }, { ...DISK, path: files.new });
    const primary = await startPrimary(cleanup, wrong.primaryVm, wrong.listen);
    await primary.waitStatus('the refusal', 30_000, ({ reason }) => /d0.*(older|newer)/.test(reason));
    await expectUntouched(wrong.primaryVm);
    primary.kill();
    wrong.secondary.kill();
    for (const vm of [wrong.primaryVm, wrong.standbyVm]) await vm.destroy();

    const right = await start({ ...DISK, path: files.new }, { ...DISK, path: files.old });
    await moreCheckpoints(await startPrimary(cleanup, right.primaryVm, right.listen), 2);
  });
});

describe('a primary’s disk', () => {
  test('that a job is running on', async () => {
    const { primaryVm, listen } = await start(DISK, DISK);
    await execute(primaryVm, 'drive-mirror', {
      'job-id': 'users',
      device: 'drive-d0',
      target: path.join(folder, 'mirror'),
      format: 'raw',
      sync: 'full',
    });
    await expect(startPrimary(cleanup, primaryVm, listen)).rejects.toThrow(
      /status 78.*job users: a mirror job/s,
    );
    expect(await execute(primaryVm, 'query-status')).toMatchObject({ running: true });
    expect(await execute(primaryVm, 'query-jobs')).toMatchObject([{ id: 'users' }]);
    await execute(primaryVm, 'block-job-cancel', { device: 'users' });
    await waitFor('end of the job', 30_000, async () => {
      return ((await execute(primaryVm, 'query-jobs')) as object[]).length === 0;
    });
    await moreCheckpoints(await startPrimary(cleanup, primaryVm, listen), 2);
  });

  test('that both hosts reach is left alone when it is named, and refused when not', async () => {
    const shared: DiskOptions = { ...DISK, shared: true, path: imageWithData('shared', 0) };
    const { primaryVm, listen } = await start(shared, shared);
    const before = readFileSync(shared.path ?? '');
    const refused = await startPrimary(cleanup, primaryVm, listen);
    await refused.waitStatus('the refusal', 30_000, ({ reason }) => /d0.*--shared-disk d0/.test(reason));
    await expectUntouched(primaryVm);
    refused.kill();
    await refused.exited;

    const primary = await startPrimary(cleanup, primaryVm, listen, ['--shared-disk', 'd0']);
    await moreCheckpoints(primary, 2);
    expect(readFileSync(shared.path ?? '').equals(before)).toBe(true);
  });

  test('that is named with --ungated-disk isn’t copied', async () => {
    const { primaryVm, standbyVm, listen } = await start(
      { ...DISK, path: imageWithData('primary', 0) },
      DISK,
    );
    const primary = await startPrimary(cleanup, primaryVm, listen, ['--ungated-disk', 'd0']);
    const status = await moreCheckpoints(primary, 2);
    expect(status).toMatchObject({ ungatedDisks: ['d0'] });
    expect(disksOf(status)).toEqual([]);
    await expectUntouched(primaryVm);
    expect(readFileSync(standbyVm.disks[0]?.path ?? '').every((byte) => byte === 0)).toBe(true);
  });
});
