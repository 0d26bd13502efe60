/**
 * What both machines share. A machine is pure: `step(event)` returns the effects in the order in which they must be carried out. Time comes in
 * with every event, `nextTimepointMs` says when the machine wants a `tick` at the latest; there is no other timer.
 *
 * What the shell promises, on both sides:
 * - Effects are carried out in order. What was sent before a `disconnect` still leaves; after it nothing more of that connection is told (a
 *   message or a `peer-lost` that was already queued does no harm while there is no new connection). A failed `connect` is a `peer-lost`.
 * - Every step is answered once, by its event or by a failure, also after its session has ended: machines wait for all answers before they
 *   begin the next session. `disconnect-bulk` makes `connect-bulk`, `sync` and `transmit` end soon.
 * - One control connection at a time: a secondary's shell refuses a second one until the first is gone.
 * - `staged` and `stream-failed` are told only of the session that is open.
 * - From READY to its end the shell watches a session's peer by heartbeats of its own (src/agent/peer-heartbeat.ts), and says `peer-silent` once: after what
 *   lay on the control connection by then.
 */
import type { Claim, VmRecord } from './arbiter.ts';
import type { Arbitration, Lineage, Message, Mode } from './messages.ts';

/** The one word that `status` shows (docs/architecture.md, "State"). */
export const STATE_WORDS = [
  'STARTING',
  'SYNCING',
  'PROTECTED',
  'EXPOSED',
  'STANDBY',
  'TAKING-OVER',
  'RUNNING',
  'BLOCKED',
  'FENCED',
  'STOPPED',
] as const;
export type StateWord = (typeof STATE_WORDS)[number];

export interface Timings {
  /** A checkpoint at the latest every so often. */
  intervalMs: number;
  /** And never sooner than this after the last one resumed, even with output waiting. */
  minIntervalMs: number;
  /** The guest is never stopped for more than this share of the time (0.2 = 20 %). */
  pauseShareMax: number;
  heartbeatMs: number;
  /** A peer that says nothing for so long is lost. */
  peerTimeoutMs: number;
  /** So is one whose heartbeats come, but whose event loop stands still for so long. */
  stallTimeoutMs: number;
  /** Between attempts to reach a peer. */
  reconnectMs: number;
}

export const DEFAULT_TIMINGS: Timings = {
  intervalMs: 100,
  minIntervalMs: 5,
  pauseShareMax: 0.2,
  heartbeatMs: 50,
  peerTimeoutMs: 800,
  stallTimeoutMs: 10_000,
  reconnectMs: 1000,
};

// --- primary -----------------------------------------------------------------------------------------------------------------------

export type PrimaryStep =
  | 'gate'
  | 'disks'
  | 'protect'
  | 'bulk'
  | 'sync'
  | 'stop'
  | 'capture'
  | 'save'
  | 'resume'
  | 'transmit'
  | 'stand';

export type PrimaryEvent = { nowMs: number } & (
  | { type: 'start' }
  | { type: 'tick' }
  /** `lineage`: a new one. */
  | { type: 'peer-connected'; lineage: Lineage }
  | { type: 'peer-lost'; reason: string }
  /**
   * By its heartbeats the peer, whose connection is open, is dead or does nothing any more. `reason` says which of them; `heardMs` is when it was
   * last known to live.
   */
  | { type: 'peer-silent'; reason: string; heardMs: number }
  /** What came isn't the protocol. The connection is still open: the machine answers with ERROR and disconnects. */
  | { type: 'peer-malformed'; reason: string }
  | { type: 'message'; message: Message }
  /** The answers to the effects of the same name. */
  | { type: 'gate-installed' }
  | { type: 'handed-over' }
  | { type: 'disks-synced' }
  | { type: 'protected' }
  | { type: 'bulk-connected' }
  | { type: 'synced' }
  /** `stop` has returned: the VM stands and is drained. `wasRunning` false: somebody else had paused it, so it must not be resumed by us. */
  | { type: 'stopped'; epoch: number; wasRunning: boolean }
  | { type: 'captured'; epoch: number; pages: number }
  | { type: 'saved'; epoch: number; vmstateBytes: number }
  /** `stoodMs`: how long the guest stood by QEMU's own clock, which is less than from `stop` to `cont`'s answer. Without it, that counts. */
  | { type: 'resumed'; stoodMs?: number }
  | { type: 'transmitted'; epoch: number }
  /** As `stopped`, for `stand-still`. */
  | { type: 'stood'; wasRunning: boolean }
  /** Three may also come unasked: `gate` when the gate has broken, `disks` when a disk isn't mirrored any more, `resume` when a hand-over left the VM standing. */
  | { type: 'step-failed'; step: PrimaryStep; reason: string }
  /** The gate got the first frame of the open epoch. */
  | { type: 'output-held' }
  /** The gate, or the log of a disk's writes, is nearly full. */
  | { type: 'pressure' }
  /** Somebody else paused or resumed the VM: our own `stop` and `cont` are not told. */
  | { type: 'vm-paused' }
  | { type: 'vm-resumed' }
  /** The guest reset itself: a checkpoint soon. */
  | { type: 'vm-reset' }
  /** The guest shut down (the VM stands, QEMU lives): a last checkpoint. Or somebody quit QEMU: `gone`. */
  | { type: 'vm-shutdown'; gone: boolean }
  | { type: 'vm-lost'; reason: string }
  | ClaimEvent
  | Superseded
  /**
   * `force-stop`: without the witness's word; a person knows that the standby doesn't run. It is written down there if the witness answers soon. `drill`: hand the VM over to the standby; it is answered by
   * `drilled`, once.
   */
  | { type: 'command'; command: 'stop' | 'force-stop' | 'checkpoint' | 'drill' }
);

/** The answers to `claim`. `won` and `lost` come once, `unanswered` any number of times before, and only of the last claim. */
export type ClaimEvent =
  /** What the generation was won by is durable at the witness, and the generation on this host. */
  | { type: 'claim-won'; kind: Claim['kind']; generation: number }
  | { type: 'claim-lost'; kind: Claim['kind']; reason: string }
  | { type: 'claim-unanswered'; kind: Claim['kind']; reason: string };

/** The witness has a newer generation, won by another host, than the one that this host has won last. May be told again and again. */
export interface Superseded {
  type: 'superseded';
  generation: number;
  reason: string;
}

export type PrimaryEffect =
  /** Ask the witness, until it has answered. Takes the place of a claim before. */
  | { type: 'claim'; claim: Claim }
  | { type: 'connect' }
  | { type: 'disconnect'; reason: string }
  | { type: 'send'; message: Message }
  /** Put the gate under every NIC, in pass-through. */
  | { type: 'install-gate' }
  /** INVARIANT 7: everything held leaves in order, the filters go, the tracker's protection stays or goes: the guest runs on alone. */
  | { type: 'hand-over' }
  /**
   * Brings the standby's disks up to date while the guest runs; from here on what it writes to them belongs to the epochs. Before `protect`:
   * it may take hours, in which every page would become dirty. `lineages` as READY had them; `lineage` is what the disks become with the first
   * `confirm-disks`.
   */
  | { type: 'sync-disks'; lineages: (Lineage | null)[]; lineage: Lineage }
  /** One short stop: protect every page (invariant 5), go on. */
  | { type: 'protect' }
  | { type: 'connect-bulk'; bulkToken: string; connections: number }
  | { type: 'disconnect-bulk' }
  | { type: 'sync' }
  /**
   * `stop` and the device state's save, pipelined: answers are `stopped` and then `saved`. A failed `stop` answers for both. Never while a
   * `transmit` still reads the last device state.
   */
  | { type: 'stop-and-save'; epoch: number }
  /**
   * Seal the gate, collect and copy the dirty pages. Only after `stopped` (invariants 1, 3, 5). After a failed attempt the same epoch is captured
   * again: its seal then moves to the new place.
   */
  | { type: 'capture'; epoch: number }
  /** The captured pages are dirty again (invariant 3). No answer. Also after a capture that failed. */
  | { type: 'abandon' }
  /** Only if it was we who stopped the VM: after a failure the machine asks to be sure. */
  | { type: 'resume' }
  | { type: 'transmit'; epoch: number }
  /** OUTPUT COMMIT (invariant 1): only on RECEIVED(epoch). */
  | { type: 'release-output'; epoch: number }
  /** LOADED(epoch): the standby's disks hold what the guest wrote until then. */
  | { type: 'confirm-disks'; epoch: number }
  /**
   * INVARIANT 4: `stop` of a VM that is to be handed over. From its answer on nobody resumes it, whatever becomes of this agent, unless `resume` is asked for.
   */
  | { type: 'stand-still' }
  /**
   * INVARIANT 4: the VM runs elsewhere. What is ours is taken off this one, which stands and is never resumed; what the gate holds is dropped. No answer;
   * `finished` comes next.
   */
  | { type: 'leave-vm' }
  /** The answer to the command `drill`. Null: the VM runs on the standby's host; else why it doesn't. */
  | { type: 'drilled'; failure: string | null }
  | { type: 'quit-vm' }
  /** It is to stand, and stay. */
  | { type: 'stop-vm' }
  | { type: 'state'; state: StateWord; reason: string }
  /** The agent is done. `refused`: the VM may not be protected here, and is as it was. `stale-twin`: nor may it run, and it stands. `handed-over`: it stands here and runs elsewhere. */
  | {
      type: 'finished';
      outcome: 'stopped' | 'guest-shutdown' | 'vm-lost' | 'fenced' | 'refused' | 'stale-twin' | 'handed-over';
      reason: string;
    };

export interface PrimaryOptions {
  vmId: string;
  mode: Mode;
  connections: number;
  description: unknown;
  /** The VM has disks that are copied. */
  copiesDisks: boolean;
  /** The newest that this host knows of; with a witness the first one is claimed above it. */
  generation: number;
  node: string;
  arbitration: Arbitration;
  timings: Timings;
  /** This agent has taken the VM over itself, and `generation` is what it won: nobody has to be asked before a standby is looked for. */
  tookOver: boolean;
  /** The same by a person's word alone, which the witness doesn't know of: it is told first. */
  forced: boolean;
  /** This host has had a part in the VM's protection before. */
  tookPart: boolean;
  /** A gate of an earlier agent was found: output is cut off until the witness, or without one the peer, has said that nobody took over. */
  foundClosedGate: boolean;
}

// --- secondary ---------------------------------------------------------------------------------------------------------------------

export type SecondaryEvent = { nowMs: number } & (
  | { type: 'start' }
  | { type: 'tick' }
  | { type: 'peer-connected' }
  | { type: 'peer-lost'; reason: string }
  /**
   * By its heartbeats the peer, whose connection is open, is dead or does nothing any more. `reason` says which of them; `heardMs` is when it was
   * last known to live.
   */
  | { type: 'peer-silent'; reason: string; heardMs: number }
  /** What came isn't the protocol. The connection is still open: the machine answers with ERROR and disconnects. */
  | { type: 'peer-malformed'; reason: string }
  | { type: 'message'; message: Message }
  /** The answers to `read-record`. */
  | { type: 'record-read'; record: VmRecord | null }
  | { type: 'record-unread'; reason: string }
  /** The answer to `compare`. */
  | { type: 'compared'; difference: string | null }
  | { type: 'session-opened'; bulkToken: string; lineages: (Lineage | null)[] }
  /** `open-session` can't be carried out. */
  | { type: 'session-failed'; reason: string }
  | { type: 'staged'; epoch: number; pages: number; vmstateBytes: number }
  | { type: 'stream-failed'; reason: string }
  | { type: 'flushed'; epoch: number }
  | { type: 'flush-failed'; epoch: number; reason: string }
  /** INVARIANT 8, also an answer to `flush`: RAM isn't the primary's. `reason` has block and address of the first such page. */
  | { type: 'ram-differs'; epoch: number; reason: string }
  | { type: 'loaded'; epoch: number }
  | { type: 'load-failed'; epoch: number; reason: string }
  /** The answers to `settle-disks`. */
  | { type: 'disks-settled' }
  /** A disk has lost a write. */
  | { type: 'settle-failed'; reason: string }
  /** What a promotion has to write can't be written: nothing is lost by trying it again. */
  | { type: 'not-settled'; reason: string }
  /** The answers to `promote`. */
  | { type: 'promoted' }
  /** The VM hasn't been touched: what has to come before it (the fence, a record) has failed, and may be tried again. */
  | { type: 'not-promoted'; reason: string }
  /** Nobody knows whether the VM runs. */
  | { type: 'promote-failed'; reason: string }
  | { type: 'vm-lost'; reason: string }
  | ClaimEvent
  | Superseded
  /** `force-failover`: without the witness's word; a person knows that the primary doesn't run. It is written down there if the witness answers soon, or later. */
  | { type: 'command'; command: 'stop' | 'failover' | 'force-failover' }
);

export type SecondaryEffect =
  | { type: 'send'; message: Message }
  | { type: 'disconnect'; reason: string }
  /** What this side's witness holds, linearisably. */
  | { type: 'read-record' }
  /**
   * Hold HELLO's description against this VM's, and its generation against what is recorded beside the disks: a disk is overwritten only when it is
   * known to be the older one. Without a difference, the records say from here on whose copies they are to be. `lineage` is what the disks become
   * with the session's first checkpoint.
   */
  | { type: 'compare'; description: unknown; generation: number; lineage: Lineage }
  /** Forget what an earlier session staged and expect the bulk connections. */
  | { type: 'open-session'; generation: number; connections: number }
  | { type: 'open-epoch'; epoch: number }
  /** INVARIANT 6: RAM and disks first ... */
  | { type: 'flush'; epoch: number }
  /** ... then the device state. */
  | { type: 'load'; epoch: number }
  /** INVARIANT 2: what is staged and not committed is thrown away whole. */
  | { type: 'close-session' }
  /** As of the primary. */
  | { type: 'claim'; claim: Claim }
  /** The claim isn't wanted any more. */
  | { type: 'withdraw-claim' }
  /** Sync the disks, and with a witness see that all that a promotion writes can be written. Never while a flush or a load is in progress (invariant 6). */
  | { type: 'settle-disks' }
  /**
   * INVARIANT 4: the other host fenced if that was asked for, the disks recorded as the newest, in `generation`, which has been won; then `cont` and
   * `announce-self`. Only after `disks-settled`. `handedOver`: the primary itself has said that its VM stands, so that its host needs no fence.
   */
  | { type: 'promote'; generation: number; handedOver?: true }
  /** A person knows that the other host can do no harm: a fence that is under way is given up, and none is begun. No answer. */
  | { type: 'skip-fence' }
  | { type: 'quit-vm' }
  | { type: 'state'; state: StateWord; reason: string }
  /** `fenced`: it has run the VM, and another host has won a newer generation. */
  | { type: 'finished'; outcome: 'stopped' | 'guest-shutdown' | 'vm-lost' | 'fenced'; reason: string };

export interface SecondaryOptions {
  vmId: string;
  /** The newest that this host knows of. */
  generation: number;
  node: string;
  /** When the primary is lost: ask the witness, take over without asking anybody (trials on one host), or wait for a person. */
  failover: 'claimed' | 'granted' | 'ordered';
  timings: Timings;
}

export interface Machine<Event, Effect> {
  step(event: Event): Effect[];
  /** When a `tick` is wanted at the latest, or null for never. */
  readonly nextTimepointMs: number | null;
}
