/** Where the time of a checkpoint goes, from what the agent's `--trace` wrote. Pure. */
import { median, quantile } from './statistics.mjs';

/** In the order in which they come; those up to `cont` lie inside the pause, where QEMU's save and the agent's scan and copy overlap. */
export const STEPS = [
  'stop',
  'seal',
  'scan',
  'copy',
  'save',
  'cont',
  'encode and send',
  'wait for RECEIVED',
  'release of the gate',
];

/**
 * {step: {p50, p99}} in microseconds, of the steps of an agent's trace that began between two moments of CLOCK_MONOTONIC; null for one that didn't occur.
 * @param {{name: string, ph: string, ts: number, dur?: number}[]} events
 * @param {number} fromMs
 * @param {number} toMs
 */
export function stepsUs(events, fromMs, toMs) {
  const within = events.filter(({ ph, ts }) => ph === 'X' && ts >= fromMs * 1000 && ts < toMs * 1000);
  return Object.fromEntries(
    STEPS.map((step) => {
      const took = within.filter(({ name }) => name === step).map(({ dur = 0 }) => dur);
      return [step, took.length > 0 ? { p50: median(took), p99: quantile(took, 0.99) } : null];
    }),
  );
}
