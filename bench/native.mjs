/** The native micro-benchmarks, each beside its limit: the plain operation that nothing can beat which does the same work. */
import { execFileSync } from 'node:child_process';
import { nativeProgram } from './build.mjs';

/** Which limit stands beside which benchmark. */
const LIMITS = [
  [/^BM_Capture/, 'BM_PlainCopy/real_time'],
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
export function benchNative({ quick }) {
  const output = execFileSync(
    nativeProgram('core_bench'),
    [
      '--benchmark_format=json',
      '--benchmark_enable_random_interleaving=true',
      `--benchmark_repetitions=${quick ? 3 : 10}`,
      `--benchmark_min_time=${quick ? 0.02 : 0.05}`,
    ],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 },
  );
  const best = new Map();
  // The library averages counters over no iterations at times, and prints what isn't JSON.
  for (const row of JSON.parse(output.replace(/: -?nan\b/gi, ': null')).benchmarks) {
    if (row.run_type !== 'iteration') continue;
    const ns = row.real_time * NS[row.time_unit];
    const before = best.get(row.name);
    if (before && before.ns <= ns) continue;
    // A rate goes by the processor's time where the benchmark doesn't ask for real time; here it is all by real time.
    const bytes = row.bytes_per_second && row.bytes_per_second * timeOfRate(row);
    best.set(row.name, { name: row.name, ns, ...(bytes && { bytesPerSecond: (bytes * 1e9) / ns }) });
  }
  return [...best.values()].map((row) => withLimit(row, best)).sort((a, b) => (a.name < b.name ? -1 : 1));
}

function timeOfRate(row) {
  const time = row.name.includes('/real_time') ? row.real_time : row.cpu_time;
  return (time * NS[row.time_unit]) / 1e9;
}

function withLimit(row, all) {
  for (const [pattern, limit] of LIMITS) {
    const [match, argument] = pattern.exec(row.name) ?? [];
    if (match === undefined) continue;
    const name = limit.replace('$1', argument);
    const { ns, bytesPerSecond } = all.get(name);
    const ofLimit = row.bytesPerSecond && bytesPerSecond ? row.bytesPerSecond / bytesPerSecond : ns / row.ns;
    return { ...row, limit: name, ofLimit };
  }
  return row;
}

/** One line of text for people. */
export function nativeText({ name, ns, bytesPerSecond, limit, ofLimit }) {
  const time = ns < 1e6 ? `${(ns / 1e3).toFixed(1)} us` : `${(ns / 1e6).toFixed(2)} ms`;
  const rate = bytesPerSecond ? `${(bytesPerSecond / 1e9).toFixed(2)} GB/s` : '';
  const beside = limit ? `${Math.round(100 * ofLimit)} % of ${limit}` : '';
  return `${name.padEnd(44)}${time.padStart(12)}${rate.padStart(14)}   ${beside}`.trimEnd();
}
