import type { VmOverview } from '../daemon/readings.ts';
import { table } from './table.ts';

const HEAD = ['VM', 'ROLE', 'STATE', 'CHECKPOINT', 'PAUSE p50/p99', 'HELD', 'REASON'];
const UNKNOWN = '-';

/** All VMs of a daemon: as `list` shows them, with how old the last checkpoint is, how long the guest stands for one, and what output waits. */
export function statusTable(vms: readonly VmOverview[]): string {
  return table([HEAD, ...vms.map(rowOf)]);
}

function rowOf(vm: VmOverview): string[] {
  const { role, state, reason } = vm;
  return [vm.vm, role ?? UNKNOWN, state ?? '?', ...figures(vm), reason];
}

function figures(vm: VmOverview): [age: string, pause: string, held: string] {
  if (!('witness' in vm)) return [UNKNOWN, UNKNOWN, UNKNOWN];
  const age = vm.lastCheckpointAgeMs === null ? UNKNOWN : ageText(vm.lastCheckpointAgeMs);
  if (vm.role === 'secondary') return [age, UNKNOWN, UNKNOWN];
  const { p50, p99 } = vm.pauseMs;
  const pause = p50 === null || p99 === null ? UNKNOWN : `${p50}/${p99} ms`;
  return [age, pause, `${vm.heldFrames} (${(vm.heldBytes / 1e6).toFixed(1)} MB)`];
}

function ageText(ms: number): string {
  return ms < 10_000 ? `${Math.round(ms)} ms ago` : `${Math.round(ms / 1000)} s ago`;
}
