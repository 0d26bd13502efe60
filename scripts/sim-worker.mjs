/** A thread of sim-pool.mjs: takes the next seed as long as there is one. The words that it shares are named there. */
import { parentPort, workerData } from 'node:worker_threads';

const { module, first, count, shared, current } = workerData;
const [GIVEN, ENDED, STOP] = [0, 1, 2];
const { runSeed } = await import(module);

for (let next = take(); next !== null; next = take()) run(next);

function take() {
  if (Atomics.load(shared, STOP) !== 0) return null;
  const index = Atomics.add(shared, GIVEN, 1);
  return index < count ? first + index : null;
}

function run(seed) {
  // Where the other side sees it even when this thread never comes back.
  Atomics.store(current, 0, seed);
  try {
    runSeed(seed);
  } catch (error) {
    parentPort.postMessage({ seed, text: error.message });
  }
  Atomics.add(shared, ENDED, 1);
}
