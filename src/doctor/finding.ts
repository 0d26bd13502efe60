/** What a check comes to, and what a check is. */
import type { Patient } from './patient.ts';

/** `not asked`: what it would have looked at is out of reach, or nobody asked for it; it says nothing about the set-up. */
export type Verdict = 'ok' | 'warn' | 'fail' | 'not asked';

export interface Finding {
  verdict: Verdict;
  /** What was seen. Of what an agent would refuse, the agent's own words. */
  found: string;
  /** What a person can do about it; empty where nothing needs to be done. */
  remedy: string;
}

export interface Check {
  /** Stands in errors, scripts and docs: never renamed. */
  name: CheckName;
  title: string;
  /** What a failure is a sign of, for the exit code: of something that isn't there now, or of something that a person has to set right. */
  fault: 'unavailable' | 'configuration';
  /** For what an error of run() doesn't say itself. */
  remedy?: string;
  /** Neither stops nor changes the VM. Throws NotAsked; any other error is a failure, with its text. */
  run(patient: Patient): Promise<Finding>;
}

export const CHECK_NAMES = [
  'kernel',
  'agent',
  'libvirt',
  'qmp',
  'qemu',
  'run-state',
  'ptrace',
  'userfaultfd',
  'devices',
  'nics',
  'disks',
  'replication',
  'memory',
  'keys',
  'peer',
  'match',
  'cpu',
  'latency',
  'bandwidth',
  'mtu',
  'clock',
  'witness',
  'state-dir',
  'watchdog',
  'listen',
] as const;

export type CheckName = (typeof CHECK_NAMES)[number];

/** What a check needs can't be had, and another line says why; or nobody asked for it. */
export class NotAsked extends Error {
  override readonly name = 'NotAsked';
}

export const AGENT_HAS_MONITOR = 'the agent that runs here has the monitor';

/** Why a check isn't asked whose ground another one has found missing. */
export function needs(name: CheckName): string {
  return `it needs what \`${name}\` looks at`;
}

export function ok(found: string): Finding {
  return { verdict: 'ok', found, remedy: '' };
}

export function warn(found: string, remedy: string): Finding {
  return { verdict: 'warn', found, remedy };
}

export function fail(found: string, remedy: string): Finding {
  return { verdict: 'fail', found, remedy };
}
