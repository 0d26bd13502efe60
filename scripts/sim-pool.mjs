/** Seeds, run one after the other by a thread for each core. What it keeps doesn't grow with their number. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { CORES } from './native-tests.mjs';

const WORKER = new URL('./sim-worker.mjs', import.meta.url);
/** More of them say nothing that the first ones don't. */
const FAILURES_MAX = 10;
/** A seed takes some milliseconds. One that takes so long, on a machine that has much else to do, goes round in circles. */
const SEED_LIMIT_MS = 120_000;
const WATCH_MS = 1000;

/** What the threads share: the seeds that have been given out and that have ended, and whether to stop. */
const GIVEN = 0;
const ENDED = 1;
const STOP = 2;
const SHARED_WORDS = 3;

/**
 * `module`: the URL of what exports `runSeed(seed)`, which throws when something hasn't held. `onProgress(ended)` is called every second. Resolves with
 * how many seeds have come to their end and with the first failures, `{ seed, text }`; after FAILURES_MAX of them no new seed is begun.
 */
export async function runSeeds({ module, first, count, onProgress = () => {}, seedLimitMs = SEED_LIMIT_MS }) {
  const shared = new Int32Array(new SharedArrayBuffer(4 * SHARED_WORDS));
  const failures = [];
  const fail = (failure) => {
    failures.push(failure);
    if (failures.length >= FAILURES_MAX) Atomics.store(shared, STOP, 1);
  };
  const progress = setInterval(() => onProgress(Atomics.load(shared, ENDED)), 1000);
  try {
    const lanes = Array.from({ length: Math.min(CORES, count) }, () =>
      runLane({ module, first, count, shared }, fail, seedLimitMs),
    );
    await Promise.all(lanes);
  } finally {
    clearInterval(progress);
  }
  return { ended: Atomics.load(shared, ENDED), failures: failures.sort((a, b) => a.seed - b.seed) };
}

/** One thread after the other: in the place of one that a seed has killed comes the next. */
async function runLane(data, fail, seedLimitMs) {
  while (Atomics.load(data.shared, STOP) === 0 && Atomics.load(data.shared, GIVEN) < data.count)
    await runThread(data, fail, seedLimitMs);
}

async function runThread({ module, first, count, shared }, fail, seedLimitMs) {
  const current = new Int32Array(new SharedArrayBuffer(4));
  current[0] = -1;
  const worker = new Worker(WORKER, { workerData: { module, first, count, shared, current } });
  worker.on('message', fail);
  const stopWatching = watch(current, seedLimitMs, (seed) => {
    fail({ seed, text: `seed ${seed}: it doesn't come to its end in ${seedLimitMs} ms` });
    void worker.terminate();
  });
  try {
    const [code] = await once(worker, 'exit');
    if (code !== 0 && !stopWatching()) {
      const seed = Atomics.load(current, 0);
      fail({ seed, text: `seed ${seed}: it ended its thread with ${code}` });
    }
  } catch (error) {
    // It couldn't be loaded, or has run out of memory.
    const seed = Atomics.load(current, 0);
    fail({ seed, text: `${seed < 0 ? module : `seed ${seed}`}: ${error.stack ?? error}` });
    if (seed < 0) Atomics.store(shared, STOP, 1);
  } finally {
    stopWatching();
  }
}

/** Returns what ends it, and tells whether it has found the thread stuck. */
function watch(current, limitMs, onStuck) {
  let stuck = false;
  let seen = { seed: -1, sinceMs: 0 };
  const timer = setInterval(
    () => {
      const seed = Atomics.load(current, 0);
      if (seed !== seen.seed) seen = { seed, sinceMs: performance.now() };
      else if (seed >= 0 && performance.now() - seen.sinceMs > limitMs) {
        stuck = true;
        clearInterval(timer);
        onStuck(seed);
      }
    },
    Math.min(WATCH_MS, limitMs),
  );
  return () => {
    clearInterval(timer);
    return stuck;
  };
}
