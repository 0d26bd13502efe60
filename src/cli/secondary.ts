import { Command } from 'commander';
import { ControlServer } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import type { TlsCredentials } from '../agent/link-security.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import type { SecondaryAgentOptions } from '../agent/secondary-agent.ts';
import { Succession, type Successor } from '../agent/succession.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { defaultControlPath } from './control-path.ts';
import { type FenceCliOptions, fenceOptions, withFenceOptions } from './fence-options.ts';
import { collect, listenAddress, peerAddress } from './option-parsers.ts';
import { report } from './outcome.ts';
import { type PeerOptions, peerTimings, withPeerOptions } from './peer-options.ts';
import { type ProtectionOptions, protectionOf, withProtectionOptions } from './protection-options.ts';
import { linkCredentials, type SharedOptions, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { warnOfNoWitness, witnessOf } from './witness-options.ts';

interface SecondaryCliOptions
  extends SharedOptions,
    PeerOptions,
    ProtectionOptions,
    FenceCliOptions,
    WatchdogOptions {
  listen: HostPort;
  overwriteDisk: string[];
  peer?: HostPort;
}

export function secondaryCommand(): Command {
  const command = withWatchdogOptions(
    withFenceOptions(withPeerOptions(withSharedOptions(new Command('secondary')))),
  )
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
    .optionsGroup('After a take-over (docs/failover.md):')
    .option(
      '--peer <host:port>',
      'go on as the primary, and protect the VM again as soon as a standby listens there (default: stay alone)',
      peerAddress,
    );
  return withProtectionOptions(command).action(runSecondary);
}

async function runSecondary(options: SecondaryCliOptions): Promise<void> {
  let agent: Succession | null = null;
  const log = new Log(options.logLevel, () => ({
    vm: options.vm,
    ...(agent?.logContext ?? { role: 'secondary', epoch: undefined }),
  }));
  const hosts = [options.listen, ...(options.peer ? [options.peer] : [])].map(({ host }) => host);
  const credentials = linkCredentials(options, hosts, log);
  const standby = standbyOptions(options, credentials, log);
  warnOfNoWitness(standby);
  const running = await Succession.attach(standby, successorOf(options, credentials, log));
  agent = running;
  const watchdog = armWatchdog(options, log);
  const path = options.control ?? defaultControlPath(options.vm, 'secondary');
  const control = await ControlServer.listen(path, running);
  onTerminationSignal(() => running.end());
  if (options.json) process.stdout.write(`${JSON.stringify({ listen: running.listen })}\n`);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    control.close();
  }
}

function standbyOptions(
  options: SecondaryCliOptions,
  credentials: TlsCredentials | null,
  log: Log,
): SecondaryAgentOptions {
  const { exceptions } = protectionOf(options);
  return {
    ...witnessOf(options.vm, options),
    vm: options.vm,
    qmpPath: options.qmp,
    listen: options.listen,
    credentials,
    overwriteDisks: options.overwriteDisk,
    succeed: options.peer === undefined ? null : exceptions,
    timings: { ...DEFAULT_TIMINGS, ...peerTimings(options) },
    fence: fenceOptions(options),
    traceFile: options.trace ?? null,
    log,
  };
}

/** What it is as a primary; each time with a connection to the witness of its own. */
function successorOf(
  options: SecondaryCliOptions,
  credentials: TlsCredentials | null,
  log: Log,
): Successor | null {
  const { peer } = options;
  if (peer === undefined) return null;
  const protection = protectionOf(options);
  return () => ({
    ...witnessOf(options.vm, options),
    ...protection,
    vm: options.vm,
    qmpPath: options.qmp,
    peer,
    credentials,
    timings: { ...DEFAULT_TIMINGS, ...protection.timings, ...peerTimings(options) },
    traceFile: options.trace === undefined ? null : `${options.trace}.primary`,
    log,
  });
}
