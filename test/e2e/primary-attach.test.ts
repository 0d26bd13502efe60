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

function optionsFor(qmpPath: string, log: Log): PrimaryAgentOptions {
  return {
    vm: 'web1',
    qmpPath,
    exceptions: { ungatedNics: [], ungatedDisks: [], sharedDisks: [] },
    standsByLater: false,
    diskBufferBytes: 2 ** 20,
    threads: 0, // which the engine refuses
    shadow: false,
    tracker: 'compare',
    scrubSliceBytes: 0,
    log,
  } as unknown as PrimaryAgentOptions;
}

test('leaves nothing behind, here or in QEMU: it is tried again, perhaps for days', async () => {
  const qemu = await QemuProcess.start('-machine', 'pc', '-m', '64');
  cleanups.push(() => qemu.stop());
  const options = optionsFor(qemu.qmpPath, new Log('error', () => ({})));
  await expect(attachPrimary(options)).rejects.toThrow(/threads/);
  expect(vmstateFiles()).toEqual([]);
  const qmp = await qemu.connect();
  cleanups.push(() => qmp.close());
  expect(await qmp.execute('query-fdsets')).toEqual([]);
});

test('a VM that stands is told of, with what lets it go on and when; one that runs is not', async () => {
  const qemu = await QemuProcess.start('-machine', 'pc', '-m', '64');
  cleanups.push(() => qemu.stop());
  const order = async (command: 'cont' | 'stop' | 'query-status') => {
    const qmp = await qemu.connect(); // which serves one client at a time
    const answer = await qmp.execute(command);
    qmp.close();
    return answer;
  };
  const log = new Log('error', () => ({}));
  const warn = vi.spyOn(log, 'warn');
  const attach = () => expect(attachPrimary(optionsFor(qemu.qmpPath, log))).rejects.toThrow(/threads/);
  const told = () => warn.mock.calls.filter(([message]) => message.startsWith('the VM stands'));
  await order('cont');
  await attach();
  expect(told()).toEqual([]);
  await order('stop');
  await attach();
  expect(told()).toEqual([
    [
      'the VM stands, and is not resumed by this agent',
      {
        reason: expect.stringMatching(/killed in a drill/),
        advice: expect.stringMatching(/PROTECTED.*`cont`/),
      },
    ],
  ]);
  expect(await order('query-status')).toMatchObject({ running: false });
});
