import { Command } from 'commander';
import { ControlServer } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { Succession, type Successor } from '../agent/succession.ts';
import { ServiceManager } from '../agent/systemd.ts';
import { defaultControlPath } from './control-path.ts';
import { withFenceOptions } from './fence-options.ts';
import { type MetricsShown, withMetrics } from './metrics.ts';
import { listenAddress, peerAddress } from './option-parsers.ts';
import { report } from './outcome.ts';
import { withPeerOptions } from './peer-options.ts';
import { showProgress } from './progress.ts';
import { withProtectionOptions } from './protection-options.ts';
import { checkOptions, primaryOf, type RoleOptions, standbyOf } from './roles.ts';
import { linkCredentials, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { qmpPathOf } from './which-vm.ts';
import { warnOfNoWitness } from './witness-options.ts';

interface PrimaryCliOptions extends RoleOptions, WatchdogOptions {
  peer: HostPort;
}

export function primaryCommand(): Command {
  const command = withWatchdogOptions(withPeerOptions(withSharedOptions(new Command('primary'))))
    .description('Protect the running VM behind a QMP socket: copy it to a standby, many times a second')
    .requiredOption('--peer <host:port>', "the standby's agent", peerAddress);
  withProtectionOptions(command)
    .optionsGroup('After a drill (docs/failover.md):')
    .option(
      '--listen <host:port>',
      'be the standby of the VM that was handed over, for the primary that connects there (default: end)',
      listenAddress,
    );
  return withFenceOptions(command).action(runPrimary);
}

async function runPrimary(options: PrimaryCliOptions): Promise<void> {
  checkOptions(options);
  const qmpPath = await qmpPathOf(options);
  await withMetrics(options, (shown) => protect(options, qmpPath, shown));
}

async function protect(options: PrimaryCliOptions, qmpPath: string, shown: MetricsShown): Promise<void> {
  let agent: Succession | null = null;
  const { vm, trace } = options;
  const log = new Log(options.logLevel, () => ({
    vm,
    ...(agent?.logContext ?? { role: 'primary', epoch: undefined }),
  }));
  const service = ServiceManager.find(log);
  const hosts = [options.peer, ...(options.listen ? [options.listen] : [])].map(({ host }) => host);
  const credentials = linkCredentials(options, hosts, log);
  const successor = primaryOf(options, { qmpPath, credentials, log, traceFile: trace ?? null }) as Successor;
  const traceFile = trace === undefined ? null : `${trace}.secondary`;
  const standIn = standbyOf(options, { qmpPath, credentials, log, traceFile });
  warnOfNoWitness(options);
  const running = await Succession.protect({ vm, log, standIn, successor });
  agent = running;
  shown(() => running.status());
  const watchdog = armWatchdog(options, log);
  const path = options.control ?? defaultControlPath(vm, 'primary');
  const control = await ControlServer.listen(path, running);
  onTerminationSignal(() => {
    service?.stopping('ending in good order');
    running.end();
  });
  service?.ready(`primary of VM ${vm}`);
  const progress = showProgress(() => running.status(), options.json === true);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    progress.end();
    control.close();
    service?.close();
  }
}
