/** `colo-agent protect VM --to HOST`: from a VM that runs to one that is PROTECTED, and nothing left behind where that can't be. */
import { Command } from 'commander';
import { sendCommand } from '../agent/control-client.ts';
import type { VmConfig } from '../daemon/config.ts';
import type { VmSummary } from '../daemon/vm-process.ts';
import { CHECKS, type Examined, examine } from '../doctor/doctor.ts';
import type { CheckName } from '../doctor/finding.ts';
import { Patient } from '../doctor/patient.ts';
import { awaitProtection } from './await-protection.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import { exitCodeFor } from './doctor.ts';
import { configuredOptions, doctorOptions } from './doctor-options.ts';
import { EXIT } from './exit-codes.ts';
import { vmName } from './option-parsers.ts';
import { givenKeys, type Standby, standbyAddress, withVmKeys } from './protect-options.ts';
import { type Plan, place, planFor, takeBack } from './protect-plan.ts';
import { beginning, failure, refusal, success, tell } from './protect-report.ts';

interface ProtectOptions {
  to?: Standby;
  wait: boolean;
  control: string;
  json?: boolean;
}

/** What fills the link, or is the other host's doctor's to answer, is for `doctor`. */
const LEFT_OUT: readonly CheckName[] = ['agent', 'listen', 'latency', 'bandwidth', 'mtu', 'clock', 'cpu'];

export function protectCommand(): Command {
  const command = new Command('protect')
    .description(
      'Have the daemon protect a VM that runs on this host: look at what that needs, write conf.d/VM.toml, and wait until it is PROTECTED. ' +
        'Where it fails, what was changed is put back',
    )
    .argument('<vm>', "the VM's name, the same on both hosts", vmName)
    .option(
      '--to <host[:port]>',
      'where its standby is (default port: the first from 7700 on that no other VM here has)',
      standbyAddress,
    )
    .option('--no-wait', "begin, and don't wait; also when the standby isn't there yet")
    .option('--control <socket>', "the daemon's control socket", DAEMON_SOCKET)
    .option('--json', 'print JSON lines: each state, and at last what came of it');
  return withVmKeys(command.optionsGroup('What the VM has in the configuration:')).action(runProtect);
}

async function runProtect(name: string, options: ProtectOptions, command: Command): Promise<void> {
  const { control, json = false } = options;
  const { file } = (await sendCommand(control, 'config')) as { file: string };
  const plan = planFor(file, name, options.to ?? null, givenKeys(command));
  const lacking = (await isAtWork(control, plan)) ? [] : await examined(plan.vm, control);
  const toCome = !options.wait && lacking.every(({ name: check }) => check === 'peer');
  if (lacking.length > 0 && !toCome) {
    process.exitCode = exitCodeFor(lacking);
    return tell(refusal(plan, lacking), json);
  }
  await place(plan, control);
  if (!options.wait) return tell(beginning(plan, lacking.length === 0), json);
  const summary = await awaitProtection(control, name, json);
  if (summary.state === 'PROTECTED') return tell(success(plan, summary), json);
  await takeBack(plan, control);
  process.exitCode = summary.state === 'REFUSED' ? EXIT.configuration : EXIT.unavailable;
  tell(failure(plan, summary), json);
}

/** Whether its agent runs already, as the configuration says: what was needed for that is there. */
async function isAtWork(control: string, { vm, text }: Plan): Promise<boolean> {
  if (text !== null) return false;
  const all = (await sendCommand(control, 'list')) as VmSummary[];
  return all.some((each) => each.vm === vm.name && each.agentPid !== null);
}

/** What stands against it, by the doctor's word. */
async function examined(vm: VmConfig, control: string): Promise<Examined[]> {
  const patient = new Patient(await doctorOptions({ ...configuredOptions(vm), role: 'primary' }, control));
  try {
    const all = await examine(
      patient,
      CHECKS.filter(({ name }) => !LEFT_OUT.includes(name)),
    );
    return all.filter(({ verdict }) => verdict === 'fail');
  } finally {
    patient.close();
  }
}
