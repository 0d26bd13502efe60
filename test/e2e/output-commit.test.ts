/**
 * Output commit (invariant 1): the guest announces a secret number over UDP *before* it stores it. Whatever announcement was seen outside, the standby must
 * know after it took over: had a frame of an uncommitted epoch left, its secret would be lost with the primary.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import { AnnounceClient } from '../../src/testbed/client.ts';
import { TestNetwork } from '../../src/testbed/network.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import {
  type GuestOptions,
  PROTECT_MS,
  startPrimary,
  startSecondary,
  startVm,
  waitBooted,
} from './support/protection.ts';

const ROUNDS = [1, 2, 3, 4];
/** Announcements heard under protection before each kill. */
const HEARD = 40;

const cleanup = new Cleanup();
let network: TestNetwork;
let guest: GuestOptions;
let runningVm: TestVm;
let client: AnnounceClient;

beforeAll(async () => {
  network = cleanup.own(await TestNetwork.create());
  guest = { guest: 'linux', network, append: 'colo.services=announce' };
  runningVm = await startVm(cleanup, 'first', guest, false);
  await waitBooted(runningVm, guest);
  client = cleanup.own(await AnnounceClient.listen(network));
});
afterAll(() => cleanup.run());

describe('no announcement is seen that the standby does not know', () => {
  test.each(ROUNDS)('kill %i', async (round) => {
    const standbyVm = await startVm(cleanup, `standby-${round}`, guest, true);
    const { agent: secondary, listen } = await startSecondary(cleanup, standbyVm, ['--witness', 'none']);
    const primary = await startPrimary(cleanup, runningVm, listen);
    await primary.waitState('PROTECTED', PROTECT_MS);
    await client.waitCount(client.announcements.length + HEARD, 60_000);
    await sleep(Math.random() * 200); // the random moment is what is tested

    runningVm.kill();
    if (round % 2 === 0) primary.kill();
    await secondary.waitState('RUNNING', 60_000);
    await runningVm.exited;
    const heard = client.announcements.length;
    expect(await client.findUnknown(60_000)).toEqual([]);
    await client.waitCount(heard + HEARD, 60_000);

    await secondary.command('stop');
    await secondary.exited;
    runningVm = standbyVm;
  });
});
