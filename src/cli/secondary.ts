import { Command } from 'commander';
import { ControlServer, isForced } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { SecondaryAgent, type SecondaryOutcome } from '../agent/secondary-agent.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { defaultControlPath } from './control-path.ts';
import { EXIT } from './exit-codes.ts';
import { type FenceCliOptions, fenceOptions, withFenceOptions } from './fence-options.ts';
import { collect, listenAddress } from './option-parsers.ts';
import { type PeerOptions, peerTimings, withPeerOptions } from './peer-options.ts';
import { linkCredentials, type SharedOptions, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { warnOfNoWitness, witnessOf } from './witness-options.ts';

interface SecondaryCliOptions extends SharedOptions, PeerOptions, FenceCliOptions, WatchdogOptions {
  listen: HostPort;
  overwriteDisk: string[];
}

export function secondaryCommand(): Command {
  return withWatchdogOptions(withFenceOptions(withPeerOptions(withSharedOptions(new Command('secondary')))))
    .description('Be the standby: hold the last checkpoint in a VM started with -S, and take it over')
    .requiredOption(
      '--listen <host:port>',
      'where the primary connects to (port 0: any free one)',
      listenAddress,
    )
    .option(
      '--overwrite-disk <id>',
      'give up whatever is on this disk, also when it may be the newer one; may be given several times',
      collect,
      [],
    )
    .action(runSecondary);
}

async function runSecondary(options: SecondaryCliOptions): Promise<void> {
  let agent: SecondaryAgent | null = null;
  const log = new Log(options.logLevel, () => ({
    vm: options.vm,
    role: 'secondary',
    epoch: agent?.status().epoch,
  }));
  const witnessed = witnessOf(options.vm, options);
  warnOfNoWitness(witnessed);
  const running = await SecondaryAgent.attach({
    ...witnessed,
    vm: options.vm,
    qmpPath: options.qmp,
    listen: options.listen,
    credentials: linkCredentials(options, options.listen.host, log),
    overwriteDisks: options.overwriteDisk,
    timings: {
      ...DEFAULT_TIMINGS,
      ...peerTimings(options),
    },
    fence: fenceOptions(options),
    traceFile: options.trace ?? null,
    log,
  });
  agent = running;
  const watchdog = armWatchdog(options, log);
  const control = await ControlServer.listen(options.control ?? defaultControlPath(options.vm, 'secondary'), {
    status: () => running.status(),
    failover: (force) => running.failover(isForced(force, options.vm)),
    stop: async () => {
      running.stop();
      return 'the standby ends; its VM is left as it stands';
    },
  });
  onTerminationSignal(() => running.stop());
  if (options.json) process.stdout.write(`${JSON.stringify({ listen: running.status().listen })}\n`);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    control.close();
  }
}

const OUTCOME_EXIT: Record<SecondaryOutcome['outcome'], number> = {
  stopped: EXIT.ok,
  'guest-shutdown': EXIT.ok,
  'vm-lost': EXIT.unavailable,
};

function report(options: SecondaryCliOptions, { outcome, reason }: SecondaryOutcome): void {
  if (options.json) process.stdout.write(`${JSON.stringify({ outcome, reason })}\n`);
  else process.stderr.write(`colo-agent: ${options.vm}: ${outcome}: ${reason}\n`);
  process.exitCode = OUTCOME_EXIT[outcome];
}
