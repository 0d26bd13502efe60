import type { Timings } from './machine.ts';

/** What the next checkpoint's time depends on. All times are on the clock that the events carry. */
export interface Pace {
  /** When the last checkpoint (or the last attempt) began. */
  lastStartedMs: number;
  /** When the VM last ran on after a pause of ours. */
  lastResumedMs: number;
  /** How long that pause was. */
  lastPauseMs: number;
  /** The gate holds output of the open epoch. */
  outputHeld: boolean;
  /** `soon`: somebody asked for a checkpoint, or the guest reset itself. `now`: the gate is nearly full, or the guest has shut down. */
  urgency: 'none' | 'soon' | 'now';
  /** After a failed attempt: not before this. */
  notBeforeMs: number;
}

/**
 * When the next checkpoint is due. The share of time that the guest may stand is kept by waiting after each pause: a pause of p allows the next
 * one after p * (1/share - 1) of running. A gate that is nearly full can't wait: the guest would be stopped by back-pressure anyway.
 */
export function nextCheckpointMs(timings: Timings, pace: Pace): number {
  if (pace.urgency === 'now') return Math.max(pace.lastResumedMs, pace.notBeforeMs);
  const shareMs = pace.lastResumedMs + pace.lastPauseMs * (1 / timings.pauseShareMax - 1);
  return Math.max(wantedMs(timings, pace), shareMs, pace.notBeforeMs);
}

function wantedMs(timings: Timings, pace: Pace): number {
  if (pace.urgency === 'soon') return pace.lastResumedMs;
  const atTheLatestMs = pace.lastStartedMs + timings.intervalMs;
  return pace.outputHeld
    ? Math.min(atTheLatestMs, pace.lastResumedMs + timings.minIntervalMs)
    : atTheLatestMs;
}
