import { describe, expect, test } from 'vitest';
import type { QmpClient } from '../../src/qmp/client.ts';
import { ShutdownAction } from '../../src/vm/shutdown-action.ts';

function recorder(): { calls: unknown[]; qmp: QmpClient } {
  const calls: unknown[] = [];
  const qmp = { execute: async (name: string, args: unknown) => void calls.push([name, args]) };
  return { calls, qmp: qmp as unknown as QmpClient };
}

describe('ShutdownAction', () => {
  test('pauses while protected and restores afterwards', async () => {
    const { calls, qmp } = recorder();
    const action = new ShutdownAction(['qemu-system-x86_64', '-m', '256']);
    expect(action.paused).toBe(false);
    await action.pause(qmp);
    await action.pause(qmp);
    expect(action.paused).toBe(true);
    await action.restore(qmp);
    await action.restore(qmp);
    expect(action.paused).toBe(false);
    expect(calls).toEqual([
      ['set-action', { shutdown: 'pause' }],
      ['set-action', { shutdown: 'poweroff' }],
    ]);
  });

  test('puts right what an agent that died left', async () => {
    const { calls, qmp } = recorder();
    await new ShutdownAction(['qemu']).restore(qmp);
    expect(calls).toEqual([['set-action', { shutdown: 'poweroff' }]]);
  });

  test.each([[['-no-shutdown']], [['--no-shutdown']], [['-action', 'reboot=reset,shutdown=pause']]])(
    'keeps the user’s own setting: %j',
    async (commandLine) => {
      const { calls, qmp } = recorder();
      const action = new ShutdownAction(['qemu', ...commandLine]);
      expect(action.paused).toBe(true);
      await action.pause(qmp);
      await action.restore(qmp);
      expect(action.paused).toBe(true);
      expect(calls).toEqual([]);
    },
  );

  test('is not misled by another option’s value', async () => {
    expect(
      new ShutdownAction(['qemu', '-name', 'shutdown=pause', '-action', 'shutdown=poweroff']).paused,
    ).toBe(false);
  });
});
