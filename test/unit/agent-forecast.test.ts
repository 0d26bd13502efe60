import { describe, expect, test } from 'vitest';
import { watchMsMin, withRemedy } from '../../src/agent/estimate.ts';
import { type Conditions, forecast, pageCosts } from '../../src/agent/forecast.ts';
import { estimateText } from '../../src/cli/estimate-text.ts';
import { EXIT, exitCodeOf } from '../../src/cli/exit-codes.ts';
import type { DirtyRateRound } from '../../src/native/binding.ts';

const QUIET: DirtyRateRound = {
  windowUs: 100_000,
  dirtyPages: 0,
  scanUs: 0,
  sampledPages: 0,
  sampledBytes: 0,
  zeroPages: 0,
  unchangedPages: 0,
  deltaPages: 0,
  rawPages: 0,
  copyUs: 0,
  encodeUs: 0,
};

const CONDITIONS: Conditions = {
  fixed: { pauseMs: 3, vmstateBytes: 20_000 },
  timings: { minIntervalMs: 5, pauseShareMax: 0.2 },
  diskBytesPerSecond: 0,
  linkBitsPerSecond: 1e9,
  linkRoundTripMs: 0.5,
};

/** 1 page in 10 is sampled, is 100 bytes on the wire, and takes 2 us to copy and 1 us to encode. */
function window(dirtyPages: number): DirtyRateRound {
  const sampledPages = dirtyPages / 10;
  return {
    ...QUIET,
    dirtyPages,
    scanUs: 500,
    sampledPages,
    sampledBytes: sampledPages * 100,
    copyUs: sampledPages * 2,
    encodeUs: sampledPages,
  };
}

describe('a forecast', () => {
  test('of a guest that writes nothing is the fixed cost', () => {
    const windows = [QUIET, QUIET, QUIET];
    const costs = pageCosts(windows);
    expect(costs).toEqual({ copyUs: null, encodeUs: null });
    expect(forecast(100, windows, costs, CONDITIONS)).toMatchObject({
      intervalMs: 100,
      periodMs: 100,
      windows: 3,
      dirtyPages: { p50: 0, p99: 0, max: 0 },
      wireBytes: { total: 20_128, pages: 0, deviceState: 20_000, disks: 0 },
      wireBytesPerSecond: 201_280,
      pauseMs: { p50: 3, p99: 3 },
      pauseShare: 0.03,
    });
  });

  test('scales the sample up, and adds scan and copy to each pause', () => {
    const windows = [window(1000), window(2000), window(3000)];
    const found = forecast(100, windows, pageCosts(windows), CONDITIONS);
    expect(found.dirtyPages).toEqual({ p50: 2000, p99: 3000, max: 3000 });
    expect(found.sampledPages).toBe(600);
    expect(found.bytesPerDirtyPage).toBe(100);
    expect(found.wireBytes.pages).toBe(200_000);
    expect(found.pauseMs.p50).toBeCloseTo(3 + 0.5 + 4);
    expect(found.pauseMs.p99).toBeCloseTo(3 + 0.5 + 6);
    // Encode 2 ms, send 220,128 bytes at 1 Gbit/s, one round trip.
    const transferMs = 2 + 1.761024 + 0.5;
    expect(found.addedLatencyMs.least).toBeCloseTo(7.5 + transferMs);
    expect(found.addedLatencyMs.most).toBeCloseTo(9.5 * 4 + 9.5 + transferMs);
  });

  test('makes the period longer where pauses would take more than their share', () => {
    const windows = [window(10_000)];
    const found = forecast(25, windows, pageCosts(windows), CONDITIONS);
    expect(found.pauseMs.p50).toBeCloseTo(23.5);
    expect(found.periodMs).toBeCloseTo(117.5);
    expect(found.pauseShare).toBeCloseTo(0.2);
    expect(found.wireBytesPerSecond).toBeCloseTo((found.wireBytes.total * 1000) / 117.5);
  });

  test('takes pages for whole ones when no sampled page was dirty', () => {
    const windows = [{ ...QUIET, dirtyPages: 3 }];
    const found = forecast(100, windows, pageCosts(windows), CONDITIONS);
    expect(found.wireBytes.pages).toBe(3 * 4112);
  });

  test('has what is written to disks on the wire', () => {
    const conditions = { ...CONDITIONS, diskBytesPerSecond: 1e6 };
    const { wireBytes } = forecast(500, [QUIET], pageCosts([QUIET]), conditions);
    expect(wireBytes.disks).toBe(500_000);
    expect(wireBytes.total).toBe(520_128);
  });

  test('by hand, output waits at least for the shortest interval', () => {
    const { addedLatencyMs } = forecast(100, [QUIET], pageCosts([QUIET]), {
      ...CONDITIONS,
      fixed: { pauseMs: 0.5, vmstateBytes: 0 },
    });
    expect(addedLatencyMs.least).toBeCloseTo(1.0, 2);
    expect(addedLatencyMs.most).toBeCloseTo(5 + 1.0, 2);
  });
});

test('how long it takes to see enough: three windows of the longest, as much more of the others as they are shorter', () => {
  expect(watchMsMin([100])).toBeCloseTo(300);
  expect(watchMsMin([25, 100])).toBeCloseTo(3 * 10 * (5 + 10));
});

test.each([
  ['ERR_COLO_UFFD_UNSUPPORTED', EXIT.unavailable, /Linux 6\.7.*: the kernel said so$/],
  ['ERR_COLO_UFFD_BUSY', EXIT.unavailable, /colo-agent status.*: the kernel said so$/],
  ['ERR_COLO_UFFD_DENIED', EXIT.notPermitted, /run as root.*: the kernel said so$/],
  ['ERR_COLO_MEMORY', EXIT.internal, /^the kernel said so$/],
])('%s: says what to do, and ends with %i', (code, exitCode, text) => {
  const error = withRemedy(Object.assign(new Error('the kernel said so'), { code }));
  expect(error.message).toMatch(text);
  expect(exitCodeOf(error)).toBe(exitCode);
});

describe('as text', () => {
  const windows = [window(1000), window(1000), window(10_000)];
  const costs = pageCosts(windows);
  const estimate = {
    qemuPid: 42,
    ramBytes: 2 ** 28,
    watchedMs: 10_020,
    intervals: [25, 500].map((intervalMs) => forecast(intervalMs, windows, costs, CONDITIONS)),
    fixed: { ...CONDITIONS.fixed, source: 'assumed' as const },
    qmpRoundTripMs: { last: 0.2, p50: 0.2, p99: 0.4, max: 0.5 },
    copyUsPerPage: costs.copyUs,
    encodeUsPerPage: costs.encodeUs,
    sampleOneIn: 16,
    diskBytesPerSecond: 0,
    link: { mbitPerSecond: 1000, roundTripUs: 500 },
    pausedMeanwhile: false,
    problems: [],
  };

  test('it has a row an interval, and says what is assumed', () => {
    const lines = estimateText(estimate).split('\n');
    expect(lines[0]).toBe('QEMU 42, 256 MiB of RAM, watched for 10.0 s; the guest was not stopped');
    expect(lines.filter((line) => /^ *\d+ (\(\d+\) )?ms /.test(line))).toHaveLength(2);
    expect(lines.at(-1)).toMatch(/^In brackets/);
    expect(lines.at(-2)).toMatch(/^Assumed: .*3\.0 ms.*--measure-floor.*1000 Mbit\/s.*1 page in 16/);
  });

  test('it says what makes it doubtful, and what stands against protection', () => {
    const text = estimateText({
      ...estimate,
      fixed: { ...estimate.fixed, source: 'measured' },
      intervals: [forecast(100, [{ ...QUIET, dirtyPages: 3 }], pageCosts([QUIET]), CONDITIONS)],
      pausedMeanwhile: true,
      problems: ['NIC net0: vhost'],
    });
    expect(text).toMatch(/stopped once, for 3\.0 ms/);
    expect(text).toMatch(/too few pages.*\n.*paused the guest.*\n.*can't be protected: NIC net0: vhost/);
  });
});
