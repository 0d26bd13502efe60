import { InvalidArgumentError } from 'commander';
import { type HostPort, parseHostPort } from '../agent/peer-address.ts';
import { type HttpAddress, parseHttpAddress } from '../http/address.ts';

/** A parser for commander: a whole number within [min, max]. */
export function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max)
      throw new InvalidArgumentError(`not a whole number from ${min} to ${max}`);
    return value;
  };
}

export function peerAddress(text: string): HostPort {
  return hostPort(text, false);
}

/** Port 0 lets the kernel choose; an empty host means every address. */
export function listenAddress(text: string): HostPort {
  return hostPort(text, true);
}

/** Goes into the code for the other host: an address, no "every address". */
export function pairingAddress(text: string): HostPort {
  const address = hostPort(text, true);
  if (address.host === '::') throw new InvalidArgumentError(`'${text}' names no host`);
  return address;
}

export function httpAddress(text: string): HttpAddress {
  return parsed(() => parseHttpAddress(text));
}

function hostPort(text: string, portZero: boolean): HostPort {
  return parsed(() => parseHostPort(text, { portZero }));
}

function parsed<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

/** `KEY=VALUE`, for an option that may be given several times. */
export function assignment(text: string, previous: ReadonlyMap<string, string>): Map<string, string> {
  const equals = text.indexOf('=');
  if (equals <= 0 || equals === text.length - 1) throw new InvalidArgumentError('it must be ID=VALUE');
  return new Map([...previous, [text.slice(0, equals), text.slice(equals + 1)]]);
}

/** For an option that may be given several times. */
export function collect(value: string, previous: string[]): string[] {
  return [...previous, value];
}

/** What names files and the protocol's VM id: short, and harmless in a path. */
export function vmName(text: string): string {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(text)) {
    throw new InvalidArgumentError(
      'a VM name is 1-63 letters, digits, dots, dashes or underscores, and begins with a letter or digit',
    );
  }
  return text;
}
