/** How long a guest stands, by QEMU's own STOP and RESUME events: the same measure for us, for the floor and for the peer. */
import { QmpClient } from '../dist/qmp/client.js';

export class PauseWatch {
  /** {stoppedAtMs, pauseMs}, on QEMU's real-time clock. */
  pauses = [];
  /** The last RESUME; on the same clock. */
  resumedAtMs = null;
  #stoppedAtMs = null;

  /** Opens a monitor of its own; QEMU tells its events to each. */
  static async open(vm) {
    return new PauseWatch(await QmpClient.connect(vm.testQmpPath));
  }

  constructor(monitor) {
    this.monitor = monitor;
    monitor.onEvent('STOP', ({ timestamp }) => {
      this.#stoppedAtMs = milliseconds(timestamp);
    });
    monitor.onEvent('RESUME', ({ timestamp }) => {
      this.resumedAtMs = milliseconds(timestamp);
      if (this.#stoppedAtMs === null) return;
      this.pauses.push({
        stoppedAtMs: this.#stoppedAtMs,
        pauseMs: this.resumedAtMs - this.#stoppedAtMs,
      });
      this.#stoppedAtMs = null;
    });
  }

  /** Resolves with the lengths of the pauses that came to an end while `work` ran. */
  async during(work) {
    const first = this.pauses.length;
    await work();
    return this.pauses.slice(first).map(({ pauseMs }) => pauseMs);
  }

  destroy() {
    this.monitor.close();
  }
}

function milliseconds({ seconds, microseconds }) {
  return seconds * 1000 + microseconds / 1000;
}
