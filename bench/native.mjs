/** The native micro-benchmarks, each beside its limit: the plain operation that nothing can beat which does the same work. */
import { execFileSync } from 'node:child_process';
import { run } from '../dist/testbed/child.js';
import { DIES_WITH_US } from './bed.mjs';
import { nativeProgram } from './build.mjs';
import { bestKernel } from './codec-kernel.mjs';
import { median } from './statistics.mjs';

/** Which limit stands beside which benchmark. */
const LIMITS = [
  [/^BM_Capture(Mapped|Remote)/, 'BM_PlainCopy/real_time'],
  [/^encode\//, 'limit_memcmp'],
  [/^decode\//, 'limit_memcmp'],
  [/^send_checkpoint\//, 'limit_plain_send/real_time'],
  [/^BM_Compare\//, 'BM_PlainRead/real_time'],
  [/^BM_HoldAndRelease\/(\d+)/, 'BM_PlainRelay/$1/real_time'],
];

const NS = { ns: 1, us: 1e3, ms: 1e6, s: 1e9 };

/**
 * Returns {name, ns, bytesPerSecond?, limit?, ofLimit?}. Of several repetitions in random order, the best counts: what other programs take away
 * differs from one to the next, and the comparison with the limit shall not be of two different moments.
 */
export async function benchNative({ quick }) {
  const program = nativeProgram('core_bench');
  const rows = [];
  for (const plan of plans(program, quick)) rows.push(...(await runBenchmarks(program, plan)));
  const best = new Map();
  /** What was measured by turns with its limit: the ratio of each repetition. */
  const besides = new Map();
  for (const row of rows) {
    if (row.run_type !== 'iteration') continue;
    const ns = row.real_time * NS[row.time_unit];
    if (row.of_limit) besides.set(row.name, [...(besides.get(row.name) ?? []), row.of_limit]);
    const before = best.get(row.name);
    if (before && before.ns <= ns) continue;
    // A rate goes by the processor's time where the benchmark doesn't ask for real time; here it is all by real time.
    const bytes = row.bytes_per_second && row.bytes_per_second * timeOfRate(row);
    best.set(row.name, { name: row.name, ns, ...(bytes && { bytesPerSecond: (bytes * 1e9) / ns }) });
  }
  for (const [name, ratios] of besides)
    Object.assign(best.get(name), { limit: 'a plain copy by turns', ofLimit: median(ratios) });
  return [...best.values()].map((row) => withLimit(row, best)).sort((a, b) => (a.name < b.name ? -1 : 1));
}

function timeOfRate(row) {
  const time = /\/(real|manual)_time/.test(row.name) ? row.real_time : row.cpu_time;
  return (time * NS[row.time_unit]) / 1e9;
}

function withLimit(row, all) {
  for (const [pattern, limit] of LIMITS) {
    const [match, argument] = pattern.exec(row.name) ?? [];
    if (match === undefined) continue;
    const name = limit.replace('$1', argument);
    const found = all.get(name);
    if (!found) return row; // left out by --quick
    const { ns, bytesPerSecond } = found;
    const ofLimit = row.bytesPerSecond && bytesPerSecond ? row.bytesPerSecond / bytesPerSecond : ns / row.ns;
    return { ...row, limit: name, ofLimit };
  }
  return row;
}

/**
 * In a quick run what the summary needs, and what stands beside it: most of the time of a full one goes to populating gibibytes and to the codec's other
 * kernels, which this processor doesn't use. What is short is repeated more often.
 */
function plans(program, quick) {
  if (!quick) return [{ filter: '.', repetitions: 5, seconds: 0.05 }];
  const names = execFileSync(program, ['--benchmark_list_tests'], { encoding: 'utf8' }).split('\n');
  const codec = `encode/${bestKernel(names)}/changed_lines:[01]$|limit_memcmp`;
  return [
    { filter: '^BM_Userfaultfd/[03]', repetitions: 2, seconds: 0.02 },
    { filter: `^(BM_Capture|BM_PlainCopy|${codec})`, repetitions: 5, seconds: 0.02 },
    {
      filter: '^(BM_HoldAndRelease|BM_PlainRelay|BM_Seal|send_|limit_plain_send)',
      repetitions: 3,
      seconds: 0.02,
    },
  ];
}

async function runBenchmarks(program, { filter, repetitions, seconds }) {
  const options = [
    '--benchmark_format=json',
    '--benchmark_enable_random_interleaving=true',
    `--benchmark_filter=${filter}`,
    `--benchmark_repetitions=${repetitions}`,
    `--benchmark_min_time=${seconds}`,
  ];
  const output = await run(...DIES_WITH_US, program, ...options);
  // The library averages counters over no iterations at times, and prints what isn't JSON.
  return JSON.parse(output.replace(/: -?nan\b/gi, ': null')).benchmarks;
}

/** One line of text for people. */
export function nativeText({ name, ns, bytesPerSecond, limit, ofLimit }) {
  const time = ns < 1e6 ? `${(ns / 1e3).toFixed(1)} us` : `${(ns / 1e6).toFixed(2)} ms`;
  const rate = bytesPerSecond ? `${(bytesPerSecond / 1e9).toFixed(2)} GB/s` : '';
  const beside = limit ? `${Math.round(100 * ofLimit)} % of ${limit}` : '';
  return `${name.padEnd(44)}${time.padStart(12)}${rate.padStart(14)}   ${beside}`.trimEnd();
}
