/** The process behind a QMP connection: its end is noticed at once, and it can be made to end. */
import { constants } from 'node:os';
import { type NativeError, native, type ProcessWatch } from '../native/binding.ts';
import type { QmpClient } from '../qmp/client.ts';
import type { Log } from './log.ts';
import type { SerialQueue } from './serial-queue.ts';

/** How long QEMU may take to obey `quit` before it is killed. */
const QUIT_TIMEOUT_MS = 2000;

export class QemuProcess {
  readonly pid: number;
  readonly #qmp: QmpClient;
  readonly #log: Log;
  readonly #onLost: (reason: string) => void;
  readonly #watch: ProcessWatch;
  readonly #exited: Promise<void>;
  #gone = false;

  /** `onLost`: it has ended, or doesn't answer any more, without having been told to; at most once. */
  constructor(qmp: QmpClient, log: Log, onLost: (reason: string) => void) {
    this.pid = qmp.peer.pid;
    this.#qmp = qmp;
    this.#log = log;
    this.#onLost = onLost;
    let exited = () => {};
    this.#exited = new Promise((resolve) => {
      exited = resolve;
    });
    this.#watch = new native.ProcessWatch(
      this.pid,
      () => this.lost('the QEMU process ended'),
      () => exited(),
    );
  }

  /** There is no QEMU any more to be spoken to, or it is nobody's business what happens to it. */
  get gone(): boolean {
    return this.#gone;
  }

  leave(): void {
    this.#gone = true;
  }

  lost(reason: string): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#onLost(reason);
  }

  /**
   * INVARIANT 4: resolves when the process has ended. It is told to in its turn of `queue`; but it is killed when QUIT_TIMEOUT_MS from now are over, whatever the
   * queue waits for: a QMP command that hangs, say.
   */
  async quit(queue: SerialQueue): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    const timer = setTimeout(() => this.#kill(), QUIT_TIMEOUT_MS);
    await queue.run(() => this.#tellToQuit());
    clearTimeout(timer);
  }

  async #tellToQuit(): Promise<void> {
    try {
      // Where no gate lies under it, nothing of it is to be heard any more from here on.
      await this.#qmp.execute('stop');
      await this.#qmp.execute('quit');
    } catch (error) {
      this.#log.warn('QEMU did not obey quit; killing it', { error: (error as Error).message });
      this.#kill();
    }
    await this.#exited;
  }

  #kill(): void {
    try {
      this.#watch.signal(9);
    } catch (error) {
      const { errno, message } = error as NativeError;
      // It has ended by itself: whoever waits for that hears of it.
      if (errno !== constants.errno.ESRCH)
        this.#log.error('QEMU could not be killed', { pid: this.pid, error: message });
    }
  }

  /** Its end isn't noticed any more. */
  close(): void {
    this.#gone = true;
    this.#watch.close();
  }
}
