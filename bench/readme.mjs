/** The README's figures, between its marks. */
import { readFileSync, writeFileSync } from 'node:fs';
import { numberText } from './table.mjs';

const MARKS = /(<!-- figures, by npm run bench -- --readme -->\n)[\s\S]*?(<!-- end of figures -->)/;

export function writeReadme(run) {
  const text = readFileSync('README.md', 'utf8');
  if (!MARKS.test(text)) throw new Error('README.md has no marks for the figures');
  writeFileSync(
    'README.md',
    text.replace(MARKS, (_, begin, end) => `${begin}${readmeFigures(run)}\n${end}`),
  );
}

/** Pure. */
export function readmeFigures(run) {
  const { summary } = run;
  const rows = [
    ...['idle', '2,000 random pages / 10 ms', '8,000 random pages / 10 ms'].map((load) =>
      pauseRow(run, load),
    ),
    peerRow(run, 'idle', 'idle', 15),
    peerRow(run, 'dirty2000', '2,000 random pages / 10 ms', 10),
    peerRow(run, 'dirty2000PrivateRam', '2,000 random pages / 10 ms, private RAM'),
    [
      "the 99th percentile of the pause beside that of QEMU's in-tree COLO, the worse of the two loads",
      summary.pauseVsPeer.p99 === null
        ? 'not measured'
        : `1/${(1 / summary.pauseVsPeer.p99).toFixed(1)} of it`,
      '1/10',
    ],
    [
      'the pause above `stop`, save and `cont` alone, idle; 2,000 random pages / 10 ms',
      `${ms(summary.pauseAboveFloor.idleMs)}; ${ms(summary.pauseAboveFloor.dirty2000Ms)}, where a plain copy of as many pages takes ${ms(summary.pauseAboveFloor.copyMs)}`,
      '0.5 ms + 1.2 x the copy',
    ],
    ['a request through the gate takes longer by, at the median', ms(summary.requestAddedMsP50), '6 ms'],
    ['from kill -9 to the first new byte, at the median', failoverText(run, summary), 'under 60 ms'],
    [
      'bytes on the wire, 8 changed in each page',
      `${numberText(summary.wireVsRawSparse)} of the raw pages`,
      'one fifth',
    ],
    ['capture of dirty pages, 1 thread', `${numberText(summary.captureVsCopy)} x a plain copy`, '0.9'],
    ['page codec, unchanged pages, 1 core', `${numberText(summary.codecUnchangedGBps)} GB/s`, '6 GB/s'],
    ['scan for dirty pages, 1 thread', `${numberText(summary.scanMsPerGiB)} ms per GiB`, '0.8 ms'],
    ...[1, 32].map((depth) => diskRow(run, depth)),
  ];
  const command = run.quick ? 'npm run bench -- --quick' : 'npm run bench';
  return [
    '',
    `By \`${command}\` on ${run.date}: ${run.machine}; a 256 MiB guest under software emulation, QEMU ${run.qemu}, both QEMUs and both agents on this one machine (load before the start: ${run.loadBefore.toFixed(1)}).`,
    '',
    '| what | figure | goal |',
    '|---|---|---|',
    ...rows.filter((row) => row !== null).map((cells) => `| ${cells.join(' | ')} |`),
    '',
  ].join('\n');
}

function ms(value) {
  if (value === null) return 'not measured';
  return `${Math.abs(value) < 1 ? numberText(value) : value.toFixed(1)} ms`;
}

function pauseRow({ checkpoints }, load) {
  const row = checkpoints?.rows.find((one) => one.load === load && one.intervalMs === 100);
  if (!row) return null;
  const { p50, p99 } = row.pauseMs;
  return [
    `the guest stands, ${load}, every 100 ms`,
    `${ms(p50)} at the median, ${ms(p99)} at the 99th percentile; ${row.dirtyPages} dirty pages`,
    '',
  ];
}

function failoverText({ failover }, { failoverMsP50 }) {
  const again = failover?.resumedMs?.p50;
  return again ? `${ms(failoverMsP50)}; ${ms(again)} until the guest runs again` : ms(failoverMsP50);
}

function peerRow({ peer }, key, load, goal) {
  const ratio = peer?.ratios?.[key]?.p50;
  if (goal === undefined && !ratio) return null;
  const died = peer?.rows.find((row) => (row.load === load || peer.qemu === null) && row.reason);
  const figure = ratio
    ? `1/${(1 / ratio).toFixed(1)} of it at the median (QEMU ${peer.qemu})`
    : `no figure: ${died?.reason ?? 'not measured'}`;
  return [`the pause beside QEMU's in-tree COLO, ${load}`, figure, goal === undefined ? '' : `1/${goal}`];
}

function diskRow({ disks }, depth) {
  const of = (mode) => disks?.find((row) => row.depth === depth && row.mode === mode);
  const [plain, ours, direct] = ['unprotected', 'protected', 'mirror, 1 ms away'].map(of);
  if (!plain || !ours || !direct) return null;
  const text = ({ p50Us, hostIops }) =>
    `${p50Us} us (${(p50Us / plain.p50Us).toFixed(2)} x), ${hostIops} a second`;
  return [
    `a random write of 4 KiB, ${depth} at a time, at the median`,
    `unprotected ${plain.p50Us} us, ${plain.hostIops} a second; protected ${text(ours)}; a mirror straight to a server 1 ms away ${text(direct)}`,
    depth === 1 ? 'protected within 1.3 x unprotected' : '',
  ];
}
