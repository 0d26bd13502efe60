/** The options of the doctor: those of `primary` and `secondary`, of a command line or of the daemon's configuration. */
import { Command, Option } from 'commander';
import type { VmConfig } from '../daemon/config.ts';
import { agentSocket } from '../daemon/daemon.ts';
import type { DoctorOptions, Role } from '../doctor/options.ts';
import { LibvirtError } from '../libvirt/libvirt-error.ts';
import { defaultControlPath } from './control-path.ts';
import { withFenceOptions } from './fence-options.ts';
import { collect, listenAddress, peerAddress } from './option-parsers.ts';
import { withPeerOptions } from './peer-options.ts';
import { protectionOf, withProtectionOptions } from './protection-options.ts';
import type { RoleOptions } from './roles.ts';
import { withSharedOptions } from './shared-options.ts';
import { version } from './version.ts';
import { type WatchdogOptions, withWatchdogOptions } from './watchdog-options.ts';
import { qmpPathOf } from './which-vm.ts';
import { nodeOf, witnessOf } from './witness-options.ts';

export type DoctorCliOptions = Omit<RoleOptions, 'vm'> & WatchdogOptions & { vm?: string; role?: Role };

export function withDoctorOptions(command: Command): Command {
  withFenceOptions(withProtectionOptions(withWatchdogOptions(withPeerOptions(withSharedOptions(command)))))
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
  return command;
}

/** What stands in the configuration for the VM, as if it had been typed. */
export function configuredOptions({ role, args }: VmConfig): DoctorCliOptions {
  const command = withDoctorOptions(new Command('doctor'));
  const all = new Set([...(args.primary ?? []), ...(args.standby ?? [])]);
  const own = role === 'auto' ? [] : [`--role=${role === 'primary' ? 'primary' : 'secondary'}`];
  return command.parse([...all, ...own], { from: 'user' }).opts();
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

/** `daemon`: the control socket of the one whose agent the VM's is; null: it is no daemon's. */
export async function doctorOptions(
  options: DoctorCliOptions,
  daemon: string | null,
): Promise<DoctorOptions> {
  const { vm = null, role = null, peer = null, listen = null, control } = options;
  const { exceptions, shadow, gateLimitBytes, diskBufferBytes } = protectionOf(options as RoleOptions);
  const agentPath = (name: string, of: Role) =>
    daemon === null ? (control ?? defaultControlPath(name, of)) : agentSocket(daemon, name);
  return {
    version,
    vm,
    role,
    ...(await whereVm(options)),
    peer,
    listen,
    answers: daemon === null,
    agentHasMonitor: daemon !== null,
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
    controlPath: (of) => (vm === null ? (control ?? null) : agentPath(vm, of)),
  };
}

function nodeName(options: DoctorCliOptions): string | null {
  try {
    return nodeOf(options);
  } catch {
    return null;
  }
}
