/**
 * What an agent tells the daemon that started it (`colo-agent serve`), as messages on the channel between the two processes, never as prose to be parsed.
 * Where there is no daemon nothing is told.
 */
import type { StateWord } from '../protocol/machine.ts';
import type { TakeOverRecord } from './take-over-record.ts';

/** A change of state, or of its reason. */
export interface StateMessage {
  type: 'state';
  vm: string;
  role: 'primary' | 'secondary';
  state: StateWord;
  reason: string;
  generation: number;
  epoch: number;
}

/** The last word: what came of it, or why it never began (`failed`). */
export interface EndMessage {
  type: 'end';
  outcome: string;
  reason: string;
}

/** A take-over has come to its end. */
export interface TakeOverMessage {
  type: 'take-over';
  record: TakeOverRecord;
}

export type AgentMessage = StateMessage | TakeOverMessage | EndMessage;

export function tellSupervisor(message: AgentMessage): void {
  // The daemon may be gone at any time; an agent that ends because of that has nobody to tell.
  if (process.connected) process.send?.(message, undefined, undefined, () => {});
}

/** Calls `end` when the daemon that started this process has gone, however it ended; also when it had gone already. The channel holds no process. */
export function onSupervisorGone(end: () => void): void {
  if (process.send === undefined) return;
  if (!process.connected) {
    end();
    return;
  }
  process.once('disconnect', end);
  process.channel?.unref();
}
