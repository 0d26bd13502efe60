/** Waiting for conditions, never for a fixed time. */
import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 10;

/** Milliseconds of CLOCK_MONOTONIC: comparable between all processes of this machine. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/**
 * Resolves with the first value of `probe` that is neither `undefined` nor `false`. Rejects with what `probe` throws, or after `timeoutMs` with an
 * error that says `what` was waited for and, by `describe`, what there was instead.
 */
export async function waitFor<T>(
  what: string,
  timeoutMs: number,
  probe: () => T | undefined | false | Promise<T | undefined | false>,
  describe: () => string = () => '',
): Promise<T> {
  const deadlineMs = monotonicMs() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined && value !== false) return value;
    if (monotonicMs() > deadlineMs) throw new Error(`no ${what} within ${timeoutMs} ms${describe()}`);
    await sleep(POLL_MS);
  }
}
