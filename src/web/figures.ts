/** Figures of the time between two looks at an agent's status. */
import type { Histogram } from '../agent/durations.ts';
import type { Status } from '../agent/status.ts';
import type { Figures } from './history.ts';

export interface Look {
  timeMs: number;
  status: Status;
}

/** `before`: null, or of an agent that has been started again since, and rates and means can't be told. */
export function figuresOf({ timeMs, status }: Look, before: Look | null): Figures {
  const same = before !== null && before.status.agentPid === status.agentPid ? before : null;
  const seconds = same === null ? 0 : (timeMs - same.timeMs) / 1000;
  const none = noFigures(timeMs);
  if (status.role === 'primary') {
    const earlier = same?.status.role === 'primary' ? same.status : null;
    return {
      ...none,
      pauseMs: meanMs(status.histograms.pause, earlier?.histograms.pause),
      pauseP99Ms: status.pauseMs.p99,
      checkpointMs: meanMs(status.histograms.checkpoint, earlier?.histograms.checkpoint),
      checkpointP99Ms: status.checkpointMs.p99,
      dirtyPagesPerSecond: rate(status.dirtyPages.total, earlier?.dirtyPages.total, seconds),
      bytesPerSecond: rate(status.sentBytes, earlier?.sentBytes, seconds),
    };
  }
  const earlier = same?.status.role === 'secondary' ? same.status : null;
  return {
    ...none,
    flushMs: meanMs(status.histograms.flush, earlier?.histograms.flush),
    loadMs: meanMs(status.histograms.load, earlier?.histograms.load),
    bytesPerSecond: rate(status.receivedBytes, earlier?.receivedBytes, seconds),
  };
}

/** Of a look at which nothing is known. */
export function noFigures(timeMs: number): Figures {
  return {
    timeMs,
    pauseMs: null,
    pauseP99Ms: null,
    checkpointMs: null,
    checkpointP99Ms: null,
    flushMs: null,
    loadMs: null,
    dirtyPagesPerSecond: null,
    bytesPerSecond: null,
  };
}

/** Null: there were none in between. */
function meanMs(now: Histogram, before: Histogram | undefined): number | null {
  if (before === undefined) return null;
  const count = sum(now.counts) - sum(before.counts);
  return count > 0 ? (now.sumMs - before.sumMs) / count : null;
}

/** A clock that was set back, or a count that began anew, gives no rate. */
function rate(now: number, before: number | undefined, seconds: number): number | null {
  return before !== undefined && seconds > 0 && now >= before ? (now - before) / seconds : null;
}

function sum(counts: readonly number[]): number {
  return counts.reduce((total, count) => total + count, 0);
}
