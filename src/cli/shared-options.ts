import { type Command, Option } from 'commander';
import { forbidCoreDumps, isLoopback, openCredentials, type TlsCredentials } from '../agent/link-security.ts';
import { LOG_LEVELS, type Log, type LogLevel } from '../agent/log.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { vmName } from './option-parsers.ts';
import { type VmOptions, withVmOptions } from './vm-options.ts';
import { type WitnessCliOptions, withWitnessOptions } from './witness-options.ts';

export const CREDENTIALS_FOLDER = '/etc/colo-agent/tls';

export interface SharedOptions extends WitnessCliOptions, VmOptions {
  vm: string;
  control?: string;
  json?: boolean;
  trace?: string;
  tls: string;
  peerName: string;
  insecure: boolean;
  logLevel: LogLevel;
}

/** What `primary` and `secondary` have in common. */
export function withSharedOptions(command: Command): Command {
  const vmOptions = withWitnessOptions(command).requiredOption(
    '--vm <name>',
    "the VM's name, the same on both hosts",
    vmName,
  );
  return withVmOptions(vmOptions)
    .option(
      '--control <socket>',
      'where status, failover, drill and stop reach this agent (default: /run/colo-agent/NAME-ROLE.sock)',
    )
    .option(
      '--tls <folder>',
      'who this host is and whom it trusts: certificate.pem, key.pem and trusted.pem, as `colo-agent pair` makes them',
      CREDENTIALS_FOLDER,
    )
    .option(
      '--peer-name <name>',
      "with a CA of your own: the host name or address that the peer's certificate must have (default: it must be for the VM)",
      '',
    )
    .option('--insecure', 'plain text, without any check of who talks; on loopback addresses only', false)
    .option('--json', 'print JSON lines')
    .option(
      '--trace <file>',
      'write where the time of each checkpoint goes, for Perfetto or chrome://tracing (at most 256 MiB; the file is overwritten)',
    )
    .addOption(new Option('--log-level <level>', 'what goes to stderr').choices(LOG_LEVELS).default('warn'));
}

/**
 * What the agent's connections are secured with, `hosts` being the addresses of its own side and of its peers that it knows of; null: nothing.
 * Throws CliError, and NativeError ERR_COLO_CREDENTIALS.
 */
export function linkCredentials(
  options: SharedOptions,
  hosts: readonly string[],
  log: Log,
): TlsCredentials | null {
  forbidCoreDumps();
  if (!options.insecure)
    return openCredentials({ vm: options.vm, folder: options.tls, peerName: options.peerName }, log);
  const reachable = hosts.find((host) => !isLoopback(host));
  if (reachable !== undefined) {
    throw new CliError(
      EXIT.usage,
      `--insecure is for loopback addresses (127.0.0.0/8 or ::1), not for ${reachable}: there anybody could read the guest's memory ` +
        'and replace it. Leave it out and run `colo-agent pair` on both hosts',
    );
  }
  log.warn('--insecure: everybody on this host may talk to this agent');
  return null;
}
