/** The machine itself: it stays what it is, so most of this is about what of it can't be had on another host. */
import type { QemuOption } from './command.ts';
import { OptionValue } from './option-value.ts';
import type { Translation } from './translation.ts';

/** `q35` is another machine in each release of QEMU; the one that runs has a version. */
export function translateMachine(options: QemuOption[], { primary }: Translation): QemuOption[] {
  const isMachine = ({ name }: QemuOption) => name === 'machine' || name === 'M';
  const typed = options.findLast(
    (option) => isMachine(option) && new OptionValue(option.value ?? '', 'type').get('type') !== null,
  );
  if (!typed) return [{ name: 'machine', value: primary.machine }, ...options];
  return options.map((option) => {
    if (option !== typed) return option;
    const value = new OptionValue(option.value ?? '', 'type');
    value.set('type', primary.machine);
    return { ...option, value: value.toString() };
  });
}

const OUTSIDE = /^(vfio-|vhost-)/;
const REFUSED_DEVICES: ReadonlyMap<string, string> = new Map([
  ['usb-host', 'a USB device of this host'],
  ['scsi-block', 'a SCSI device of this host, whose writes pass by QEMU'],
  ['scsi-generic', 'a SCSI device of this host, whose writes pass by QEMU'],
  ['ivshmem-doorbell', "memory that other processes share, and a standby doesn't"],
  ['ivshmem-plain', "memory that other processes share, and a standby doesn't"],
]);

export function translateDevice(text: string, translation: Translation): string {
  const value = new OptionValue(text, 'driver');
  const driver = value.get('driver') ?? '';
  const reason = OUTSIDE.test(driver) ? 'a device that works outside QEMU' : REFUSED_DEVICES.get(driver);
  if (reason !== undefined) {
    translation.refuse(`-device ${text}`, `it is ${reason}`, 'use an emulated or a virtio device instead');
    return text;
  }
  return translateFiles(value, `device ${value.get('id') ?? driver}`, ['file', 'romfile'], translation);
}

/** `-fw_cfg`, `-smbios`, `-acpitable`: files that the machine is made of. */
export function translateTable(name: string, text: string, translation: Translation): string {
  // A table's text is its own; only where it comes from a file is there one to look for.
  const value = new OptionValue(text, name === 'fw_cfg' ? 'name' : '');
  return translateFiles(value, `-${name}`, ['file'], translation);
}

function translateFiles(value: OptionValue, what: string, keys: string[], translation: Translation): string {
  for (const key of keys) {
    const file = value.get(key);
    // Without a path it is one of QEMU's own, which it finds itself; an empty romfile is none.
    if (file?.includes('/')) value.set(key, translation.need(what, file));
  }
  return value.toString();
}

/** Null: the standby has no use for it. `others`: the whole command line's other values. */
export function translateObject(
  text: string,
  others: readonly string[],
  translation: Translation,
): string | null {
  const value = new OptionValue(text, 'qom-type');
  const type = value.get('qom-type') ?? '';
  const id = value.get('id') ?? '';
  if (type === 'memory-backend-file') translateMemoryFile(value, id, translation);
  else if (type === 'secret' && value.get('file') !== null)
    return translateSecret(value, id, others, translation);
  else if (type.startsWith('tls-creds-') || type === 'secret_keyring')
    return translateFiles(value, `object ${id}`, ['dir'], translation);
  return value.toString();
}

/** RAM in a file that two VMs share would be the end of both. */
function translateMemoryFile(value: OptionValue, id: string, translation: Translation): void {
  const primary = translation.absolute(value.get('mem-path') ?? '');
  const [hugePages] = /^\/dev\/hugepages[^/]*/.exec(primary) ?? [];
  // libvirt makes a folder in the mount for each domain; QEMU makes a file without a name in any.
  if (hugePages !== undefined) value.set('mem-path', translation.need(`memory ${id}`, hugePages));
  else if (primary.startsWith('/dev/shm/')) {
    // Where everybody may make files: in a folder that nobody else may enter, because QEMU makes it readable to all, and takes one that is there.
    const folder = `/dev/shm/colo-standby-${translation.choices.vm}`;
    const file = `${folder}/${id}`;
    translation.privateFolders.add(folder);
    translation.differ(`memory ${id}`, primary, file, null);
    value.set('mem-path', file);
  } else value.set('mem-path', translation.place(`memory ${id}`, primary, `${id}.ram`));
}

function translateSecret(
  value: OptionValue,
  id: string,
  others: readonly string[],
  translation: Translation,
): string | null {
  const file = value.get('file') ?? '';
  // libvirt's master key: made for each start, and needed only where there are other secrets.
  const used = others.some((other) => other.includes(id));
  if (!used) return null;
  if (id !== 'masterKey0') {
    value.set('file', translation.need(`secret ${id}`, file));
    return value.toString();
  }
  translation.refuse(
    `-object ${value}`,
    "it is the key that libvirt made for this start, and other secrets of the VM can't be read without it",
    'take away what needs a secret (an encrypted or a network disk, TLS with a passphrase, a VNC password)',
  );
  return null;
}
