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

/** An error whose text is for the user and whose code is the process's. */
export class CliError extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string) {
    super(message);
    this.exitCode = exitCode;
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
]);

const CONFIGURATION_ERRORS = new Set([
  'PreflightError',
  'NotAStandbyError',
  'GenerationFileError',
  'WitnessAccessError',
  'LibvirtError',
  'PlanError',
]);

/** The exit code for whatever went wrong. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (!(error instanceof Error)) return EXIT.internal;
  if (CONFIGURATION_ERRORS.has(error.name)) return EXIT.configuration;
  if (error.name === 'QmpError' || error.name === 'StartError' || error.name === 'PairingError')
    return EXIT.unavailable;
  const code = (error as { code?: unknown }).code;
  if (code === 'ERR_COLO_CREDENTIALS') return EXIT.configuration;
  if (typeof code !== 'string') return EXIT.internal;
  if (PERMISSION_CODES.has(code)) return EXIT.notPermitted;
  if (UNAVAILABLE_CODES.has(code)) return EXIT.unavailable;
  return EXIT.internal;
}
