/** The secondary's QEMU or agent is killed, again and again: the guest never stops for good, its network recovers, protection returns by itself. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { checkMemory, StreamClient } from '../../src/testbed/client.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import {
  freePort,
  type GuestOptions,
  PROTECT_MS,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const ROUNDS = ['QEMU', 'agent', 'both', 'QEMU', 'agent', 'both', 'QEMU', 'agent', 'both', 'agent'] as const;

const cleanup = new Cleanup();
let network: TestNetwork;
let guest: GuestOptions;
let primaryVm: TestVm;
let primary: TestAgent;
let client: StreamClient;
let listen: string;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  guest = {
    guest: 'linux',
    network,
    append: 'colo.services=counter,memcheck colo.memcheck=8 colo.dirty=100,20',
  };
  listen = `127.0.0.1:${await freePort()}`;
  primaryVm = await startVm(cleanup, 'primary', guest, false);
  await waitBooted(primaryVm, guest);
  // Nobody is there yet: the VM runs on, exposed.
  primary = await startPrimary(cleanup, primaryVm, listen, ['--peer-timeout', '2000']);
  await primary.waitState('EXPOSED', 30_000);
  client = cleanup.own(await StreamClient.connect(network));
});
afterAll(() => cleanup.run());

describe('kill -9 of the secondary', () => {
  test.each(ROUNDS.map((what, index) => ({ what, round: index + 1 })))(
    'round $round: $what',
    async ({ what, round }) => {
      const standbyVm = await startVm(cleanup, `standby-${round}`, guest, true);
      const { agent: secondary } = await startSecondary(
        cleanup,
        standbyVm,
        ['--peer-timeout', '2000'],
        listen,
      );
      await primary.waitState('PROTECTED', PROTECT_MS);
      await sleep(Math.random() * 500); // the random moment is what is tested

      if (what !== 'agent') standbyVm.kill();
      if (what !== 'QEMU') secondary.kill();
      await primary.waitStatus('end of protection', 60_000, (status) => status.state !== 'PROTECTED');

      await client.waitAfter(monotonicMs() + 300, 60_000);
      expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
      expect(client.ended).toBeUndefined();
      const { heldFrames } = await primary.status();
      expect(heldFrames).toBe(0);
      await standbyVm.destroy();
      await secondary.destroy();
    },
  );

  test('the guest’s memory is intact after all of it', async () => {
    await checkMemory(network, 60_000);
  });
});
