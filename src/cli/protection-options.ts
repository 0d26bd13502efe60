/** How a running VM is protected: the options of `primary`, and of a `secondary` for the time after its take-over. */
import { type Command, Option } from 'commander';
import type { PrimaryAgentOptions } from '../agent/primary-agent.ts';
import { DEFAULT_TIMINGS, type Timings } from '../protocol/machine.ts';
import type { Mode } from '../protocol/messages.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { collect, integer } from './option-parsers.ts';

export interface ProtectionOptions {
  interval: number;
  minInterval: number;
  pauseShare: number;
  mode: Mode;
  connections: number;
  threads: number;
  tracker: 'auto' | 'userfaultfd' | 'compare';
  shadow: boolean;
  scrub: number;
  gateLimit: number;
  syncRate: number;
  ungated: string[];
  ungatedDisk: string[];
  sharedDisk: string[];
  diskBuffer: number;
}

export function withProtectionOptions(command: Command): Command {
  return command
    .option(
      '--interval <ms>',
      'a checkpoint at the latest every so often',
      integer(5, 60_000),
      DEFAULT_TIMINGS.intervalMs,
    )
    .option(
      '--min-interval <ms>',
      'with output waiting, a checkpoint this soon after the last',
      integer(1, 60_000),
      DEFAULT_TIMINGS.minIntervalMs,
    )
    .option(
      '--pause-share <percent>',
      'never stop the guest for more of the time than this',
      integer(1, 90),
      DEFAULT_TIMINGS.pauseShareMax * 100,
    )
    .addOption(
      new Option('--mode <mode>', 'when the guest goes on')
        .choices(['pipelined', 'strict'])
        .default('pipelined'),
    )
    .option('--connections <n>', 'bulk connections to the standby', integer(1, 16), 1)
    .option('--threads <n>', 'threads that scan and copy inside the pause', integer(1, 64), 2)
    .addOption(
      new Option('--tracker <kind>', 'how dirty pages are found')
        .choices(['auto', 'userfaultfd', 'compare'])
        .default('auto'),
    )
    .option('--no-shadow', 'save one guest RAM of memory; whole pages go over the wire')
    .option(
      '--scrub <mib>',
      "so much RAM is hashed for each checkpoint and held against the standby's (0: none)",
      integer(0, 1024),
      8,
    )
    .option('--gate-limit <mib>', 'hold at most so much output', integer(4, 4096), 64)
    .option('--sync-rate <mib/s>', 'limit the first copy (0: no limit)', integer(0, 1_000_000), 0)
    .option(
      '--ungated <nic>',
      'leave this NIC (id or MAC) without output commit; may be given several times',
      collect,
      [],
    )
    .option(
      '--ungated-disk <id>',
      "don't copy this writable disk: the standby can do without its content; may be given several times",
      collect,
      [],
    )
    .option(
      '--shared-disk <id>',
      'both hosts reach this very disk: it is not copied. Safe only for what must not be ahead of memory; may be given several times',
      collect,
      [],
    )
    .option('--disk-buffer <mib>', "hold at most so many of a disk's writes", integer(4, 4096), 64);
}

type Protection = Pick<
  PrimaryAgentOptions,
  | 'mode'
  | 'connections'
  | 'tracker'
  | 'shadow'
  | 'threads'
  | 'scrubSliceBytes'
  | 'syncBytesPerSecond'
  | 'gateLimitBytes'
  | 'diskBufferBytes'
  | 'exceptions'
>;

const MIB = 1024 * 1024;

/** What they ask for, in the agent's units. Throws CliError for options that contradict each other. */
export function protectionOf(options: ProtectionOptions): Protection & {
  timings: Pick<Timings, 'intervalMs' | 'minIntervalMs' | 'pauseShareMax'>;
} {
  const { interval, minInterval, mode, connections, tracker, shadow, threads } = options;
  if (minInterval > interval) {
    throw new CliError(EXIT.usage, `--min-interval ${minInterval} is longer than --interval ${interval}`);
  }
  if (!shadow && tracker === 'compare') {
    throw new CliError(
      EXIT.usage,
      '--tracker compare finds dirty pages with the shadow: leave --no-shadow out',
    );
  }
  return {
    timings: { intervalMs: interval, minIntervalMs: minInterval, pauseShareMax: options.pauseShare / 100 },
    mode,
    connections,
    tracker,
    shadow,
    threads,
    scrubSliceBytes: options.scrub * MIB,
    syncBytesPerSecond: options.syncRate * MIB,
    gateLimitBytes: options.gateLimit * MIB,
    diskBufferBytes: options.diskBuffer * MIB,
    exceptions: {
      ungatedNics: options.ungated,
      ungatedDisks: options.ungatedDisk,
      sharedDisks: options.sharedDisk,
    },
  };
}
