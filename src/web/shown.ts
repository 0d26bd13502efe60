/** What the page is told, as JSON. The page of one version speaks to the server of the same version, so names may change. */

import type { Status } from '../agent/status.ts';
import type { TakeOverRecord } from '../agent/take-over-record.ts';
import type { Row } from './history.ts';
import type { Sample } from './sampler.ts';

/** As the daemon knows a VM at any time, without asking its agent. */
export interface KnownVm {
  vm: string;
  role: 'primary' | 'secondary' | null;
  state: string;
  reason: string;
  generation: number | null;
  restarts: number;
}

export interface ShownEvent {
  id: number;
  time: string;
  vm: string;
  role: 'primary' | 'secondary' | null;
  state: string;
  reason: string;
}

/** Null where there is no such figure. */
export interface ShownFigures {
  ifPrimaryDies: string;
  /** The other host's address, of a primary; where this one listens, of a standby. */
  peer: string;
  lastCheckpointAgeMs: number | null;
  syncPercent: number | null;
  pauseP50Ms: number | null;
  pauseP99Ms: number | null;
  checkpointP50Ms: number | null;
  checkpointP99Ms: number | null;
  dirtyPagesPerSecond: number | null;
  bytesPerSecond: number | null;
  heldBytes: number | null;
  heldFrames: number | null;
}

export interface ShownVm extends KnownVm {
  /** Null: there are none, because the agent doesn't run, or doesn't answer. */
  figures: ShownFigures | null;
  /** Why a running agent has none. */
  silence: string | null;
}

export interface Shown {
  /** Of this server: numbers of rows and events mean nothing to another one. */
  run: string;
  node: string;
  version: string;
  timeMs: number;
  vms: ShownVm[];
  /** The latest ones after the one that was asked for, the oldest first. */
  events: ShownEvent[];
  lastEvent: number;
  /** The latest ones of those that came to their end after that event. */
  takeOvers: TakeOverRecord[];
  /** Of the VM that was asked for; `first`: the number of the first row. */
  history: { vm: string; first: number; rows: Row[] } | null;
}

export function shownVm(known: KnownVm, sample: Sample | null): ShownVm {
  const { vm, role, state, reason, generation, restarts } = known;
  const common = { vm, role, state, reason, generation, restarts };
  if (sample === null || sample.figures === null) {
    const reading = sample?.reading;
    const silent = reading !== undefined && 'failure' in reading && reading.resting === undefined;
    return { ...common, figures: null, silence: silent ? reading.failure : null };
  }
  const { reading, figures } = sample;
  const status = (reading as { status: Status }).status;
  return {
    ...common,
    silence: null,
    figures: {
      ...sideOf(status),
      ifPrimaryDies: status.ifPrimaryDies,
      lastCheckpointAgeMs: status.lastCheckpointAgeMs,
      dirtyPagesPerSecond: figures.dirtyPagesPerSecond,
      bytesPerSecond: figures.bytesPerSecond,
    },
  };
}

function sideOf(status: Status) {
  if (status.role === 'primary')
    return {
      peer: status.peer,
      syncPercent: status.syncPercent,
      pauseP50Ms: status.pauseMs.p50,
      pauseP99Ms: status.pauseMs.p99,
      checkpointP50Ms: status.checkpointMs.p50,
      checkpointP99Ms: status.checkpointMs.p99,
      heldBytes: status.heldBytes,
      heldFrames: status.heldFrames,
    };
  return {
    peer: status.listen,
    syncPercent: null,
    pauseP50Ms: null,
    pauseP99Ms: null,
    checkpointP50Ms: null,
    checkpointP99Ms: null,
    heldBytes: null,
    heldFrames: null,
  };
}
