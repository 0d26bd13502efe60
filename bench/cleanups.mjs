/** Whatever a section started, it ends: when it is done, when it fails, and when the benchmark itself is interrupted. */
import { Cleanup } from '../dist/testbed/cleanup.js';

const open = new Set();
let interrupted = false;

/** Runs `work` with a Cleanup that is run afterwards in any case. */
export async function withCleanup(work) {
  // The section that lost its processes has failed, and the next must not begin while the benchmark ends.
  if (interrupted) await new Promise(() => {});
  const cleanup = new Cleanup();
  open.add(cleanup);
  try {
    return await work(cleanup);
  } finally {
    open.delete(cleanup);
    await cleanup.run();
  }
}

/** Ctrl-C and kill end all that was started, then the benchmark. */
export function cleanUpOnSignals() {
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ]) {
    process.once(signal, async () => {
      interrupted = true;
      for (const cleanup of open) await cleanup.run().catch((error) => console.error(error.message));
      process.exit(status);
    });
  }
}
