/**
 * What users do to the disks of a protected VM, and what happens to its standby: the guest runs on whatever comes, protection stays or comes back by itself, and a
 * take-over after all of it finds disks and memory of one moment.
 */
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { run } from '../../src/testbed/child.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { disksOf, execute, expectEqualDisks, makeFolder, waitSteps } from './support/disks.ts';
import {
  freePort,
  type GuestOptions,
  moreCheckpoints,
  PROTECT_MS,
  standbyOf,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

/** Larger than what the guest writes in the time of these tests. */
const SIZE_MIB = 256;

const cleanup = new Cleanup();
let network: TestNetwork;
let guest: GuestOptions;
let primaryVm: TestVm;
let standbyVm: TestVm;
let primary: TestAgent;
let secondary: TestAgent;
let listen: string;
let folder: string;
let standbyFolder: string;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  folder = makeFolder(cleanup);
  standbyFolder = makeFolder(cleanup);
  await run('mount', '-t', 'tmpfs', '-o', `size=${2 * SIZE_MIB}m`, 'colo-test', standbyFolder);
  cleanup.add(async () => void (await run('umount', '--lazy', standbyFolder)));
  guest = {
    guest: 'linux',
    network,
    append: 'colo.services=diskcheck',
    // A thread of its own: QEMU's completions then come from elsewhere than the commands that stop the VM.
    disks: [{ id: 'd0', sizeMiB: SIZE_MIB, iothread: true }],
  };
  primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  standbyVm = await startVm(cleanup, 'standby', standbyOf(guest, standbyFolder), true);
  listen = `127.0.0.1:${await freePort()}`;
  await startSecondaryAgent();
  primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
});
afterAll(() => cleanup.run());

async function startSecondaryAgent(): Promise<void> {
  ({ agent: secondary } = await startSecondary(cleanup, standbyVm, ['--witness', 'none'], listen));
}

test.each<[string, object]>([
  ['blockdev-snapshot-sync', { device: 'drive-d0', 'snapshot-file': 'snapshot', format: 'qcow2' }],
  ['blockdev-snapshot-internal-sync', { device: 'drive-d0', name: 'internal' }],
  ['drive-backup', { 'job-id': 'users', device: 'drive-d0', target: 'backup', format: 'raw', sync: 'full' }],
  ['drive-mirror', { 'job-id': 'users', device: 'drive-d0', target: 'mirror', format: 'raw', sync: 'full' }],
  ['block_resize', { device: 'drive-d0', size: (SIZE_MIB + 1) * 1024 * 1024 }],
])('QEMU refuses %s, and protection goes on', async (command, args) => {
  const files = Object.entries(args).map(([key, value]) =>
    key === 'target' || key === 'snapshot-file' ? [key, path.join(folder, String(value))] : [key, value],
  );
  await expect(execute(primaryVm, command, Object.fromEntries(files))).rejects.toThrow(
    /busy|in use|root block node|[Nn]ot support/,
  );
  await moreCheckpoints(primary, 2);
  await waitSteps(primaryVm, 2);
});

test('the user cancels our job: the session ends, and protection comes back by itself', async () => {
  const jobs = (await execute(primaryVm, 'query-jobs')) as { id: string; type: string }[];
  const ours = jobs.filter(({ type }) => type === 'mirror');
  expect(ours).toHaveLength(1);
  const logged = primary.log().length;
  await execute(primaryVm, 'block-job-cancel', { device: ours[0]?.id });
  await primary.waitStatus('word of it', 60_000, () =>
    /mirror job of disk d0/.test(primary.log().slice(logged)),
  );
  await primary.waitState('PROTECTED', PROTECT_MS);
  await waitSteps(primaryVm, 10);
  await expectEqualDisks(primaryVm, standbyVm);
  await execute(primaryVm, 'cont');
});

test('the standby’s file system is full: the guest runs on, status says why, and room brings protection back', async () => {
  await primary.waitState('PROTECTED', PROTECT_MS);
  const filler = path.join(standbyFolder, 'filler');
  await run('sh', '-c', `cat /dev/zero >"${filler}" 2>/dev/null || true`);
  const { reason } = await primary.waitStatus(
    'a full disk',
    60_000,
    (status) => status.state === 'EXPOSED' && /no space left/i.test(status.reason),
  );
  expect(reason).toContain('d0');
  await waitSteps(primaryVm, 20);
  expect(disksOf(await primary.status())[0]?.differingBytes).toBeGreaterThan(0);

  await run('rm', filler);
  await primary.waitState('PROTECTED', PROTECT_MS);
  await waitSteps(primaryVm, 10);
  await expectEqualDisks(primaryVm, standbyVm);
  await execute(primaryVm, 'cont');
});

test('the agent is killed and started again: the guest doesn’t notice', async () => {
  await primary.waitState('PROTECTED', PROTECT_MS);
  secondary.kill(); // it must not take over
  await secondary.exited;
  await primary.waitState('EXPOSED', 60_000); // its gate is just being taken off, in a pause
  primary.kill();
  await primary.exited;
  await waitSteps(primaryVm, 20);
  await startSecondaryAgent();
  primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
  const jobs = (await execute(primaryVm, 'query-jobs')) as object[];
  expect(jobs).toHaveLength(1);
  await waitSteps(primaryVm, 10);
});

test('`stop` takes everything off the disks, and the next agent puts it on again', async () => {
  await primary.command('stop');
  expect((await primary.exited).code).toBe(0);
  expect(await execute(primaryVm, 'query-jobs')).toEqual([]);
  expect(await execute(primaryVm, 'query-block-exports')).toEqual([]);
  const nodes = (await execute(primaryVm, 'query-named-block-nodes', { flat: true })) as object[];
  expect(nodes).toHaveLength(2); // the format and the file
  await waitSteps(primaryVm, 10);
  primary = await startPrimary(cleanup, primaryVm, listen);
  await primary.waitState('PROTECTED', PROTECT_MS);
});

test('after all of it, a take-over', async () => {
  await moreCheckpoints(primary, 3);
  primaryVm.kill();
  await secondary.waitState('RUNNING', 60_000);
  await waitSteps(standbyVm, 10);
  await checkDisks(network, 120_000);
});
