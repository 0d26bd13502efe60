/** A standby's QEMU made from the running primary's by `colo-agent standby`, in two commands as on two hosts. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect } from 'vitest';
import type { StandbyPlan } from '../../../src/standby/plan.ts';
import type { Cleanup } from '../../../src/testbed/cleanup.ts';
import type { TestNetwork } from '../../../src/testbed/network.ts';
import { waitFor } from '../../../src/testbed/wait.ts';
import { coloWithin } from './cli.ts';

export interface PlannedStandby {
  pid: number;
  qmpPath: string;
  plan: StandbyPlan;
}

/** `args` name the primary and what is another on the "other host". */
export async function makePlan(cleanup: Cleanup, args: string[]): Promise<StandbyPlan> {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-standby-'));
  cleanup.add(() => rmSync(folder, { recursive: true, force: true }));
  const made = await coloWithin([], '', 'standby', ...args, '--folder', path.join(folder, 'vm'), '--json');
  expect(made).toMatchObject({ code: 0, stderr: '' });
  return JSON.parse(made.stdout) as StandbyPlan;
}

export async function startPlan(
  cleanup: Cleanup,
  network: TestNetwork,
  plan: StandbyPlan,
): Promise<PlannedStandby> {
  const started = await coloWithin(
    network.prefix,
    JSON.stringify(plan),
    ...['standby', '--from', '-', '--start', '--no-scope', '--json'],
  );
  expect(started).toMatchObject({ code: 0, stderr: '' });
  const { pid, qmpPath } = JSON.parse(started.stdout) as PlannedStandby;
  cleanup.add(() => endProcess(pid));
  return { pid, qmpPath, plan };
}

/** It is nobody's child here. */
async function endProcess(pid: number): Promise<void> {
  if (isAlive(pid)) process.kill(pid, 'SIGKILL');
  await waitFor(`end of process ${pid}`, 30_000, () => !isAlive(pid));
}

/** One that has ended and that nobody has waited for isn't alive. */
export function isAlive(pid: number): boolean {
  if (!existsSync(`/proc/${pid}/stat`)) return false;
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false;
  }
}
