/** A byte of the standby's RAM is changed behind the agent's back: the scrub finds it, nobody may take over, and protection returns by itself (invariant 8). */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { PrimaryStatus, SecondaryStatus } from '../../src/agent/status.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { findRamBlocks, type RamBlock } from '../../src/vm/ram-blocks.ts';
import { colo } from './support/cli.ts';
import { type GuestOptions, moreCheckpoints, PROTECT_MS, protect } from './support/protection.ts';

let cleanup: Cleanup;
beforeEach(() => {
  cleanup = new Cleanup();
});
afterEach(() => cleanup.run());

/** Two thirds into RAM, where the bare-metal guest never writes. */
const ADDRESS = 40 * 2 ** 20 + 0x3000;
const FINDING =
  /^epoch \d+: the page at address 0x2803000 of RAM block \S+ is another one than the primary's$/;

const GUESTS: [string, GuestOptions, string[]][] = [
  ['private RAM', { guest: 'baremetal', append: 'pages=512 span=8' }, []],
  [
    'shared RAM, strict',
    { guest: 'baremetal', append: 'pages=512 span=8', sharedRam: true },
    ['--mode', 'strict'],
  ],
  ['the comparing tracker', { guest: 'baremetal', append: 'pages=512 span=8' }, ['--tracker', 'compare']],
];

describe('one changed byte of the standby', () => {
  test.each(GUESTS)('%s', async (_name, guest, args) => {
    const { standbyVm, primary, secondary } = await protect(cleanup, {
      guest,
      primaryArgs: ['--interval', '50', '--scrub', '8', ...args],
      secondaryArgs: ['--witness', 'none'],
    });
    await moreCheckpoints(primary, 3);
    const ram = await ramOf(standbyVm);
    const before = byteAt(standbyVm, ram, ADDRESS);
    byteAt(standbyVm, ram, ADDRESS, before ^ 0xff);

    const exposed = await primary.waitState('EXPOSED', 60_000);
    expect(exposed.reason).toMatch(
      /^the secondary reports scrub: epoch \d+: the page at address 0x2803000 of RAM block/,
    );
    const blocked = await secondary.waitStatus('the finding', 10_000, (status) => status.state === 'BLOCKED');
    expect(blocked.reason).toMatch(/RAM here is not the primary's|waiting for the primary/);
    expect(blocked['ifPrimaryDies']).toMatch(/lost/);

    await primary.waitState('PROTECTED', PROTECT_MS);
    const status = (await moreCheckpoints(primary, 20)) as unknown as PrimaryStatus;
    expect(status.state).toBe('PROTECTED');
    expect(status.scrub.found).toBe(1);
    expect(status.scrub.lastFinding).toMatch(FINDING);
    const standby = (await secondary.status()) as unknown as SecondaryStatus;
    expect(standby.state).toBe('STANDBY');
    expect(standby.scrub.found).toBe(1);
    const [text, standbyText] = await Promise.all(
      [primary, secondary].map((agent) => colo('status', '--control', agent.controlPath)),
    );
    expect(text?.stdout).toMatch(/^scrub +\d+ rounds .*FOUND 1: epoch \d+: the page at address 0x2803000/m);
    expect(standbyText?.stdout).toMatch(/^scrub +\d+ pages, found 1;/m);
    expect(byteAt(standbyVm, ram, ADDRESS)).toBe(before);
  });

  test('a failover is refused until the copy is done, whatever becomes of the primary', async () => {
    const { primaryVm, standbyVm, primary, secondary } = await protect(cleanup, {
      guest: { guest: 'baremetal', append: 'pages=512 span=8' },
      primaryArgs: ['--interval', '50', '--scrub', '16'],
      secondaryArgs: ['--witness', 'none', '--peer-timeout', '2000'],
    });
    const ram = await ramOf(standbyVm);
    byteAt(standbyVm, ram, ADDRESS, byteAt(standbyVm, ram, ADDRESS) ^ 0xff);
    await secondary.waitState('BLOCKED', 60_000);
    primaryVm.kill();
    primary.kill();
    const { reason } = await secondary.waitState('BLOCKED', 10_000);
    expect(reason).toMatch(/not the primary's/);
    await expect(secondary.command('failover')).rejects.toThrow(
      /failover refused: RAM here is not the primary's/,
    );
    expect((await secondary.status()).state).toBe('BLOCKED');
  });
});

async function ramOf(vm: TestVm): Promise<RamBlock> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  try {
    const blocks = await findRamBlocks(monitor, vm.pid);
    const largest = blocks.reduce((a, b) => (a.sizeBytes >= b.sizeBytes ? a : b));
    expect(largest.sizeBytes).toBeGreaterThan(ADDRESS);
    return largest;
  } finally {
    monitor.close();
  }
}

/** Reads a byte of a VM's RAM, and writes another in its place when there is one. */
function byteAt(vm: TestVm, { hostAddress }: RamBlock, offsetBytes: number, value?: number): number {
  const file = openSync(`/proc/${vm.pid}/mem`, 'r+');
  try {
    const byte = Buffer.alloc(1);
    const at = hostAddress + BigInt(offsetBytes);
    expect(readSync(file, byte, 0, 1, at)).toBe(1);
    // writeSync takes no bigint, and host addresses fit into a number's 53 bits.
    if (value !== undefined) expect(writeSync(file, Buffer.of(value), 0, 1, Number(at))).toBe(1);
    return byte[0] as number;
  } finally {
    closeSync(file);
  }
}
