/**
 * The primary's QEMU, its agent, or both are killed at random moments while the guest writes to its disks and holds each sector against its memory: after
 * every take-over all of it is of one moment (invariants 2, 3, 6). The survivor of a round is the primary of the next, and the dead one's disks are its
 * standby's, known as the stale ones. `npm run test:disks` runs more chains, and longer ones.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { StreamClient } from '../../src/testbed/client.ts';
import { checkDisks } from '../../src/testbed/disk-clients.ts';
import type { DiskOptions } from '../../src/testbed/disks.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import { disksOf, makeFolder, waitSteps } from './support/disks.ts';
import {
  type GuestOptions,
  PROTECT_MS,
  standbyOf,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const KILLS = ['QEMU', 'agent', 'both'] as const;
const LONG = process.env['COLO_LONG'] !== undefined;
const ROUNDS = Array.from({ length: LONG ? 6 : 3 }, (_, index) => index + 1);

interface Chain {
  name: string;
  machine: 'pc' | 'q35';
  disks: DiskOptions[];
}

const CHAINS: Chain[] = [
  {
    name: 'q35: qcow2, writeback, threads, virtio-blk with an iothread; raw, none, native, virtio-scsi',
    machine: 'q35',
    disks: [
      { id: 'd0', sizeMiB: 32, format: 'qcow2', iothread: true },
      { id: 'd1', sizeMiB: 32, cache: 'none', aio: 'native', bus: 'virtio-scsi' },
    ],
  },
  {
    name: 'pc: raw, none, io_uring, virtio-blk by -blockdev; raw, writethrough, threads, virtio-scsi',
    machine: 'pc',
    disks: [
      { id: 'd0', sizeMiB: 32, cache: 'none', aio: 'io_uring', namedNodes: true },
      { id: 'd1', sizeMiB: 32, cache: 'writethrough', bus: 'virtio-scsi' },
    ],
  },
];
if (LONG) {
  CHAINS.push(
    {
      name: 'q35: qcow2, none, native, virtio-blk by -blockdev; raw, writeback, io_uring, virtio-scsi',
      machine: 'q35',
      disks: [
        { id: 'd0', sizeMiB: 32, format: 'qcow2', cache: 'none', aio: 'native', namedNodes: true },
        { id: 'd1', sizeMiB: 32, aio: 'io_uring', bus: 'virtio-scsi' },
      ],
    },
    {
      name: 'q35: three disks, one of them served by a thread of its own',
      machine: 'q35',
      disks: [
        { id: 'd0', sizeMiB: 32, iothread: true, cache: 'none', aio: 'native' },
        { id: 'd1', sizeMiB: 32, format: 'qcow2', bus: 'virtio-scsi', cache: 'none', aio: 'io_uring' },
        { id: 'd2', sizeMiB: 32, cache: 'directsync' },
      ],
    },
    {
      name: 'pc: qcow2, writeback, threads, virtio-scsi',
      machine: 'pc',
      disks: [{ id: 'd0', sizeMiB: 32, format: 'qcow2', bus: 'virtio-scsi' }],
    },
  );
}

describe.each(CHAINS)('$name', ({ machine, disks }) => {
  const cleanup = new Cleanup();
  let network: TestNetwork;
  let guest: GuestOptions;
  let client: StreamClient;
  let runningVm: TestVm;
  /** Where a dead VM's raw images are: the next standby's. */
  let staleFolder: string | undefined;
  let runningFolder: string | undefined;

  beforeAll(async () => {
    network = cleanup.own(await TestNetwork.create());
    guest = { guest: 'linux', machine, network, disks, append: 'colo.services=counter,diskcheck' };
    runningVm = await startVm(cleanup, 'first', guest, false);
    await waitBooted(runningVm, guest);
    client = cleanup.own(await StreamClient.connect(network));
  });
  afterAll(() => cleanup.run());

  test.each(ROUNDS)('take-over %i', { timeout: 180_000 }, async (round) => {
    const what = KILLS[round % KILLS.length] ?? 'both';
    const folder = staleFolder ?? makeFolder(cleanup);
    const standby = standbyOf(guest, folder);
    const standbyVm = await startVm(cleanup, `standby-${round}`, standby, true);
    const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, ['--witness', 'none']);
    const primary = await startPrimary(cleanup, runningVm, listen);
    const protectedStatus = await primary.waitState('PROTECTED', PROTECT_MS);
    expect(disksOf(protectedStatus).map(({ state }) => state)).toEqual(disks.map(() => 'mirrored'));
    await sleep(Math.random() * 700); // the random moment is what is tested

    const killedAtMs = monotonicMs();
    kill(what, primary, runningVm);
    await secondary.waitState('RUNNING', 60_000);
    runningVm.kill();
    await runningVm.exited;
    await client.waitAfter(killedAtMs + 1, 60_000);
    await waitSteps(standbyVm, 10);
    await checkDisks(network, 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
    expect(client.ended).toBeUndefined();

    await secondary.command('stop');
    await secondary.exited;
    staleFolder = runningFolder;
    runningFolder = folder;
    runningVm = standbyVm;
  });
});

function kill(what: (typeof KILLS)[number], primary: TestAgent, vm: TestVm): void {
  if (what !== 'agent') vm.kill();
  if (what !== 'QEMU') primary.kill();
}
