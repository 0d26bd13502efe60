/** What is known of each VM: its agent's status, or why there is none. */
import { sendCommand } from '../agent/control-client.ts';
import type { Status } from '../agent/status.ts';
import { STATE_WORDS } from '../protocol/machine.ts';

/** What is to be said of a VM on this host: its agent's own word, or, of one whose agent doesn't run, that of the daemon which starts it. */
export const VM_WORDS = [...STATE_WORDS, 'WAITING', 'REFUSED', 'ENDING'] as const;
export type VmWord = (typeof VM_WORDS)[number];

/** `restarts`: how often the daemon has started the agent again; without a daemon nobody counts. */
export type Reading = ({ status: Status } | { failure: string; resting?: Resting }) & { restarts?: number };

/** Of a VM whose agent doesn't run, by who would start it. */
export interface Resting {
  role: Status['role'] | null;
  state: VmWord;
}

/** By the VM's name; whatever is told of them keeps this order. */
export type Readings = ReadonlyMap<string, Reading>;

/** Less than Prometheus waits by default (10 s): one agent that hangs costs its own figures alone. */
const ANSWER_MS = 3000;

/** Asks the agents of many VMs at their control sockets, all at once. Never rejects. */
export async function askAgents(
  controlPaths: ReadonlyMap<string, string>,
  answerMs = ANSWER_MS,
): Promise<Readings> {
  const asked = [...controlPaths].map(
    async ([vm, path]): Promise<[string, Reading]> => [vm, await ask(vm, path, answerMs)],
  );
  return new Map(await Promise.all(asked));
}

async function ask(vm: string, path: string, answerMs: number): Promise<Reading> {
  try {
    const status = (await sendCommand(path, 'status', {}, answerMs)) as Status;
    if (status.vm !== vm) return { failure: `the agent at ${path} is that of VM ${status.vm}` };
    // An agent that was started before an upgrade tells less.
    if (status.takeOvers === undefined || status.histograms === undefined)
      return { failure: `the agent at ${path} is an older one: restart it` };
    return { status };
  } catch (error) {
    return { failure: (error as Error).message };
  }
}
