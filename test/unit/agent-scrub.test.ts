import { describe, expect, test } from 'vitest';
import { ScrubMeter } from '../../src/agent/scrub-meter.ts';
import type { TransmitResult } from '../../src/native/binding.ts';

function sent(checked: number, skipped: number, rounds: number, cpuUs: number): TransmitResult {
  const others = { wireBytes: 0, rawBytes: 0, zeroPages: 0, unchangedPages: 0, deltaPages: 0, rawPages: 0 };
  const times = { beganUs: 0, encodeUs: 0, totalUs: 0 };
  const scrub = { scrubCheckedPages: checked, scrubSkippedPages: skipped, scrubRounds: rounds };
  return { ...others, ...times, ...scrub, scrubCpuUs: cpuUs };
}

describe('ScrubMeter', () => {
  test('nothing yet', () => {
    expect(new ScrubMeter().status()).toMatchObject({
      rounds: 0,
      lastRoundMs: null,
      checkedPages: 0,
      skippedPages: 0,
      cpuUs: { last: null },
      found: 0,
      lastFinding: null,
    });
  });

  test('adds pages up and times whole rounds', () => {
    const meter = new ScrubMeter();
    meter.transmitted(sent(100, 3, 0, 800), 1000);
    meter.transmitted(sent(90, 13, 0, 700), 2000);
    expect(meter.status().lastRoundMs).toBeNull();
    meter.transmitted(sent(50, 0, 1, 600), 4500);
    expect(meter.status()).toMatchObject({
      rounds: 1,
      lastRoundMs: 3500,
      checkedPages: 240,
      skippedPages: 16,
    });
    meter.transmitted(sent(0, 0, 3, 500), 5500);
    expect(meter.status()).toMatchObject({ rounds: 3, lastRoundMs: 500, cpuUs: { last: 500, max: 800 } });
  });

  test('remembers the last finding', () => {
    const meter = new ScrubMeter();
    meter.found('first');
    meter.found('second');
    expect(meter.status()).toMatchObject({ found: 2, lastFinding: 'second' });
  });
});
