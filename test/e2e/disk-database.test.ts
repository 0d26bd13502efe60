/**
 * A real database on a protected disk, with a client outside that inserts a row at a time. The primary is killed at random moments: afterwards SQLite's
 * integrity check is clean, and every row that the client was told of is there (invariants 1, 2, 3). `npm run test:disks` kills more often.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { DatabaseClient } from '../../src/testbed/disk-clients.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import {
  type GuestOptions,
  PROTECT_MS,
  standbyOf,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const KILLS = ['both', 'QEMU', 'agent'] as const;
const CHAINS =
  process.env['COLO_LONG'] === undefined
    ? [{ journal: 'wal', kills: 3 }]
    : [
        { journal: 'wal', kills: 10 },
        { journal: 'delete', kills: 10 },
      ];

describe.each(CHAINS)('SQLite, journal mode $journal', ({ journal, kills }) => {
  const cleanup = new Cleanup();
  let guest: GuestOptions;
  let runningVm: TestVm;
  let client: DatabaseClient;

  beforeAll(async () => {
    guest = {
      guest: 'linux',
      network: cleanup.own(await TestNetwork.create()),
      disks: [{ id: 'd0', sizeMiB: 64, format: 'qcow2', content: 'ext4' }],
      append: `colo.services=sqld colo.sqld=${journal}`,
    };
    runningVm = await startVm(cleanup, 'first', guest, false);
    await waitBooted(runningVm, guest);
    client = cleanup.own(await DatabaseClient.connect(guest.network as TestNetwork));
    await client.waitAcknowledged(20, 60_000);
  });
  afterAll(() => cleanup.run());

  test.each(Array.from({ length: kills }, (_, index) => index + 1))(
    'kill %i',
    { timeout: 180_000 },
    async (round) => {
      const what = KILLS[round % KILLS.length];
      const standbyVm = await startVm(cleanup, `standby-${round}`, standbyOf(guest), true);
      const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, ['--witness', 'none']);
      const primary = await startPrimary(cleanup, runningVm, listen);
      await primary.waitState('PROTECTED', PROTECT_MS);
      await client.waitAcknowledged(5, 60_000);
      await sleep(Math.random() * 500); // the random moment is what is tested

      if (what !== 'agent') runningVm.kill();
      if (what !== 'QEMU') primary.kill();
      await secondary.waitState('RUNNING', 60_000);
      runningVm.kill();
      await runningVm.exited;
      await client.check(60_000);
      await client.waitAcknowledged(20, 60_000);
      expect(standbyVm.console()).not.toContain('FAILED');

      await secondary.command('stop');
      await secondary.exited;
      await runningVm.destroy();
      runningVm = standbyVm;
    },
  );

  test('nothing was lost in all of it', async () => {
    await client.check(60_000);
  });
});
