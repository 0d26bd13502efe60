import { Command } from 'commander';
import { ControlServer } from '../agent/control-server.ts';
import { watchedBy } from '../agent/host-watchdog.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { type StandIn, Succession } from '../agent/succession.ts';
import { ServiceManager } from '../agent/systemd.ts';
import { defaultControlPath } from './control-path.ts';
import { withFenceOptions } from './fence-options.ts';
import { type MetricsShown, withMetrics } from './metrics.ts';
import { collect, listenAddress, peerAddress } from './option-parsers.ts';
import { report } from './outcome.ts';
import { withPeerOptions } from './peer-options.ts';
import { withProtectionOptions } from './protection-options.ts';
import { checkOptions, primaryOf, type RoleOptions, standbyOf } from './roles.ts';
import { linkCredentials, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { armWatchdog, type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { qmpPathOf } from './which-vm.ts';
import { warnOfNoWitness } from './witness-options.ts';

interface SecondaryCliOptions extends RoleOptions, WatchdogOptions {
  listen: HostPort;
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
  checkOptions(options);
  const qmpPath = await qmpPathOf(options);
  await withMetrics(options, (shown) => standBy(options, qmpPath, shown));
}

async function standBy(options: SecondaryCliOptions, qmpPath: string, shown: MetricsShown): Promise<void> {
  let agent: Succession | null = null;
  const { vm, trace } = options;
  const log = new Log(options.logLevel, () => ({
    vm,
    ...(agent?.logContext ?? { role: 'secondary', epoch: undefined }),
  }));
  const service = ServiceManager.find(log);
  const hosts = [options.listen, ...(options.peer ? [options.peer] : [])].map(({ host }) => host);
  const credentials = linkCredentials(options, hosts, log);
  const standIn = standbyOf(options, { qmpPath, credentials, log, traceFile: trace ?? null }) as StandIn;
  const traceFile = trace === undefined ? null : `${trace}.primary`;
  const successor = primaryOf(options, { qmpPath, credentials, log, traceFile });
  warnOfNoWitness(options);
  const running = await Succession.standBy({ vm, log, standIn, successor });
  agent = running;
  shown(() => running.status());
  const watchdog = armWatchdog(options, log);
  const path = options.control ?? defaultControlPath(vm, 'secondary');
  const control = await ControlServer.listen(path, running);
  onTerminationSignal(() => {
    service?.stopping('ending in good order');
    running.end();
  });
  service?.ready(`secondary of VM ${vm}`);
  if (options.json) process.stdout.write(`${JSON.stringify({ listen: running.listen })}\n`);
  try {
    report(options, await watchedBy(watchdog, () => running.run()));
  } finally {
    control.close();
    service?.close();
  }
}
