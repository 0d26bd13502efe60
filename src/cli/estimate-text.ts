import type { Estimate } from '../agent/estimate.ts';
import type { IntervalForecast } from '../agent/forecast.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';

/** A forecast for people: a table, one row an interval, and what it rests on. */
export function estimateText(estimate: Estimate): string {
  const { qemuPid, ramBytes, watchedMs, intervals, fixed } = estimate;
  const stopped =
    fixed.source === 'measured' ? `stopped once, for ${ms(fixed.pauseMs)}, when asked to` : 'not stopped';
  return [
    `QEMU ${qemuPid}, ${Math.round(ramBytes / 2 ** 20)} MiB of RAM, watched for ${(watchedMs / 1000).toFixed(1)} s; the guest was ${stopped}`,
    '',
    ...table([HEADER, ...intervals.map(row)]),
    '',
    `Assumed: ${assumptions(estimate).join('; ')}.`,
    ...warnings(estimate),
  ].join('\n');
}

const HEADER = [
  'interval',
  'dirty pages p50',
  'p99',
  'sent a checkpoint',
  'a second',
  'pause p50',
  'p99',
  'guest stands',
  'added to output',
];

function row({
  intervalMs,
  periodMs,
  dirtyPages,
  wireBytes,
  wireBytesPerSecond,
  pauseMs,
  pauseShare,
  addedLatencyMs,
}: IntervalForecast): string[] {
  return [
    // The shortest that the guest's share of the time allows.
    periodMs > intervalMs ? `${intervalMs} (${Math.ceil(periodMs)}) ms` : `${intervalMs} ms`,
    String(dirtyPages.p50),
    String(dirtyPages.p99),
    bytes(wireBytes.total),
    `${bytes(wireBytesPerSecond)}/s`,
    ms(pauseMs.p50),
    ms(pauseMs.p99),
    `${(pauseShare * 100).toFixed(1)} %`,
    `${addedLatencyMs.least.toFixed(1)} to ${ms(addedLatencyMs.most)}`,
  ];
}

function assumptions({ fixed, link, qmpRoundTripMs, diskBytesPerSecond, sampleOneIn }: Estimate): string[] {
  const floor =
    fixed.source === 'measured'
      ? `that each pause costs the ${ms(fixed.pauseMs)} of the one that was measured, besides scan and copy`
      : `that QEMU stops, saves ${bytes(fixed.vmstateBytes)} of device state and goes on in ${ms(fixed.pauseMs)} (measured of it: QMP round trips of ${qmpRoundTripMs.p50} ms; --measure-floor measures all)`;
  return [
    floor,
    `a link of ${link.mbitPerSecond} Mbit/s with a round trip of ${link.roundTripUs} us, and a standby that keeps up`,
    `that what 1 page in ${sampleOneIn} became on the wire holds for all`,
    ...(diskBytesPerSecond > 0
      ? [`that ${bytes(diskBytesPerSecond)}/s of disk writes go over the wire as they are`]
      : []),
  ];
}

function warnings({ problems, pausedMeanwhile, intervals }: Estimate): string[] {
  const longer = intervals.some(({ periodMs, intervalMs }) => periodMs > intervalMs);
  const few = intervals.some(({ dirtyPages, sampledPages }) => dirtyPages.max > 0 && sampledPages === 0);
  return [
    ...(longer
      ? [
          `In brackets: the interval that it becomes, so that pauses take no more than ${DEFAULT_TIMINGS.pauseShareMax * 100} % of the time.`,
        ]
      : []),
    ...(few
      ? ['Where too few pages were dirty to tell their cost, they count as whole pages on the wire.']
      : []),
    ...(pausedMeanwhile ? ['Somebody paused the guest meanwhile: the forecast is too low.'] : []),
    ...problems.map((problem) => `As it is, this VM can't be protected: ${problem}`),
  ];
}

function table(rows: string[][]): string[] {
  const widths = HEADER.map((_, column) => Math.max(...rows.map((cells) => cells[column]?.length ?? 0)));
  return rows.map((cells) => cells.map((cell, column) => cell.padStart(widths[column] ?? 0)).join('  '));
}

function ms(value: number): string {
  return `${value.toFixed(1)} ms`;
}

function bytes(value: number): string {
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} GB`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} MB`;
  return `${(value / 1e3).toFixed(1)} kB`;
}
