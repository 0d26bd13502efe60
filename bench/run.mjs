/**
 * `npm run bench [-- --quick] [--json FILE] [--readme]`: the native micro-benchmarks, each beside its limit, the pause of a real guest,
 * and what protection costs its disk.
 * `--readme` writes the figures into README.md, between its marks.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import { benchDisks, diskLines } from './disk.mjs';
import { benchNative, nativeText } from './native.mjs';
import { benchPause } from './pause.mjs';

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    readme: { type: 'boolean', default: false },
    json: { type: 'string' },
    qemu: { type: 'string' },
  },
});

const machine = `${os.cpus().length} x ${os.cpus()[0].model.trim()}, Linux ${os.release()}`;
const loadBefore = os.loadavg()[0];
console.log(
  `${machine}; Node.js ${process.versions.node}; load before the start: ${loadBefore.toFixed(1)}\n`,
);
const native = benchNative(options);
for (const row of native) console.log(nativeText(row));

const pauses = await benchPause({ checkpoints: options.quick ? 60 : 300, qemu: options.qemu });
console.log('\nThe pause of a 256 MiB guest (milliseconds, by STOP and RESUME events)');
console.log(
  'load                                p50     p99     max   dirty p50   stop/scan/copy/save/cont of the last (us)',
);
for (const { name, pauseMs, dirtyPages, pauseStepsUs: us } of pauses) {
  const figures = [pauseMs.p50, pauseMs.p99, pauseMs.max].map((value) => value.toFixed(2).padStart(7));
  const steps = [us.stop, us.scan, us.copy, us.save, us.cont].join(' / ');
  console.log(`${name.padEnd(34)}${figures.join(' ')}   ${String(dirtyPages.p50).padStart(9)}   ${steps}`);
}
const disks = await benchDisks({
  rounds: options.quick ? 3 : 9,
  writes: options.quick ? { 1: 1000, 32: 5000 } : { 1: 4000, 32: 20_000 },
  qemu: options.qemu,
});
for (const line of diskLines(disks)) console.log(line);
if (options.json) {
  const all = { machine, loadBefore, node: process.versions.node, native, pauses, disks };
  writeFileSync(options.json, `${JSON.stringify(all, null, 2)}\n`);
}
if (options.readme) writeReadme();

function writeReadme() {
  const text = readFileSync('README.md', 'utf8');
  const marks = /(<!-- figures, by npm run bench -- --readme -->\n)[\s\S]*?(<!-- end of figures -->)/;
  if (!marks.test(text)) throw new Error('README.md has no marks for the figures');
  writeFileSync(
    'README.md',
    text.replace(marks, (_, begin, end) => `${begin}${figures()}\n${end}`),
  );
}

function figures() {
  const rows = pauses.map(
    ({ name, pauseMs, dirtyPages }) =>
      `| the guest stands, ${name} | ${pauseMs.p50.toFixed(1)} ms at the median, ${pauseMs.p99.toFixed(1)} ms at the 99th percentile; ${dirtyPages.p50} dirty pages | ${pauseGoal(name)} |`,
  );
  for (const depth of [1, 32]) rows.push(diskRow(depth));
  const kernel = bestKernel();
  rows.push(
    nativeRow('capture of 3,000 random pages, shared RAM, 1 thread', 'BM_CaptureMapped/1/real_time', '80 %'),
    nativeRow('the same, 2 threads', 'BM_CaptureMapped/2/real_time', '80 %'),
    nativeRow('the same, private RAM (process_vm_readv), 1 thread', 'BM_CaptureRemote/1/real_time', ''),
    nativeRow('the same, 2 threads', 'BM_CaptureRemote/2/real_time', ''),
    nativeRow(
      `page codec, unchanged pages (${kernel})`,
      `encode/${kernel}/changed_lines:0`,
      '4 GB/s on one core',
    ),
    nativeRow(
      `page codec, 1 line of 64 changed (${kernel})`,
      `encode/${kernel}/changed_lines:1`,
      '4 GB/s on one core',
    ),
  );
  return [
    '',
    `By \`npm run bench\` on ${new Date().toISOString().slice(0, 10)}: ${machine}; a 256 MiB guest under software emulation, QEMU ${qemuVersion()}, both QEMUs and both agents on this one machine (load before the start: ${loadBefore.toFixed(1)}).`,
    '',
    '| what | figure | goal |',
    '|---|---|---|',
    ...rows,
    '',
  ].join('\n');
}

function pauseGoal(name) {
  if (/disk/.test(name)) return 'at most 1.5 ms above the same VM without a disk';
  return `${name === 'idle' ? 'under 4 ms' : 'under 8 ms'} at the median`;
}

function diskRow(depth) {
  const of = (mode) => disks.find((row) => row.depth === depth && row.mode === mode);
  const [plain, ours, direct] = ['unprotected', 'protected', 'mirror, 1 ms away'].map(of);
  const text = ({ p50Us, hostIops }) =>
    `${p50Us} us (${(p50Us / plain.p50Us).toFixed(2)} x), ${hostIops} a second`;
  const goal = depth === 1 ? 'protected within 1.3 x unprotected' : '';
  return `| a random write of 4 KiB, ${depth} at a time, at the median | unprotected ${plain.p50Us} us, ${plain.hostIops} a second; protected ${text(ours)}; a mirror straight to a server 1 ms away ${text(direct)} | ${goal} |`;
}

function nativeRow(what, name, goal) {
  const { bytesPerSecond, limit, ofLimit } = native.find((row) => row.name === name);
  const plain = limit === 'limit_memcmp' ? 'a plain comparison' : 'a plain copy';
  return `| ${what} | ${(bytesPerSecond / 1e9).toFixed(1)} GB/s, ${Math.round(100 * ofLimit)} % of ${plain} | ${goal && `${goal}${goal.endsWith('%') ? ' of a plain copy' : ''}`} |`;
}

/** The one that the codec chooses on this processor: the last that it lists. */
function bestKernel() {
  const order = ['scalar', 'sse2', 'avx2', 'avx512'];
  return order.findLast((kernel) => native.some(({ name }) => name.startsWith(`encode/${kernel}/`)));
}

function qemuVersion() {
  return pauses[0].qemuVersion;
}
