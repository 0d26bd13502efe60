import { Command } from 'commander';
import { forbidCoreDumps } from '../agent/link-security.ts';
import { readConfig, type VmConfig } from '../daemon/config.ts';
import { type Examined, examine } from '../doctor/doctor.ts';
import type { DoctorOptions } from '../doctor/options.ts';
import { Patient } from '../doctor/patient.ts';
import { DAEMON_SOCKET } from './control-path.ts';
import {
  configuredOptions,
  type DoctorCliOptions,
  doctorOptions,
  withDoctorOptions,
} from './doctor-options.ts';
import { doctorText } from './doctor-text.ts';
import { CliError, EXIT } from './exit-codes.ts';
import { vmName } from './option-parsers.ts';
import { checkOptions, type RoleOptions } from './roles.ts';
import { CONFIG_FILE } from './serve.ts';
import { onTerminationSignal } from './signals.ts';
import { vmOptions } from './vm-options.ts';

interface Choice {
  all?: boolean;
  config: string;
}

export function doctorCommand(): Command {
  const command = new Command('doctor')
    .description(
      'Look at everything that a protection needs on this host and on its way to the other one, change nothing, and say what to do. ' +
        "Takes a VM's options from the daemon's configuration, or those of `primary` and `secondary`; what is not named is not asked",
    )
    .argument('[vm]', "one of the daemon's configuration, with the options that it has there", vmName)
    .option('--all', "every VM of the daemon's configuration, one after the other")
    .option('--config <file>', 'the configuration; conf.d/*.toml beside it is read, too', CONFIG_FILE);
  return withDoctorOptions(command).action(runDoctor);
}

async function runDoctor(
  vm: string | undefined,
  options: DoctorCliOptions & Choice,
  command: Command,
): Promise<void> {
  forbidCoreDumps();
  if (options.all) {
    if (vm !== undefined) throw new CliError(EXIT.usage, '--all is every VM: name none beside it');
    return examineAll(options, command);
  }
  if (vm === undefined) return examineOne(options, await doctorOptions(checked(options), null));
  const given = givenOptions(command);
  const all = optionsOf(configured(options, vm), given);
  const answers = given.listen !== undefined;
  return examineOne(options, { ...(await doctorOptions(all, options.control ?? DAEMON_SOCKET)), answers });
}

/** A reception holds the process until a signal ends it. */
async function examineOne({ json }: { json?: boolean }, options: DoctorOptions): Promise<void> {
  const patient = new Patient(options);
  const checks = await examine(patient);
  patient.close();
  process.stdout.write(json ? `${JSON.stringify({ checks })}\n` : doctorText(checks));
  process.exitCode = exitCodeFor(checks);
  onTerminationSignal(() => patient.reception?.close());
}

async function examineAll(options: DoctorCliOptions & Choice, command: Command): Promise<void> {
  const given = givenOptions(command);
  const vms: { vm: string; checks: Examined[] }[] = [];
  for (const vm of readConfig(options.config, vmOptions()).vms.values()) {
    const all = optionsOf(vm, given);
    const patient = new Patient(await doctorOptions(all, options.control ?? DAEMON_SOCKET));
    const checks = await examine(patient);
    patient.close();
    const head = `${vms.length === 0 ? '' : '\n'}${vm.name}:\n`;
    if (!options.json) process.stdout.write(head + doctorText(checks));
    vms.push({ vm: vm.name, checks });
  }
  if (options.json) process.stdout.write(`${JSON.stringify({ vms })}\n`);
  process.exitCode = exitCodeFor(vms.flatMap(({ checks }) => checks));
}

function checked(options: DoctorCliOptions): DoctorCliOptions {
  checkOptions(options as RoleOptions);
  return options;
}

/** Throws ConfigError, and CliError for a VM that isn't there. */
function configured({ config }: Choice, vm: string): VmConfig {
  const { vms } = readConfig(config, vmOptions());
  const found = vms.get(vm);
  if (found !== undefined) return found;
  const names = vms.size === 0 ? 'it has none' : `it has ${[...vms.keys()].join(', ')}`;
  throw new CliError(
    EXIT.usage,
    `${config} has no VM \`${vm}\`: ${names}; name it with --vm, and give its options`,
  );
}

/** What was typed goes before what stands in the configuration. */
function optionsOf(vm: VmConfig, given: Partial<DoctorCliOptions>): DoctorCliOptions {
  const { qmp, libvirt, ...others } = configuredOptions(vm);
  const found = given.qmp ?? given.libvirt;
  const named = found === undefined ? { ...(qmp && { qmp }), ...(libvirt && { libvirt }) } : {};
  return checked({ ...others, ...named, ...given });
}

function givenOptions(command: Command): Partial<DoctorCliOptions> {
  const given = Object.entries(command.opts()).filter(
    ([name]) => command.getOptionValueSource(name) === 'cli' && name !== 'control',
  );
  return Object.fromEntries(given) as Partial<DoctorCliOptions>;
}

/** Something that a person has to set right comes before something that may be there later. */
export function exitCodeFor(examined: readonly Pick<Examined, 'verdict' | 'fault'>[]): number {
  const faults = examined.filter(({ verdict }) => verdict === 'fail').map(({ fault }) => fault);
  if (faults.length === 0) return EXIT.ok;
  return faults.includes('configuration') ? EXIT.configuration : EXIT.unavailable;
}
