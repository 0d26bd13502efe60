import { native, type Watchdog } from '../native/binding.ts';
import type { Log } from './log.ts';

/** So often within the device's time-out it is fed: a few may be late. */
const FEEDS_IN_TIMEOUT = 5;

/**
 * The host's watchdog, fed by the event loop: an agent that dies or stands still while a VM depends on it takes its host down, so that what has
 * been taken over elsewhere can't come back to life here.
 */
export class HostWatchdog {
  readonly #device: Watchdog;
  readonly #timer: NodeJS.Timeout;
  readonly #log: Log;
  #failing = false;

  /** Arms the device. Throws NativeError ERR_COLO_WATCHDOG. */
  static arm(path: string, timeoutS: number, log: Log): HostWatchdog {
    return new HostWatchdog(new native.Watchdog(path, timeoutS), log);
  }

  /** Feeds an armed device from here on. */
  constructor(device: Watchdog, log: Log) {
    this.#log = log;
    this.#device = device;
    const { identity, timeoutS } = device;
    log.warn('the watchdog is armed: this host is reset should this agent die', { identity, timeoutS });
    this.#timer = setInterval(() => this.#feed(), (timeoutS * 1000) / FEEDS_IN_TIMEOUT);
  }

  /** The agent leaves in order, and no VM on this host needs it any more. */
  disarm(): void {
    clearInterval(this.#timer);
    try {
      this.#device.disarm();
    } catch (error) {
      this.#log.error('the watchdog could not be disarmed: this host will be reset', {
        error: (error as Error).message,
      });
    }
    this.#device.close();
  }

  /** Leaves it armed: the host is reset unless another agent takes the device over in time. */
  abandon(reason: string): void {
    clearInterval(this.#timer);
    this.#log.error('the watchdog stays armed: this host will be reset', { reason });
    this.#device.close();
  }

  #feed(): void {
    try {
      this.#device.feed();
      this.#failing = false;
    } catch (error) {
      if (!this.#failing)
        this.#log.error('the watchdog could not be fed', { error: (error as Error).message });
      this.#failing = true;
    }
  }
}

/** Disarms `watchdog`, if there is one, when `work` has come to an orderly end: no VM here depends on the agent then. A failure leaves it armed. */
export async function watchedBy<T>(watchdog: HostWatchdog | null, work: () => Promise<T>): Promise<T> {
  try {
    const result = await work();
    watchdog?.disarm();
    return result;
  } catch (error) {
    watchdog?.abandon((error as Error).message);
    throw error;
  }
}
