/**
 * `npm run bench [-- --quick] [--json FILE]`: the native micro-benchmarks, each beside its limit, the pause of a real guest,
 * and what protection costs its disk.
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import { benchDisks } from './disk.mjs';
import { benchPause } from './pause.mjs';

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, json: { type: 'string' }, qemu: { type: 'string' } },
});

const machine = `${os.cpus().length} x ${os.cpus()[0].model.trim()}, Linux ${os.release()}`;
console.log(`${machine}; Node.js ${process.versions.node}\n`);
const native = benchNative();
for (const { name, text } of native) console.log(`${name.padEnd(58)} ${text}`);

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
console.log(
  "\nThe guest's disk: random writes of 4 KiB (medians; `host/s` by the host's clock, which also sees the pauses)",
);
console.log('                           depth     p50 us     p99 us   writes/s     host/s');
for (const { mode, depth, ...figures } of disks) {
  const columns = [figures.p50Us, figures.p99Us, figures.iops, figures.hostIops];
  console.log(
    `${mode.padEnd(27)}${String(depth).padStart(5)}${columns.map((value) => String(value).padStart(11)).join('')}`,
  );
}
if (options.json)
  writeFileSync(
    options.json,
    `${JSON.stringify({ machine, node: process.versions.node, native, pauses, disks }, null, 2)}\n`,
  );

function benchNative() {
  const folder = 'build-test/bench';
  run('cmake', [
    '-S',
    '.',
    '-B',
    folder,
    '-DCMAKE_BUILD_TYPE=Release',
    '-DCOLO_BENCH=ON',
    '--log-level=WARNING',
  ]);
  run('cmake', ['--build', folder, '--target', 'core_bench', '--parallel', '2', '--', '--quiet']);
  const args = ['--benchmark_format=json', `--benchmark_min_time=${options.quick ? 0.1 : 0.5}`];
  const output = execFileSync(`${folder}/core_bench`, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 1 << 26,
  });
  return JSON.parse(output).benchmarks.map((row) => ({ ...row, text: figures(row) }));
}

function figures(row) {
  const time = `${row.real_time.toFixed(1)} ${row.time_unit}`.padStart(16);
  const rate = row.bytes_per_second ? `  ${(row.bytes_per_second / 1e9).toFixed(2)} GB/s` : '';
  const items = row.items_per_second ? `  ${(row.items_per_second / 1e6).toFixed(3)} M/s` : '';
  return `${time}${rate}${items}`;
}

function run(command, args) {
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}
