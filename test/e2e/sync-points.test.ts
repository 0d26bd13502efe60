/**
 * A crash at every sync-point, on both sides, before and after the message has passed. The guest checks its own RAM against its registers on every tick,
 * so a standby that isn't exactly at one committed checkpoint (invariants 2 and 6) says so as soon as it runs.
 */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Body, Message } from '../../src/protocol/messages.ts';
import { Cleanup } from '../../src/testbed/cleanup.ts';
import type { TestVm } from '../../src/testbed/vm.ts';
import { MessageProxy, type Side } from './support/message-proxy.ts';
import {
  type GuestOptions,
  moreCheckpoints,
  type Protection,
  protect,
  startSecondary,
  startVm,
} from './support/protection.ts';

const GUEST: GuestOptions = { guest: 'baremetal', append: 'pages=256 span=8' };

const POINTS: { type: Body['type']; from: Side }[] = [
  { type: 'new', from: 'primary' },
  { type: 'suspended', from: 'secondary' },
  { type: 'send', from: 'primary' },
  { type: 'received', from: 'secondary' },
  { type: 'loaded', from: 'secondary' },
];

const CASES = POINTS.flatMap((point) => (['before', 'after'] as const).map((when) => ({ ...point, when })));

let cleanup: Cleanup;
beforeEach(() => {
  cleanup = new Cleanup();
});
afterEach(() => cleanup.run());

describe('the primary dies', () => {
  test.each(CASES)('$when $type', async (point) => {
    const { protection, target } = await crashAt(point, ({ primary, primaryVm: vm }) => {
      primary.kill();
      vm.kill();
    });
    const { primaryVm, standbyVm, secondary } = protection;
    await primaryVm.exited;
    const { epoch } = await secondary.waitState('RUNNING', 60_000);
    // RECEIVED is the commit: once it was sent, the standby must be at that epoch; before SEND it can't be.
    const received = point.type === 'loaded' || point.type === 'received';
    if (received) expect(epoch).toBeGreaterThanOrEqual(target);
    if (point.type === 'new' || point.type === 'suspended') expect(epoch).toBe(target - 1);
    await expectSound(standbyVm);
  });
});

describe('the secondary dies', () => {
  test.each(CASES)('$when $type', async (point) => {
    const { protection } = await crashAt(point, ({ secondary, standbyVm: vm }) => {
      secondary.kill();
      vm.kill();
    });
    const { primaryVm, primary, listen } = protection;
    await primary.waitState('EXPOSED', 60_000);
    await expectSound(primaryVm);
    // Protection returns by itself when a standby is back.
    const next = await startVm(cleanup, 'next', GUEST, true);
    await startSecondary(cleanup, next, ['--insecure'], listen);
    await moreCheckpoints(primary, 2);
  });
});

async function crashAt(
  point: { type: Body['type']; from: Side; when: 'before' | 'after' },
  crash: (protection: Protection) => void,
): Promise<{ protection: Protection; target: number }> {
  let proxy: MessageProxy | undefined;
  const protection = await protect(cleanup, {
    guest: GUEST,
    // The proxy reads along.
    primaryArgs: ['--insecure', '--peer-timeout', '2000'],
    secondaryArgs: ['--insecure', '--witness', 'none', '--peer-timeout', '2000'],
    via: async (listen) => {
      proxy = await MessageProxy.open(listen);
      cleanup.own(proxy);
      return proxy.address;
    },
  });
  const { epoch } = await protection.primary.status();
  const target = epoch + 3; // not yet under way
  await new Promise<void>((resolve) => {
    const act = (from: Side, message: Message): boolean => {
      if (from !== point.from || message.body.type !== point.type || message.epoch !== target) return true;
      crash(protection);
      resolve();
      return false;
    };
    (proxy as MessageProxy).hooks =
      point.when === 'before' ? { before: act } : { after: (from, message) => void act(from, message) };
  });
  return { protection, target };
}

/** The guest goes on to send its letters, in order, and has found no page that isn't of its own round. */
async function expectSound(vm: TestVm): Promise<void> {
  const seen = vm.console().length;
  await vm.waitConsole(new RegExp(`^[\\s\\S]{${seen + 6}}`), 60_000);
  const letters = vm.console();
  expect(letters).not.toContain('!');
  const own = letters.match(/[A-P]+$/)?.[0] ?? '';
  for (let i = 1; i < own.length; i++) {
    expect((own.charCodeAt(i) - own.charCodeAt(i - 1) + 16) % 16).toBe(1);
  }
}
