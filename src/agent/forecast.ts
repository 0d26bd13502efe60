/** From what was seen of an unprotected guest to what its protection would cost: arithmetic only. Every assumption is an argument. */
import type { DirtyRateRound } from '../native/binding.ts';
import type { Timings } from '../protocol/machine.ts';
import { quantile } from './samples.ts';

/** What each checkpoint costs whatever the guest does. */
export interface FixedCost {
  /** How long the guest stands for `stop`, xen-save-devices-state and `cont` alone. */
  pauseMs: number;
  vmstateBytes: number;
}

export interface Conditions {
  fixed: FixedCost;
  timings: Pick<Timings, 'minIntervalMs' | 'pauseShareMax'>;
  /** What the guest writes to disks that are copied. */
  diskBytesPerSecond: number;
  linkBitsPerSecond: number;
  linkRoundTripMs: number;
}

/** By the sample, over all windows: null when no page of it was ever dirty. */
export interface PageCosts {
  copyUs: number | null;
  encodeUs: number | null;
}

export interface IntervalForecast {
  intervalMs: number;
  /** Longer than the interval when pauses would take more than their share of the time. */
  periodMs: number;
  windows: number;
  dirtyPages: { p50: number; p99: number; max: number };
  sampledPages: number;
  /** A dirty page on the wire, at the mean. */
  bytesPerDirtyPage: number;
  /** At the mean. */
  wireBytes: { total: number; pages: number; deviceState: number; disks: number };
  wireBytesPerSecond: number;
  pauseMs: { p50: number; p99: number };
  pauseShare: number;
  /** For a frame that the guest sends just before a pause, and just after one. */
  addedLatencyMs: { least: number; most: number };
}

/** A whole page and its entry's header (docs/protocol.md, PAGES): what a dirty page is at the most. */
const RAW_PAGE_BYTES = 4096 + 16;
/** PAGES, VMSTATE and END have a header each, and END a payload (docs/protocol.md, "Bulk frames"). */
const FRAME_BYTES = 3 * 32 + 32;

export function pageCosts(windows: readonly DirtyRateRound[]): PageCosts {
  const pages = sum(windows, ({ sampledPages }) => sampledPages);
  if (pages === 0) return { copyUs: null, encodeUs: null };
  return {
    copyUs: sum(windows, ({ copyUs }) => copyUs) / pages,
    encodeUs: sum(windows, ({ encodeUs }) => encodeUs) / pages,
  };
}

/** `windows` were as long as the interval; there is at least one. */
export function forecast(
  intervalMs: number,
  windows: readonly DirtyRateRound[],
  costs: PageCosts,
  conditions: Conditions,
): IntervalForecast {
  const { fixed, timings, diskBytesPerSecond } = conditions;
  const copyUs = costs.copyUs ?? 0;
  const dirty = ascending(windows.map(({ dirtyPages }) => dirtyPages));
  const pauses = ascending(
    windows.map(({ dirtyPages, scanUs }) => fixed.pauseMs + (scanUs + dirtyPages * copyUs) / 1000),
  );
  const pauseMs = { p50: quantile(pauses, 0.5), p99: quantile(pauses, 0.99) };
  const periodMs = Math.max(intervalMs, pauseMs.p50 / timings.pauseShareMax);
  const bytesPerDirtyPage = bytesOfADirtyPage(windows);
  const meanDirtyPages = sum(windows, ({ dirtyPages }) => dirtyPages) / windows.length;
  const pages = meanDirtyPages * bytesPerDirtyPage;
  const disks = (diskBytesPerSecond * periodMs) / 1000;
  const total = FRAME_BYTES + fixed.vmstateBytes + pages + disks;
  const encodeMs = (meanDirtyPages * (costs.encodeUs ?? 0)) / 1000;
  return {
    intervalMs,
    periodMs,
    windows: windows.length,
    dirtyPages: { p50: quantile(dirty, 0.5), p99: quantile(dirty, 0.99), max: dirty.at(-1) ?? 0 },
    sampledPages: sum(windows, ({ sampledPages }) => sampledPages),
    bytesPerDirtyPage,
    wireBytes: { total, pages, deviceState: fixed.vmstateBytes, disks },
    wireBytesPerSecond: (total * 1000) / periodMs,
    pauseMs,
    pauseShare: pauseMs.p50 / periodMs,
    addedLatencyMs: addedLatency(intervalMs, pauseMs, encodeMs, total, conditions),
  };
}

function bytesOfADirtyPage(windows: readonly DirtyRateRound[]): number {
  const sampled = sum(windows, ({ sampledPages }) => sampledPages);
  if (sampled > 0) return sum(windows, ({ sampledBytes }) => sampledBytes) / sampled;
  return sum(windows, ({ dirtyPages }) => dirtyPages) > 0 ? RAW_PAGE_BYTES : 0;
}

/**
 * Output waits for the pause of its checkpoint, and for its way to the standby and the answer. With output waiting, the next pause begins as soon
 * as src/protocol/schedule.ts allows, and the peer has confirmed the checkpoint before.
 */
function addedLatency(
  intervalMs: number,
  pauseMs: { p50: number; p99: number },
  encodeMs: number,
  wireBytes: number,
  { timings, linkBitsPerSecond, linkRoundTripMs }: Conditions,
): { least: number; most: number } {
  const transferMs = encodeMs + (wireBytes * 8000) / linkBitsPerSecond + linkRoundTripMs;
  const shareMs = pauseMs.p99 * (1 / timings.pauseShareMax - 1);
  const waitMs = Math.max(
    Math.min(timings.minIntervalMs, intervalMs),
    shareMs,
    transferMs + linkRoundTripMs, // NEW and SUSPENDED of the next one are exchanged after RECEIVED
  );
  return { least: pauseMs.p50 + transferMs, most: waitMs + pauseMs.p99 + transferMs };
}

function ascending(values: number[]): number[] {
  return values.sort((a, b) => a - b);
}

function sum<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0);
}
