/** What the sections found, as lines for a terminal. Pure. */
import { STEPS } from './steps.mjs';
import { numberText, tableLines } from './table.mjs';

const PAUSES = [
  ['p50', ({ pauseMs }) => pauseMs?.p50],
  ['p99', ({ pauseMs }) => pauseMs?.p99],
  ['max', ({ pauseMs }) => pauseMs?.max],
];

export function checkpointLines({ qemu, rows, floor }) {
  return [
    ...tableLines(
      `Checkpoints of a 256 MiB guest, QEMU ${qemu}: it stands for ms (by STOP and RESUME events); CPU in cores; progress against the same guest unprotected`,
      [
        ['load', ({ load }) => load],
        ['interval', ({ intervalMs }) => intervalMs],
        ...PAUSES,
        ['checkpoints/s', ({ checkpointsPerSecond }) => checkpointsPerSecond],
        ['dirty pages', ({ dirtyPages }) => dirtyPages],
        ['wire/raw', ({ wireVsRaw }) => wireVsRaw],
        ['CPU primary', ({ cpuShare }) => cpuShare.primary],
        ['CPU secondary', ({ cpuShare }) => cpuShare.secondary],
        ['progress', ({ progress }) => progress],
      ],
      rows,
    ),
    ...tableLines(
      "Where the time goes (us at the median, from the agent's --trace); save overlaps seal, scan and copy",
      [['load', ({ load }) => load], ...STEPS.map((step) => [step, ({ stepsUs }) => stepsUs[step]?.p50])],
      rows.filter(({ stepsUs }) => stepsUs),
    ),
    ...tableLines(
      'The floor: stop, save and cont of the same guest with nothing else (ms at the median), by turns with the protected guest',
      [
        ['load', ([load]) => load],
        ['floor', ([, row]) => row.floorMs.p50],
        ['protected', ([, row]) => row.pauseMs.p50],
        ['above the floor', ([, row]) => row.aboveMs],
        ['dirty pages', ([, row]) => row.dirtyPages],
        ['plain copy of as many', ([, row]) => row.copyMs],
      ],
      Object.entries(floor),
    ),
  ];
}

const CLIENT_COLUMNS = [
  ['guest', ({ mode }) => mode],
  ['request p50 ms', ({ requestMs }) => requestMs?.p50],
  ['p99', ({ requestMs }) => requestMs?.p99],
  ['max', ({ requestMs }) => requestMs?.max],
  ['busy p50', ({ busyRequestMs }) => busyRequestMs?.p50],
  ['download MB/s', ({ downloadMBps }) => downloadMBps],
  ['upload MB/s', ({ uploadMBps }) => uploadMBps],
  ['', ({ reason }) => reason ?? ''],
];

export function clientLines({ qemu, rows, requestAddedMsP50 }) {
  return [
    ...tableLines(`What a client of the guest feels, QEMU ${qemu}`, CLIENT_COLUMNS, rows),
    `a request takes ${numberText(requestAddedMsP50)} ms longer at the median (one each 50 ms; busy: one after the other)`,
  ];
}

export function peerLines({ qemu, intervalMs, measure, rows, ratios, clientRows }) {
  const ratio = ({ p50, p99 }) =>
    `${numberText(p50)} at the median, ${numberText(p99)} at the 99th percentile`;
  return [
    ...tableLines(
      `colo-agent beside in-tree COLO, both on QEMU ${qemu ?? '-'}, every ${intervalMs} ms: the guest stands for ms (${measure})`,
      [
        ['round', ({ round }) => round + 1],
        ['side', ({ side }) => side],
        ['RAM', ({ ram }) => ram],
        ['load', ({ load }) => load],
        ...PAUSES,
        ['checkpoints/s', ({ checkpointsPerSecond }) => checkpointsPerSecond],
        ['rounds/s', ({ progressPerSecond }) => progressPerSecond],
        ['', ({ reason }) => reason ?? ''],
      ],
      rows,
    ),
    ...Object.entries(ratios).map(([load, found]) => `ours divided by theirs, ${load}: ${ratio(found)}`),
    ...tableLines(
      `What a client feels on QEMU ${qemu ?? '-'}; in-tree COLO with its net filters`,
      CLIENT_COLUMNS,
      clientRows,
    ),
  ];
}

export function failoverLines({ qemu, failoverMs, resumedMs, byKill, stream }) {
  return [
    ...tableLines(
      `From kill -9 to the first new byte on the same connection (ms), QEMU ${qemu}`,
      [
        ['killed', ([killed]) => killed],
        ['times', ([, { count }]) => count],
        ['p50', ([, { p50 }]) => p50],
        ['max', ([, { max }]) => max],
      ],
      [...Object.entries(byKill), ['both', failoverMs]],
    ),
    `until the standby's QEMU runs the guest again: ${resumedMs.p50} ms at the median, ${resumedMs.max} at most; the rest is the guest's own, whose code that QEMU translates anew`,
    `the client's one connection: ${stream.received} lines, ${stream.gaps} gaps, ${stream.regressions} regressions`,
  ];
}

export function growthLines({ rows }) {
  return tableLines(
    "Growth, by synthetic guests: the part of the pause that is the engine's (ms), CPU of all agents (cores), memory of one",
    [
      ['against', ({ axis }) => axis],
      ['guests', ({ name }) => name],
      ...PAUSES,
      ['scan us', ({ scanUs }) => scanUs],
      ['copy us', ({ copyUs }) => copyUs],
      ['CPU', ({ cpuShare }) => cpuShare],
      ['agent MiB', ({ agentMiB }) => agentMiB],
      ['', ({ reason }) => reason ?? ''],
    ],
    rows,
  );
}

/** `goal` is what the figure must not be above, or, where it is a rate, not below. */
export function summaryLines(summary) {
  const { pauseVsPeer, pauseAboveFloor: above } = summary;
  const floorGoal = (copyMs) => (copyMs === null ? '' : `at most ${numberText(0.5 + 1.2 * copyMs)}`);
  return tableLines(
    'Summary',
    [
      ['what', ([what]) => what],
      ['figure', ([, figure]) => figure],
      ['goal', ([, , goal]) => goal],
    ],
    [
      ['pause, ours / in-tree COLO, idle', pauseVsPeer.idle, 'at most 0.067'],
      ['pause, ours / in-tree COLO, 2,000 pages / 10 ms', pauseVsPeer.dirty2000, 'at most 0.100'],
      ['p99 of the pause, ours / in-tree COLO', pauseVsPeer.p99, 'at most 0.100'],
      ['pause above the floor, idle, ms', above.idleMs, 'at most 0.500'],
      ['pause above the floor, 2,000 pages / 10 ms, ms', above.dirty2000Ms, floorGoal(above.copyMs)],
      ['capture / plain copy, one thread', summary.captureVsCopy, 'at least 0.900'],
      ['codec, unchanged pages, GB/s', summary.codecUnchangedGBps, 'at least 6'],
      ['bytes on the wire / raw pages, sparse writes', summary.wireVsRawSparse, 'at most 0.200'],
      ['scan, ms per GiB', summary.scanMsPerGiB, 'at most 0.800'],
      ['request/response, added at the median, ms', summary.requestAddedMsP50, 'at most 6'],
      ['failover after kill -9, p50, ms', summary.failoverMsP50, 'under 60'],
    ],
  );
}

export function compareLines(file, rows) {
  return tableLines(
    `Beside ${file}`,
    [
      ['what', ({ what }) => what],
      ['before', ({ before }) => before],
      ['now', ({ now }) => now],
      ['now / before', ({ ratio }) => ratio],
    ],
    rows,
  );
}
