import type { Command } from 'commander';
import { HostWatchdog } from '../agent/host-watchdog.ts';
import type { Log } from '../agent/log.ts';
import { integer } from './option-parsers.ts';

export interface WatchdogOptions {
  watchdog?: string;
  watchdogTimeout: number;
}

export function withWatchdogOptions(command: Command): Command {
  return command
    .option(
      '--watchdog <device>',
      'have this host RESET, with everything that runs on it, when this agent dies or stands still: /dev/watchdog (docs/fencing.md)',
    )
    .option('--watchdog-timeout <s>', 'so long after its last sign of life', integer(2, 3600), 10);
}

/** Armed from here on, if it is wanted. Throws NativeError. */
export function armWatchdog({ watchdog, watchdogTimeout }: WatchdogOptions, log: Log): HostWatchdog | null {
  return watchdog === undefined ? null : HostWatchdog.arm(watchdog, watchdogTimeout, log);
}
