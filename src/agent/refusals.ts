/** Strangers may knock as often as they like; what the log says of them has a limit, or they could fill its disk. */
import { monotonicMs } from './driver.ts';
import type { Log } from './log.ts';

const PERIOD_MS = 60_000;
const LINES_IN_PERIOD_MAX = 20;

export class Refusals {
  readonly #log: Log;
  readonly #clock: () => number;
  #periodBeganMs = Number.NEGATIVE_INFINITY;
  #lines = 0;
  #unsaid = 0;

  constructor(log: Log, clock: () => number = monotonicMs) {
    this.#log = log;
    this.#clock = clock;
  }

  tell(peer: string, reason: string): void {
    const nowMs = this.#clock();
    if (nowMs - this.#periodBeganMs >= PERIOD_MS) {
      this.#periodBeganMs = nowMs;
      this.#lines = 0;
    }
    if (this.#lines === LINES_IN_PERIOD_MAX) {
      this.#unsaid++;
      return;
    }
    this.#lines++;
    const fields = this.#unsaid > 0 ? { peer, reason, unsaid: this.#unsaid } : { peer, reason };
    this.#unsaid = 0;
    this.#log.warn('a connection was refused', fields);
  }
}
