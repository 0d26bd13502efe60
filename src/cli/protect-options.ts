/** The options of `protect` are a VM's keys in the configuration: those of `colo-agent primary`, as they are written, of which the file has what is given. */
import { isIPv6 } from 'node:net';
import path from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type HostPort, parseHostPort } from '../agent/peer-address.ts';
import type { DaemonConfig, VmConfig } from '../daemon/config.ts';
import { primaryCommand } from './primary.ts';

/** Where the standby is; without a port the first that is free (choosePort). */
export interface Standby {
  host: string;
  port: number | null;
}

/** `peer` is --to; the rest is the host's, or the daemon's to say. */
const NOT_KEYS = ['--vm', '--control', '--json', '--peer', '--node', '--state-dir', '--log-level'];

/** As the firewall's service has them (packaging/firewalld). */
const PORT_MIN = 7700;
const PORT_MAX = 7799;
/** Where hosts are paired. */
const PAIRING_PORT = 7701;

export function withVmKeys(command: Command): Command {
  for (const option of keyOptions()) command.addOption(option);
  return command;
}

/** What was given, by key: texts as they were written, whole numbers as such. */
export function givenKeys(command: Command): Map<string, unknown> {
  const given = keyOptions().filter(
    (option) => command.getOptionValueSource(option.attributeName()) === 'cli',
  );
  return new Map(given.map((option) => [keyOf(option), command.getOptionValue(option.attributeName())]));
}

function keyOptions(): Option[] {
  return primaryCommand()
    .options.filter(({ long }) => !NOT_KEYS.includes(long as string))
    .map(writtenAs);
}

/** The same option, whose value stays as it was written once it has been found right. */
function writtenAs(option: Option): Option {
  const same = new Option(option.flags, option.description);
  if (!option.required) return same;
  const several = Array.isArray(option.defaultValue);
  return same.argParser((text: string, before: unknown) => {
    option.parseArg?.(text, option.defaultValue);
    const value = NAMES_A_FILE.test(option.flags) ? path.resolve(text) : numberIn(text);
    return several ? [...((before as unknown[] | undefined) ?? []), value] : value;
  });
}

/** What is relative here would be another file to the daemon. */
const NAMES_A_FILE = /<(socket|file|folder|device)>/;

function numberIn(text: string): number | string {
  return /^(0|[1-9]\d{0,14})$/.test(text) ? Number(text) : text;
}

function keyOf({ long }: Option): string {
  return (long as string).replace(/^--(no-)?/, '');
}

/** HOST, HOST:PORT, or an IPv6 address with or without brackets. */
export function standbyAddress(text: string): Standby {
  const address = isIPv6(text) ? `[${text}]` : text;
  const portless = /^(\[[^\]]*\]|[^\s:[\]]+)$/.test(address);
  try {
    const { host, port } = parseHostPort(portless ? `${address}:${PORT_MIN}` : address);
    return { host, port: portless ? null : port };
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

/** The port that the VM has at that host already, or the first that no VM of this host uses, there or here: its standby's port can then be its own, after a failover. */
export function choosePort(config: DaemonConfig, vm: string, { host, port }: Standby): HostPort {
  if (port !== null) return { host, port };
  const known = addressIn(config.vms.get(vm), 'peer');
  if (known !== null && known.host === host) return known;
  const others = [...config.vms.values()].filter(({ name }) => name !== vm);
  const used = others.flatMap((other) => [addressIn(other, 'peer')?.port, addressIn(other, 'listen')?.port]);
  for (let free = PORT_MIN; free <= PORT_MAX; free++)
    if (free !== PAIRING_PORT && !used.includes(free)) return { host, port: free };
  throw new InvalidArgumentError(
    `name a port: those from ${PORT_MIN} to ${PORT_MAX} are all used by other VMs`,
  );
}

function addressIn(vm: VmConfig | undefined, key: 'peer' | 'listen'): HostPort | null {
  const text = vm?.values.get(key);
  return typeof text === 'string' ? parseHostPort(text, { portZero: true }) : null;
}
