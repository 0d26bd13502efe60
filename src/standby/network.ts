/** Netdevs: what a NIC is connected to on the standby's host. */
import { OptionValue } from './option-value.ts';
import type { Translation } from './translation.ts';

/** Whatever another process or a descriptor of the one that started QEMU holds up. */
const UNMOVABLE = 'use a tap, a bridge or user networking, and restart the VM';

/** `-netdev`, and `-nic`, which has the device's options in it too. */
export function translateNetdev(option: 'netdev' | 'nic', text: string, translation: Translation): string {
  const value = new OptionValue(text, 'type');
  const type = value.get('type') ?? '';
  const id = value.get('id') ?? value.get('ifname') ?? '';
  const where = `-${option} ${text}`;
  if (type === 'tap') translateTap(value, id, where, translation);
  else if (type === 'bridge')
    translation.differ(`netdev ${id}, bridge`, value.get('br') ?? 'br0', value.get('br') ?? 'br0', null);
  else if (type === 'user') {
    const forwards = value.get('hostfwd');
    if (forwards !== null) translation.differ(`netdev ${id}, forwarded ports`, forwards, forwards, null);
  } else if (['socket', 'stream', 'dgram'].includes(type)) translateSocket(value, id, where, translation);
  else if (type !== 'none' && type !== 'hubport')
    translation.refuse(where, `what '${type}' connects to can't be found on another host`, UNMOVABLE);
  return value.toString();
}

function translateTap(value: OptionValue, id: string, where: string, translation: Translation): void {
  const chosen = translation.choices.taps.get(id);
  const primary = value.get('ifname');
  const opened = ['fd', 'fds'].some((key) => value.get(key) !== null);
  if (opened) {
    // libvirt opens the taps and gives QEMU their descriptors.
    if (chosen === undefined) {
      return void translation.refuse(
        where,
        'its tap was opened by whoever started QEMU, and has no name here',
        `say which interface it has on the standby's host: --tap ${id}=IFNAME`,
      );
    }
    const queues = value.get('fds')?.split(':').length ?? 1;
    value.delete('fd', 'fds', 'vhostfd', 'vhostfds');
    if (queues > 1) value.set('queues', queues);
    // Without these QEMU would run /etc/qemu-ifup, which the primary's didn't.
    value.set('script', 'no');
    value.set('downscript', 'no');
  }
  const ifname = chosen ?? primary;
  if (ifname === null) {
    return void translation.refuse(
      where,
      'QEMU chose the name of its tap',
      `say which interface it has on the standby's host: --tap ${id}=IFNAME`,
    );
  }
  value.set('ifname', ifname);
  translation.differ(`netdev ${id}, tap`, primary ?? 'a descriptor', ifname, `--tap ${id}=IFNAME`);
  for (const key of ['script', 'downscript']) {
    const script = value.get(key);
    if (script !== null && script !== 'no') value.set(key, translation.need(`netdev ${id}, ${key}`, script));
  }
}

function translateSocket(value: OptionValue, id: string, where: string, translation: Translation): void {
  if (value.keys().some((key) => key === 'fd' || key.endsWith('.str'))) {
    translation.refuse(where, 'its socket was opened by whoever started QEMU', UNMOVABLE);
    return;
  }
  const file = value.get('addr.path');
  if (file !== null && value.get('server') === 'on')
    value.set('addr.path', translation.place(`netdev ${id}`, file));
  else translation.differ(`netdev ${id}`, value.toString(), value.toString(), null);
}
