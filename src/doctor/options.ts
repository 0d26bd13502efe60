/** What the doctor is told: a plain object, whoever makes it of a command line or of a file. */

import type { WitnessChoice } from '../agent/arbitration.ts';
import type { HostPort } from '../agent/peer-address.ts';
import type { AcceptedExceptions } from '../vm/preflight.ts';

export type Role = 'primary' | 'secondary';

export interface DoctorOptions {
  /** Of colo-agent, for the peer's doctor. */
  version: string;
  /** Null: whatever our certificate is for. */
  vm: string | null;
  /** Null: by what else is said, or by the VM's state. */
  role: Role | null;
  qmpPath: string | null;
  /** The VM's, where it was named by one of libvirt's; `trouble`: why that has led to no QMP socket. */
  domain: { name: string; trouble: string | null } | null;
  /** Where the other host's agent, or its doctor, listens. */
  peer: HostPort | null;
  /** Where this doctor is to answer the other host's, or its VM's agent to listen. */
  listen: HostPort | null;
  /** Whether it answers there until it is ended; otherwise it sees whether somebody could. */
  answers: boolean;
  /** Null: plain text. */
  tls: { folder: string; peerName: string } | null;
  exceptions: AcceptedExceptions;
  shadow: boolean;
  gateLimitBytes: number;
  /** For each disk. */
  diskBufferBytes: number;
  witness: WitnessOptions;
  /** What this host calls itself; null: a name that can't be one. */
  node: string | null;
  stateFolder: string;
  /** The device, or null. */
  watchdog: string | null;
  /** Whether the monitor is the one that the VM's agent has while it runs: nobody else is answered there then. */
  agentHasMonitor: boolean;
  /** Where an agent of that role would answer; null: nobody knows. */
  controlPath: (role: Role) => string | null;
}

export interface WitnessOptions {
  /** Empty where the witness is no etcd. */
  endpoints: readonly URL[];
  /** A choice of these endpoints, with a connection of its own, which the caller closes. Throws what an agent would end with. */
  open(endpoints: readonly URL[]): WitnessChoice;
}
