/** What `colo-agent status --json` prints. Scripts rely on these names; fields are added, never renamed. */
import type { HeartbeatStats } from '../native/binding.ts';
import type { StateWord } from '../protocol/machine.ts';
import type { Mode } from '../protocol/messages.ts';
import type { WitnessStatus } from './arbitration.ts';
import type { Histogram } from './durations.ts';
import type { LinkStatus } from './link-security.ts';
import type { Summary } from './samples.ts';

export interface CommonStatus {
  vm: string;
  state: StateWord;
  reason: string;
  /** What would happen if the primary's host died now. */
  ifPrimaryDies: string;
  witness: WitnessStatus;
  generation: number;
  /** The last committed epoch of this session. */
  epoch: number;
  lastCheckpointAgeMs: number | null;
  /** How the control connection is secured; null while there is none. */
  link: LinkStatus | null;
  /** How long heartbeats take there and back, and how far apart the peer's come; null without a session. */
  heartbeat: HeartbeatStats | null;
  agentPid: number;
  qemuPid: number;
}

export interface DiskStatus {
  id: string;
  /** `copying`: the standby's is being brought up to date. `mirrored`: it follows the checkpoints. `absent`: there is none, differences are remembered. */
  state: 'copying' | 'mirrored' | 'absent';
  sizeBytes: number;
  /** What the standby lacks, as far as is known here; whole blocks. */
  differingBytes: number;
  /** Writes of the guest that wait for their checkpoint. */
  loggedBytes: number;
  /** Since the agent began. */
  writes: number;
}

/** The proof that the standby's RAM is the primary's: see docs/architecture.md, "The scrub". */
export interface ScrubStatus {
  /** Hashed for each checkpoint; 0: the scrub is off. */
  sliceBytes: number;
  /** How often all of RAM has been gone through, and how long that took the last time. */
  rounds: number;
  lastRoundMs: number | null;
  checkedPages: number;
  /** Left out because they were dirty, and so were sent, or because the host has no memory for them. */
  skippedPages: number;
  /** Processor time a checkpoint that hashing took; beside the guest, never in its pause. */
  cpuUs: Summary;
  /** How often a page was found different, since the agent began, and what the last time. */
  found: number;
  lastFinding: string | null;
}

export interface PrimaryStatus extends CommonStatus {
  role: 'primary';
  mode: Mode;
  peer: string;
  syncPercent: number | null;
  syncSecondsLeft: number | null;
  checkpoints: number;
  /** How long the guest stood, by QEMU's own STOP and RESUME events. */
  pauseMs: Summary;
  /** The share of the time since protection began in which the guest stood, and the sum. */
  pauseShare: number;
  pauseTotalMs: number;
  /** From `stop` to RECEIVED: how long output waits at the most beyond the interval. */
  checkpointMs: { p50: number | null; p99: number | null };
  /** The same two, counted since the agent began. */
  histograms: { pause: Histogram; checkpoint: Histogram };
  /** `total`: of all checkpoints since the agent began. */
  dirtyPages: { last: number | null; p50: number | null; total: number };
  /** Where the last pause went, in microseconds. */
  pauseStepsUs: { stop: number; seal: number; scan: number; copy: number; save: number; cont: number } | null;
  /** First copies and checkpoints. */
  sentBytes: number;
  /** Checkpoints alone: what went over the wire for them, and the plain size of their pages. */
  checkpointBytes: { wire: number; raw: number };
  heldFrames: number;
  heldBytes: number;
  /** Frames that the full gate had to drop, as a NIC with a full queue does, because nothing made room. */
  droppedFrames: number;
  tracker: 'userfaultfd' | 'compare' | null;
  trackerReason: string;
  scrub: ScrubStatus;
  ungated: readonly string[];
  disks: readonly DiskStatus[];
  ungatedDisks: readonly string[];
  sharedDisks: readonly string[];
}

export interface SecondaryStatus extends CommonStatus {
  role: 'secondary';
  listen: string;
  receivedBytes: number;
  checkpoints: number;
  disks: readonly { id: string; file: string; sizeBytes: number }[];
  flushMs: Summary;
  loadMs: Summary;
  /** The same two, counted since the agent began. */
  histograms: { flush: Histogram; load: Histogram };
  /** A part of `flushMs`: the look at the pages that the primary has hashed, how many there were, and how often one was another. */
  scrub: { ms: Summary; checkedPages: number; found: number };
}

/** Of the process, in which agents of either role may follow each other. */
export interface ProcessStatus {
  /** How long its take-overs took, from what told of the primary's end until the VM ran here. */
  takeOvers: Histogram;
}

export type Status = (PrimaryStatus | SecondaryStatus) & ProcessStatus;
