import { type Command, Option } from 'commander';
import {
  forbidCoreDumps,
  openCredentials,
  plainTextObjection,
  type TlsCredentials,
} from '../agent/link-security.ts';
import { LOG_LEVELS, type Log, type LogLevel } from '../agent/log.ts';
import type { HttpAddress } from '../http/address.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { httpAddress, vmName } from './option-parsers.ts';
import { type WhichVm, withWhichVm } from './which-vm.ts';
import { type WitnessCliOptions, withWitnessOptions } from './witness-options.ts';

export const CREDENTIALS_FOLDER = '/etc/colo-agent/tls';

export interface SharedOptions extends WitnessCliOptions, WhichVm {
  vm: string;
  control?: string;
  json?: boolean;
  trace?: string;
  metrics?: HttpAddress;
  tls: string;
  peerName: string;
  insecure: boolean;
  logLevel: LogLevel;
}

/** What `primary` and `secondary` have in common. */
export function withSharedOptions(command: Command): Command {
  const named = withWitnessOptions(command).requiredOption(
    '--vm <name>',
    "the VM's name, the same on both hosts",
    vmName,
  );
  return withWhichVm(named)
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
    .option(
      '--metrics <address>',
      'serve GET /metrics for Prometheus and GET /health at PORT of 127.0.0.1, at HOST:PORT, or at unix:PATH, to everybody who reaches it (docs/metrics.md)',
      httpAddress,
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
  const objection = plainTextObjection(hosts);
  if (objection !== null) throw new CliError(EXIT.usage, objection, 'keys');
  log.warn('--insecure: everybody on this host may talk to this agent');
  return null;
}
