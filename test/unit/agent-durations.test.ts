import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Durations, STEP_BOUNDS_MS, TAKE_OVER_BOUNDS_MS } from '../../src/agent/durations.ts';
import { PrimaryMeters } from '../../src/agent/primary-meters.ts';
import { TakeOverMeter } from '../../src/agent/take-over-meter.ts';
import type { SecondaryEvent, StateWord } from '../../src/protocol/machine.ts';

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

describe('TakeOverMeter', () => {
  function take(...steps: (StateWord | SecondaryEvent)[]): { count: number; sumMs: number } {
    const meter = new TakeOverMeter();
    for (const step of steps) {
      if (typeof step === 'string') meter.effect({ type: 'state', state: step, reason: '' });
      else meter.event(step);
    }
    const { counts, sumMs, boundsMs } = meter.histogram();
    expect(boundsMs).toEqual(TAKE_OVER_BOUNDS_MS);
    return { count: counts.reduce((a, b) => a + b, 0), sumMs };
  }
  const lost = (nowMs: number): SecondaryEvent => ({ type: 'peer-lost', reason: '', nowMs });
  const silent = (heardMs: number, nowMs: number): SecondaryEvent => ({
    type: 'peer-silent',
    reason: '',
    heardMs,
    nowMs,
  });
  const tick = (nowMs: number): SecondaryEvent => ({ type: 'tick', nowMs });
  const promoted = (nowMs: number): SecondaryEvent => ({ type: 'promoted', nowMs });

  test('from the end of the connection until the VM runs', () => {
    expect(take(lost(1000), 'TAKING-OVER', tick(1050), promoted(1120), 'RUNNING')).toEqual({
      count: 1,
      sumMs: 120,
    });
  });

  test('of a silent primary, from when it was last heard', () => {
    expect(take(silent(300, 1000), 'TAKING-OVER', promoted(1120), 'RUNNING').sumMs).toBe(820);
  });

  test('waiting for the witness belongs to it', () => {
    const steps = [lost(1000), 'TAKING-OVER', tick(1500), 'BLOCKED', tick(9000), 'TAKING-OVER'] as const;
    expect(take(...steps, promoted(9100), 'RUNNING')).toEqual({ count: 1, sumMs: 8100 });
  });

  test('one that came to nothing is not counted, and the next one begins anew', () => {
    const steps = [lost(1000), 'TAKING-OVER', tick(1500), 'STARTING'] as const;
    expect(take(...steps)).toEqual({ count: 0, sumMs: 0 });
    expect(take(...steps, lost(8000), 'TAKING-OVER', promoted(8100), 'RUNNING').sumMs).toBe(100);
  });

  test('counts on when the same process takes over again', () => {
    const once = (at: number) => [lost(at), 'TAKING-OVER', promoted(at + 50), 'RUNNING'] as const;
    expect(take(...once(1000), 'STANDBY', ...once(5000))).toEqual({ count: 2, sumMs: 100 });
  });
});
