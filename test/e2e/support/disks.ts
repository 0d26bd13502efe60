/** What the end-to-end tests of disks share: images that outlive their VM, the guest's own check, and what the agents say of a disk. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect } from 'vitest';
import { QmpClient } from '../../../src/qmp/client.ts';
import type { AgentStatus } from '../../../src/testbed/agents.ts';
import { run } from '../../../src/testbed/child.ts';
import type { Cleanup } from '../../../src/testbed/cleanup.ts';
import type { TestVm } from '../../../src/testbed/vm.ts';
import { waitFor } from '../../../src/testbed/wait.ts';

/** A folder for images, removed with whatever the agents have put beside them. */
export function makeFolder(cleanup: Cleanup): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-disks-'));
  cleanup.add(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** One command on the monitor that is the test's. Rejects with QEMU's own error. Any command: also such as the agent never uses. */
export async function execute(vm: TestVm, command: string, args: object = {}): Promise<unknown> {
  const monitor = await QmpClient.connect(vm.testQmpPath);
  try {
    const call = monitor.execute.bind(monitor) as (name: string, args: object) => Promise<unknown>;
    return await call(command, args);
  } finally {
    monitor.close();
  }
}

/** The last step that diskcheck has shown on this VM's console; 0 when there is none. */
export function stepsShown(vm: TestVm): number {
  return Number([...vm.console().matchAll(/diskcheck ok (\d+)/g)].at(-1)?.[1] ?? 0);
}

/** Resolves when diskcheck has shown a step `more` above the last; rejects as soon as it has found a mismatch. */
export async function waitSteps(vm: TestVm, more: number, timeoutMs = 60_000): Promise<number> {
  const target = stepsShown(vm) + more;
  return waitFor(
    `step ${target} of diskcheck on ${vm.name}`,
    timeoutMs,
    () => {
      const failure = /(DISKCHECK|GUEST-)FAILED.*/.exec(vm.console())?.[0];
      if (failure) throw new Error(`${vm.name}: ${failure}`);
      const steps = stepsShown(vm);
      return steps >= target && steps;
    },
    () => `; ${vm.console().slice(-300)}`,
  );
}

export interface DiskStatus {
  id: string;
  state: 'copying' | 'mirrored' | 'absent';
  sizeBytes: number;
  differingBytes: number;
  loggedBytes: number;
  writes: number;
}

export function disksOf(status: AgentStatus): DiskStatus[] {
  return status['disks'] as DiskStatus[];
}

/**
 * The guest is stopped by a person; at the checkpoint after that each of the standby's images must come to be the primary's, byte for byte, which
 * stands still from then on. Leaves the guest stopped.
 */
export async function expectEqualDisks(primaryVm: TestVm, standbyVm: TestVm): Promise<void> {
  expect(standbyVm.disks.map(({ id }) => id)).toEqual(primaryVm.disks.map(({ id }) => id));
  for (const [index, { id, format = 'raw', path: file }] of primaryVm.disks.entries()) {
    const copy = standbyVm.disks[index]?.path ?? '';
    let difference = '';
    await waitFor(
      `checkpoint at which disk ${id} is equal`,
      30_000,
      async () => {
        // Again and again: one that falls into a checkpoint's own pause is undone at its end.
        await execute(primaryVm, 'stop');
        difference = await compareImages(file, format, copy);
        return difference === '';
      },
      () => `: ${difference}`,
    );
  }
}

/** Resolves when the guest runs, which it doesn't for a moment while a gate is taken off. */
export async function waitRunning(vm: TestVm): Promise<void> {
  await waitFor(`running guest of ${vm.name}`, 30_000, async () => {
    const { running } = (await execute(vm, 'query-status')) as { running: boolean };
    return running;
  });
}

/** Empty when they are equal; what qemu-img says of the first difference when not. */
export async function compareImages(file: string, format: string, rawCopy: string): Promise<string> {
  try {
    await run('qemu-img', 'compare', '-U', '-f', format, '-F', 'raw', file, rawCopy);
    return '';
  } catch (error) {
    const { code, stdout } = error as { code?: number; stdout?: string };
    if (code !== 1) throw error; // it couldn't compare at all
    return stdout?.trim() ?? '';
  }
}
