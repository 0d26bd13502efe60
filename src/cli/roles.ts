/** What the options of `primary` and `secondary` make of an agent, which may be the one and then the other; each time with a connection to the witness of its own. */
import type { TlsCredentials } from '../agent/link-security.ts';
import type { Log } from '../agent/log.ts';
import type { HostPort } from '../agent/peer-address.ts';
import type { PrimaryAgentOptions } from '../agent/primary-agent.ts';
import type { SecondaryAgentOptions } from '../agent/secondary-agent.ts';
import { DEFAULT_TIMINGS } from '../protocol/machine.ts';
import { type FenceCliOptions, fenceOptions } from './fence-options.ts';
import { type PeerOptions, peerTimings } from './peer-options.ts';
import { type ProtectionOptions, protectionOf } from './protection-options.ts';
import type { SharedOptions } from './shared-options.ts';
import { witnessOf } from './witness-options.ts';

export interface RoleOptions extends SharedOptions, PeerOptions, ProtectionOptions, FenceCliOptions {
  listen?: HostPort;
  peer?: HostPort;
  overwriteDisk?: string[];
}

export interface Surroundings {
  qmpPath: string;
  credentials: TlsCredentials | null;
  log: Log;
  traceFile: string | null;
}

/** Before anything is looked at on this host. Throws CliError for options that contradict each other. */
export function checkOptions(options: RoleOptions): void {
  protectionOf(options);
  peerTimings(options);
}

/** Null where there is no peer to protect the VM at. */
export function primaryOf(
  options: RoleOptions,
  { qmpPath, credentials, log, traceFile }: Surroundings,
): (() => Omit<PrimaryAgentOptions, 'inherit'>) | null {
  const { peer } = options;
  if (peer === undefined) return null;
  const protection = protectionOf(options);
  const timings = { ...DEFAULT_TIMINGS, ...protection.timings, ...peerTimings(options) };
  return () => ({
    ...witnessOf(options.vm, options),
    ...protection,
    vm: options.vm,
    qmpPath,
    peer,
    standsByLater: options.listen !== undefined,
    credentials,
    timings,
    traceFile,
    log,
  });
}

/** Null where there is nowhere to listen. */
export function standbyOf(
  options: RoleOptions,
  { qmpPath, credentials, log, traceFile }: Surroundings,
): (() => SecondaryAgentOptions) | null {
  const { listen, peer } = options;
  if (listen === undefined) return null;
  const { exceptions } = protectionOf(options);
  const timings = { ...DEFAULT_TIMINGS, ...peerTimings(options) };
  return () => ({
    ...witnessOf(options.vm, options),
    vm: options.vm,
    qmpPath,
    listen,
    credentials,
    overwriteDisks: options.overwriteDisk ?? [],
    succeed: peer === undefined ? null : exceptions,
    timings,
    fence: fenceOptions(options),
    traceFile,
    log,
  });
}
