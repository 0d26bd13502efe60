import { setTimeout as delay } from 'node:timers/promises';

const TRIES = 5;
const PAUSE_MS = 200;

/**
 * For what must not be left undone when nobody comes back to it, and what QEMU may refuse for a moment: tried several times, for a second in all. Resolves with the last
 * failure, null when it has succeeded. Doesn't reject.
 */
export async function insist(attempt: () => Promise<unknown>): Promise<Error | null> {
  for (let tries = 1; ; tries++) {
    try {
      await attempt();
      return null;
    } catch (error) {
      if (tries === TRIES) return error as Error;
      await delay(PAUSE_MS);
    }
  }
}
