import { Command } from 'commander';
import { ControlServer } from '../agent/control-server.ts';
import { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import { SecondaryAgent, type SecondaryOutcome } from '../agent/secondary-agent.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { defaultControlPath } from './control-path.ts';
import { EXIT } from './exit-codes.ts';
import { collect, integer, listenAddress } from './option-parsers.ts';
import { linkCredentials, type SharedOptions, withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';

interface SecondaryCliOptions extends SharedOptions {
  listen: HostPort;
  autoFailover: boolean;
  peerTimeout: number;
  overwriteDisk: string[];
}

export function secondaryCommand(): Command {
  return withSharedOptions(new Command('secondary'))
    .description('Be the standby: hold the last checkpoint in a VM started with -S, and take it over')
    .requiredOption(
      '--listen <host:port>',
      'where the primary connects to (port 0: any free one)',
      listenAddress,
    )
    .option(
      '--auto-failover',
      'take over by itself when the primary is lost. Safe only with a witness, which this version does not have yet: a cut ' +
        'link alone makes both VMs run. For trials on one host, or where a person watches',
      false,
    )
    .option(
      '--peer-timeout <ms>',
      'a primary that says nothing for so long is lost',
      integer(200, 600_000),
      DEFAULT_TIMINGS.peerTimeoutMs,
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
  const running = await SecondaryAgent.attach({
    vm: options.vm,
    qmpPath: options.qmp,
    listen: options.listen,
    credentials: linkCredentials(options, options.listen.host, log),
    autoFailover: options.autoFailover,
    overwriteDisks: options.overwriteDisk,
    timings: {
      ...DEFAULT_TIMINGS,
      peerTimeoutMs: options.peerTimeout,
      heartbeatMs: Math.min(DEFAULT_TIMINGS.heartbeatMs, options.peerTimeout / 4),
    },
    traceFile: options.trace ?? null,
    log,
  });
  agent = running;
  const control = await ControlServer.listen(options.control ?? defaultControlPath(options.vm, 'secondary'), {
    status: () => running.status(),
    failover: () => running.failover(),
    stop: async () => {
      running.stop();
      return 'the standby ends; its VM is left as it stands';
    },
  });
  onTerminationSignal(() => running.stop());
  if (options.json) process.stdout.write(`${JSON.stringify({ listen: running.status().listen })}\n`);
  try {
    report(options, await running.run());
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
