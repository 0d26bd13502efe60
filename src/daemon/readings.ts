/** What is known of all VMs of this host: of those whose agents run by the agents themselves, of the others by the daemon. */
import type { Status } from '../agent/status.ts';
import { askAgents, type Reading, type Readings, type VmWord } from '../metrics/readings.ts';
import type { VmProcess, VmSummary } from './vm-process.ts';

/** In the order of `vms`. An agent that hangs costs its own figures alone, and the others' no more than `answerMs`. */
export async function readingsOf(vms: ReadonlyMap<string, VmProcess>, answerMs?: number): Promise<Readings> {
  const all = [...vms];
  const paths = all
    .filter(([, vm]) => vm.running)
    .map(([name, vm]): [string, string] => [name, vm.controlPath]);
  const answers = await askAgents(new Map(paths), answerMs);
  return new Map(all.map(([name, vm]) => [name, readingOf(vm, answers.get(name))]));
}

/** `answer`: of its agent, which may have ended since. */
function readingOf(vm: VmProcess, answer: Reading | undefined): Reading {
  const { role, state, reason, restarts } = vm.summary();
  if (answer !== undefined && ('status' in answer || vm.running)) return { ...answer, restarts };
  return { failure: reason, resting: { role, state }, restarts };
}

/**
 * A VM in `colo-agent status` of all: what `status VM` tells, or of one whose agent doesn't run what `list` tells. `state` is null where the agent runs and doesn't
 * answer; `reason` says so then. Scripts rely on these names.
 */
export type VmOverview =
  | (Status & { restarts: number })
  | (Omit<VmSummary, 'state'> & { state: VmWord | null });

/** As readingsOf(). */
export async function overviewOf(
  vms: ReadonlyMap<string, VmProcess>,
  answerMs?: number,
): Promise<VmOverview[]> {
  const readings = await readingsOf(vms, answerMs);
  return [...vms].map(([name, vm]) => {
    const summary = vm.summary();
    const reading = readings.get(name) as Reading;
    if ('status' in reading) return { ...reading.status, restarts: summary.restarts };
    const state = reading.resting?.state ?? null;
    return { ...summary, state, reason: reading.failure };
  });
}
