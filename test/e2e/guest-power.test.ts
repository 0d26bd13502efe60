/** A guest that resets stays protected; one that shuts down takes its standby with it. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { PORTS, request, StreamClient } from '../../src/testbed/client.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import { waitFor } from '../../src/testbed/wait.ts';
import { BOOT_MS, type GuestOptions, moreCheckpoints, protect } from './support/protection.ts';

let cleanup: Cleanup;
let network: TestNetwork;
let guest: GuestOptions;

beforeEach(async () => {
  cleanup = new Cleanup();
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=counter,power' };
});
afterEach(() => cleanup.run());

/** The guest goes down without saying goodbye, so the connection may end in any way. */
async function poke(port: number): Promise<void> {
  await request(network, port, 'x\n', 5000).catch((error: Error) => {
    if (!/answer|closed|ended|end|reset/i.test(error.message)) throw error;
  });
}

describe('guest power', () => {
  test('a reset is followed, and the standby can take over afterwards', async () => {
    const { primaryVm, primary, secondary } = await protect(cleanup, {
      guest,
      secondaryArgs: ['--witness', 'none'],
    });
    await poke(PORTS.reset);
    await waitFor('second boot', BOOT_MS, () => primaryVm.console().split('GUEST-READY').length > 2);
    await moreCheckpoints(primary, 5);
    const client = cleanup.own(await StreamClient.connect(network));
    primaryVm.kill();
    await secondary.waitState('RUNNING', 60_000);
    const at = client.check.lines.at(-1)?.atMs ?? 0;
    await client.waitAfter(at, 60_000);
    expect(client.check).toMatchObject({ gaps: 0, regressions: 0 });
  });

  test('a shutdown stops both VMs and both agents, and promotes nobody', async () => {
    const { primaryVm, standbyVm, primary, secondary } = await protect(cleanup, {
      guest,
      secondaryArgs: ['--witness', 'none'],
    });
    await poke(PORTS.poweroff);
    const exits = await Promise.all([primary.exited, secondary.exited, primaryVm.exited, standbyVm.exited]);
    expect(exits.map(({ code }) => code)).toEqual([0, 0, 0, 0]);
    expect(primary.log()).toContain('guest-shutdown');
    expect(secondary.log()).not.toContain('TAKING-OVER');
  });
});
