import { type Command, Option } from 'commander';
import { LOG_LEVELS, type LogLevel } from '../agent/log.ts';
import { vmName } from './option-parsers.ts';
import { type WitnessCliOptions, withWitnessOptions } from './witness-options.ts';

export interface SharedOptions extends WitnessCliOptions {
  vm: string;
  qmp: string;
  control?: string;
  json?: boolean;
  trace?: string;
  logLevel: LogLevel;
}

/** What `primary` and `secondary` have in common. */
export function withSharedOptions(command: Command): Command {
  return withWitnessOptions(command)
    .requiredOption('--vm <name>', "the VM's name, the same on both hosts", vmName)
    .requiredOption('--qmp <socket>', "QEMU's QMP socket (unix)")
    .option(
      '--control <socket>',
      'where status, failover and stop reach this agent (default: /run/colo-agent/NAME-ROLE.sock)',
    )
    .option('--json', 'print JSON lines')
    .option(
      '--trace <file>',
      'write where the time of each checkpoint goes, for Perfetto or chrome://tracing (at most 256 MiB; the file is overwritten)',
    )
    .addOption(new Option('--log-level <level>', 'what goes to stderr').choices(LOG_LEVELS).default('warn'));
}
