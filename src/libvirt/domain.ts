/**
 * A VM that libvirt started, found by its domain's name.
 *
 * libvirt holds QEMU's first monitor, so the agent needs a second one. `virsh qemu-monitor-command` would reach the first, but not for this: each command is a process and a
 * trip through libvirtd (milliseconds, against tens of microseconds, and a checkpoint is made of a dozen), descriptors can't be passed, and events come by another way and
 * so in no order with the answers.
 */
import { readdir } from 'node:fs/promises';
import { optionValues } from '../vm/command-line.ts';
import { HostProcess } from '../vm/host-process.ts';
import { isLibvirts, monitorSockets } from '../vm/monitors.ts';
import { DomainUnavailableError, LibvirtError } from './libvirt-error.ts';
import { virsh } from './virsh.ts';
import { childrenOf, encoded, parseXml } from './xml.ts';

export interface Domain {
  name: string;
  uuid: string;
  type: string;
  /** What its XML adds to QEMU's command line. */
  extraArguments: string[];
}

/** What libvirt does with a domain by itself. */
export interface DomainCustoms {
  /** With its host. */
  autostart: boolean;
  /** As the XML has them: destroy, restart, preserve, rename-restart. */
  onPoweroff: string;
  onReboot: string;
}

/** Throws LibvirtError. */
export async function customsOf(name: string): Promise<DomainCustoms> {
  const [xml, info] = [readable(await virsh('dumpxml', name)), await virsh('dominfo', name)];
  const [onPoweroff = 'destroy'] = childrenOf(xml, 'on_poweroff').map(({ text }) => text.trim());
  const [onReboot = 'restart'] = childrenOf(xml, 'on_reboot').map(({ text }) => text.trim());
  return { autostart: /^Autostart: +enable/m.test(info), onPoweroff, onReboot };
}

/** Throws LibvirtError for what isn't a domain's XML. */
export function parseDomain(xml: string): Domain {
  const domain = readable(xml);
  const text = (name: string) => childrenOf(domain, name)[0]?.text.trim() ?? '';
  const extraArguments = childrenOf(domain, 'qemu:commandline')
    .flatMap((commandLine) => childrenOf(commandLine, 'qemu:arg'))
    .map(({ attributes }) => attributes['value'] ?? '');
  return { name: text('name'), uuid: text('uuid'), type: domain.attributes['type'] ?? '', extraArguments };
}

function readable(xml: string) {
  try {
    const root = parseXml(xml);
    if (root.name === 'domain') return root;
    throw new Error(`it describes a <${root.name}>`);
  } catch (error) {
    throw new LibvirtError(`virsh dumpxml gave no domain: ${(error as Error).message}`);
  }
}

/** The QMP socket of a domain that runs on this host. Throws LibvirtError that says what to do, where need be with the XML to add. */
export async function findQmpSocket(name: string): Promise<string> {
  const domain = parseDomain(await virsh('dumpxml', name));
  if (domain.type !== 'qemu' && domain.type !== 'kvm')
    throw new LibvirtError(`domain ${name} is of type ${domain.type}, not qemu or kvm`);
  const state = (await virsh('domstate', name)).trim();
  if (state === 'shut off' || state === 'crashed') {
    throw new DomainUnavailableError(
      `domain ${name} is ${state}: start it (virsh start ${name}; a standby with --paused), then try again`,
    );
  }
  const process = await processOf(domain.uuid);
  if (process === null) {
    throw new LibvirtError(
      `domain ${name} is ${state}, but no QEMU of its UUID ${domain.uuid} runs on this host: does LIBVIRT_DEFAULT_URI lead to another? ` +
        "The agent must run on the VM's host, as root",
    );
  }
  // What the process was started with, not what the XML says by now, is true of it.
  const [socket] = monitorSockets(await process.commandLine());
  if (socket === undefined) throw noMonitor(domain);
  return socket;
}

function noMonitor({ name, extraArguments }: Domain): LibvirtError {
  if (monitorSockets(extraArguments).length > 0) {
    return new LibvirtError(
      `domain ${name} has a monitor for colo-agent in its XML, but its QEMU was started before: shut it down and start it again`,
    );
  }
  return new LibvirtError(
    `domain ${name} has no QMP monitor but libvirt's own, which serves nobody else. Add this by 'virsh edit ${name}', then shut it down and ` +
      `start it again:\n${monitorXml(name)}\n` +
      'The line with xmlns goes into <domain ...>; without it libvirt drops the rest without a word. docs/libvirt.md says what else it does to such a domain',
  );
}

/** libvirt's own folder, where its QEMUs may write; under AppArmor they may only with a rule more (docs/libvirt.md). */
export function monitorPath(name: string): string {
  return `/var/lib/libvirt/qemu/${name}.monitor`;
}

export function monitorXml(name: string): string {
  const value = `unix:${monitorPath(name).replaceAll(',', ',,')},server=on,wait=off`;
  return [
    "  <domain ... xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
    '    ...',
    '    <qemu:commandline>',
    "      <qemu:arg value='-qmp'/>",
    `      <qemu:arg value='${encoded(value)}'/>`,
    '    </qemu:commandline>',
    '  </domain>',
  ].join('\n');
}

/** libvirt gives every QEMU the domain's UUID; its pid is nowhere to be asked for. `procFolder` is for tests. */
async function processOf(uuid: string, procFolder = '/proc'): Promise<HostProcess | null> {
  const pids = (await readdir(procFolder)).filter((entry) => /^\d+$/.test(entry)).map(Number);
  for (const pid of pids) {
    const process = new HostProcess(pid, procFolder);
    // One that ends meanwhile isn't the one.
    const commandLine = await process.commandLine().catch(() => []);
    // A standby of colo-agent's that was made from it has its UUID, too, but not libvirt's monitor.
    if (optionValues(commandLine, 'uuid').includes(uuid) && isLibvirts(commandLine)) return process;
  }
  return null;
}
