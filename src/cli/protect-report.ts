/** What `protect` says came of it: a line or a few for people, an object for scripts. */

import { vmTable } from '../daemon/vm-file.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import type { Examined } from '../doctor/doctor.ts';
import { checksOfReason, hint } from '../doctor/hints.ts';
import { findingsText } from './doctor-text.ts';
import type { Plan } from './protect-plan.ts';

/** What `protect --json` prints last. Scripts rely on these names. */
export interface ProtectReport {
  vm: string;
  /** `begun`: with --no-wait. `refused`: nothing was changed. `failed`: it was tried, and what was changed is as it was. */
  outcome: 'protected' | 'begun' | 'refused' | 'failed';
  /** The last state; null: it didn't come to any. */
  state: string | null;
  reason: string;
  peer: string;
  /** Where the VM is in the configuration, or would be. */
  file: string;
}

export interface Told {
  report: ProtectReport;
  text: string;
}

/** What went wrong is no result: stderr is for it. */
export function tell({ report, text }: Told, json: boolean): void {
  const wrong = report.outcome === 'refused' || report.outcome === 'failed';
  if (json) process.stdout.write(`${JSON.stringify(report)}\n`);
  else if (wrong) process.stderr.write(`colo-agent: ${text}\n`);
  else process.stdout.write(`${text}\n`);
}

export function success(plan: Plan, { state, reason }: VmSummary): Told {
  const report = reportOf(plan, 'protected', state, reason);
  return { report, text: `${report.vm} is PROTECTED, at ${report.peer}: ${reason}` };
}

export function beginning(plan: Plan, standbyThere: boolean): Told {
  const reason = standbyThere ? 'its protection begins' : 'it is protected as soon as its standby is there';
  const report = reportOf(plan, 'begun', null, reason);
  return { report, text: `${report.vm}: ${reason}${standbyThere ? '' : `\n${standbyText(plan)}`}` };
}

export function refusal(plan: Plan, lacking: readonly Examined[]): Told {
  const reason = lacking.map(({ name, found }) => `${name}: ${found}`).join('; ');
  const report = reportOf(plan, 'refused', null, reason);
  const wants = lacking.some(({ name }) => name === 'peer') ? `\n${standbyText(plan)}` : '';
  const head = `${report.vm} can't be protected, and nothing was changed; by the lines of \`colo-agent doctor\`:`;
  return { report, text: `${head}\n${findingsText(lacking)}${wants}` };
}

export function failure(plan: Plan, { state, reason, role }: VmSummary): Told {
  const report = reportOf(plan, 'failed', state, reason);
  const why = role === 'secondary' ? 'here it is the standby; ' : '';
  const told = `${why}${state}: ${reason}${hint(checksOfReason(reason))}`;
  return { report, text: `${report.vm} isn't protected: ${told}${leftText(plan)}` };
}

function leftText({ file, before, text }: Plan): string {
  if (text === null) return '';
  return before === null ? `; ${file} was taken away again` : `; ${file} is as it was`;
}

function reportOf(
  { vm, file }: Plan,
  outcome: ProtectReport['outcome'],
  state: string | null,
  reason: string,
): ProtectReport {
  return { vm: vm.name, outcome, state, reason, peer: peerOf({ vm }), file };
}

function peerOf({ vm }: Pick<Plan, 'vm'>): string {
  return String(vm.values.get('peer'));
}

/** What has to be on the other host. */
function standbyText({ vm }: Plan): string {
  const listen = vm.values.get('listen');
  const values: [string, unknown][] = [...Object.entries(vm.source), ['listen', peerOf({ vm })]];
  if (typeof listen === 'string') values.push(['peer', listen]);
  return [
    `On the standby's host there has to be a QEMU with the same command line, started with -S (\`colo-agent standby\` makes it), and in /etc/colo-agent/conf.d/${vm.name}.toml,`,
    'with the QMP socket or domain that it has there (then `colo-agent reload` on that host):',
    '',
    ...vmTable(vm.name, new Map(values)).map((line) => `    ${line}`),
  ].join('\n');
}
