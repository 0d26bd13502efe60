/** The benchmark's pure parts: figures of samples, the summary, comparison with an earlier run, the command line, tables and charts. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compareRuns, figuresOf } from '../../bench/compare.mjs';
import { parseOptions, SECTIONS, UsageError } from '../../bench/options.mjs';
import { writePlots } from '../../bench/plots.mjs';
import { readmeFigures } from '../../bench/readme.mjs';
import { distribution, medianRatio, quantile, rounded, summarize } from '../../bench/statistics.mjs';
import { stepsUs } from '../../bench/steps.mjs';
import { summaryOf } from '../../bench/summary.mjs';
import { lineChart } from '../../bench/svg.mjs';
import { numberText, tableLines } from '../../bench/table.mjs';
import { clientLines, growthLines, peerLines, summaryLines } from '../../bench/text.mjs';

const finite = fc.double({ noNaN: true, noDefaultInfinity: true });

describe('statistics', () => {
  test('a quantile is the least sample that is no smaller than that share of them', () => {
    fc.assert(
      fc.property(
        fc.array(finite, { minLength: 1 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (samples, q) => {
          const found = quantile(samples, q) as number;
          expect(samples).toContain(found);
          const below = samples.filter((sample) => sample <= found).length;
          const strictlyBelow = samples.filter((sample) => sample < found).length;
          expect(below).toBeGreaterThanOrEqual(Math.ceil(q * samples.length));
          expect(strictlyBelow).toBeLessThan(Math.max(1, Math.ceil(q * samples.length)));
        },
      ),
    );
  });

  test('no samples have no figures', () => {
    expect(summarize([])).toEqual({ count: 0, p50: null, p99: null, max: null });
    expect(distribution([])).toEqual([]);
  });

  test('the samples stay in their order', () => {
    const samples = [3, 1, 2];
    expect(summarize(samples)).toEqual({ count: 3, p50: 2, p99: 3, max: 3 });
    expect(samples).toEqual([3, 1, 2]);
  });

  test('the ratio is the median of the pairs that have both, and null without any', () => {
    const pairs = [
      { ours: 1, theirs: 10 },
      { ours: 3, theirs: 10 },
      { ours: 2, theirs: 10 },
      { ours: 5, theirs: undefined },
      { ours: null, theirs: 10 },
    ];
    expect(medianRatio(pairs)).toBe(0.2);
    expect(medianRatio([{ ours: 5, theirs: undefined }])).toBeNull();
    expect(medianRatio([{ ours: 5, theirs: 0 }])).toBeNull();
  });

  test('a distribution rises to one', () => {
    fc.assert(
      fc.property(fc.array(finite, { minLength: 1, maxLength: 1000 }), (samples) => {
        const points = distribution(samples) as [number, number][];
        expect(points.at(-1)).toEqual([quantile(samples, 1), 1]);
        for (const [i, [value, share]] of points.entries()) {
          expect(value).toBeGreaterThanOrEqual(points[i - 1]?.[0] ?? Number.NEGATIVE_INFINITY);
          expect(share).toBeGreaterThanOrEqual(points[i - 1]?.[1] ?? 0);
        }
      }),
    );
  });

  test('what is no number stays none when it is rounded', () => {
    expect([rounded(1.23456), rounded(null), rounded(undefined), rounded(Number.NaN)]).toEqual([
      1.235,
      null,
      null,
      null,
    ]);
  });
});

const RUN = {
  machine: '2 x a processor',
  commit: 'abc',
  date: '2026-01-01',
  loadBefore: 0.5,
  quick: false,
  qemu: '7.2',
  native: [
    { name: 'BM_CaptureBesideCopy/1/manual_time', ns: 1e6, bytesPerSecond: 4e9, ofLimit: 0.95 },
    { name: 'BM_Userfaultfd/0/1/real_time', ns: 700_000 },
    { name: 'encode/avx2/changed_lines:0', ns: 1, bytesPerSecond: 5e9 },
    { name: 'encode/avx512/changed_lines:0', ns: 1, bytesPerSecond: 6.5e9 },
  ],
  checkpoints: {
    rows: [
      {
        load: '2,000 random pages / 10 ms',
        intervalMs: 100,
        pauseMs: { p50: 5, p99: 9 },
        wireVsRaw: 0.03,
        dirtyPages: 7000,
        cpuShare: { primary: 0.2, secondary: 0.1 },
      },
    ],
    floor: {
      idle: { aboveMs: 0.4, copyMs: 0 },
      dirty2000: { aboveMs: 2, copyMs: 1.5 },
    },
  },
  client: { rows: [], requestAddedMsP50: 5.5 },
  peer: {
    qemu: '11.1',
    rows: [],
    ratios: { idle: { p50: 0.05, p99: 0.2 }, dirty2000: { p50: 0.09, p99: 0.08 } },
  },
  failover: { failoverMs: { p50: 51.23 } },
};

describe('the summary', () => {
  test('has what the goals are about', () => {
    expect(summaryOf(RUN)).toEqual({
      pauseVsPeer: { idle: 0.05, dirty2000: 0.09, p99: 0.2 },
      pauseAboveFloor: { idleMs: 0.4, dirty2000Ms: 2, copyMs: 1.5 },
      captureVsCopy: 0.95,
      codecUnchangedGBps: 6.5,
      wireVsRawSparse: 0.03,
      scanMsPerGiB: 0.7,
      requestAddedMsP50: 5.5,
      failoverMsP50: 51.2,
      machine: '2 x a processor',
      qemu: '7.2',
      peerQemu: '11.1',
      commit: 'abc',
    });
  });

  test('what was not measured is null, and the table shows it so', () => {
    const { machine, ...figures } = summaryOf({ machine: 'a machine' });
    expect(machine).toBe('a machine');
    const values = Object.values(figures).flatMap((value) =>
      value !== null && typeof value === 'object' ? Object.values(value) : [value],
    );
    expect(values.filter((value) => value !== null)).toEqual([]);
    expect(summaryLines(summaryOf({ machine: 'a machine' })).slice(3)).toHaveLength(11);
  });

  test('a peer that died on one load leaves no p99', () => {
    const peer = { ...RUN.peer, ratios: { ...RUN.peer.ratios, dirty2000: { p50: null, p99: null } } };
    expect(summaryOf({ ...RUN, peer }).pauseVsPeer).toEqual({ idle: 0.05, dirty2000: null, p99: null });
  });
});

describe('comparison with an earlier run', () => {
  test('has the ratio of every figure that both have', () => {
    const run = { ...RUN, summary: summaryOf(RUN) };
    const before = structuredClone(run);
    const [capture] = before.native;
    if (capture) capture.ns *= 2;
    before.native.pop();
    const rows = compareRuns(before, run);
    expect(rows.find(({ what }) => what === 'native BM_CaptureBesideCopy/1/manual_time, us')).toEqual({
      what: 'native BM_CaptureBesideCopy/1/manual_time, us',
      before: 2000,
      now: 1000,
      ratio: 0.5,
    });
    expect(rows.some(({ what }) => what?.startsWith('native encode/avx512'))).toBe(false);
    expect(rows.length).toBe(figuresOf(run).size - 1);
  });

  test('of a run without a section there is nothing to say about it', () => {
    expect(compareRuns({}, RUN)).toEqual([]);
  });
});

describe('the command line', () => {
  test('everything runs unless it is said otherwise, in the order of the sections', () => {
    expect(parseOptions([])).toMatchObject({ quick: false, readme: false, sections: SECTIONS });
    expect(parseOptions(['--only', 'growth,native']).sections).toEqual(['native', 'growth']);
  });

  test.each([
    [['--nonsense'], /--nonsense/],
    [['file'], /file/],
    [['--only', 'native,foo'], /--only foo: there is no such section/],
    [['--readme', '--only', 'native'], /leave --only out/],
    [['--json', '/nowhere/run.json'], /--json \/nowhere\/run.json: can't be written/],
    [['--compare', '/nowhere/run.json'], /--compare \/nowhere\/run.json: there is no such file/],
    [['--peer-qemu', '/nowhere/qemu'], /--peer-qemu \/nowhere\/qemu: there is no such file that can be run/],
  ])('%j is refused', (args, message) => {
    expect(() => parseOptions(args)).toThrow(UsageError);
    expect(() => parseOptions(args)).toThrow(message);
  });
});

describe('tables', () => {
  test('text to the left, figures to the right, a dash for what is not there', () => {
    const rows = [
      { name: 'idle', value: 1.5 },
      { name: 'a long name', value: null },
    ];
    const lines = tableLines(
      'Title',
      [
        ['name', (row) => row.name],
        ['ms', (row) => row.value],
      ],
      rows,
    );
    expect(lines).toEqual(['', 'Title', 'name            ms', 'idle         1.500', 'a long name      -']);
  });

  test.each([
    [0, '0'],
    [0.06666, '0.067'],
    [4.842, '4.842'],
    [43.512, '43.51'],
    [434.91, '434.9'],
    [4349.4, '4349'],
    [null, '-'],
  ])('%j as %s', (value, text) => {
    expect(numberText(value)).toBe(text);
  });
});

describe('charts', () => {
  const chart = { title: 'A & B', xLabel: 'x', yLabel: 'y' };

  test('every point lies inside the picture, whatever the values', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(
            fc.double({ min: -1e6, max: 1e6, noNaN: true }),
            fc.double({ min: -1e6, max: 1e6, noNaN: true }),
          ),
          {
            minLength: 1,
            maxLength: 50,
          },
        ),
        fc.boolean(),
        (points, log) => {
          if (log && !points.some(([x, y]) => x >= 1e-9 && y >= 1e-9)) return;
          const svg = lineChart({ ...chart, series: [{ name: 's', points }], xLog: log, yLog: log });
          expect(svg).not.toMatch(/NaN|Infinity|undefined/);
          const [width = 0, height = 0] = (/width="(\d+)" height="(\d+)"/.exec(svg) ?? [])
            .slice(1)
            .map(Number);
          const line = /<polyline [^>]*points="([^"]+)"/.exec(svg)?.[1] ?? '';
          for (const [x, y] of line.split(' ').map((pair) => pair.split(',').map(Number))) {
            expect(x).toBeGreaterThanOrEqual(0);
            expect(x).toBeLessThanOrEqual(width);
            expect(y).toBeGreaterThanOrEqual(0);
            expect(y).toBeLessThanOrEqual(height);
          }
        },
      ),
    );
  });

  test('names are text, not markup', () => {
    expect(lineChart({ ...chart, series: [{ name: '<s>', points: [[1, 1]] }] })).toContain('A &amp; B');
  });

  test('a chart without a point is refused', () => {
    expect(() => lineChart({ ...chart, series: [{ name: 's', points: [[0, 1]] }], xLog: true })).toThrow(
      /nothing to draw/,
    );
  });
});

test('the steps of a trace, by the window in which they began', () => {
  const step = (name: string, ts: number, dur: number) => ({ name, ph: 'X', ts, dur });
  const events = [
    step('stop', 999, 50),
    step('stop', 1000, 100),
    step('stop', 1500, 300),
    step('stop', 1900, 200),
    step('stop', 2000, 500),
    { name: 'stop', ph: 'i', ts: 1500 },
    step('copy', 1200, 7),
  ];
  const found = stepsUs(events, 1, 2);
  expect(found['stop']).toEqual({ p50: 200, p99: 300 });
  expect(found['copy']).toEqual({ p50: 7, p99: 7 });
  expect(found['save']).toBeNull();
});

test('what was measured has a chart, and nothing else', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'colo-bench-test-'));
  try {
    const rows = RUN.checkpoints.rows.map((row) => ({ ...row, pauses: [4, 5, 9] }));
    writePlots({ ...RUN, checkpoints: { ...RUN.checkpoints, rows } }, folder);
    expect(readdirSync(folder).sort()).toEqual([
      'cpu-by-interval.svg',
      'pause-by-interval.svg',
      'pause-distribution.svg',
    ]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('what could not be measured is a row with its reason', () => {
  const reason = 'in-tree COLO is over: status failed';
  const peer = peerLines({
    qemu: '11.1',
    intervalMs: 100,
    measure: 'events',
    rows: [{ side: 'in-tree COLO', round: 0, ram: 'shared', load: 'idle', reason }],
    ratios: { idle: { p50: null, p99: null } },
    clientRows: [{ mode: 'in-tree COLO', reason }],
  });
  expect(peer.filter((line) => line.endsWith(reason))).toHaveLength(2);
  expect(peer).toContain('ours divided by theirs, idle: - at the median, - at the 99th percentile');
  const growth = growthLines({
    rows: [{ axis: 'RAM', name: '1 x 8192 MiB, 2000 pages', reason: 'needs more' }],
  });
  expect(growth.at(-1)).toMatch(/^RAM +1 x 8192 MiB, 2000 pages +- .*needs more$/);
  expect(
    clientLines({ qemu: '7.2', rows: [{ mode: 'protected', reason }], requestAddedMsP50: null }).at(-2),
  ).toContain(reason);
});

test("the README's figures are those of the run", () => {
  const text = readmeFigures({ ...RUN, summary: summaryOf(RUN) });
  expect(text).toContain(
    "| the pause beside QEMU's in-tree COLO, idle | 1/20.0 of it at the median (QEMU 11.1) | 1/15 |",
  );
  expect(text).toContain('| from kill -9 to the first new byte, at the median | 51.2 ms | under 60 ms |');
  expect(text).not.toMatch(/undefined|NaN/);
});
