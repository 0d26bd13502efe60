/** Which VM a command is about: by QEMU's own socket, or by the name that libvirt has for it. */
import type { Command } from 'commander';
import { findQmpSocket } from '../libvirt/domain.ts';
import { CliError, EXIT } from './exit-codes.ts';

export interface WhichVm {
  qmp?: string;
  libvirt?: string;
}

export function withWhichVm(command: Command): Command {
  return command
    .option('--qmp <socket>', "QEMU's QMP socket (unix)")
    .option(
      '--libvirt <domain>',
      'instead of --qmp: a domain of libvirt, with a monitor for the agent (docs/libvirt.md)',
    );
}

/** Throws CliError unless exactly one of the two is given, LibvirtError for a domain that can't be used. */
export async function qmpPathOf({ qmp, libvirt }: WhichVm): Promise<string> {
  if (qmp !== undefined && libvirt === undefined) return qmp;
  if (libvirt !== undefined && qmp === undefined) return findQmpSocket(libvirt);
  throw new CliError(EXIT.usage, 'give the VM, either by --qmp SOCKET or by --libvirt DOMAIN');
}
