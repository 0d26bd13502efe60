/**
 * The primary's QEMU, its agent, or both are killed at random moments: the client's stream has neither gap nor regression, and the guest finds its own
 * memory intact. The survivor of each round is the primary of the next, so one guest lives through all of them.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestAgent } from '../../src/testbed/agents.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { checkMemory, StreamClient } from '../../src/testbed/client.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { monotonicMs } from '../../src/testbed/wait.ts';
import {
  type GuestOptions,
  PROTECT_MS,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const ROUNDS = ['QEMU', 'agent', 'both', 'QEMU', 'agent', 'both', 'QEMU', 'agent', 'both', 'both'] as const;

const cleanup = new Cleanup();
let network: TestNetwork;
let guest: GuestOptions;
let runningVm: TestVm;
let client: StreamClient;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  guest = {
    guest: 'linux',
    network,
    append: 'colo.services=counter,memcheck colo.memcheck=8 colo.dirty=100,20',
  };
  runningVm = await startVm(cleanup, 'first', guest, false);
  await waitBooted(runningVm, guest);
  client = cleanup.own(await StreamClient.connect(network));
});
afterAll(() => cleanup.run());

describe('kill -9 of the primary', { timeout: 120_000 }, () => {
  test.each(ROUNDS.map((what, index) => ({ what, round: index + 1 })))(
    'round $round: $what',
    async ({ what, round }) => {
      const standbyVm = await startVm(cleanup, `standby-${round}`, guest, true);
      const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, ['--witness', 'none']);
      const primary = await startPrimary(cleanup, runningVm, listen);
      await primary.waitState('PROTECTED', PROTECT_MS);
      await sleep(Math.random() * 700); // the random moment is what is tested

      const killedAtMs = monotonicMs();
      kill(what, primary, runningVm);
      await secondary.waitState('RUNNING', 60_000);
      runningVm.kill();
      await runningVm.exited;

      const first = await client.waitAfter(killedAtMs + 1, 60_000);
      await client.waitAfter(first.atMs + 500, 60_000);
      expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
      expect(client.ended).toBeUndefined();
      await checkMemory(network, 60_000);

      await secondary.command('stop');
      await secondary.exited;
      runningVm = standbyVm;
    },
  );
});

function kill(what: (typeof ROUNDS)[number], primary: TestAgent, vm: TestVm): void {
  if (what !== 'agent') vm.kill();
  if (what !== 'QEMU') primary.kill();
}
