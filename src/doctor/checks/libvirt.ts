/** What libvirt does with the domain beside the agents. */
import { customsOf, type DomainCustoms } from '../../libvirt/domain.ts';
import { type Check, type Finding, fail, NotAsked, ok, warn } from '../finding.ts';

export const libvirt: Check = {
  name: 'libvirt',
  title: 'what libvirt does with the domain by itself',
  fault: 'configuration',
  async run({ options: { domain } }) {
    if (domain === null) throw new NotAsked('no domain was named (--libvirt)');
    if (domain.trouble !== null) return fail(domain.trouble, 'docs/libvirt.md tells what a domain needs');
    return judgeCustoms(domain.name, await customsOf(domain.name));
  },
};

export function judgeCustoms(name: string, { autostart, onPoweroff, onReboot }: DomainCustoms): Finding {
  const found: string[] = [];
  const remedies: string[] = [];
  if (autostart) {
    found.push(
      `it starts ${name} with the host: after a failover that is a second one, beside the VM that has taken over`,
    );
    remedies.push(`virsh autostart --disable ${name}`);
  }
  if (onPoweroff !== 'destroy' || onReboot !== 'restart') {
    found.push(
      `on_poweroff is ${onPoweroff} and on_reboot ${onReboot}: libvirt ends or starts the QEMU by itself, whatever the agents do`,
    );
    remedies.push(`let them be destroy and restart (virsh edit ${name})`);
  }
  if (found.length > 0) return warn(found.join('; '), remedies.join('; '));
  return ok(`${name} has a monitor for colo-agent, and isn't started with its host`);
}
