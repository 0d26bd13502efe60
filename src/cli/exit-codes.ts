import type { CheckName } from '../doctor/finding.ts';

/** Exit codes by sysexits.h, so that scripts and service managers can tell a wrong flag from a busy VM. */
export const EXIT = {
  ok: 0,
  usage: 64,
  unavailable: 69,
  internal: 70,
  tryAgain: 75,
  notPermitted: 77,
  configuration: 78,
} as const;

/** An error whose text is for the user and whose code is the process's. `check`: the doctor's line that would have told. */
export class CliError extends Error {
  readonly exitCode: number;
  readonly check: CheckName | null;

  constructor(exitCode: number, message: string, check: CheckName | null = null) {
    super(message);
    this.exitCode = exitCode;
    this.check = check;
  }
}

const PERMISSION_CODES = new Set(['EPERM', 'EACCES', 'ERR_COLO_UFFD_DENIED', 'not-permitted']);
const UNAVAILABLE_CODES = new Set([
  'ENOENT',
  'ECONNREFUSED',
  'EADDRINUSE',
  'ERR_COLO_LISTEN',
  'ERR_COLO_UFFD_BUSY',
  'ERR_COLO_UFFD_UNSUPPORTED',
  'interrupted',
  'ERR_COLO_SOCKET',
  'no-agent',
  'refused',
  'not-running',
  'in-use',
]);
const USAGE_CODES = new Set(['unknown-vm', 'which-vm']);

const CONFIGURATION_ERRORS = new Set([
  'PreflightError',
  'NotAStandbyError',
  'GenerationFileError',
  'WitnessAccessError',
  'ConfigError',
  'LibvirtError',
  'PlanError',
]);

const UNAVAILABLE_ERRORS = new Set([
  'QmpError',
  'PairingError',
  'HttpListenError',
  'StartError',
  'DomainUnavailableError',
]);

/** The exit code for whatever went wrong. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (!(error instanceof Error)) return EXIT.internal;
  if (CONFIGURATION_ERRORS.has(error.name)) return EXIT.configuration;
  if (UNAVAILABLE_ERRORS.has(error.name)) return EXIT.unavailable;
  const code = (error as { code?: unknown }).code;
  if (code === 'ERR_COLO_CREDENTIALS' || code === 'configuration') return EXIT.configuration;
  if (typeof code !== 'string') return EXIT.internal;
  if (USAGE_CODES.has(code)) return EXIT.usage;
  if (PERMISSION_CODES.has(code)) return EXIT.notPermitted;
  if (UNAVAILABLE_CODES.has(code)) return EXIT.unavailable;
  return EXIT.internal;
}
