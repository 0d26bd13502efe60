import { Command, Option } from 'commander';
import { ControlServer, isForced } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { type AgentOutcome, PrimaryAgent } from '../agent/primary-agent.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import type { Mode } from '../protocol/messages.ts';
import { defaultControlPath } from './control-path.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { collect, integer, peerAddress } from './option-parsers.ts';
import { type PeerOptions, peerTimings, withPeerOptions } from './peer-options.ts';
import { showProgress } from './progress.ts';
import { linkCredentials, type SharedOptions, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { type Witnessed, warnOfNoWitness, witnessOf } from './witness-options.ts';

interface PrimaryCliOptions extends SharedOptions, PeerOptions, WatchdogOptions {
  peer: HostPort;
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

export function primaryCommand(): Command {
  return withWatchdogOptions(withPeerOptions(withSharedOptions(new Command('primary'))))
    .description('Protect the running VM behind a QMP socket: copy it to a standby, many times a second')
    .requiredOption('--peer <host:port>', "the standby's agent", peerAddress)
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
    .option('--disk-buffer <mib>', "hold at most so many of a disk's writes", integer(4, 4096), 64)
    .action(runPrimary);
}

async function runPrimary(options: PrimaryCliOptions): Promise<void> {
  if (options.minInterval > options.interval) {
    throw new CliError(
      EXIT.usage,
      `--min-interval ${options.minInterval} is longer than --interval ${options.interval}`,
    );
  }
  if (!options.shadow && options.tracker === 'compare') {
    throw new CliError(
      EXIT.usage,
      '--tracker compare finds dirty pages with the shadow: leave --no-shadow out',
    );
  }
  let agent: PrimaryAgent | null = null;
  const log = new Log(options.logLevel, () => ({
    vm: options.vm,
    role: 'primary',
    epoch: agent?.status().epoch,
  }));
  const witnessed = witnessOf(options.vm, options);
  warnOfNoWitness(witnessed);
  const running = await PrimaryAgent.attach(agentOptions(options, witnessed, log));
  agent = running;
  const watchdog = armWatchdog(options, log);
  const control = await ControlServer.listen(options.control ?? defaultControlPath(options.vm, 'primary'), {
    status: () => running.status(),
    failover: async () => {
      throw new CliError(EXIT.unavailable, 'this is the primary: run failover on the standby');
    },
    stop: async (force) => {
      running.stop(isForced(force, options.vm));
      return 'protection ends; the VM keeps running';
    },
  });
  onTerminationSignal(() => running.stop());
  const progress = showProgress(() => running.status(), options.json === true);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    progress.end();
    control.close();
  }
}

function agentOptions(options: PrimaryCliOptions, witnessed: Witnessed, log: Log) {
  return {
    ...witnessed,
    vm: options.vm,
    qmpPath: options.qmp,
    peer: options.peer,
    credentials: linkCredentials(options, options.peer.host, log),
    mode: options.mode,
    connections: options.connections,
    timings: {
      ...DEFAULT_TIMINGS,
      intervalMs: options.interval,
      minIntervalMs: options.minInterval,
      pauseShareMax: options.pauseShare / 100,
      ...peerTimings(options),
    },
    tracker: options.tracker,
    shadow: options.shadow,
    threads: options.threads,
    scrubSliceBytes: options.scrub * 1024 * 1024,
    syncBytesPerSecond: options.syncRate * 1024 * 1024,
    gateLimitBytes: options.gateLimit * 1024 * 1024,
    diskBufferBytes: options.diskBuffer * 1024 * 1024,
    exceptions: {
      ungatedNics: options.ungated,
      ungatedDisks: options.ungatedDisk,
      sharedDisks: options.sharedDisk,
    },
    traceFile: options.trace ?? null,
    log,
  };
}

const OUTCOME_EXIT: Record<AgentOutcome['outcome'], number> = {
  stopped: EXIT.ok,
  'guest-shutdown': EXIT.ok,
  'vm-lost': EXIT.unavailable,
  fenced: EXIT.tryAgain,
  refused: EXIT.configuration,
};

function report(options: PrimaryCliOptions, { outcome, reason }: AgentOutcome): void {
  if (options.json) process.stdout.write(`${JSON.stringify({ outcome, reason })}\n`);
  else process.stderr.write(`colo-agent: ${options.vm}: ${outcome}: ${reason}\n`);
  process.exitCode = OUTCOME_EXIT[outcome];
}
