/**
 * A standby's disks come to be the primary's, byte for byte, under a guest that writes all the time: the first copy, the return of a standby (only what
 * has changed goes across), and protection in the other direction after a take-over.
 */
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs, waitFor } from '../../src/testbed/wait.ts';
import { disksOf, execute, expectEqualDisks, makeFolder, waitSteps } from './support/disks.ts';
import { MessageProxy } from './support/message-proxy.ts';
import {
  freePort,
  type GuestOptions,
  PROTECT_MS,
  standbyOf,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const LOSS_MS = 10_000;
/** The guest doesn't touch it, so it goes across once and never again. */
const BALLAST_MIB = 192;
const BALLAST_BYTES = BALLAST_MIB * 1024 * 1024;

const cleanup = new Cleanup();
let network: TestNetwork;
let guest: GuestOptions;
let primaryVm: TestVm;
let standbyVm: TestVm;
let primary: TestAgent;
let secondary: TestAgent;
let listen: string;
/** Between the two agents: it counts what goes across. */
let proxy: MessageProxy;
let primaryFolder: string;
let standbyFolder: string;
let firstCopyBytes: number;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  primaryFolder = makeFolder(cleanup);
  standbyFolder = makeFolder(cleanup);
  const ballast = path.join(primaryFolder, 'd2');
  execFileSync('dd', ['if=/dev/urandom', `of=${ballast}`, 'bs=1M', `count=${BALLAST_MIB}`, 'status=none']);
  guest = {
    guest: 'linux',
    memoryMiB: 128,
    network,
    append: 'colo.services=diskcheck colo.diskcheck=20,vda,vdb',
    disks: [
      { id: 'd0', sizeMiB: 32, path: path.join(primaryFolder, 'd0') },
      { id: 'd1', sizeMiB: 32, format: 'qcow2', path: path.join(primaryFolder, 'd1') },
      { id: 'd2', sizeMiB: BALLAST_MIB, path: ballast },
    ],
  };
  primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  standbyVm = await startVm(cleanup, 'standby', standbyOf(guest, standbyFolder), true);
  listen = `127.0.0.1:${await freePort()}`;
  proxy = cleanup.own(await MessageProxy.open(listen));
});
afterAll(() => cleanup.run());

test('the first copy', async () => {
  await waitSteps(primaryVm, 20);
  const args = ['--insecure', '--witness', 'none'];
  ({ agent: secondary } = await startSecondary(cleanup, standbyVm, args, listen));
  primary = await startPrimary(cleanup, primaryVm, proxy.address, ['--insecure']);
  await primary.waitState('PROTECTED', PROTECT_MS);
  firstCopyBytes = proxy.bulkBytes;
  expect(firstCopyBytes).toBeGreaterThan(BALLAST_BYTES);
  await waitSteps(primaryVm, 20);
  await expectEqualDisks(primaryVm, standbyVm);
  await execute(primaryVm, 'cont');
});

test('a standby that was away for ten seconds gets what has changed', async () => {
  secondary.kill();
  await primary.waitState('EXPOSED', 60_000);
  const lostAtMs = monotonicMs();
  // How long it is away is what is tested.
  await waitFor('end of the absence', LOSS_MS * 2, () => monotonicMs() - lostAtMs > LOSS_MS);
  await waitSteps(primaryVm, 1);
  const before = await primary.status();
  expect(disksOf(before).map(({ state }) => state)).toEqual(['absent', 'absent', 'absent']);
  const [d0 = 0, d1 = 0, d2] = disksOf(before).map(({ differingBytes }) => differingBytes);
  expect(d0).toBeGreaterThan(0);
  expect(d1).toBeGreaterThan(0);
  expect(d2).toBe(0);

  const beforeBytes = proxy.bulkBytes;
  const args = ['--insecure', '--witness', 'none'];
  ({ agent: secondary } = await startSecondary(cleanup, standbyVm, args, listen));
  await primary.waitState('PROTECTED', PROTECT_MS);
  // All of RAM once more, and what differed; with a tenth of the ballast it would be too much.
  const ramBytes = firstCopyBytes - BALLAST_BYTES;
  expect(proxy.bulkBytes - beforeBytes).toBeLessThan(ramBytes + d0 + d1 + 0.1 * BALLAST_BYTES);
  await waitSteps(primaryVm, 20);
  await expectEqualDisks(primaryVm, standbyVm);
  await execute(primaryVm, 'cont');
});

test('the other direction: the dead primary’s disks are brought up to date', async () => {
  await primary.waitState('PROTECTED', PROTECT_MS);
  primaryVm.kill();
  primary.kill();
  await primaryVm.exited;
  await secondary.waitState('RUNNING', 60_000);
  await waitSteps(standbyVm, 10);
  await secondary.command('stop');
  await secondary.exited;

  // d1 was a qcow2, which a standby's disk can't be: a new one takes its place.
  const fresh = path.join(makeFolder(cleanup), 'd1');
  const disks = standbyOf(guest, primaryFolder).disks?.map((disk) =>
    disk.id === 'd1' ? { ...disk, path: fresh } : disk,
  );
  const returned = await startVm(cleanup, 'returned', { ...guest, disks: disks ?? [] }, true);
  const { agent: next, listen: nextListen } = await startSecondary(cleanup, returned, [
    '--insecure',
    '--witness',
    'none',
  ]);
  const survivor = await startPrimary(cleanup, standbyVm, nextListen, ['--insecure']);
  await survivor.waitState('PROTECTED', PROTECT_MS);
  await waitSteps(standbyVm, 10);
  await expectEqualDisks(standbyVm, returned);
  await execute(standbyVm, 'cont');
  await survivor.waitState('PROTECTED', PROTECT_MS);

  standbyVm.kill();
  survivor.kill();
  await next.waitState('RUNNING', 60_000);
  await waitSteps(returned, 10);
  await checkDisks(network, 60_000);
});
