/** Which of the doctor's lines would have told of an error: the one place that knows both. */
import { PreflightError } from '../vm/preflight.ts';
import { CHECK_NAMES, type CheckName } from './finding.ts';

const BY_NAME: ReadonlyMap<string, CheckName> = new Map([
  ['NotAStandbyError', 'run-state'],
  ['GenerationFileError', 'state-dir'],
  ['WitnessAccessError', 'witness'],
  ['DiskRecordError', 'replication'],
  ['LibvirtError', 'libvirt'],
  ['DomainUnavailableError', 'libvirt'],
  ['RamBlocksError', 'ptrace'],
]);

/** Native errors' codes, and the control server's. */
const BY_CODE: ReadonlyMap<string, CheckName> = new Map([
  ['ERR_COLO_CREDENTIALS', 'keys'],
  ['ERR_COLO_GUEST_MEMORY', 'ptrace'],
  ['ERR_COLO_INJECTION', 'ptrace'],
  ['ERR_COLO_LISTEN', 'listen'],
  ['ERR_COLO_MEMORY', 'memory'],
  ['ERR_COLO_PROCESS', 'ptrace'],
  ['ERR_COLO_UFFD_BUSY', 'userfaultfd'],
  ['ERR_COLO_UFFD_DENIED', 'ptrace'],
  ['ERR_COLO_UFFD_UNSUPPORTED', 'userfaultfd'],
  ['ERR_COLO_WATCHDOG', 'watchdog'],
  ['in-use', 'agent'],
]);

/** How an agent has ended. */
const BY_OUTCOME: ReadonlyMap<string, CheckName> = new Map([
  ['refused', 'witness'],
  ['stale-twin', 'witness'],
]);

/** Of an error that ended an agent, or kept it from beginning, or of its outcome. None: the doctor has no line for it. */
export function checksOf(failure: unknown): CheckName[] {
  if (failure instanceof PreflightError) {
    const checks = failure.problems.flatMap(({ check }) => (check === null ? [] : [check]));
    return [...new Set(checks)];
  }
  const { name, code, check, outcome, path, ...rest } = partsOf(failure);
  if (name === 'QmpError') return [rest['class'] === 'ConnectFailed' ? 'qmp' : 'qemu'];
  const ofOtherProcess = (code === 'EACCES' || code === 'EPERM') && String(path).startsWith('/proc/');
  const found =
    CHECK_NAMES.find((each) => each === check) ??
    BY_NAME.get(String(name)) ??
    BY_CODE.get(String(code)) ??
    BY_OUTCOME.get(String(outcome)) ??
    (ofOtherProcess ? 'ptrace' : undefined);
  return found === undefined ? [] : [found];
}

/** What sessions end with before they have begun, as a primary's state tells it. */
const BY_REASON: readonly (readonly [RegExp, CheckName])[] = [
  [/\bcan't reach the standby at /, 'peer'],
  [/^the secondary reports incompatible: /, 'match'],
];

/** Of the reason that a state has. */
export function checksOfReason(reason: string): CheckName[] {
  return BY_REASON.filter(([phrase]) => phrase.test(reason)).map(([, check]) => check);
}

/** What is said behind an error's text. */
export function hint(checks: readonly CheckName[]): string {
  if (checks.length === 0) return '';
  const names = checks.map((name) => `\`${name}\``).join(', ');
  return ` (doctor: ${names} ${checks.length === 1 ? 'tells' : 'tell'} more)`;
}

function partsOf(failure: unknown): Record<string, unknown> {
  if (typeof failure !== 'object' || failure === null) return {};
  const { name } = failure as { name?: unknown };
  return { ...failure, name };
}
