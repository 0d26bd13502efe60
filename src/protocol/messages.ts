/** The control messages between a primary (P) and a secondary (S). Their bytes are in docs/protocol.md and codec.ts. */

export const PROTOCOL_VERSION = 1;

/** Neither side adopts a generation from here on: below 2^53 there must be room to take the next one, again and again. */
export const GENERATION_MAX = 2 ** 52;

export type Mode = 'pipelined' | 'strict';

/** Who decides which side runs on when they have lost each other: a witness that both ask, or (`none`) each side by itself, or a person. */
export type Arbitration = 'witness' | 'none';

/** `node`: what the sender's host calls itself. */
export type Body =
  | {
      type: 'hello';
      description: unknown;
      mode: Mode;
      connections: number;
      lineage: Lineage;
      node: string;
      arbitration: Arbitration;
    }
  /** `lineages`: for each disk that is copied, in the order of the description, what its content descends from; null: nobody knows. */
  | { type: 'ready'; bulkToken: string; lineages: (Lineage | null)[]; node: string }
  | { type: 'new' }
  | { type: 'suspended' }
  | { type: 'send'; pages: number; vmstateBytes: number }
  | { type: 'received' }
  | { type: 'loaded' }
  | { type: 'error'; code: string; message: string; generation?: number; role?: 'standby' | 'running' }
  | { type: 'bye'; reason: ByeReason }
  /** The primary's VM stands, and goes on only where S lets it: `epoch` is the checkpoint to run, the last that was loaded. */
  | { type: 'handover' }
  /** The VM runs here, in the header's generation. How long after HANDOVER its disks were synced, its generation won (null: nobody was asked), the VM running. */
  | { type: 'took-over'; settledMs: number; claimedMs: number | null; runsMs: number };

/**
 * 32 hex digits, chosen anew for each session: names one state of a standby's disks, that of the session's first checkpoint. Whoever knows a disk to
 * descend from a state that it has confirmed itself, and has kept account of every write since, knows where it differs.
 */
export type Lineage = string;

/** Why a side leaves in order: the guest shut down; protection was ended by a person; the primary's QEMU died under a living agent. */
export type ByeReason = 'shutdown' | 'detach' | 'qemu-lost';

export interface Message {
  /** 32 hex digits. */
  vmId: string;
  generation: number;
  /** 0 where the type has none. */
  epoch: number;
  body: Body;
}
