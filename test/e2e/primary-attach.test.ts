/** An attempt to attach to a real QEMU that fails at its last step. */
import { readdirSync, readlinkSync } from 'node:fs';
import { afterEach, expect, test, vi } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import type { PrimaryAgentOptions } from '../../src/agent/primary-agent.ts';
import { attachPrimary } from '../../src/agent/primary-attach.ts';
import { QemuProcess } from './qemu-process.ts';

// Its program is there only where the agent has been built, and it holds nothing that this is about.
vi.mock('../../src/agent/pause-guard.ts', () => ({
  PauseGuard: { start: async () => ({ setStopped: () => {}, close: async () => {} }) },
}));

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** The files that this process has open for the device state. */
function vmstateFiles(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return target.includes('colo-vmstate') ? [target] : [];
    } catch {
      return []; // the folder's own, closed by now
    }
  });
}

test('leaves nothing behind, here or in QEMU: it is tried again, perhaps for days', async () => {
  const qemu = await QemuProcess.start('-machine', 'pc', '-m', '64');
  cleanups.push(() => qemu.stop());
  const options = {
    vm: 'web1',
    qmpPath: qemu.qmpPath,
    exceptions: { ungatedNics: [], ungatedDisks: [], sharedDisks: [] },
    standsByLater: false,
    diskBufferBytes: 2 ** 20,
    threads: 0, // which the engine refuses
    shadow: false,
    tracker: 'compare',
    scrubSliceBytes: 0,
    log: new Log('error', () => ({})),
  };
  await expect(attachPrimary(options as unknown as PrimaryAgentOptions)).rejects.toThrow(/threads/);
  expect(vmstateFiles()).toEqual([]);
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  expect(await qmp.execute('query-fdsets')).toEqual([]);
});
