/** What a service of Type=notify tells systemd, sd_notify(3): that it is ready, what it does, that it lives, that it ends. */
import { native } from '../native/binding.ts';
import type { Log } from './log.ts';

/** So often within WatchdogSec the event loop shows that it turns: what sd_watchdog_enabled(3) recommends. */
const PINGS_IN_TIMEOUT = 2;
/** systemd shows one line; what is longer was not meant for it. */
const STATUS_CHARACTERS_MAX = 500;

export interface ServiceManagerPlace {
  /** An absolute path, or "@name" of the abstract namespace. */
  socket: string;
  /** Null: no WatchdogSec. */
  watchdogUs: number | null;
}

/**
 * Where systemd wants to be told; null where nobody does. What says so is taken out of `env`, so that neither QEMU, nor a fence command, nor a VM's own
 * process believes that it is the service: their words would be refused, or worse, taken for ours.
 */
export function takeServiceManagerPlace(env: NodeJS.ProcessEnv, pid: number): ServiceManagerPlace | null {
  const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: usec, WATCHDOG_PID: watched } = env;
  for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name];
  if (socket === undefined || socket === '') return null;
  const meansUs = watched === undefined || Number(watched) === pid;
  const watchdogUs = usec !== undefined && meansUs && /^[1-9][0-9]{0,14}$/.test(usec) ? Number(usec) : null;
  return { socket, watchdogUs };
}

/** The service manager of this process. None of its methods throws: that systemd hears nothing is logged, and no reason to leave a VM alone. */
export class ServiceManager {
  readonly #socket: string;
  readonly #log: Log;
  readonly #timer: NodeJS.Timeout | undefined;
  #failing = false;

  /** Null where this process is no service of Type=notify. Call it once, before the first child process: it empties the environment. */
  static find(log: Log): ServiceManager | null {
    const place = takeServiceManagerPlace(process.env, process.pid);
    return place && new ServiceManager(place, log);
  }

  /** Pings from here on, from the event loop: one that stands still is what the watchdog is for. */
  constructor({ socket, watchdogUs }: ServiceManagerPlace, log: Log) {
    this.#socket = socket;
    this.#log = log;
    if (watchdogUs === null) return;
    this.#tell('WATCHDOG=1');
    this.#timer = setInterval(() => this.#tell('WATCHDOG=1'), watchdogUs / 1000 / PINGS_IN_TIMEOUT);
    this.#timer.unref();
  }

  /** What was asked for runs: `systemctl start` returns. */
  ready(status: string): void {
    this.#tell(`READY=1\nSTATUS=${oneLine(status)}`);
  }

  /** The line that `systemctl status` shows. */
  status(text: string): void {
    this.#tell(`STATUS=${oneLine(text)}`);
  }

  /** The configuration is read again; `ready` says that it has been. */
  reloading(): void {
    // MONOTONIC_USEC is what Type=notify-reload asks for; Type=notify ignores it.
    this.#tell(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`);
  }

  /** The end has begun. It may take a while, in which the watchdog is fed as before. */
  stopping(status: string): void {
    this.#tell(`STOPPING=1\nSTATUS=${oneLine(status)}`);
  }

  /** No pings any more. */
  close(): void {
    clearInterval(this.#timer);
  }

  #tell(message: string): void {
    try {
      native.notifyServiceManager(this.#socket, message);
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) this.#log.warn('systemd could not be told', { error: (error as Error).message });
      this.#failing = true;
    }
  }
}

/** A line break would begin another assignment. */
function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, ' ').trim().slice(0, STATUS_CHARACTERS_MAX);
}
