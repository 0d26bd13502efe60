import { Command, Option } from 'commander';
import { forbidCoreDumps } from '../agent/link-security.ts';
import { type Examined, examine } from '../doctor/doctor.ts';
import type { DoctorOptions, Role } from '../doctor/options.ts';
import { Patient } from '../doctor/patient.ts';
import { LibvirtError } from '../libvirt/libvirt-error.ts';
import { defaultControlPath } from './control-path.ts';
import { doctorText } from './doctor-text.ts';
import { EXIT } from './exit-codes.ts';
import { withFenceOptions } from './fence-options.ts';
import { collect, listenAddress, peerAddress } from './option-parsers.ts';
import { withPeerOptions } from './peer-options.ts';
import { protectionOf, withProtectionOptions } from './protection-options.ts';
import { checkOptions, type RoleOptions } from './roles.ts';
import { withSharedOptions } from './shared-options.ts';
import { onTerminationSignal } from './signals.ts';
import { type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { qmpPathOf } from './which-vm.ts';
import { nodeOf, witnessOf } from './witness-options.ts';

type DoctorCliOptions = Omit<RoleOptions, 'vm'> & WatchdogOptions & { vm?: string; role?: Role };

export function doctorCommand(version: string): Command {
  const command = withFenceOptions(
    withProtectionOptions(withWatchdogOptions(withPeerOptions(withSharedOptions(new Command('doctor'))))),
  )
    .description(
      'Look at everything that a protection needs on this host and on its way to the other one, change nothing, and say what to do. ' +
        'Takes the options of `primary` and `secondary`; what is not named is not asked',
    )
    .option('--peer <host:port>', "where the other host's agent, or its doctor, listens", peerAddress)
    .option(
      '--listen <host:port>',
      "answer the other host's doctor there, until SIGTERM or Ctrl-C: versions, machine, processor, clock, latency, bandwidth",
      listenAddress,
    )
    .addOption(
      new Option(
        '--role <role>',
        "what the VM is, or is to be, on this host (default: by the VM's state)",
      ).choices(['primary', 'secondary']),
    )
    .option('--overwrite-disk <id>', 'as for `secondary`', collect, []);
  // Whoever has no VM yet still wants to know about the rest.
  for (const option of command.options) option.mandatory = false;
  return command.action((options: DoctorCliOptions) => runDoctor(options, version));
}

async function runDoctor(options: DoctorCliOptions, version: string): Promise<void> {
  checkOptions(options as RoleOptions);
  forbidCoreDumps();
  const patient = new Patient(doctorOptions(options, version, await whereVm(options)));
  const examined = await examine(patient);
  patient.close();
  process.stdout.write(options.json ? `${JSON.stringify({ checks: examined })}\n` : doctorText(examined));
  process.exitCode = exitCodeFor(examined);
  // A reception holds the process until a signal ends it.
  onTerminationSignal(() => patient.reception?.close());
}

type WhereVm = Pick<DoctorOptions, 'qmpPath' | 'domain'>;

async function whereVm(options: DoctorCliOptions): Promise<WhereVm> {
  const { qmp, libvirt: name } = options;
  if (qmp === undefined && name === undefined) return { qmpPath: null, domain: null };
  if (name === undefined) return { qmpPath: await qmpPathOf(options), domain: null };
  try {
    return { qmpPath: await qmpPathOf(options), domain: { name, trouble: null } };
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    return { qmpPath: null, domain: { name, trouble: error.message } };
  }
}

/** Something that a person has to set right comes before something that may be there later. */
export function exitCodeFor(examined: readonly Pick<Examined, 'verdict' | 'fault'>[]): number {
  const faults = examined.filter(({ verdict }) => verdict === 'fail').map(({ fault }) => fault);
  if (faults.length === 0) return EXIT.ok;
  return faults.includes('configuration') ? EXIT.configuration : EXIT.unavailable;
}

function doctorOptions(options: DoctorCliOptions, version: string, where: WhereVm): DoctorOptions {
  const { vm = null, role = null, peer = null, listen = null, control } = options;
  const { exceptions, shadow, gateLimitBytes, diskBufferBytes } = protectionOf(options as RoleOptions);
  return {
    version,
    vm,
    role,
    ...where,
    peer,
    listen,
    tls: options.insecure ? null : { folder: options.tls, peerName: options.peerName },
    exceptions,
    shadow,
    gateLimitBytes,
    diskBufferBytes,
    witness: {
      endpoints: typeof options.witness === 'string' ? [] : options.witness,
      open: (endpoints) =>
        witnessOf(vm ?? '', {
          ...options,
          witness: typeof options.witness === 'string' ? options.witness : endpoints,
        }).witness,
    },
    node: nodeName(options),
    stateFolder: options.stateDir,
    watchdog: options.watchdog ?? null,
    controlPath: (of) => control ?? (vm === null ? null : defaultControlPath(vm, of)),
  };
}

function nodeName(options: DoctorCliOptions): string | null {
  try {
    return nodeOf(options);
  } catch {
    return null;
  }
}
