import { Command } from 'commander';
import { ControlServer, isForced } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { PrimaryAgent, type PrimaryAgentOptions } from '../agent/primary-agent.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { defaultControlPath } from './control-path.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { peerAddress } from './option-parsers.ts';
import { report } from './outcome.ts';
import { type PeerOptions, peerTimings, withPeerOptions } from './peer-options.ts';
import { showProgress } from './progress.ts';
import { type ProtectionOptions, protectionOf, withProtectionOptions } from './protection-options.ts';
import { linkCredentials, type SharedOptions, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { type Witnessed, warnOfNoWitness, witnessOf } from './witness-options.ts';

interface PrimaryCliOptions extends SharedOptions, PeerOptions, ProtectionOptions, WatchdogOptions {
  peer: HostPort;
}

export function primaryCommand(): Command {
  const command = withWatchdogOptions(withPeerOptions(withSharedOptions(new Command('primary'))))
    .description('Protect the running VM behind a QMP socket: copy it to a standby, many times a second')
    .requiredOption('--peer <host:port>', "the standby's agent", peerAddress);
  return withProtectionOptions(command).action(runPrimary);
}

async function runPrimary(options: PrimaryCliOptions): Promise<void> {
  let agent: PrimaryAgent | null = null;
  const log = new Log(options.logLevel, () => ({
    vm: options.vm,
    role: 'primary',
    epoch: agent?.epoch,
  }));
  const protection = protectionOf(options);
  const witnessed = witnessOf(options.vm, options);
  warnOfNoWitness(witnessed);
  const running = await PrimaryAgent.attach(agentOptions(options, protection, witnessed, log));
  agent = running;
  const watchdog = armWatchdog(options, log);
  const control = await ControlServer.listen(options.control ?? defaultControlPath(options.vm, 'primary'), {
    status: () => running.status(),
    failover: async () => {
      throw new CliError(EXIT.unavailable, 'this is the primary: run failover on the standby');
    },
    stop: async (force) => running.stop(isForced(force, options.vm)),
  });
  onTerminationSignal(() => void running.stop());
  const progress = showProgress(() => running.status(), options.json === true);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    progress.end();
    control.close();
  }
}

function agentOptions(
  options: PrimaryCliOptions,
  protection: ReturnType<typeof protectionOf>,
  witnessed: Witnessed,
  log: Log,
): PrimaryAgentOptions {
  return {
    ...witnessed,
    ...protection,
    vm: options.vm,
    qmpPath: options.qmp,
    peer: options.peer,
    credentials: linkCredentials(options, [options.peer.host], log),
    timings: { ...DEFAULT_TIMINGS, ...protection.timings, ...peerTimings(options) },
    tookOver: false,
    forced: false,
    traceFile: options.trace ?? null,
    log,
  };
}
