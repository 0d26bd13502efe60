/** What is known of all VMs of this host: of those whose agents run by the agents themselves, of the others by the daemon. */
import { askAgents, type Reading, type Readings } from '../metrics/readings.ts';
import type { VmProcess } from './vm-process.ts';

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
