/** The protected VM when QEMU refuses what must not be left undone. No guest runs in these QEMUs. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Log } from '../../src/agent/log.ts';
import { PauseGuard } from '../../src/agent/pause-guard.ts';
import type { PrimaryAgentOptions } from '../../src/agent/primary-agent.ts';
import { attachPrimary } from '../../src/agent/primary-attach.ts';
import { PrimaryDisks } from '../../src/agent/primary-disks.ts';
import type { PrimaryMeters } from '../../src/agent/primary-meters.ts';
import type { PrimaryVm } from '../../src/agent/primary-vm.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { QemuProcess } from './qemu-process.ts';

const PATIENCE = { timeout: 60_000, interval: 10 };

let qemu: QemuProcess;
let lines: string[];
let options: PrimaryAgentOptions;
/** How often QEMU refuses a command yet. */
let refusals: Record<string, number>;

beforeEach(async () => {
  qemu = await QemuProcess.start('-m', '64');
  lines = [];
  refusals = {};
  const { execute } = QmpClient.prototype;
  vi.spyOn(QmpClient.prototype, 'execute').mockImplementation(function (this: QmpClient, name, ...rest) {
    const left = refusals[name] ?? 0;
    if (left === 0) return execute.call(this, name, ...rest) as never;
    refusals[name] = left - 1;
    return Promise.reject(new Error(`${name} refused`));
  });
  vi.spyOn(PauseGuard, 'start').mockResolvedValue({ setStopped: () => {}, close: async () => {} } as never);
  options = {
    vm: 'web1',
    qmpPath: qemu.qmpPath,
    exceptions: { ungatedNics: [], ungatedDisks: [], sharedDisks: [] },
    diskBufferBytes: 1 << 20,
    gateLimitBytes: 1 << 20,
    threads: 1,
    shadow: false,
    tracker: 'auto',
    scrubSliceBytes: 0,
    standsByLater: false,
    log: new Log(
      'info',
      () => ({}),
      (line) => lines.push(line),
    ),
  } as unknown as PrimaryAgentOptions;
});

afterEach(async () => {
  vi.restoreAllMocks();
  await qemu.stop();
});

async function runs(): Promise<boolean> {
  const qmp = await qemu.connect();
  try {
    return (await qmp.execute('query-status')).running;
  } finally {
    qmp.close();
  }
}

function perform(vm: PrimaryVm, type: 'stand-still' | 'stop-vm'): void {
  vm.perform({ type }, options as never, 1, {} as PrimaryMeters);
}

it('INVARIANT 7: a VM that stands because of us is resumed before it is let go of, also when QEMU refuses at first', async () => {
  const vm = await attachPrimary(options);
  const events: string[] = [];
  vm.listen({
    onEvent: ({ type }) => events.push(type),
    onPauseEnded: () => {},
    onReleased: () => {},
  });
  perform(vm, 'stand-still');
  await vi.waitFor(() => expect(events).toContain('stood'), PATIENCE);
  refusals = { cont: 3 };
  await vm.detach();
  expect(refusals).toEqual({ cont: 0 });
  expect(await runs()).toBe(true);
});

it('INVARIANT 7: so also when it could not be attached to', async () => {
  vi.spyOn(PrimaryDisks, 'attach').mockImplementation((_, whileStopped) => {
    refusals = { cont: 3 };
    return whileStopped(async () => {}) as never;
  });
  await expect(attachPrimary(options)).rejects.toThrow('cont refused');
  expect(await runs()).toBe(true);
});

it('INVARIANT 4: an older twin is stopped, also when QEMU refuses at first', async () => {
  const vm = await attachPrimary(options);
  refusals = { stop: 3 };
  perform(vm, 'stop-vm');
  await vm.detach();
  expect(await runs()).toBe(false);
  expect(lines).toEqual([]);
});

it('INVARIANT 4: and one that can not be is said to run', async () => {
  const vm = await attachPrimary(options);
  refusals = { stop: 100 };
  perform(vm, 'stop-vm');
  await vm.detach();
  expect(await runs()).toBe(true);
  expect(lines).toEqual([expect.stringMatching(/could NOT be stopped and may still run.*stop refused/)]);
});
