/** Whatever a section started, it ends: when it is done, when it fails, and when the benchmark itself is interrupted. */
import { Cleanup } from '../dist/testbed/cleanup.js';

const open = new Set();

/** Runs `work` with a Cleanup that is run afterwards in any case. */
export async function withCleanup(work) {
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
      for (const cleanup of open) await cleanup.run().catch((error) => console.error(error.message));
      process.exit(status);
    });
  }
}
