import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Durations, STEP_BOUNDS_MS } from '../../src/agent/durations.ts';
import { PrimaryMeters } from '../../src/agent/primary-meters.ts';

describe('Durations', () => {
  test('each is counted at the first bound that it does not exceed, also after the window of the quantiles', () => {
    const value = fc.oneof(fc.double({ min: 0, max: 6000, noNaN: true }), fc.constantFrom(...STEP_BOUNDS_MS));
    fc.assert(
      fc.property(fc.array(value, { maxLength: 1500 }), (values) => {
        const durations = new Durations(STEP_BOUNDS_MS);
        for (const ms of values) durations.add(ms);
        const { counts, sumMs, boundsMs } = durations.histogram();
        boundsMs.forEach((bound, place) => {
          const upTo = counts.slice(0, place + 1).reduce((a, b) => a + b, 0);
          expect(upTo).toBe(values.filter((ms) => ms <= bound).length);
        });
        expect(counts.reduce((a, b) => a + b, 0)).toBe(values.length);
        expect(counts).toHaveLength(boundsMs.length + 1);
        expect(sumMs).toBeCloseTo(
          values.reduce((a, b) => a + b, 0),
          2,
        );
        expect(durations.count).toBe(values.length);
      }),
      { numRuns: 50 },
    );
  });
});

describe('the primary’s meters', () => {
  test('count pauses and checkpoints', () => {
    const meters = new PrimaryMeters(null);
    meters.pauseEnded(3.5);
    meters.pauseEnded(6000);
    const { histograms, pauseTotalMs } = meters.status();
    expect(histograms.pause.sumMs).toBe(pauseTotalMs);
    expect(histograms.pause.counts[histograms.pause.boundsMs.indexOf(4)]).toBe(1);
    expect(histograms.pause.counts.at(-1)).toBe(1);
    expect(histograms.checkpoint.counts.every((count) => count === 0)).toBe(true);
  });
});
