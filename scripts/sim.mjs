/**
 * `npm run sim [-- --seeds N] [--seed S]`: N worlds of the simulation (test/sim), of the seeds from S on (10,000, from 0), on all cores. Exits 0 only
 * when everything held in each of them. A failure names its seed; `--seed S --seeds 1` replays it.
 */
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { runSeeds } from './sim-pool.mjs';

const MODULE = '.cache/sim/test/sim/simulate.js';
/** Seeds are 31 bits wide. */
const SEED_MAX = 2 ** 31 - 1;
const LINE_EVERY_S = 10;

const { first, count } = options();
execFileSync('npx', ['tsc', '-p', 'test/sim/tsconfig.json'], { stdio: 'inherit' });
const began = performance.now();
const { ended, failures } = await runSeeds({
  module: pathToFileURL(path.resolve(MODULE)).href,
  first,
  count,
  onProgress: tellProgress,
});
for (const { seed, text } of failures)
  console.log(`\n${text}\nreplay it: npm run sim -- --seed ${seed} --seeds 1`);
const seconds = (performance.now() - began) / 1000;
const rate = `${seconds.toFixed(1)} s, ${Math.round(ended / seconds)} a second`;
const seeds = failures.map(({ seed }) => seed);
console.log(
  failures.length === 0
    ? `${ended} seeds from ${first} on held (${rate})`
    : `FAILED: ${seeds.length === 1 ? 'seed' : 'seeds'} ${seeds.join(', ')} of ${ended} from ${first} on (${rate})`,
);
process.exitCode = failures.length === 0 && ended === count ? 0 : 1;

function options() {
  const { values } = parseArgs({
    options: {
      seeds: { type: 'string', default: '10000' },
      seed: { type: 'string', default: '0' },
    },
  });
  const seed = numberOf('--seed', values.seed, 0, SEED_MAX);
  return { first: seed, count: numberOf('--seeds', values.seeds, 1, SEED_MAX - seed + 1) };
}

function numberOf(option, text, min, max) {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  console.error(`${option} ${text}: give a whole number from ${min} to ${max}`);
  process.exit(64);
}

/** A line that is written over on a terminal; elsewhere one now and then. */
function tellProgress(done) {
  const seconds = Math.round((performance.now() - began) / 1000);
  const line = `${done} of ${count} seeds, ${Math.round(done / Math.max(seconds, 1))} a second`;
  if (process.stderr.isTTY) process.stderr.write(`\r${line}\x1b[K${done === count ? '\n' : ''}`);
  else if (seconds % LINE_EVERY_S === 0) console.error(line);
}
